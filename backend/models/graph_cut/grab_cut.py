"""GrabCut, set up so that the same image always gives the same mask.

Source: Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004, through OpenCV's implementation (Apache 2.0).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Image, Mask

MINIMUM_PX = 8
"""Pixels on each side below which nothing is cut: GrabCut fits five Gaussians to the colours of each."""


def grab_cut(image: Image, state: NDArray[np.uint8], rounds: int) -> Mask:
    """Let the colours decide about the pixels that are not sure.

    Args:
        image: (h, w, 3) uint8 RGB.
        state: (h, w) of OpenCV's `GC_FGD`, `GC_BGD`, `GC_PR_FGD` and `GC_PR_BGD`; it is written to.
        rounds: each fits the colours again and cuts again.

    Returns:
        (h, w) bool; the foreground of the given state if every pixel is sure, or if a side has too few pixels.
    """
    foreground = int(np.count_nonzero(state & 1))  # GC_FGD and GC_PR_FGD are odd
    is_unsure = (state == cv2.GC_PR_FGD) | (state == cv2.GC_PR_BGD)
    if is_unsure.any() and min(foreground, state.size - foreground) >= MINIMUM_PX:
        # k-means inside GrabCut draws from a generator of this thread: the same image must give the same mask.
        cv2.setRNGSeed(0)
        cv2.grabCut(image, state, None, np.zeros((1, 65)), np.zeros((1, 65)), rounds, cv2.GC_INIT_WITH_MASK)
    return np.asarray(state & 1, bool)
