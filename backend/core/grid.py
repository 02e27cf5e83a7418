"""Between pixels and patches: how much of a patch a mask covers, and a patch map as a picture."""

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask
from backend.errors import BadInputError


def mask_coverage(mask: Mask, grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return the share of each patch that a mask covers.

    Args:
        mask: (H, W) bool.
        grid_hw: patches down and across; the grid is stretched over the whole mask.

    Returns:
        (H_p, W_p) float32 in [0, 1]: the mean of the mask over each patch, so that an object smaller than a patch
        is faint, but not lost.

    Raises:
        BadInputError: the mask is not a two-dimensional bool array with pixels.
    """
    if mask.ndim != 2 or mask.dtype != bool or mask.size == 0:
        raise BadInputError(f"mask must be (H, W) bool with pixels, got {mask.shape} {mask.dtype}; convert it")
    return patch_means(mask, grid_hw)


def patch_means(picture: NDArray[np.generic], grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return the mean of a picture over each patch, (H, W) to (H_p, W_p) float32: `map_to_size` reversed."""
    # Summed-area table: exact for fractional patch borders, and one pass even over 100 megapixels.
    rows = _row_means(picture, grid_hw[0])
    return np.ascontiguousarray(_row_means(np.ascontiguousarray(rows.T), grid_hw[1]).T)


def _row_means(values: NDArray[np.generic], bins: int) -> NDArray[np.float32]:
    """Mean over `bins` equal, possibly fractional, spans of the first axis: (N, M) to (bins, M) float32."""
    count = values.shape[0]
    edges = np.linspace(0, count, bins + 1)
    means = np.empty((bins, values.shape[1]), np.float32)
    for b in range(bins):
        start, stop = float(edges[b]), float(edges[b + 1])
        first, last = int(start), min(int(-(-stop // 1)), count)
        weight = np.ones(last - first, np.float32)
        weight[0] -= start - first
        weight[-1] -= last - stop
        means[b] = weight @ values[first:last].astype(np.float32) / weight.sum()
    return means


def map_to_size(score_map: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a patch map to a picture.

    Args:
        score_map: (H_p, W_p) float32.
        size_hw: size of the picture in px.

    Returns:
        (h, w) float32, bilinear between the patches' centres; nothing leaves the range of the map.
    """
    height, width = size_hw
    return np.asarray(cv2.resize(score_map, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
