"""Instances: one mask per object of a label; touching objects are parted at their necks."""

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import BoxedMask, Mask

NECK_SHARE = 0.75
"""Two parts are two objects if the neck between them is narrower than this share of the narrower part."""
LEAST_RADIUS_PX = 2.0
"""Ripples of a border are no objects."""

InstanceMap = NDArray[np.int32]


def cut_instances(natural: Mask, parted: Mask) -> list[BoxedMask]:
    """Return the objects of a mask, each cut out of its own box: time and memory are those of the boxes.

    Args:
        natural: (H, W) bool: the mask at its natural size.
        parted: (h, w) bool: the same mask at the size at which its objects are told apart (`split_instances`).

    Returns:
        The objects that have a pixel, in the order of `split_instances`; together they are the mask.
    """
    owner = split_instances(parted)
    size_hw = natural.shape[0], natural.shape[1]
    # The pixel of `owner` that is nearest to each row and column, as `masks.nearest_to_size` has it.
    rows, columns = ((np.arange(size_hw[axis]) * owner.shape[axis]) // size_hw[axis] for axis in (0, 1))
    objects = []
    # Imported here: SciPy takes half a second, which most commands need not wait.
    from scipy.ndimage import find_objects

    for number, (of_rows, of_columns) in enumerate(find_objects(owner + 1)):
        top, bottom = np.searchsorted(rows, (of_rows.start, of_rows.stop)).tolist()
        left, right = np.searchsorted(columns, (of_columns.start, of_columns.stop)).tolist()
        is_own = (owner == number)[rows[top:bottom, None], columns[left:right]]
        cut = _trimmed(BoxedMask(size_hw, top, left, natural[top:bottom, left:right] & is_own))
        if cut is not None:
            objects.append(cut)
    return objects


def split_instances(mask: Mask) -> InstanceMap:
    """Share the whole frame out among the objects of a mask.

    Each object grows from where it is thickest, along the distance to the background (a watershed). Then parts whose
    common border is not a neck become one again: an object is not cut because it is long or dented.

    Args:
        mask: (h, w) bool.

    Returns:
        (h, w) int32: the object that each pixel belongs to, or is nearest to, from 0 on; objects are numbered from the
        largest to the smallest. 0 everywhere for an empty mask.
    """
    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    # A frame around it: an object that the image cuts off is thickest at the image's border, not at the frame's.
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, 1:-1]
    distance = np.minimum(distance, max(mask.shape) / 2)
    # Imported here: scikit-image takes half a second, which most commands need not wait.
    from skimage.segmentation import watershed

    basins = watershed(-cv2.GaussianBlur(distance, (0, 0), 1.0), _peaks(distance, mask), mask=mask)
    owner = _join_without_neck(basins.astype(np.int32), distance)
    spread = watershed(np.zeros(mask.shape, np.uint8), owner)
    areas = np.bincount(owner[mask], minlength=int(owner.max()) + 1)[1:]
    rank = np.empty(len(areas), np.int32)
    rank[np.argsort(-areas, kind="stable")] = np.arange(len(areas))
    numbered: InstanceMap = rank[spread - 1]
    return numbered


def _trimmed(boxed: BoxedMask) -> BoxedMask | None:
    """Return the mask in its smallest box, which keeps nothing of the larger one; None without a pixel."""
    in_rows, in_columns = (np.flatnonzero(boxed.crop.any(axis=axis)) for axis in (1, 0))
    if not len(in_rows):
        return None
    top, left = int(in_rows[0]), int(in_columns[0])
    crop = boxed.crop[top : in_rows[-1] + 1, left : in_columns[-1] + 1].copy()
    return BoxedMask(boxed.size_hw, boxed.top + top, boxed.left + left, crop)


def _peaks(distance: NDArray[np.float32], mask: Mask) -> InstanceMap:
    """One marker for each place that is thickest among its surroundings, and one at least for each separate piece."""
    smooth = cv2.GaussianBlur(distance, (0, 0), 1.0)
    highest = cv2.dilate(smooth, np.ones((5, 5), np.uint8))
    is_peak = (smooth >= highest - 1e-6) & mask & (distance >= LEAST_RADIUS_PX)
    count, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    has_peak = np.zeros(count, bool)
    has_peak[np.unique(pieces[is_peak])] = True
    is_peak |= ~has_peak[pieces] & mask
    return np.asarray(cv2.connectedComponents(is_peak.astype(np.uint8), connectivity=8)[1], np.int32)


def _join_without_neck(basins: InstanceMap, distance: NDArray[np.float32]) -> InstanceMap:
    count = int(basins.max())
    widest = np.zeros(count + 1, distance.dtype)
    np.maximum.at(widest, basins.ravel(), distance.ravel())  # of one type: ten times as fast
    radius = widest.astype(np.float64)
    # The widest place of the border between two basins, as a radius, by pair.
    necks: dict[tuple[int, int], float] = {}
    for one, other, one_distance, other_distance in _neighbours(basins, distance):
        differs = (one != other) & (one > 0) & (other > 0)
        for a, b, width in zip(
            one[differs], other[differs], np.minimum(one_distance[differs], other_distance[differs]), strict=True
        ):
            pair = (int(min(a, b)), int(max(a, b)))
            necks[pair] = max(necks.get(pair, 0.0), float(width))
    parent = np.arange(count + 1)

    def root(index: int) -> int:
        while parent[index] != index:
            index = int(parent[index])
        return index

    # The widest necks first: what they join has the thickness of the thicker one from then on.
    for (a, b), width in sorted(necks.items(), key=lambda item: (-item[1], item[0])):
        a, b = root(a), root(b)
        if a != b and width >= NECK_SHARE * min(radius[a], radius[b]):
            parent[max(a, b)] = min(a, b)
            radius[min(a, b)] = max(radius[a], radius[b])
    roots = np.array([root(index) for index in range(count + 1)])
    numbers = np.searchsorted(np.unique(roots), roots).astype(np.int32)  # 0, the background, stays 0
    joined: InstanceMap = numbers[basins]
    return joined


def _neighbours(
    basins: InstanceMap, distance: NDArray[np.float32]
) -> list[tuple[InstanceMap, InstanceMap, NDArray[np.float32], NDArray[np.float32]]]:
    return [
        (basins[:, :-1], basins[:, 1:], distance[:, :-1], distance[:, 1:]),
        (basins[:-1], basins[1:], distance[:-1], distance[1:]),
    ]
