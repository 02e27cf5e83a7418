"""A COCO segmentation, polygons or run-length codes, as a mask: checked before anything of its size is allocated."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from backend.core.types import Mask
from backend.errors import BadInputError

_LONGEST_OUTLINE_PX = 1 << 20
"""Length of one polygon: pycocotools keeps about 100 bytes for each pixel of it."""
_MOST_OUTLINES_PX = 1 << 23
"""Length of all polygons of an object, which are drawn one after the other: bounds the time."""
_MOST_CHUNKS = 7
"""Characters of five bits each that a run of fewer than 2^31 pixels can take."""


def segmentation_to_mask(segmentation: object, size_hw: tuple[int, int]) -> Mask:
    """Decode a COCO segmentation.

    Args:
        segmentation: `[[x, y, x, y, ...], ...]`, or `{"size": [H, W], "counts": ...}` with a list or compressed text.
        size_hw: of the image; a segmentation of any other is refused.

    Returns:
        (H, W) bool. The union of polygons, in whatever order they are.

    Raises:
        BadInputError: no segmentation; coordinates that are no numbers or far from the image; run lengths that do not
            fill the mask exactly.
    """
    if isinstance(segmentation, list) and segmentation:
        return _counts_to_mask(_polygons_to_counts(segmentation, size_hw), size_hw)
    if isinstance(segmentation, Mapping):
        size = segmentation.get("size")
        if not isinstance(size, list) or not all(map(_is_whole, size)) or tuple(size) != size_hw:
            raise BadInputError(f"run lengths must be of size {list(size_hw)}, height before width, got {_short(size)}")
        return _counts_to_mask(_run_lengths(segmentation.get("counts"), size_hw), size_hw)
    raise BadInputError(f"a segmentation must be polygons or run lengths, got {_short(segmentation)}")


def _polygons_to_counts(polygons: Sequence[Any], size_hw: tuple[int, int]) -> NDArray[np.int64]:
    outlines_px = 0.0
    checked: list[list[float]] = []
    for number, polygon in enumerate(polygons, start=1):
        points_xy = _points(polygon, number, size_hw)
        steps = np.abs(np.diff(points_xy, axis=0, append=points_xy[:1])).max(axis=1)
        length_px = float(steps.sum()) + len(points_xy)
        outlines_px += length_px
        if length_px > _LONGEST_OUTLINE_PX or outlines_px > _MOST_OUTLINES_PX:
            raise BadInputError(
                f"a polygon must be at most {_LONGEST_OUTLINE_PX} px long, all of an object {_MOST_OUTLINES_PX}, got "
                f"{length_px:.0f} and {outlines_px:.0f}: use run lengths"
            )
        checked.append(points_xy.ravel().tolist())
    # One list at a time: of several, pycocotools takes the first one's length as what all of them are.
    parts = [coco_mask.frPyObjects([polygon], *size_hw)[0] for polygon in checked]
    merged = coco_mask.merge(parts) if len(parts) > 1 else parts[0]
    return _decompress(merged["counts"].decode("ascii"), size_hw)


def _points(polygon: object, number: int, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Return the points (N, 2) of a polygon, in px."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        got = f"{len(polygon)} numbers" if isinstance(polygon, list) else _short(polygon)
        raise BadInputError(f"polygon {number} must be a list x, y, x, y, ... of 3 or more points, got {got}")
    for value in polygon:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInputError(f"polygon {number} must consist of numbers, got {_short(value)}")
    # Polygons may overlap the image's edge; one that lies a whole image away belongs to another.
    largest = 2 * max(size_hw)
    outside = next((value for value in polygon if not -largest <= value <= largest), None)
    if outside is not None:  # NaN is
        raise BadInputError(
            f"polygon {number} must lie in its image of {size_hw[1]} x {size_hw[0]} px, got a coordinate of "
            f"{_short(outside)}"
        )
    return np.asarray(polygon, np.float64).reshape(-1, 2)


def _run_lengths(counts: object, size_hw: tuple[int, int]) -> NDArray[np.int64]:
    if isinstance(counts, str):
        return _decompress(counts, size_hw)
    if not isinstance(counts, list):
        raise BadInputError(f"run lengths must be a list of numbers, or text, got {_short(counts)}")
    pixels = size_hw[0] * size_hw[1]
    if any(not _is_whole(each) or not 0 <= each <= pixels for each in counts):
        wrong = next(each for each in counts if not _is_whole(each) or not 0 <= each <= pixels)
        raise BadInputError(f"run lengths must be whole numbers from 0 to {pixels}, got {_short(wrong)}")
    return np.asarray(counts, np.int64)


def _decompress(text: str, size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """Return the run lengths of a compressed code: five bits a character, lowest first; from the fourth on differences.

    Source: `rleFrString` of https://github.com/cocodataset/cocoapi (BSD), without its trust in what it is given.
    """
    if not text.isascii():
        raise BadInputError("compressed run lengths must be ASCII, got other characters")
    chunks = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if chunks.size == 0:
        return chunks
    if chunks.min() < 0 or chunks.max() > 63:
        raise BadInputError(f"compressed run lengths must be of the characters '0' to 'o', got {_short(text)}")
    ends = np.flatnonzero(chunks & 32 == 0)
    if ends.size == 0 or ends[-1] != chunks.size - 1:
        raise BadInputError("compressed run lengths must end with a whole number, got a code that is cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > _MOST_CHUNKS:
        raise BadInputError(f"a run length takes at most {_MOST_CHUNKS} characters, got {sizes.max()}")
    places = np.arange(chunks.size) - np.repeat(starts, sizes)
    values = np.add.reduceat((chunks & 31) << (5 * places), starts)
    values -= np.where(chunks[ends] & 16, np.int64(1) << (5 * sizes), 0)
    pixels = size_hw[0] * size_hw[1]
    if np.abs(values).max() > pixels:
        raise BadInputError(f"run lengths must be at most {pixels}, got {np.abs(values).max()}")
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def _counts_to_mask(counts: NDArray[np.int64], size_hw: tuple[int, int]) -> Mask:
    height, width = size_hw
    filled = int(counts.sum())
    if filled != height * width or (counts < 0).any():
        raise BadInputError(
            f"run lengths must fill the {width} x {height} px of the image exactly, {height * width} px, got {filled}"
            + (", some of them negative" if (counts < 0).any() else "")
        )
    is_set = np.arange(counts.size) % 2 == 1
    mask: Mask = np.ascontiguousarray(np.repeat(is_set, counts).reshape(width, height).T)
    return mask


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:60] if not isinstance(value, list | dict) else f"a {type(value).__name__} of {len(value)}"
