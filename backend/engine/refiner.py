"""The protocol of refiners, which change a mask pixel by pixel after the segmenter made it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backend.core.types import Image, Mask


class Refiner(Protocol):
    """Refines the masks of one label: for what a grid of patches is too coarse for, thin or textured things."""

    def refine(self, mask: Mask, posterior: NDArray[np.float32], image: Image) -> Mask:
        """Return the mask in place of `mask`.

        Args:
            mask: (H, W) bool at natural size, not empty.
            posterior: (H, W) float32 in [0, 1]: the foreground posterior, brought to natural size.
            image: (H, W, 3) uint8 RGB.
        """
        ...
