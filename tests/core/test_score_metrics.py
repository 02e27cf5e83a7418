"""Figures against their definitions."""

import itertools

import numpy as np
import pytest

from backend.core.score_metrics import area_under_roc, calibration_error, calibration_errors, worst_third


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


def test_errors_of_sets_that_cancel_out_are_seen_apart() -> None:
    groups = {"high": [(0.9, 0.7), (0.8, 0.6)], "low": [(0.5, 0.7)], "right": [(0.3, 0.3)], "silent": []}
    errors = calibration_errors(groups)
    assert errors == pytest.approx({"high": 0.2, "low": 0.2, "right": 0.0})


def test_worst_third_is_the_mean_of_the_highest() -> None:
    assert worst_third([0.1, 0.5, 0.2, 0.3, 0.0, 0.1]) == pytest.approx(0.4)
    assert worst_third([0.1, 0.2]) == pytest.approx(0.2)
    assert worst_third([]) is None
