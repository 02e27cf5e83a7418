"""Points sampled from a score map and clustered: what a segmenter is prompted with.

Source: Frick et al., IJCAI 2024, Section 3: points are sampled from the probability map, then clustered.
"""

import numpy as np
from numpy.typing import NDArray


def sample_points(matching: NDArray[np.float32], *, count: int, seed: int) -> NDArray[np.float32]:
    """Draw patches from a probability map, without putting back.

    Args:
        matching: (H_p, W_p) float32 >= 0, in any scale.
        count: points to draw; fewer come where fewer patches have a probability above 0.
        seed: the same seed and map give the same points.

    Returns:
        (N, 2) float32: x and y of patch centres in [0, 1] of the width and height; (0, 2) for a map of zeros.
    """
    height, width = matching.shape
    flat = np.maximum(matching.reshape(-1).astype(np.float64), 0.0)
    possible = min(count, int((flat > 0).sum()))
    if possible == 0:
        return np.zeros((0, 2), np.float32)
    drawn = np.argsort(-flat / _exponential(len(flat), seed), kind="stable")[:possible]
    y, x = np.divmod(drawn, width)
    return np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=1).astype(np.float32)


def _exponential(count: int, seed: int) -> NDArray[np.float64]:
    """Return numbers of the exponential distribution, those that PyTorch draws with this seed on a processor.

    The drawn points of a project stay the same whether or not PyTorch is there.
    """
    bits = np.random.RandomState(seed).randint(0, 2**32, size=(count, 2), dtype=np.uint64)
    uniform = ((bits[:, 0] << np.uint64(32) | bits[:, 1]) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
    return np.asarray(-np.log1p(-uniform))


def cluster_points(points_xy: NDArray[np.float32], *, count: int, iterations: int = 10) -> list[NDArray[np.float32]]:
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
    centres = _farthest_first(points_xy, min(count, len(points_xy)))
    for _ in range(iterations):
        is_own = np.arange(len(centres)) == _nearest(points_xy, centres)[:, None]
        sizes = is_own.sum(axis=0)[:, None]
        means = (is_own.T.astype(np.float32) @ points_xy) / np.maximum(sizes, 1)
        before, centres = centres, np.where(sizes > 0, means, centres).astype(np.float32)
        if np.array_equal(before, centres):
            break
    owner = _nearest(points_xy, centres)
    return [points_xy[owner == own] for own in range(len(centres)) if bool((owner == own).any())]


def _nearest(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.asarray(np.square(points[:, None] - centres[None]).sum(axis=2).argmin(axis=1))


def _farthest_first(points: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    chosen = [0]
    distance = np.square(points - points[0]).sum(axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(points - points[chosen[-1]]).sum(axis=1))
    return points[chosen]
