"""Fit a calibration: what can be measured on masks, against the IoU that they reached."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.core.calibration import EXPECTED_IOU, PRESENCE, Calibration, MaskFeatures, log_odds
from backend.errors import BadInputError

Floats = NDArray[np.float64]

FEWEST_ROWS = 20
"""Number of masks that a regression is fitted on at least; fewer say little of another image."""
OFFSET_SPREAD = 1.0
"""Standard deviation of the offsets of projects, in log-odds: how far few masks may move a project's scores. With 0.7
and 1.4 the classes of the evaluation sets have nearly the same calibration errors (`docs/quality.md`)."""
_RIDGE = 0.1
"""Keeps coefficients finite that the rows leave open."""
_LEAST_LOSS = 0.02
"""Weight of a mask that reaches no IoU: losing it costs next to nothing, but it is an object all the same."""


@dataclass(frozen=True)
class Row:
    """A mask that references gave on one target.

    Attributes:
        group: what the row belongs to, an image or a set: a row is predicted by a fit on the other groups.
        is_present: whether the target shows the object.
        reached: IoU with the target's own mask, in [0, 1]; 0 if the object is absent.
        features: measurements on the mask.
    """

    group: str
    is_present: bool
    reached: float
    features: MaskFeatures


@dataclass(frozen=True, eq=False)
class CalibrationFit:
    """A calibration, and what fits on the other groups say of each row.

    Attributes:
        calibration: fitted on all rows.
        reached: (N,) IoU of each mask of a present object.
        expected: (N,) expected IoU of it.
        chances: (M,) presence probability of each mask; empty if presence was not fitted.
        present: (M,) bool: whether its object is present.
        former: (N,) expected IoU by the calibration that was in use.
        groups: (N,) group of each mask of a present object.
    """

    calibration: Calibration
    reached: Floats
    expected: Floats
    chances: Floats
    present: NDArray[np.bool_]
    former: Floats
    groups: tuple[str, ...]

    @property
    def has_presence(self) -> bool:
        """Return whether presence was fitted: else its coefficients are those that were in use."""
        return len(self.chances) > 0


def fit_calibration(rows: Sequence[Row], *, fitted_for: str, fitted_on: str, former: Calibration) -> CalibrationFit:
    """Fit both logistic regressions: the IoU as a soft label over present objects, presence over all masks.

    Presence keeps its former coefficients if there are fewer than `FEWEST_ROWS` masks of absent objects.

    Args:
        rows: of at least two groups; those with empty masks are left out.
        fitted_for: profile whose masks these are.
        fitted_on: in words.
        former: the calibration in use.

    Raises:
        BadInputError: fewer than `FEWEST_ROWS` masks of present objects, or all of one group.
    """
    used = [row for row in rows if row.features.area > 0]
    found = [row for row in used if row.is_present]
    if len(found) < FEWEST_ROWS or len({row.group for row in found}) < 2:
        raise BadInputError(
            f"a calibration needs at least {FEWEST_ROWS} masks of objects that are there, on two images or more, got "
            f"{len(found)}; annotate more images, or keep the profile's own calibration"
        )
    reached = np.array([row.reached for row in found])
    equal = np.ones(len(found))
    columns = _columns(found, EXPECTED_IOU)
    iou_weights = _named(EXPECTED_IOU, _regression(columns, reached, equal))
    expected = _held_out(columns, reached, [row.group for row in found], equal)
    presence_weights = former.presence_weights
    chances: Floats = np.zeros(0)
    present = np.array([row.is_present for row in used], bool)
    if np.count_nonzero(~present) >= FEWEST_ROWS:
        columns, weights = _columns(used, PRESENCE), _losses(used)
        presence_weights = _named(PRESENCE, _regression(columns, present.astype(float), weights))
        chances = _held_out(columns, present.astype(float), [row.group for row in used], weights)
    return CalibrationFit(
        Calibration(iou_weights, presence_weights, fitted_for, fitted_on),
        reached,
        expected,
        chances,
        present,
        np.array([former.expected_iou(row.features) for row in found]),
        tuple(row.group for row in found),
    )


def fit_score_offset(expected: Sequence[float], reached: Sequence[float]) -> float:
    """Return the log-odds to add to the expected IoUs of a project, so that they agree with those that were reached.

    The likeliest offset, if offsets are normally distributed around 0 with `OFFSET_SPREAD`: few masks move it little,
    none leave it at 0. One number has no room to follow single images, as a regression on few of them would.

    Args:
        expected: n expected IoUs in [0, 1], without an offset.
        reached: n IoUs in [0, 1] that the masks reached.
    """
    known = np.array([log_odds(one) for one in expected], float)
    found = np.array(reached, float)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        # The derivative of the log-likelihood falls with the offset.
        if float((found - _sigmoid(known + middle)).sum()) - middle / OFFSET_SPREAD**2 > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _losses(rows: Sequence[Row]) -> Floats:
    # A lost mask costs its IoU, an invented one costs 1; both sides weigh the same in all.
    present = np.array([row.is_present for row in rows], bool)
    reached = np.array([row.reached for row in rows])
    loss = np.where(present, np.clip(reached, _LEAST_LOSS, 1.0), 1.0)
    return np.asarray(loss / (np.where(present, loss[present].sum(), loss[~present].sum()) * 2 / len(rows)))


def _columns(rows: Sequence[Row], names: Sequence[str]) -> Floats:
    def value(row: Row, name: str) -> float:
        if name == "constant":
            return 1.0
        found = float(getattr(row.features, name))
        return log_odds(found) if name == "foreground_posterior" else found

    return np.array([[value(row, name) for name in names] for row in rows])


def _named(names: Sequence[str], values: Floats) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in zip(names, values, strict=True)}


def _held_out(columns: Floats, wanted: Floats, groups: Sequence[str], weights: Floats) -> Floats:
    found, of = np.zeros(len(columns)), np.array(groups)
    for name in np.unique(of):
        own, others = of == name, of != name
        found[own] = _sigmoid(columns[own] @ _regression(columns[others], wanted[others], weights[others]))
    return found


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -500, 500))))


def _regression(columns: Floats, wanted: Floats, weights: Floats) -> Floats:
    """Return the coefficients of a logistic regression by Newton's method, with a ridge; labels may be soft."""
    coefficients = np.zeros(columns.shape[1])
    for _ in range(50):
        found = _sigmoid(columns @ coefficients)
        gradient = columns.T @ (weights * (found - wanted)) + _RIDGE * coefficients
        hessian = (columns * (weights * found * (1 - found))[:, None]).T @ columns + _RIDGE * np.eye(len(coefficients))
        coefficients -= np.linalg.solve(hessian, gradient)
    return coefficients
