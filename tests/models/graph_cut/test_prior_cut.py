"""A rough prior on a drawn image becomes the object's exact outline."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.core.masks import iou
from backend.core.score_map import recentre_log_odds
from backend.models.graph_cut.prior_cut import cut_from_prior


def scene() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A noisy red disc on green, and a prior that is a wider, blurred, shifted disc."""
    y, x = np.mgrid[:120, :160] + 0.5
    disc = (y - 60) ** 2 + (x - 80) ** 2 < 35**2
    noise = np.random.default_rng(0).integers(0, 40, (120, 160, 3))
    image = (np.where(disc[..., None], (180, 40, 40), (40, 140, 40)) + noise).astype(np.uint8)
    distance = np.hypot(y - 63, x - 84)
    return image, disc, (1 / (1 + np.exp((distance - 38) / 8))).astype(np.float32)


def test_cut_follows_the_edges_not_the_prior() -> None:
    image, disc, prior = scene()
    assert iou(prior > 0.5, disc) < 0.85
    assert iou(cut_from_prior(image, prior), disc) > 0.95


def test_same_input_gives_the_same_mask() -> None:
    image, _, prior = scene()
    assert np.array_equal(cut_from_prior(image, prior), cut_from_prior(image, prior))


def test_a_prior_without_object_cuts_nothing() -> None:
    image, _, prior = scene()
    assert not cut_from_prior(image, prior * np.float32(0.3)).any()


def test_uniform_images_and_priors_are_survived() -> None:
    flat = np.full((20, 20, 3), 7, np.uint8)
    assert cut_from_prior(flat, np.ones((20, 20), np.float32)).all()
    half = np.zeros((20, 20), np.float32)
    half[:, :10] = 1
    assert iou(cut_from_prior(flat, half), half > 0.5) > 0.9
    assert cut_from_prior(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), np.float32)).shape == (1, 1)


def test_recentred_priors_fit_the_cut() -> None:
    image, disc, prior = scene()
    faint = prior * np.float32(0.4)
    assert iou(cut_from_prior(image, recentre_log_odds(faint, 0.4)), disc) > 0.9
