"""Scribbles on images of other sizes."""

import numpy as np

from backend.core.masks import mask_to_size
from backend.core.types import Mask, Scribble


def scale_scribble(scribble: Scribble, size_hw: tuple[int, int]) -> Scribble:
    """Return the same scribble on the image at another size; a stroke never gets thinner than a pixel."""
    height, width = size_hw
    factor = np.array([width / scribble.size_hw[1], height / scribble.size_hw[0]], np.float32)
    return Scribble(
        size_hw,
        positive_xy=scribble.positive_xy * factor,
        negative_xy=scribble.negative_xy * factor,
        boxes_xyxy=scribble.boxes_xyxy * np.tile(factor, 2),
        positive_strokes=_scale_strokes(scribble.positive_strokes, size_hw),
        negative_strokes=_scale_strokes(scribble.negative_strokes, size_hw),
    )


def _scale_strokes(strokes: Mask | None, size_hw: tuple[int, int]) -> Mask | None:
    if strokes is None:
        return None
    scaled = np.zeros(size_hw, bool)
    y, x = np.nonzero(strokes)
    scaled[y * size_hw[0] // strokes.shape[0], x * size_hw[1] // strokes.shape[1]] = True
    if size_hw[0] > strokes.shape[0]:
        scaled |= mask_to_size(strokes, size_hw)
    return scaled
