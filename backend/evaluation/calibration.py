"""Fit a calibration: what can be measured on masks, against the IoU that they reach on annotated images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.core.calibration import EXPECTED_IOU, PRESENCE, Calibration, MaskFeatures, log_odds
from backend.core.masks import iou, mask_to_size
from backend.core.types import Reference
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError
from backend.evaluation.datasets import draw_absent_target, draw_episode, find_classes, read_image, read_mask
from backend.evaluation.metrics import area_under_roc, calibration_error

Floats = NDArray[np.float64]

FEWEST_ROWS = 20
"""Masks of present objects that a fit needs, and absent pairs; fewer say nothing about another image."""
_RIDGE = 0.1
_LEAST_LOSS = 0.02


@dataclass(frozen=True)
class Row:
    """One mask that was made of references, on one target.

    Attributes:
        group: what the row belongs to: a row is judged by a fit on the other groups.
        name: class or label.
        is_present: whether the target shows the object.
        reached: IoU with the target's mask; 0 if the object is absent.
        features: measurements on the mask.
    """

    group: str
    name: str
    is_present: bool
    reached: float
    features: MaskFeatures


@dataclass(frozen=True)
class Fit:
    """A calibration, and how it did on groups that took no part in the fit.

    Attributes:
        calibration: fitted on all rows.
        rows: number of rows with a mask.
        score_error: calibration error of the expected IoU, of present objects.
        score_auroc: area under the ROC curve of the expected IoU against IoU > 0.5.
        presence_auroc: the same of the presence probability against presence.
        former_score_error: calibration error with the calibration that was in use.
    """

    calibration: Calibration
    rows: int
    score_error: float | None
    score_auroc: float | None
    presence_auroc: float | None
    former_score_error: float | None


def collect_from_directory(
    engine: Softmatcher,
    directory: Path,
    *,
    seeds: Sequence[int] = (0, 1),
    targets: int = 4,
    shots: int = 1,
    on_class: Callable[[str, int], None] = lambda name, rows: None,
) -> list[Row]:
    """Predict targets of every class of a data set from its references, and half as many without the object.

    Raises:
        BadInputError: no data set in the directory.
    """
    classes = find_classes(directory)
    rows: list[Row] = []
    for one in classes:
        for seed in seeds:
            episode = draw_episode(one, shots=shots, seed=seed, limit=targets)
            references = [_describe(engine, path) for path in episode.references]
            drawn = [draw_absent_target(one, classes, seed=1000 + 10 * seed + n) for n in range(max(1, targets // 2))]
            absent = [path for path in drawn if path is not None]
            for path in [*episode.targets, *absent]:
                is_present = path in episode.targets
                target = engine.encode(read_image(path))
                found = engine.propose(target, [references], MatchOptions())[0]
                truth = read_mask(path)
                reached = iou(mask_to_size(found.mask, (truth.shape[0], truth.shape[1])), truth) if is_present else 0.0
                rows.append(Row(one.set_name, one.name, is_present, reached, found.features))
        on_class(one.name, len(rows))
    return rows


def fit_calibration(rows: Sequence[Row], *, fitted_for: str, fitted_on: str, former: Calibration) -> Fit:
    """Fit both logistic regressions: the IoU as a soft label over present objects, presence over all.

    Args:
        rows: of at least two groups.
        fitted_for: profile whose masks these are.
        fitted_on: in words.
        former: what is in use now, to compare with.

    Raises:
        BadInputError: too few rows to say anything.
    """
    used = [row for row in rows if row.features.area > 0]
    present = np.array([row.is_present for row in used], bool)
    counts = int(present.sum()), int((~present).sum())
    if min(counts) < FEWEST_ROWS:
        raise BadInputError(
            f"a calibration needs masks of at least {FEWEST_ROWS} images with the object and {FEWEST_ROWS} without, "
            f"got {counts[0]} and {counts[1]}; annotate more images, or keep the profile's own"
        )
    reached = np.array([row.reached for row in used])
    groups = np.array([row.group for row in used])
    is_present = present.astype(float)
    score_columns = _columns(used, EXPECTED_IOU)
    presence_columns = _columns(used, PRESENCE)
    # A lost mask costs its IoU; both sides weigh the same in all.
    loss = np.where(present, np.clip(reached, _LEAST_LOSS, 1.0), 1.0)
    loss /= np.where(present, loss[present].sum(), loss[~present].sum()) * 2 / len(used)
    calibration = Calibration(
        _named(EXPECTED_IOU, _logistic_regression(score_columns, reached, is_present)),
        _named(PRESENCE, _logistic_regression(presence_columns, is_present, loss)),
        fitted_for,
        fitted_on,
    )
    scores = _held_out(score_columns, reached, groups, is_present)[present]
    chances = _held_out(presence_columns, is_present, groups, loss)
    before = [former.expected_iou(row.features) for row in used if row.is_present]
    return Fit(
        calibration,
        len(used),
        calibration_error(list(scores), list(reached[present])),
        area_under_roc(list(scores), list(reached[present] > 0.5)),
        area_under_roc(list(chances), list(present)),
        calibration_error(before, list(reached[present])),
    )


def _describe(engine: Softmatcher, path: Path) -> Reference:
    image = read_image(path)
    return engine.describe(image, engine.encode(image), read_mask(path), is_complete=True)


def _columns(rows: Sequence[Row], names: Sequence[str]) -> Floats:
    def value(row: Row, name: str) -> float:
        if name == "constant":
            return 1.0
        found = float(getattr(row.features, name))
        return log_odds(found) if name == "foreground_posterior" else found

    return np.array([[value(row, name) for name in names] for row in rows])


def _named(names: Sequence[str], values: Floats) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in zip(names, values, strict=True)}


def _held_out(columns: Floats, wanted: Floats, groups: NDArray[np.str_], weights: Floats) -> Floats:
    found = np.zeros(len(columns))
    for name in np.unique(groups):
        own, others = groups == name, groups != name
        coefficients = _logistic_regression(columns[others], wanted[others], weights[others])
        found[own] = _sigmoid(columns[own] @ coefficients)
    return found


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -500, 500))))


def _logistic_regression(columns: Floats, wanted: Floats, weights: Floats) -> Floats:
    """Return the coefficients by Newton's method, with a ridge; labels may be soft."""
    coefficients = np.zeros(columns.shape[1])
    for _ in range(50):
        found = _sigmoid(columns @ coefficients)
        gradient = columns.T @ (weights * (found - wanted)) + _RIDGE * coefficients
        hessian = (columns * (weights * found * (1 - found))[:, None]).T @ columns + _RIDGE * np.eye(len(coefficients))
        coefficients -= np.linalg.solve(hessian, gradient)
    return coefficients
