"""Masks after the segmenter: cleaned, kept apart, brought to the image's natural size."""

from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask, Scribble

_Value = TypeVar("_Value", bound=np.generic)


def painted_masks(scribble: Scribble) -> tuple[Mask, Mask]:
    """Return what points and strokes of a scribble mark as object and as not the object, (H, W) bool each."""
    masks = []
    for points_xy, strokes in (
        (scribble.positive_xy, scribble.positive_strokes),
        (scribble.negative_xy, scribble.negative_strokes),
    ):
        painted = np.zeros(scribble.size_hw, bool) if strokes is None else strokes.copy()
        x, y = np.floor(points_xy).astype(np.int64).T
        painted[np.clip(y, 0, painted.shape[0] - 1), np.clip(x, 0, painted.shape[1] - 1)] = True
        masks.append(painted)
    return masks[0], masks[1]


def mean_width_px(mask: Mask) -> float:
    """Return how wide on average what a mask shows is, in px; 0 for an empty mask.

    4 times the mean distance of its pixels to what is outside, beyond the image included: the width of a strip, two
    thirds of the diameter of a disc.

    Args:
        mask: (H, W) bool.
    """
    inside = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    if not inside.any():
        return 0.0
    distances = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
    return 4 * float(distances[inside > 0].mean())


def clean_mask(mask: Mask, *, small_component_px: float, hole_px: float) -> Mask:
    """Drop pieces smaller than `small_component_px` pixels and fill holes smaller than `hole_px` pixels.

    Args:
        mask: (h, w) bool.
        small_component_px: least area that is kept.
        hole_px: least area of a hole that is kept.
    """
    return ~_without_small_pieces(~_without_small_pieces(mask, small_component_px), hole_px)


def _without_small_pieces(mask: Mask, minimum_px: float) -> Mask:
    # Counted by NumPy: OpenCV's own statistics take twice as long as all of this.
    pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1]
    keep = np.bincount(pieces.ravel()) >= minimum_px
    keep[0] = False
    return mask if keep[1:].all() else np.asarray(keep.take(pieces))


def resolve_overlaps(masks: Sequence[Mask], priors: Sequence[NDArray[np.float32]]) -> list[Mask]:
    """Give each pixel that several masks claim to the one whose prior is highest there (the first, if equal).

    Args:
        masks: each (h, w) bool.
        priors: for each mask, (h, w) float32.
    """
    if len(masks) < 2:
        return list(masks)
    claims = np.where(np.stack(masks), np.stack(priors), -np.inf)
    winner = claims.argmax(axis=0)
    return [mask & (winner == index) for index, mask in enumerate(masks)]


def mask_to_size(mask: Mask, size_hw: tuple[int, int]) -> Mask:
    """Resize a mask, its border drawn smoothly between the pixels that carried it.

    Args:
        mask: (h, w) bool.
        size_hw: wanted size; above 100 megapixels this stays at two bytes a pixel.
    """
    height, width = size_hw
    if mask.shape == size_hw:
        return mask.copy()
    smooth = mask.astype(np.uint8) * 255
    if height > mask.shape[0]:
        smooth = cv2.GaussianBlur(smooth, (0, 0), 0.7)
    interpolation = cv2.INTER_LINEAR if height > mask.shape[0] else cv2.INTER_AREA
    resized = cv2.resize(smooth, (width, height), interpolation=interpolation)
    natural: Mask = resized > 127
    return natural


def iou(first: Mask, second: Mask) -> float:
    """Return the intersection over union of two masks, in [0, 1]; 1 if both are empty."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0


def nearest_to_size(picture: NDArray[_Value], size_hw: tuple[int, int]) -> NDArray[_Value]:
    """Return a mask or a label map (h, w) at another size, each pixel with the value of the nearest one."""
    rows = (np.arange(size_hw[0]) * picture.shape[0]) // size_hw[0]
    columns = (np.arange(size_hw[1]) * picture.shape[1]) // size_hw[1]
    resized: NDArray[_Value] = picture[rows[:, None], columns]
    return resized
