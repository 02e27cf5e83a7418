"""What strokes run through is cut out, whole, and nothing that was painted otherwise."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.masks import iou
from backend.core.self_similarity import stroke_posterior
from backend.core.types import Scribble
from backend.models.graph_cut.stroke_cut import cut_from_strokes

HEIGHT, WIDTH = 64, 96


@pytest.fixture
def image() -> NDArray[Any]:
    """A two-coloured object, one half red and one half blue, on green; a red twin on the right."""
    pixels = np.full((HEIGHT, WIDTH, 3), (40, 140, 40), np.uint8)
    pixels[16:48, 8:24] = (190, 40, 40)
    pixels[16:48, 24:40] = (40, 40, 190)
    pixels[16:48, 64:80] = (190, 40, 40)
    return pixels


def features_of(image: NDArray[Any]) -> NDArray[Any]:
    patches = image.reshape(HEIGHT // 8, 8, WIDTH // 8, 8, 3).mean(axis=(1, 3))
    features: NDArray[np.float32] = (patches / np.linalg.norm(patches, axis=2, keepdims=True)).astype(np.float32)
    return features


def strokes(*boxes: tuple[int, int, int, int]) -> NDArray[Any]:
    painted = np.zeros((HEIGHT, WIDTH), bool)
    for left, top, right, bottom in boxes:
        painted[top:bottom, left:right] = True
    return painted


def cut(image: NDArray[Any], scribble: Scribble) -> NDArray[Any]:
    posterior = stroke_posterior(features_of(image), scribble)
    assert posterior is not None
    assert posterior.shape == (HEIGHT, WIDTH)
    assert posterior.min() >= 0
    assert posterior.max() <= 1
    found = cut_from_strokes(image, scribble, posterior)
    assert found is not None
    assert 0 < found.score < 1
    return found.mask


def test_a_stroke_over_both_halves_cuts_the_whole_and_not_its_twin(image: NDArray[Any]) -> None:
    found = cut(image, Scribble((HEIGHT, WIDTH), positive_strokes=strokes((12, 28, 36, 34))))
    assert iou(found, strokes((8, 16, 40, 48))) > 0.95


def test_a_negative_stroke_takes_its_half_away(image: NDArray[Any]) -> None:
    scribble = Scribble(
        (HEIGHT, WIDTH),
        positive_strokes=strokes((12, 28, 22, 34)),
        negative_strokes=strokes((27, 18, 38, 46)),
    )
    assert iou(cut(image, scribble), strokes((8, 16, 24, 48))) > 0.95


def test_what_is_painted_holds_to_the_pixel(image: NDArray[Any]) -> None:
    inside, outside = strokes((2, 2, 20, 30)), strokes((10, 36, 30, 60))
    found = cut(image, Scribble((HEIGHT, WIDTH), positive_strokes=inside, negative_strokes=outside))
    assert found[inside].all()
    assert not found[outside].any()


def test_the_same_scribble_gives_the_same_mask(image: NDArray[Any]) -> None:
    scribble = Scribble((HEIGHT, WIDTH), positive_strokes=strokes((12, 28, 36, 34)))
    assert np.array_equal(cut(image, scribble), cut(image, scribble))


def test_without_strokes_there_is_no_posterior(image: NDArray[Any]) -> None:
    features = features_of(image)
    assert stroke_posterior(features, Scribble((HEIGHT, WIDTH), np.array([[20, 30]], np.float32))) is None
    assert stroke_posterior(features, Scribble((HEIGHT, WIDTH), positive_strokes=strokes())) is None


def test_strokes_over_everything_leave_no_background_to_tell_from(image: NDArray[Any]) -> None:
    everything = Scribble((HEIGHT, WIDTH), positive_strokes=np.ones((HEIGHT, WIDTH), bool))
    assert stroke_posterior(features_of(image), everything) is None


def test_a_pixel_painted_both_ways_is_outside(image: NDArray[Any]) -> None:
    both = strokes((12, 28, 36, 34))
    scribble = Scribble((HEIGHT, WIDTH), positive_strokes=both, negative_strokes=both)
    assert cut_from_strokes(image, scribble, np.full((HEIGHT, WIDTH), 0.5, np.float32)) is None
