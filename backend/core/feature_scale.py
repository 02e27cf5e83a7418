"""The scale of an encoder's similarities: what a cosine of two of its patches means."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEMPERATURE_IN_SPREADS, FLOOR_IN_SPREADS = 0.36, 0.18
"""Temperature over the standard deviation of patch similarities, and how many of these the floor is above their mean:
those of `lite`, whose temperature and floor were measured on data sets (docs/experiments.md)."""
MOST_PATCHES = 1024
LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class FeatureScale:
    """The scale of an encoder's similarities.

    Attributes:
        temperature: softmax scale, above 0.
        similarity_floor: cosine in [-1, 1] below which two patches have nothing in common; -1: no floor.
    """

    temperature: float
    similarity_floor: float = -1.0


def measure_scale(patches: NDArray[np.floating]) -> FeatureScale:
    """Return the scale that the patches of an image show.

    With m and s the mean and standard deviation of the cosines of all pairs, the temperature is `0.36 s` and the floor
    `m + 0.18 s`: encoders whose cosines are an affine function of one another get the same score maps.

    Args:
        patches: (T, D) float of unit length; of more than `MOST_PATCHES` some are taken.
    """
    some = patches[:: -(-len(patches) // MOST_PATCHES)].astype(np.float32)
    pairs = (some @ some.T)[np.triu_indices(len(some), 1)]
    if not pairs.size:
        return FeatureScale(TEMPERATURE_IN_SPREADS)
    spread = max(float(pairs.std()), LEAST_SPREAD)
    return FeatureScale(TEMPERATURE_IN_SPREADS * spread, float(pairs.mean()) + FLOOR_IN_SPREADS * spread)
