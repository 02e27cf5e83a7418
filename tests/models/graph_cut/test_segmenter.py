"""The lite segmenter: points say which pieces of a cut are meant."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.types import Scribble
from backend.errors import BadInputError
from backend.models.graph_cut.segmenter import LiteSegmenter
from backend.models.segmenters import Prompt


def two_squares() -> tuple[NDArray[Any], NDArray[Any]]:
    image = np.full((60, 100, 3), (40, 140, 40), np.uint8)
    prior = np.full((60, 100), 0.05, np.float32)
    for left in (10, 60):
        image[20:45, left : left + 25] = (190, 40, 40)
        prior[20:45, left : left + 25] = 0.95
    return image, prior


def test_points_choose_the_pieces() -> None:
    image, prior = two_squares()
    segmenter = LiteSegmenter(working_px=100)
    embedding = segmenter.embed(image)
    assert segmenter.working_hw(embedding) == (60, 100)
    left, nowhere, both = (np.array(xy, np.float32) for xy in ([[20, 30]], [[50, 5]], [[20, 30], [70, 30]]))
    prompts = [Prompt(Scribble((60, 100), points), prior=prior) for points in (left, nowhere, both)]
    found = segmenter.decode(embedding, prompts)
    assert [bool(candidate.rejection_reason) for candidate in found] == [False, True, False]
    assert not found[1].mask.any()
    assert found[0].mask[30, 20]
    assert not found[0].mask[:, 50:].any()
    assert np.array_equal(found[2].mask, prior > 0.5)


def test_working_size_keeps_the_aspect_ratio() -> None:
    segmenter = LiteSegmenter(working_px=64)
    assert segmenter.embed(np.zeros((1000, 500, 3), np.uint8))["image"].shape == (64, 32, 3)
    assert segmenter.embed(np.zeros((1, 1, 3), np.uint8))["image"].shape == (64, 64, 3)
    assert segmenter.embed(np.zeros((1, 900, 3), np.uint8))["image"].shape == (1, 64, 3)


def test_what_is_no_image_is_rejected() -> None:
    with pytest.raises(BadInputError, match="image must be"):
        LiteSegmenter().embed(np.zeros((5, 5), np.uint8))
