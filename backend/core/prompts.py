"""Points sampled from a score map and clustered: what a segmenter is prompted with.

Source: Frick et al., IJCAI 2024, Section 3: points are sampled from the probability map, then clustered.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sample_points(matching: Tensor, *, count: int, seed: int) -> Tensor:
    """Draw patches from a probability map, without putting back.

    Args:
        matching: (H_p, W_p) float32 >= 0, in any scale.
        count: points to draw; fewer come where fewer patches have a probability above 0.
        seed: the same seed and map give the same points.

    Returns:
        (N, 2) float32: x and y of patch centres in [0, 1] of the width and height; (0, 2) for a map of zeros.
    """
    height, width = matching.shape
    flat = matching.flatten().double().clamp_min(0.0)
    possible = min(count, int((flat > 0).sum()))
    if possible == 0:
        return torch.zeros(0, 2)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(flat, possible, replacement=False, generator=generator)
    y, x = torch.div(drawn, width, rounding_mode="floor"), drawn % width
    return torch.stack([(x + 0.5) / width, (y + 0.5) / height], dim=1).float()


def cluster_points(points_xy: Tensor, *, count: int, iterations: int = 10) -> list[Tensor]:
    """Cluster points by k-means with farthest-first centres: no draw, so one set of points has one clustering.

    Args:
        points_xy: (N, 2) float32.
        count: clusters wanted; at most N come.
        iterations: of Lloyd's algorithm.

    Returns:
        Non-empty (N_c, 2) float32 clusters; [] for no points.
    """
    if len(points_xy) == 0:
        return []
    # NumPy: calls on so few numbers take torch ten times as long as their arithmetic.
    points = points_xy.numpy()
    centres = _farthest_first(points, min(count, len(points)))
    for _ in range(iterations):
        is_own = np.arange(len(centres)) == _nearest(points, centres)[:, None]
        sizes = is_own.sum(axis=0)[:, None]
        means = (is_own.T.astype(np.float32) @ points) / np.maximum(sizes, 1)
        before, centres = centres, np.where(sizes > 0, means, centres).astype(np.float32)
        if np.array_equal(before, centres):
            break
    owner = _nearest(points, centres)
    return [points_xy[torch.from_numpy(owner == own)] for own in range(len(centres)) if bool((owner == own).any())]


def _nearest(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.asarray(np.square(points[:, None] - centres[None]).sum(axis=2).argmin(axis=1))


def _farthest_first(points: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    chosen = [0]
    distance = np.square(points - points[0]).sum(axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(points - points[chosen[-1]]).sum(axis=1))
    return points[chosen]
