"""A score map turned into a mask that follows the image's edges: GrabCut started from the map."""

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Image, Mask
from backend.models.graph_cut.grab_cut import grab_cut

FOREGROUND_PRIOR = 0.5
SURE_FOREGROUND_PRIOR = 0.668
SURE_BACKGROUND_PRIOR = 0.332
"""Colours decide only between these (log-odds of +-0.7): free to move further, GrabCut leaves the object for whatever
has its colours; docs/experiments.md has the figures."""


def cut_from_prior(image: Image, prior: NDArray[np.float32], *, iterations: int = 1) -> Mask:
    """Cut out what a score map shows.

    Args:
        image: (h, w, 3) uint8 RGB.
        prior: (h, w) float32 in [0, 1]; above 0.5 is more likely object than not.
        iterations: of GrabCut; each refits the colours and cuts again.

    Returns:
        (h, w) bool; empty where the prior nowhere exceeds 0.5.
    """
    state = np.where(prior > FOREGROUND_PRIOR, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    state[prior > SURE_FOREGROUND_PRIOR] = cv2.GC_FGD
    state[prior < SURE_BACKGROUND_PRIOR] = cv2.GC_BGD
    return grab_cut(image, state, iterations)
