"""Models that take one image at a time, adapted to batches: the same features and masks, in the same order."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.arrays import to_numpy
from backend.core.types import Scribble
from backend.errors import BadInputError
from backend.models.encoders.protocol import BatchEncoder
from backend.models.graph_cut.segmenter import LiteSegmenter
from backend.models.one_by_one import OneByOne, OneByOneEncoder, batch_encoder, batch_segmenter
from backend.models.sam.options import SamOptions
from backend.models.sam.segmenter import sam_segmenter
from backend.models.segmenters import BatchSegmenter, DecodePlan, Prompt
from testing.small_sam import small_sam
from tests.engine.test_softmatcher import ColourEncoder, scene

IMAGES = [scene(red=(50 + 30 * index, 80, 30))[0] for index in range(3)]


def _prompts(hw: tuple[int, int]) -> list[Prompt]:
    middle = np.array([[hw[1] / 2, hw[0] / 2]], np.float32)
    prior = np.zeros(hw, np.float32)
    prior[hw[0] // 4 : hw[0] // 2, hw[1] // 4 :] = 0.9
    return [Prompt(Scribble(hw, positive_xy=middle)), Prompt(Scribble(hw, positive_xy=middle), prior=prior)]


def test_an_adapted_encoder_gives_its_own_features() -> None:
    own, adapted = ColourEncoder(), batch_encoder(ColourEncoder())
    assert isinstance(adapted, OneByOneEncoder)
    assert isinstance(adapted, BatchEncoder)
    assert (adapted.device.type, adapted.batch_size) == ("cpu", 1)
    for name in ("signature", "temperature", "similarity_floor"):
        assert getattr(adapted, name) == getattr(own, name)
    for is_half in (False, True):
        wait = adapted.encode_async([adapted.prepare(image) for image in IMAGES], is_half=is_half)
        for image, found in zip(IMAGES, wait(), strict=True):
            assert found.dtype == (np.float16 if is_half else np.float32)
            np.testing.assert_array_equal(found, to_numpy(own.encode(image)).astype(found.dtype))


def test_an_adapted_segmenter_gives_its_own_embeddings_and_masks() -> None:
    own, adapted = LiteSegmenter(working_px=64), batch_segmenter(LiteSegmenter(working_px=64))
    assert isinstance(adapted, OneByOne)
    assert isinstance(adapted, BatchSegmenter)
    assert (adapted.signature, adapted.points_add_up) == (own.signature, own.points_add_up)
    embeddings = adapted.embed_async([adapted.prepare(image) for image in IMAGES])()
    for image, embedding in zip(IMAGES, embeddings, strict=True):
        np.testing.assert_array_equal(embedding["image"], own.embed(image)["image"])
    plans = [adapted.plan(one, _prompts(adapted.working_hw(one))) for one in embeddings]
    for plan, found in zip(plans, adapted.decode_planned(plans), strict=True):
        alone = own.decode(plan.embedding, plan.prompts)
        assert [one.prompt_index for one in found] == [one.prompt_index for one in alone] != []
        for candidate, other in zip(found, alone, strict=True):
            np.testing.assert_array_equal(candidate.mask, other.mask)
            assert candidate.score == other.score


def test_images_that_cannot_be_written_to_or_lie_backwards_are_taken_without_a_warning() -> None:
    fixed = IMAGES[0].copy()
    fixed.setflags(write=False)
    for image in (fixed, IMAGES[0][:, ::-1]):
        np.testing.assert_array_equal(batch_encoder(ColourEncoder()).prepare(image), image)
        np.testing.assert_array_equal(batch_segmenter(LiteSegmenter()).prepare(image).pixels, image)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_rejected_before_it_waits(image: NDArray[Any]) -> None:
    for adapted in (batch_encoder(ColourEncoder()), batch_segmenter(LiteSegmenter())):
        with pytest.raises(BadInputError, match=r"image must be \(H, W, 3\) uint8"):
            adapted.prepare(image)


def test_models_that_take_batches_stay_as_they_are() -> None:
    sam = sam_segmenter(small_sam(), "small", SamOptions(working_px=96))
    assert batch_segmenter(sam) is sam
    adapted = batch_encoder(ColourEncoder())
    assert batch_encoder(adapted) is adapted


def test_a_plan_that_says_no_more_than_embedding_and_prompts_is_worked_out_by_the_segmenter() -> None:
    sam = sam_segmenter(small_sam(), "small", SamOptions(working_px=96))
    embedding = sam.embed(IMAGES[0])
    prompts = _prompts(sam.working_hw(embedding))
    (found,) = sam.decode_planned([DecodePlan(embedding, prompts)])
    (expected,) = sam.decode_planned([sam.plan(embedding, prompts)])
    assert len(found) == len(expected) > 0
    for candidate, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(candidate.mask, other.mask)
