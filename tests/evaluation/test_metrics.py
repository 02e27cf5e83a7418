"""Figures against their definitions."""

import itertools

import numpy as np
import pytest

from backend.evaluation.metrics import area_under_roc, calibration_error


def test_auroc_equals_its_definition_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 40) / 5, rng.random(40) > 0.6
    pairs = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(scores[positive], scores[~positive])]
    assert area_under_roc(list(scores), list(positive)) == pytest.approx(np.mean(pairs))


def test_auroc_needs_both_kinds() -> None:
    assert area_under_roc([0.1, 0.9], [True, True]) is None
    assert area_under_roc([], []) is None


def test_a_score_equal_to_the_iou_is_calibrated() -> None:
    values = [0.0, 0.2, 0.55, 1.0]
    assert calibration_error(values, values) == pytest.approx(0)
    assert calibration_error([0.9, 0.9], [0.4, 0.6]) == pytest.approx(0.4)
    assert calibration_error([], []) is None
