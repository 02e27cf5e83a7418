"""A score map turned into a mask that follows the image's edges: GrabCut started from the map.

Source: Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004, through OpenCV's implementation (Apache 2.0).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Image, Mask

FOREGROUND_PRIOR = 0.5
SURE_FOREGROUND_PRIOR = 0.9
SURE_BACKGROUND_PRIOR = 0.15
MINIMUM_PX = 8
"""GrabCut fits five Gaussians a side: fewer pixels than this are left as the prior has them."""


def cut_from_prior(image: Image, prior: NDArray[np.float32], *, iterations: int = 2) -> Mask:
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
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, state, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    cut: Mask = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    return cut
