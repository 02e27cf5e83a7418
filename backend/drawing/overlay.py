"""Masks drawn over their image: tinted areas, outlines, and the colour of a label."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from backend.core.types import Image, Mask

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

_COLOURS = ((228, 87, 46), (23, 190, 187), (255, 201, 20), (118, 176, 65), (137, 92, 196), (46, 134, 222))
_TINT = 0.4
"""Share of the colour in a tinted area."""


def colour_of(label: str) -> Colour:
    """Return a label's colour, the same wherever it is drawn."""
    return _COLOURS[int(hashlib.sha256(label.encode()).hexdigest(), 16) % len(_COLOURS)]


def draw_overlay(
    image: Image, *, tinted: Iterable[tuple[Mask, Colour]] = (), outlined: Iterable[tuple[Mask, Colour]] = ()
) -> Image:
    """Return an image with masks over it: first the tinted areas, then the outlines.

    Args:
        image: (H, W, 3) uint8 RGB, at the size to draw at.
        tinted: masks whose areas are tinted, (h, w) bool of the image's aspect ratio at any size.
        outlined: masks whose outline, 1 px inside of the mask, is drawn.
    """
    drawn = image.astype(np.float32)
    for mask, colour in tinted:
        inside = _scaled(mask, image)
        drawn[inside] = (1 - _TINT) * drawn[inside] + _TINT * np.array(colour, np.float32)
    for mask, colour in outlined:
        inside = _scaled(mask, image)
        padded = np.pad(inside, 1)
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        drawn[inside & ~core] = colour
    return drawn.clip(0, 255).astype(np.uint8)


def _scaled(mask: Mask, image: Image) -> NDArray[np.bool_]:
    height, width = image.shape[:2]
    picture = PillowImage.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize((width, height), PillowImage.Resampling.BOX)) > 127
