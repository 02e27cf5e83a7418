"""Regions that are masks as they are: rectangles, polygons, ellipses, bitmasks, pixel by pixel.

A pixel belongs to a shape if its centre lies in it; a polygon that crosses itself is filled as the editor's canvas
fills it (non-zero winding).
"""

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask
from backend.errors import BadInputError
from backend.labelstudio.budget import ReadingBudget
from backend.labelstudio.image_decoding import decode_alpha

Points = NDArray[np.float64]
"""(N, 2) float64: x, y in px."""

_MOST_PERCENT = 1e3
"""Ten times the image: shapes may leave it, but not by much."""
_ROWS_AT_ONCE = 256
_PNG_PREFIX = "data:image/png;base64,"


def draw_polygon(points_xy: Points, size_hw: tuple[int, int], budget: ReadingBudget) -> Mask:
    """Fill a polygon.

    Args:
        points_xy: (N, 2) float64, px, at least three.
        size_hw: of the mask; what is outside is cut off.
        budget: of the annotation.

    Raises:
        BadInputError: it costs more than the budget has.
    """
    height, width = size_hw
    mask = np.zeros(size_hw, np.bool_)
    starts, ends = points_xy, np.roll(points_xy, -1, axis=0)
    budget.spend(points=len(points_xy))
    top = max(0, math.ceil(float(points_xy[:, 1].min()) - 0.5))
    bottom = min(height, math.floor(float(points_xy[:, 1].max()) - 0.5) + 1)
    for first in range(top, bottom, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, bottom)
        budget.spend(stroke_pixels=(last - first) * (width + len(points_xy)))
        winding = np.zeros((last - first, width + 1), np.int32)
        for row in range(first, last):
            centre_y = row + 0.5
            crosses = (starts[:, 1] <= centre_y) != (ends[:, 1] <= centre_y)
            (x0, y0), (x1, y1) = starts[crosses].T, ends[crosses].T
            x = x0 + (centre_y - y0) / (y1 - y0) * (x1 - x0)
            # From this pixel on: the first whose centre is to the right of the crossing.
            columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
            np.add.at(winding[row - first], columns, np.where(y1 > y0, 1, -1))
        mask[first:last] = np.cumsum(winding[:, :width], axis=1) != 0
    return mask


def read_polygon(value: Mapping[str, Any], size_hw: tuple[int, int], budget: ReadingBudget) -> Mask:
    """Read `points`, [x, y] each, percent of width and height.

    Raises:
        BadInputError: fewer than three points, or such that are no numbers or far off the image.
    """
    try:
        percent = np.array(value.get("points"), np.float64)
    except (TypeError, ValueError):
        percent = np.zeros(0)
    if percent.ndim != 2 or percent.shape[1] != 2 or len(percent) < 3 or not (abs(percent) < _MOST_PERCENT).all():
        raise BadInputError(
            "polygon must have three points [x %, y %] or more in value.points, none of them far off the image; draw "
            "it again"
        )
    return draw_polygon(percent * (size_hw[1] / 100, size_hw[0] / 100), size_hw, budget)


def read_rectangle(value: Mapping[str, Any], size_hw: tuple[int, int], budget: ReadingBudget) -> Mask:
    """Read the corner `x`, `y`, `width`, `height` (percent) and `rotation` (degrees, clockwise about the corner).

    Raises:
        BadInputError: they are no numbers, far off the image, or without an area.
    """
    x, y, width, height, degrees = _percents(value, ("x", "y", "width", "height", "rotation"))
    scale = np.array([size_hw[1] / 100, size_hw[0] / 100])
    turn = math.radians(degrees)
    # In pixels, not in percent.
    along = np.array([math.cos(turn), math.sin(turn)]) * width * scale[0]
    across = np.array([-math.sin(turn), math.cos(turn)]) * height * scale[1]
    corner = np.array([x, y]) * scale
    return draw_polygon(np.array([corner, corner + along, corner + along + across, corner + across]), size_hw, budget)


def _percents(value: Mapping[str, Any], names: tuple[str, ...]) -> list[float]:
    numbers = [value.get(name, 0 if name == "rotation" else None) for name in names]
    if not all(isinstance(one, int | float) and abs(one) < _MOST_PERCENT for one in numbers):
        raise BadInputError(f"the shape must have numbers (percent of the image) in value {names}, got {numbers}")
    return [float(one) for one in numbers if one is not None]


def read_ellipse(value: Mapping[str, Any], size_hw: tuple[int, int], budget: ReadingBudget) -> Mask:
    """Read the centre `x`, `y`, `radiusX`, `radiusY` (percent) and `rotation` (degrees, clockwise, of pixels).

    Raises:
        BadInputError: they are no numbers, or far off the image.
    """
    x, y, radius_x, radius_y, degrees = _percents(value, ("x", "y", "radiusX", "radiusY", "rotation"))
    height, width = size_hw
    centre_x, centre_y = x / 100 * width, y / 100 * height
    radius_x, radius_y = radius_x / 100 * width, radius_y / 100 * height
    if min(radius_x, radius_y) <= 0:
        raise BadInputError(f"ellipse must have radii above 0, got {radius_x:g} and {radius_y:g} px; draw it again")
    turn = math.radians(degrees)
    mask = np.zeros(size_hw, np.bool_)
    reach = max(radius_x, radius_y) + 1
    top, bottom = (int(np.clip(side, 0, height)) for side in (centre_y - reach, centre_y + reach + 1))
    left, right = (int(np.clip(side, 0, width)) for side in (centre_x - reach, centre_x + reach + 1))
    across = np.arange(left, right) + 0.5 - centre_x
    for first in range(top, bottom, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, bottom)
        budget.spend(stroke_pixels=(last - first) * (right - left))
        down = (np.arange(first, last) + 0.5 - centre_y)[:, None]
        along_x = across * math.cos(turn) + down * math.sin(turn)
        along_y = down * math.cos(turn) - across * math.sin(turn)
        mask[first:last, left:right] = (along_x / radius_x) ** 2 + (along_y / radius_y) ** 2 <= 1
    return mask


def read_bitmask(value: Mapping[str, Any], size_hw: tuple[int, int], budget: ReadingBudget) -> Mask:
    """Read `imageDataURL`, a PNG of the image's size: what is drawn is not transparent.

    Raises:
        BadInputError: no such PNG, or one of another size.
    """
    address = value.get("imageDataURL")
    if not isinstance(address, str) or not address.startswith(_PNG_PREFIX):
        raise BadInputError(f"bitmask must have a PNG ({_PNG_PREFIX}...) in value.imageDataURL; draw it again")
    budget.spend(rle_bytes=len(address))
    try:
        content = base64.b64decode(address.removeprefix(_PNG_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInputError(f"bitmask must be base64 in value.imageDataURL, got {error}; draw it again") from error
    expected = f"bitmask must be of the image's own size {size_hw[1]} x {size_hw[0]} px"
    try:
        alpha = decode_alpha(content, size_hw[0] * size_hw[1])
    except BadInputError as error:
        raise BadInputError(f"{expected}; draw the region again. {error}") from error
    if alpha.shape != size_hw:
        raise BadInputError(
            f"{expected}, got {alpha.shape[1]} x {alpha.shape[0]}: the image was changed since, draw the region again"
        )
    mask: Mask = alpha >= max(1.0, alpha.max() / 2)
    return mask
