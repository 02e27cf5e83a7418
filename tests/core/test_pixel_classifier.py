"""Filter responses of pixels, and the classifier that is trained on them."""

import cv2
import numpy as np
import pytest

from backend.core.cancellation import CancelledWorkError, cancellable
from backend.core.masks import iou
from backend.core.pixel_classifier import PixelClassifier, sample_pixels, train_pixel_classifier
from backend.core.pixel_filters import FILTER_COUNT, filter_responses, tiled_responses
from backend.core.types import Image, Mask
from backend.errors import BadInputError


def cracked(seed: int, size_hw: tuple[int, int] = (160, 208)) -> tuple[Image, Mask]:
    """Draw a dark line of three pixels on a mottled ground."""
    draw = np.random.default_rng(seed)
    ground = cv2.GaussianBlur(draw.normal(0, 60, (*size_hw, 3)).astype(np.float32), (0, 0), 3) + 150
    mask = np.zeros(size_hw, np.uint8)
    x = np.linspace(10, size_hw[1] - 10, 8)
    y = draw.uniform(20, size_hw[0] - 20, 8)
    cv2.polylines(mask, [np.stack([x, y], 1).astype(np.int32)], isClosed=False, color=1, thickness=3)
    ground[mask > 0] -= 70
    return np.clip(ground, 0, 255).astype(np.uint8), mask > 0


def test_training_ends_within_a_step_when_it_is_cancelled() -> None:
    image, mask = cracked(0)
    sample = sample_pixels(image, mask, np.ones_like(mask), seed=0)
    asked = 0

    def is_unwanted() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with cancellable(is_unwanted), pytest.raises(CancelledWorkError):
        train_pixel_classifier([sample])
    assert asked == 4


@pytest.mark.parametrize("size_hw", [(5, 7), (64, 64), (33, 130)])
def test_each_pixel_of_any_size_has_its_finite_responses(size_hw: tuple[int, int]) -> None:
    responses = filter_responses(cracked(0, (200, 200))[0][: size_hw[0], : size_hw[1]])
    assert responses.shape == (FILTER_COUNT, *size_hw)
    assert np.isfinite(responses).all()


@pytest.mark.slow
def test_tiles_give_the_responses_of_the_whole_image() -> None:
    image = cracked(0, (700, 1300))[0]
    whole = filter_responses(image)
    tiled = np.full_like(whole, np.nan)
    for (rows, columns), responses in tiled_responses(image):
        tiled[:, rows, columns] = responses
    assert np.abs(whole - tiled).max() < 1e-3


@pytest.mark.slow
def test_a_line_is_found_on_another_image() -> None:
    samples = [sample_pixels(image, mask, np.ones_like(mask), seed=0) for image, mask in map(cracked, range(3))]
    classifier = train_pixel_classifier(samples)
    image, mask = cracked(9)
    assert iou(classifier.log_odds(filter_responses(image)) > 0, mask) > 0.8


@pytest.mark.slow
def test_training_is_repeatable_and_survives_its_arrays() -> None:
    image, mask = cracked(0)
    samples = [sample_pixels(image, mask, np.ones_like(mask), seed=0)]
    first, second = train_pixel_classifier(samples), train_pixel_classifier(samples)
    again = PixelClassifier.from_arrays(first.to_arrays())
    responses = filter_responses(image)
    np.testing.assert_allclose(first.log_odds(responses), second.log_odds(responses), atol=1e-4)
    np.testing.assert_array_equal(first.log_odds(responses), again.log_odds(responses))


def test_pixels_of_which_nothing_is_known_are_not_drawn() -> None:
    image, mask = cracked(0)
    known = np.zeros_like(mask)
    known[:40] = True
    sample = sample_pixels(image, mask, known, seed=0)
    assert sample.weights.sum() == pytest.approx(known.sum())


def test_references_of_one_kind_of_pixels_are_refused() -> None:
    image, mask = cracked(0)
    sample = sample_pixels(image, np.zeros_like(mask), np.ones_like(mask), seed=0)
    with pytest.raises(BadInputError, match="of the object and of the rest"):
        train_pixel_classifier([sample])


@pytest.mark.slow
def test_damaged_arrays_are_refused() -> None:
    image, mask = cracked(0)
    arrays = train_pixel_classifier([sample_pixels(image, mask, np.ones_like(mask), seed=0)]).to_arrays()
    with pytest.raises(ValueError, match="weight must be"):
        PixelClassifier.from_arrays({**arrays, "weight.1": arrays["weight.0"]})
    with pytest.raises(KeyError):
        PixelClassifier.from_arrays({name: one for name, one in arrays.items() if name != "mean"})
