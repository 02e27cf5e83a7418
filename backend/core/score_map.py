"""From a score map to a prior: where the line between object and background runs in this very image."""

import math

from backend.core.arrays import Array, highest, logit, sigmoid

PEAK_PERCENT = 1.0
RELATIVE_THRESHOLD = 0.6
HIGHEST_THRESHOLD = 0.95
_EPSILON = 1e-4
_MANY = 2**14
"""Of a picture's pixels, not of a grid's patches."""


def map_peak(score_map: Array) -> float:
    """Return the peak of a score map: the mean of its highest percent, in [0, 1].

    Args:
        score_map: float32 in [0, 1] of any shape, not empty.
    """
    flat = score_map.reshape(-1)
    count = max(1, int(len(flat) * PEAK_PERCENT / 100))
    if len(flat) > _MANY:
        # All but the highest 3 percent of a sample need no sorting; where the sample misleads, all are sorted.
        sample = flat[::61]
        high = flat[flat >= highest(sample, 3 * len(sample) // 100).min()]
        flat = high if len(high) >= count else flat
    return float(highest(flat, count).mean())


def adaptive_threshold(peak: float) -> float:
    """Return the threshold between object and background in a score map with this `map_peak`, in [0, 1]."""
    return min(RELATIVE_THRESHOLD * peak, HIGHEST_THRESHOLD)


def recentre_log_odds(score_map: Array, peak: float) -> Array:
    """Shift a score map in log-odds so that its adaptive threshold becomes 0.5.

        prior = sigmoid(logit(q) - logit(adaptive_threshold(peak)))

    One threshold for all images is wrong: an object that looks unlike its reference has low odds all over, but still
    higher ones than its surroundings. The best threshold of an image grows with the map's peak (rank correlation 0.67
    over the evaluation's classes). Whether a low peak means that the object is absent is asked in `scoring.presence`.

    Args:
        score_map: float32 in [0, 1].
        peak: `map_peak` of it.

    Returns:
        float32 in [0, 1], same shape.
    """
    threshold = min(max(adaptive_threshold(peak), _EPSILON), 1 - _EPSILON)
    return sigmoid(logit(score_map, _EPSILON) - math.log(threshold / (1 - threshold)))
