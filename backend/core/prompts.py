"""Points sampled from a score map and clustered: what a segmenter is prompted with.

Source: Frick et al., IJCAI 2024, Section 3: points are sampled from the probability map, then clustered.
"""

import torch
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
    """k-means with farthest-first centres: no draw, so one set of points has one clustering.

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
        owner = torch.cdist(points_xy, centres).argmin(dim=1)
        centres = torch.stack(
            [points_xy[owner == c].mean(dim=0) if bool((owner == c).any()) else centres[c] for c in range(len(centres))]
        )
    owner = torch.cdist(points_xy, centres).argmin(dim=1)
    return [points_xy[owner == c] for c in range(len(centres)) if bool((owner == c).any())]


def _farthest_first(points_xy: Tensor, count: int) -> Tensor:
    chosen = [0]
    distance = (points_xy - points_xy[0]).square().sum(dim=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points_xy - points_xy[chosen[-1]]).square().sum(dim=1))
    return points_xy[chosen]
