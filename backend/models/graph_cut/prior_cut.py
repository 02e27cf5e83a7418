"""A score map turned into a mask that follows the image's edges: GrabCut started from the map.

Source: Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004, through OpenCV's implementation (Apache 2.0).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Image, Mask

FOREGROUND_PRIOR = 0.5
SURE_FOREGROUND_PRIOR = 0.668
SURE_BACKGROUND_PRIOR = 0.332
"""Colours decide only between these (log-odds of +-0.7): free to move further, GrabCut leaves the object for whatever
has its colours; docs/experiments.md has the figures."""
MINIMUM_PX = 8
"""GrabCut fits five Gaussians a side: fewer pixels than this are left as the prior has them."""


def cut_from_prior(image: Image, prior: NDArray[np.float32], *, iterations: int = 1) -> Mask:
    """Cut out what a prior shows.

    Args:
        image: (h, w, 3) uint8 RGB.
        prior: (h, w) float32 in [0, 1]; above 0.5 is more likely object than not.
        iterations: of GrabCut; each refits the colours and cuts again.

    Returns:
        (h, w) bool; empty where the prior nowhere exceeds 0.5.
    """
    likely = prior > FOREGROUND_PRIOR
    if min(int(likely.sum()), int((~likely).sum())) < MINIMUM_PX:
        return likely
    state = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    state[prior > SURE_FOREGROUND_PRIOR] = cv2.GC_FGD
    state[prior < SURE_BACKGROUND_PRIOR] = cv2.GC_BGD
    if not (state & 1).any() or not (~state & 1).any():  # GC_FGD and GC_PR_FGD are odd
        return likely
    models = np.zeros((1, 65)), np.zeros((1, 65))
    # k-means inside GrabCut draws from a generator of this thread: the same image must give the same mask.
    cv2.setRNGSeed(0)
    cv2.grabCut(image, state, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    cut: Mask = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    return cut
