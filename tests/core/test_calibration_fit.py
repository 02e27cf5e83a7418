"""Fits of a calibration: known coefficients come back, too few rows are refused."""

import numpy as np
import pytest

from backend.core.calibration import MaskFeatures, log_odds, logistic
from backend.core.calibration_fit import FEWEST_ROWS, Row, fit_calibration, fit_score_offset
from backend.errors import BadInputError
from backend.models.calibrations import read_calibration

FORMER = read_calibration("lite.json")


def rows(count: int, *, absent: int = 0, groups: int = 8, seed: int = 0) -> list[Row]:
    """Masks whose IoU is exactly what known coefficients say, and absent objects that look less alike."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count + absent):
        is_present = number < count
        similarity = float(rng.normal(0.7 if is_present else 0.2, 0.15))
        inside, outside, soft_iou, agreement = (float(value) for value in rng.uniform(0.05, 0.95, 4))
        features = MaskFeatures(similarity, 0.5, inside, outside, soft_iou, agreement, area=0.1)
        reached = logistic(-1.0 + 0.8 * log_odds(features.foreground_posterior) + 2.0 * features.agreement)
        made.append(Row(f"group {number % groups}", is_present, reached if is_present else 0.0, features))
    return made


def test_known_coefficients_come_back() -> None:
    fit = fit_calibration(rows(400, absent=200), fitted_for="lite", fitted_on="drawn", former=FORMER)
    weights = fit.calibration.expected_iou_weights
    assert weights["constant"] == pytest.approx(-1.0, abs=0.15)
    assert weights["foreground_posterior"] == pytest.approx(0.8, abs=0.1)
    assert weights["agreement"] == pytest.approx(2.0, abs=0.25)
    assert weights["soft_iou"] == pytest.approx(0.0, abs=0.15)
    assert np.abs(fit.expected - fit.reached).mean() < 0.02
    assert np.abs(fit.former - fit.reached).mean() > 0.05


def test_presence_is_told_from_absence_on_groups_that_took_no_part() -> None:
    fit = fit_calibration(rows(200, absent=100), fitted_for="lite", fitted_on="drawn", former=FORMER)
    assert fit.has_presence
    assert fit.chances[fit.present].mean() > 0.8
    assert fit.chances[~fit.present].mean() < 0.2


def test_presence_stays_as_it_was_if_nothing_is_known_to_be_absent() -> None:
    fit = fit_calibration(rows(60, absent=FEWEST_ROWS - 1), fitted_for="lite", fitted_on="drawn", former=FORMER)
    assert not fit.has_presence
    assert fit.calibration.presence_weights == FORMER.presence_weights
    assert fit.calibration.expected_iou_weights != FORMER.expected_iou_weights


def test_empty_masks_take_no_part() -> None:
    empty = [Row("group 0", True, 0.0, MaskFeatures(0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0))] * 30
    plain = fit_calibration(rows(60), fitted_for="lite", fitted_on="drawn", former=FORMER)
    with_empty = fit_calibration(rows(60) + empty, fitted_for="lite", fitted_on="drawn", former=FORMER)
    assert with_empty.calibration == plain.calibration


@pytest.mark.parametrize(("count", "groups"), [(FEWEST_ROWS - 1, 8), (FEWEST_ROWS + 5, 1)])
def test_too_few_rows_are_refused(count: int, groups: int) -> None:
    with pytest.raises(BadInputError, match=f"at least {FEWEST_ROWS} masks .* two images or more"):
        fit_calibration(rows(count, groups=groups), fitted_for="lite", fitted_on="drawn", former=FORMER)


def test_an_offset_that_many_masks_have_comes_back() -> None:
    expected = np.random.default_rng(0).uniform(0.1, 0.9, 500)
    reached = [logistic(log_odds(float(one)) - 1.5) for one in expected]
    assert fit_score_offset(list(expected), reached) == pytest.approx(-1.5, abs=0.05)


def test_few_masks_move_scores_little_and_none_not_at_all() -> None:
    offsets = [fit_score_offset([0.8] * count, [0.2] * count) for count in (0, 1, 5, 50)]
    assert offsets[0] == pytest.approx(0.0, abs=1e-9)
    assert 0 > offsets[1] > offsets[2] > offsets[3] > 2 * log_odds(0.2)
    assert offsets[1] > -0.7


@pytest.mark.parametrize("reached", [0.0, 1.0])
def test_an_offset_stays_finite_where_all_masks_are_perfect_or_wrong(reached: float) -> None:
    assert abs(fit_score_offset([0.5] * 20, [reached] * 20)) < 4
