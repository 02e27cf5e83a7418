"""Figures of an evaluation: pure functions over numbers."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np


def area_under_roc(scores: Sequence[float], is_positive: Sequence[bool]) -> float | None:
    """Return the chance that a positive scores higher than a negative, ties half; None without both kinds."""
    values, positive = np.asarray(scores, float), np.asarray(is_positive, bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return None
    order, counts = np.unique(values, return_inverse=True, return_counts=True)[1:]
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[order]
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def calibration_error(scores: Sequence[float], ious: Sequence[float], *, bins: int = 10) -> float | None:
    """Return the expected calibration error of scores that claim to be the expected IoU.

        sum_b n_b / n * | mean score in bin b - mean IoU in bin b |,     bins of equal width over [0, 1]

    None without any score.
    """
    if not scores:
        return None
    claimed, reached = np.asarray(scores, float), np.asarray(ious, float)
    owner = np.minimum((claimed * bins).astype(int), bins - 1)
    gaps = [abs(claimed[owner == b].sum() - reached[owner == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(claimed))


def calibration_errors(groups: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Return the calibration error of each group of (score, IoU); a group without any has none.

    The error over all groups hides that one is too high and another too low.
    """
    errors = {
        name: calibration_error([one for one, _ in some], [one for _, one in some]) for name, some in groups.items()
    }
    return {name: error for name, error in errors.items() if error is not None}


def worst_third(errors: Sequence[float]) -> float | None:
    """Return the mean of the highest third, of one value at least; None without any."""
    return statistics.fmean(sorted(errors)[-max(1, len(errors) // 3) :]) if errors else None
