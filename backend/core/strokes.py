"""Strokes kept apart: what each brush region painted, cropped and packed, where masks of all of them would be large."""

from collections.abc import Iterable

import cv2
import numpy as np

from backend.core.types import Mask, Stroke

MOST_STROKES = 48
MOST_STROKE_PX = 1 << 27
"""Bounds of what one label's strokes keep apart: their number, and the pixels of their bounding boxes (16 MB)."""


def mask_to_stroke(mask: Mask, *, left: int = 0, top: int = 0) -> Stroke | None:
    """Crop and pack a mask; return None if it is empty.

    Args:
        mask: (h, w) bool.
        left: of the mask in its image, px.
        top: likewise.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = crop.shape
    return Stroke(left + int(columns[0]), top + int(rows[0]), (height, width), int(crop.sum()), np.packbits(crop))


def stroke_mask(stroke: Stroke) -> Mask:
    """Unpack a stroke: (h, w) bool in its bounding box."""
    height, width = stroke.size_hw
    return np.unpackbits(stroke.bits, count=height * width).view(np.bool_).reshape(height, width)


def crop_to_stroke(mask: Mask, stroke: Stroke) -> Mask:
    """Return the view of an image's mask, (H, W) bool, that is under the stroke's bounding box."""
    height, width = stroke.size_hw
    return mask[stroke.top : stroke.top + height, stroke.left : stroke.left + width]


def paint_strokes(strokes: Iterable[Stroke], size_hw: tuple[int, int]) -> Mask:
    """Return the union of strokes, (H, W) bool."""
    painted = np.zeros(size_hw, np.bool_)
    for stroke in strokes:
        under = crop_to_stroke(painted, stroke)
        under |= stroke_mask(stroke)
    return painted


def connected_pieces(stroke: Stroke) -> list[Stroke]:
    """Split a stroke into its connected pieces; more than `MOST_STROKES` of them stay one."""
    mask = stroke_mask(stroke)
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if not 2 < count <= MOST_STROKES + 1:
        return [stroke]
    pieces = []
    for number in range(1, count):
        left, top, width, height = (int(one) for one in stats[number, : cv2.CC_STAT_AREA])
        crop = numbers[top : top + height, left : left + width] == number
        piece = mask_to_stroke(crop, left=stroke.left + left, top=stroke.top + top)
        assert piece is not None
        pieces.append(piece)
    return pieces


class StrokesApart:
    """Collects the strokes of one label, one region at a time; beyond the bounds none are kept apart."""

    def __init__(self) -> None:
        self._strokes: list[Stroke] = []
        self._is_over = False

    def add(self, mask: Mask) -> None:
        """Add what one region painted, (H, W) bool."""
        if not self._is_over:
            stroke = mask_to_stroke(mask)
            self.extend([] if stroke is None else [stroke])

    def extend(self, strokes: Iterable[Stroke]) -> None:
        """Add strokes that are cropped already."""
        self._strokes.extend(strokes)
        px = sum(stroke.size_hw[0] * stroke.size_hw[1] for stroke in self._strokes)
        if self._is_over or len(self._strokes) > MOST_STROKES or px > MOST_STROKE_PX:
            self._is_over = True
            self._strokes.clear()

    @property
    def strokes(self) -> tuple[Stroke, ...]:
        """Return all strokes that were added, or () if they are too many."""
        return tuple(self._strokes)
