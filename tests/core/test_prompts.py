"""Points sampled from a map and clustered."""

import torch

from backend.core.prompts import cluster_points, sample_points


def two_blobs() -> torch.Tensor:
    matching = torch.zeros(20, 30)
    matching[2:5, 2:5] = 1.0
    matching[14:18, 22:27] = 0.5
    return matching


def test_points_lie_where_the_map_is_above_zero() -> None:
    matching = two_blobs()
    points = sample_points(matching, count=16, seed=0)
    assert points.shape == (16, 2)
    assert bool((matching[(points[:, 1] * 20).long(), (points[:, 0] * 30).long()] > 0).all())


def test_the_seed_decides_the_points() -> None:
    first, again, other = (sample_points(two_blobs(), count=9, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_patch_is_drawn_twice() -> None:
    points = sample_points(two_blobs(), count=100, seed=0)
    assert len(points) == 29
    assert len(torch.unique(points, dim=0)) == 29


def test_a_map_of_zeros_gives_no_points_and_no_clusters() -> None:
    points = sample_points(torch.zeros(4, 4), count=5, seed=0)
    assert points.shape == (0, 2)
    assert cluster_points(points, count=3) == []


def test_clusters_part_the_points_by_place() -> None:
    points = sample_points(two_blobs(), count=20, seed=1)
    clusters = cluster_points(points, count=2)
    assert sum(len(cluster) for cluster in clusters) == 20
    assert sorted(bool((cluster[:, 0] < 0.5).all()) for cluster in clusters) == [False, True]


def test_never_more_clusters_than_points() -> None:
    assert len(cluster_points(torch.tensor([[0.1, 0.1], [0.1, 0.1]]), count=5)) == 1
