"""Between pixels and patches: how much of a patch a mask covers, and a patch map as a picture."""

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.core.types import Mask
from backend.errors import BadInputError


def mask_coverage(mask: Mask, grid_hw: tuple[int, int]) -> Tensor:
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
    return patch_means(torch.from_numpy(mask), grid_hw)


def patch_means(picture: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Return the mean of a picture over each patch, (H, W) to (H_p, W_p) float32: `map_to_size` reversed."""
    # Summed-area table: exact for fractional patch borders, and one pass even over 100 megapixels.
    rows = _row_means(picture, grid_hw[0])
    return _row_means(rows.T.contiguous(), grid_hw[1]).T.contiguous()


def _row_means(values: Tensor, bins: int) -> Tensor:
    """Mean over `bins` equal, possibly fractional, spans of the first axis: (N, M) to (bins, M) float32."""
    count = values.shape[0]
    edges = torch.linspace(0, count, bins + 1, dtype=torch.float64)
    means = torch.empty(bins, values.shape[1])
    for b in range(bins):
        start, stop = float(edges[b]), float(edges[b + 1])
        first, last = int(start), min(int(-(-stop // 1)), count)
        weight = torch.ones(last - first)
        weight[0] -= start - first
        weight[-1] -= last - stop
        means[b] = weight @ values[first:last].float() / weight.sum()
    return means


def map_to_size(score_map: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize a patch map to a picture.

    Args:
        score_map: (H_p, W_p) float32.
        size_hw: size of the picture in px.

    Returns:
        (h, w) float32, bilinear between the patches' centres; nothing leaves the range of the map.
    """
    return F.interpolate(score_map[None, None], size=size_hw, mode="bilinear", align_corners=False)[0, 0]
