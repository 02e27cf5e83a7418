"""Points sampled from a map and clustered."""

import numpy as np
import torch
from numpy.typing import NDArray

from backend.core.prompts import cluster_points, sample_points


def two_blobs() -> NDArray[np.float32]:
    matching = np.zeros((20, 30), np.float32)
    matching[2:5, 2:5] = 1.0
    matching[14:18, 22:27] = 0.5
    return matching


def test_points_lie_where_the_map_is_above_zero() -> None:
    matching = two_blobs()
    points = sample_points(matching, count=16, seed=0)
    assert points.shape == (16, 2)
    assert bool((matching[(points[:, 1] * 20).astype(int), (points[:, 0] * 30).astype(int)] > 0).all())


def test_the_seed_decides_the_points() -> None:
    first, again, other = (sample_points(two_blobs(), count=9, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_patch_is_drawn_twice() -> None:
    points = sample_points(two_blobs(), count=100, seed=0)
    assert len(points) == 29
    assert len(np.unique(points, axis=0)) == 29


def test_a_map_of_zeros_gives_no_points_and_no_clusters() -> None:
    points = sample_points(np.zeros((4, 4), np.float32), count=5, seed=0)
    assert points.shape == (0, 2)
    assert cluster_points(points, count=3) == []


def test_clusters_part_the_points_by_place() -> None:
    points = sample_points(two_blobs(), count=20, seed=1)
    clusters = cluster_points(points, count=2)
    assert sum(len(cluster) for cluster in clusters) == 20
    assert sorted(bool((cluster[:, 0] < 0.5).all()) for cluster in clusters) == [False, True]


def test_never_more_clusters_than_points() -> None:
    assert len(cluster_points(np.array([[0.1, 0.1], [0.1, 0.1]], np.float32), count=5)) == 1


def test_points_are_those_that_pytorch_draws() -> None:
    """So that masks stay what they were before points were drawn without it."""
    matching = np.random.default_rng(0).random((24, 32), np.float32)
    for seed in (0, 5):
        drawn = torch.multinomial(
            torch.from_numpy(matching).flatten().double(), 64, generator=torch.Generator().manual_seed(seed)
        ).numpy()
        wanted = np.stack([(drawn % 32 + 0.5) / 32, (drawn // 32 + 0.5) / 24], axis=1)
        np.testing.assert_allclose(sample_points(matching, count=64, seed=seed), wanted, atol=1e-6)
