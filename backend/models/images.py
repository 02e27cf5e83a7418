"""Images on their way to a model: check its layout, and resize it for a network."""

import cv2
import numpy as np

from backend.core.types import Image
from backend.errors import BadInputError


def require_rgb(image: Image) -> None:
    """Let an image of the right layout pass.

    Raises:
        BadInputError: it is not (H, W, 3) uint8, or empty.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise BadInputError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}; decode it as RGB")


def resize_rgb(image: Image, size_hw: tuple[int, int]) -> Image:
    """Resize an image, averaging if it shrinks in both directions.

    Args:
        image: (H, W, 3) uint8 RGB.
        size_hw: wanted size.

    Returns:
        (h, w, 3) uint8.

    Raises:
        BadInputError: not such an image.
    """
    require_rgb(image)
    height, width = size_hw
    shrinks = image.shape[0] > height and image.shape[1] > width
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)
