"""An image of the wrong layout is rejected with what was expected and what came; a resized one stays RGB bytes."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.errors import BadInputError
from backend.models.images import require_rgb, resize_rgb

WRONG = [
    np.zeros((4, 4), np.uint8),
    np.zeros((4, 4, 4), np.uint8),
    np.zeros((4, 4, 3)),
    np.zeros((0, 4, 3), np.uint8),
]


@pytest.mark.parametrize("image", WRONG, ids=lambda image: f"{image.shape} {image.dtype}")
def test_what_is_no_image_is_rejected(image: NDArray[Any]) -> None:
    for call in (require_rgb, lambda given: resize_rgb(given, (2, 2))):
        with pytest.raises(BadInputError, match=r"image must be \(H, W, 3\) uint8, got .* decode it as RGB"):
            call(image)


@pytest.mark.parametrize("size_hw", [(2, 3), (8, 12), (2, 12), (4, 6)])
def test_a_plain_image_stays_plain(size_hw: tuple[int, int]) -> None:
    resized = resize_rgb(np.full((4, 6, 3), (10, 20, 30), np.uint8), size_hw)
    assert (resized.shape, resized.dtype) == ((*size_hw, 3), np.dtype(np.uint8))
    assert (resized == (10, 20, 30)).all()


def test_an_image_that_shrinks_is_averaged() -> None:
    stripes = np.zeros((4, 4, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (resize_rgb(stripes, (2, 2)) == 100).all()
