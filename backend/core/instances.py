"""Instances: one mask per object of a label; touching objects are parted at their necks."""

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import watershed

from backend.core.types import Mask

NECK_SHARE = 0.75
"""Two parts are two objects if the neck between them is narrower than this share of the narrower part."""
LEAST_RADIUS_PX = 2.0
"""Ripples of a border are no objects."""

InstanceMap = NDArray[np.int32]


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
    basins = watershed(-cv2.GaussianBlur(distance, (0, 0), 1.0), _peaks(distance, mask), mask=mask)
    owner = _join_without_neck(basins.astype(np.int32), distance)
    spread = watershed(np.zeros(mask.shape, np.uint8), owner)
    areas = np.bincount(owner[mask], minlength=int(owner.max()) + 1)[1:]
    rank = np.empty(len(areas), np.int32)
    rank[np.argsort(-areas, kind="stable")] = np.arange(len(areas))
    numbered: InstanceMap = rank[spread - 1]
    return numbered


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
    radius = np.zeros(count + 1)
    np.maximum.at(radius, basins.ravel(), distance.ravel())
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
    joined: InstanceMap = np.unique(roots[basins], return_inverse=True)[1].reshape(basins.shape).astype(np.int32)
    return joined if not (basins > 0).all() else joined + 1


def _neighbours(
    basins: InstanceMap, distance: NDArray[np.float32]
) -> list[tuple[InstanceMap, InstanceMap, NDArray[np.float32], NDArray[np.float32]]]:
    return [
        (basins[:, :-1], basins[:, 1:], distance[:, :-1], distance[:, 1:]),
        (basins[:-1], basins[1:], distance[:-1], distance[1:]),
    ]
