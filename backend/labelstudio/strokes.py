"""Brush strokes as the editor keeps them in a draft (`touches`): drawn here as its export to RLE draws them.

Source: exportRLE in the editor's utils/canvas.js (Label Studio 1.23.2): each touch is a polyline through
`relativePoints` (percent of width and height) with round caps and joins, `relativeStrokeWidth` percent of the image's
width wide; touches are painted in order over the region's old mask, an eraser's cut it out ("destination-out").
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask
from backend.errors import BadInputError
from backend.labelstudio.budget import ReadingBudget

Point = NDArray[np.float64]
"""(2,) float64: x, y in px."""

_MOST_PERCENT = 1e3
"""Ten times the image: strokes may leave it, but what goes further only costs time."""
_SHORTEST_PIECE_PX = 64.0
_PIXELS_AT_ONCE = 1 << 20


def draw_touches(mask: Mask, touches: Sequence[Mapping[str, Any]], budget: ReadingBudget | None = None) -> Mask:
    """Draw all touches: each paints or erases the pixels whose centre is within half its width of its line.

    That is alpha > 127 of the editor's anti-aliased canvas, up to single pixels of the outline.

    Args:
        mask: (H, W) bool, the region's mask before; unchanged.
        touches: as in a draft's brush value.
        budget: of the annotation; one of its own if None.

    Raises:
        BadInputError: a touch without relativePoints or relativeStrokeWidth, or of an unknown type; or they cost more
            than the budget has.
    """
    if not isinstance(touches, list | tuple):
        raise BadInputError(f"value.touches must be a list, got {type(touches).__name__}: submit the annotation")
    height, width = mask.shape
    drawn = mask.copy()
    budget = budget or ReadingBudget()
    for touch in touches:
        points_xy, radius_px = _read_touch(touch, width, height, budget)
        is_eraser = touch.get("type") == "eraser"
        for start, end in pairwise(points_xy):
            for piece_start, piece_end in _split(start, end, radius_px):
                left, top, right, bottom = _bounds(mask.shape, piece_start, piece_end, radius_px)
                budget.spend(stroke_pixels=max(1, (right - left) * (bottom - top)))
                _paint_capsule(drawn, piece_start, piece_end, radius_px, paint=not is_eraser)
    return drawn


def _read_touch(touch: Mapping[str, Any], width: int, height: int, budget: ReadingBudget) -> tuple[Point, float]:
    try:
        budget.spend(points=1 + len(touch["relativePoints"]) // 2)
        percent = np.asarray(touch["relativePoints"], np.float64).reshape(-1, 2)
        width_percent = float(touch["relativeStrokeWidth"])
        if not len(percent) or not (np.abs(percent) < _MOST_PERCENT).all() or not 0 <= width_percent < _MOST_PERCENT:
            raise ValueError(f"{len(percent)} points, width {width_percent} %")
        if touch.get("type", "add") not in ("add", "eraser"):
            raise ValueError(f"type {touch['type']!r}")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise BadInputError(
            "a brush touch must have type 'add' or 'eraser', relativePoints [x%, y%, ...] and relativeStrokeWidth, got "
            f"{type(error).__name__}: {error}; submit the annotation, then the mask is complete"
        ) from error
    points_xy = percent * (width / 100, height / 100)
    return (points_xy if len(points_xy) > 1 else np.repeat(points_xy, 2, axis=0)), width_percent / 200 * width


def _split(start_xy: Point, end_xy: Point, radius_px: float) -> Iterator[tuple[Point, Point]]:
    """Split a segment into pieces about as long as the stroke is wide: else a bounding box can be the whole image."""
    pieces = math.ceil(float(np.hypot(*(end_xy - start_xy))) / max(2 * radius_px, _SHORTEST_PIECE_PX)) or 1
    return pairwise(start_xy + (end_xy - start_xy) * step for step in np.linspace(0, 1, pieces + 1))


def _paint_capsule(mask: Mask, start_xy: Point, end_xy: Point, radius_px: float, *, paint: bool) -> None:
    left, top, right, bottom = _bounds(mask.shape, start_xy, end_xy, radius_px)
    (dx, dy), squared = end_xy - start_xy, float(((end_xy - start_xy) ** 2).sum())
    x = np.arange(left, right)[None, :] + 0.5 - start_xy[0]
    rows = max(1, _PIXELS_AT_ONCE // max(1, right - left))
    for first in range(top, bottom, rows):
        last = min(first + rows, bottom)
        y = np.arange(first, last)[:, None] + 0.5 - start_xy[1]
        along = np.clip((x * dx + y * dy) / squared, 0, 1) if squared else np.zeros((1, 1))
        inside = (x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius_px**2
        mask[first:last, left:right][inside] = paint


def _bounds(shape_hw: tuple[int, ...], start_xy: Point, end_xy: Point, radius_px: float) -> tuple[int, int, int, int]:
    low = np.floor(np.minimum(start_xy, end_xy) - radius_px)
    high = np.ceil(np.maximum(start_xy, end_xy) + radius_px)
    left, top = (int(side) for side in np.clip(low, 0, shape_hw[::-1]))
    right, bottom = (int(side) for side in np.clip(high, 0, shape_hw[::-1]))
    return left, top, right, bottom
