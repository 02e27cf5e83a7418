"""Outlines of masks as SVG paths: what a page draws over a photograph, in a few hundred bytes.

The grid of a path is the image shrunk until its longer side has `GRID` units. A path has whole numbers only:
`M x y x y ... Z` for each ring, holes by the even-odd rule.
"""

import math
import re
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import BoxedMask, Mask

GRID = 320
"""Units of a path along an image's longer side."""
MOST_CHARACTERS = 6000
"""Longest path; one that would be longer gets fewer points."""
_TOLERANCES = (0.5, 1.0, 2.0, 4.0, 8.0)
_SMALLEST_RING = 3
_PATH = re.compile(r"(?:M(?: -?\d{1,4}){2,}Z)*")


def grid_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of the grid of an image, units; (GRID, GRID) if its size is not known."""
    height, width = size_hw
    if not height or not width:
        return GRID, GRID
    scale = GRID / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def mask_to_path(mask: Mask | BoxedMask) -> str:
    """Return the outlines of a mask, (H, W) bool or in its box, on its image's grid; "" for an empty mask."""
    boxed = mask if isinstance(mask, BoxedMask) else BoxedMask.of(mask)
    if not boxed.crop.any():
        return ""
    shrunk = _shrunk(boxed)
    inside = shrunk >= 128
    if not inside.any():
        inside = shrunk >= max(1, int(shrunk.max()))  # smaller than a unit: shown as one all the same
    if not inside.any():
        y, x = np.unravel_index(int(boxed.crop.argmax()), boxed.crop.shape)
        inside[
            (boxed.top + y) * inside.shape[0] // boxed.size_hw[0],
            (boxed.left + x) * inside.shape[1] // boxed.size_hw[1],
        ] = True
    # Of each unit four: the outline runs along the units' edges, not through their centres.
    doubled = inside.view(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = sorted(contours, key=len, reverse=True)
    for tolerance in _TOLERANCES:
        path = "".join(_to_text(ring, tolerance) for ring in rings)
        if len(path) <= MOST_CHARACTERS:
            return path
    whole = ""
    for ring in rings:
        text = _to_text(ring, _TOLERANCES[-1])
        if len(whole) + len(text) > MOST_CHARACTERS:
            break
        whole += text
    return whole


def path_to_mask(path: str, size_hw: tuple[int, int]) -> Mask:
    """Return the area of a path, on the grid of an image of that size.

    Raises:
        ValueError: no path of `mask_to_path`.
    """
    if not _PATH.fullmatch(path):
        raise ValueError(f"expected a path of whole numbers, got {path[:40]!r}")
    area = np.zeros(grid_size(size_hw), np.uint8)
    rings = list(_rings(path))
    if rings:
        cv2.fillPoly(area, rings, 1)
    return area.view(np.bool_)


def _shrunk(boxed: BoxedMask) -> NDArray[np.uint8]:
    """Return how much of each unit of the grid a mask covers, 255 for all of it; the time is that of the box."""
    grid = grid_size(boxed.size_hw)
    if max(boxed.size_hw) <= GRID:  # not shrunk: a unit sees the pixels around it, too
        boxed = BoxedMask.of(boxed.to_mask())
    shrunk = np.zeros(grid, np.uint8)
    units, pixels = [], []
    for axis, start in ((0, boxed.top), (1, boxed.left)):
        # The box grows to where units and pixels begin together, so that each unit sees the pixels that it would see
        # on the whole image.
        repeats = math.gcd(grid[axis], boxed.size_hw[axis])
        step = boxed.size_hw[axis] // repeats
        first, last = start // step, -(-(start + boxed.crop.shape[axis]) // step)
        pixels.append((first * step, last * step))
        units.append((first * (grid[axis] // repeats), last * (grid[axis] // repeats)))
    (top, bottom), (left, right) = pixels
    height, width = boxed.crop.shape
    grown = np.zeros((bottom - top, right - left), np.uint8)
    grown[boxed.top - top : boxed.top - top + height, boxed.left - left : boxed.left - left + width] = boxed.crop
    grown *= np.uint8(255)
    (first_row, last_row), (first_column, last_column) = units
    of_units = (last_column - first_column, last_row - first_row)
    shrunk[first_row:last_row, first_column:last_column] = cv2.resize(grown, of_units, interpolation=cv2.INTER_AREA)
    return shrunk


def _to_text(ring: NDArray[np.int32], tolerance: float) -> str:
    simple = cv2.approxPolyDP(ring, tolerance * 2, closed=True).reshape(-1, 2)
    if len(simple) < _SMALLEST_RING:
        x, y, width, height = cv2.boundingRect(ring)
        simple = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
    return "M" + "".join(f" {(x + 1) // 2} {(y + 1) // 2}" for x, y in simple.tolist()) + "Z"


def _rings(path: str) -> Iterator[NDArray[np.int32]]:
    for ring in path.split("Z"):
        numbers = [int(number) for number in ring.removeprefix("M").split()]
        if len(numbers) >= 2:
            yield np.array(numbers[: len(numbers) // 2 * 2], np.int32).reshape(-1, 2)
