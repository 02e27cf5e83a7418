"""An encoder whose similarities nobody measured: masks, absence and scores are those of one that was measured."""

import zlib

import numpy as np
import pytest

from backend.core.feature_scale import measure_scale
from backend.core.masks import iou
from backend.core.types import Image, LabelMask
from backend.engine.encoder_scale import photographs, scale_of
from backend.engine.loading import load_softmatcher
from backend.engine.softmatcher import Softmatcher
from backend.models.graph_cut.segmenter import LiteSegmenter
from tests.engine.test_softmatcher import CALIBRATION, ColourEncoder, describe, scene


class SqueezedEncoder(ColourEncoder):
    """The colours' cosines c as `mean + spread * c`, with some noise; its scale is not known.

    Args:
        mean: what all patches share.
        spread: what is left to tell them apart.
        dimensions: of the rest, which is noise of each patch's own.
    """

    temperature: float | None  # type: ignore[assignment]
    similarity_floor: float | None  # type: ignore[assignment]

    def __init__(self, mean: float, spread: float, dimensions: int, scale: tuple[float, float] | None = None) -> None:
        self.signature = f"squeezed:{mean}:{spread}:{dimensions}:{scale}"
        self.temperature, self.similarity_floor = scale or (None, None)
        self._parts = mean, spread, 1 - mean - spread
        self._dimensions = dimensions

    def encode(self, image: Image) -> np.ndarray:  # type: ignore[type-arg]
        colours = np.asarray(super().encode(image))
        random = np.random.default_rng(zlib.crc32(image.tobytes()))
        noise = random.standard_normal((*colours.shape[:2], self._dimensions)).astype(np.float32)
        noise /= np.linalg.norm(noise, axis=2, keepdims=True)
        shared, own, rest = np.sqrt(np.array(self._parts, np.float32))
        ones = np.ones((*colours.shape[:2], 1), np.float32)
        return np.concatenate([shared * ones, own * colours, rest * noise], axis=2)


HIGH = (0.875, 0.075, 64)
"""Cosines of two patches are between 0.8 and 0.95."""
LOW = (0.1, 0.2, 256)
"""Between -0.1 and 0.3, but for the noise."""


def engine_of(encoder: ColourEncoder) -> Softmatcher:
    return Softmatcher(encoder, LiteSegmenter(working_px=128), CALIBRATION)


def found_in(engine: Softmatcher, target: Image) -> list[LabelMask]:
    image, masks = scene(red=(70, 80, 40))
    return engine.segment(engine.encode(target), {"Cat": [describe(engine, image, masks["red"])]})


@pytest.mark.slow
@pytest.mark.parametrize("parts", [HIGH, LOW])
def test_masks_and_scores_are_those_of_a_measured_encoder(parts: tuple[float, float, int]) -> None:
    squeezed, measured = engine_of(SqueezedEncoder(*parts)), engine_of(ColourEncoder())
    for place in ((140, 50, 25), (60, 100, 45), (100, 80, 30)):
        target, truth = scene(red=place)
        (found,), (known,) = found_in(squeezed, target), found_in(measured, target)
        assert iou(found.mask, truth["red"]) > 0.9
        assert found.score == pytest.approx(known.score, abs=0.1)


@pytest.mark.parametrize("parts", [HIGH, LOW])
@pytest.mark.parametrize("discs", [{}, {"blue": (100, 80, 40)}])
def test_an_absent_object_gives_nothing(
    parts: tuple[float, float, int], discs: dict[str, tuple[int, int, int]]
) -> None:
    assert found_in(engine_of(SqueezedEncoder(*parts)), scene(**discs)[0]) == []


def test_with_another_encoders_scale_an_absent_object_is_found() -> None:
    """The fault that is kept out: numbers of `lite`, or a guess, on similarities of another range."""
    for scale in ((0.05, 0.3), (0.07, 0.0)):
        assert found_in(engine_of(SqueezedEncoder(*HIGH, scale)), scene(blue=(100, 80, 40))[0]) != []


@pytest.mark.slow
def test_photographs_give_lite_the_scale_that_data_sets_gave_it() -> None:
    engine = load_softmatcher("lite")
    patches = [engine.encode(one).features for one in photographs()]
    scales = [measure_scale(one.reshape(-1, one.shape[2])) for one in patches]
    assert np.median([one.temperature for one in scales]) == pytest.approx(engine.scale.temperature, rel=0.1)
    assert np.median([one.similarity_floor for one in scales]) == pytest.approx(engine.scale.similarity_floor, abs=0.03)


def test_the_scale_follows_any_affine_change_of_the_similarities() -> None:
    random = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    patches = random / np.linalg.norm(random, axis=1, keepdims=True)
    squeezed = np.hstack([patches * np.float32(0.5**0.5), np.full((300, 1), 0.5**0.5, np.float32)])
    before, after = measure_scale(patches), measure_scale(squeezed)
    assert after.temperature == pytest.approx(0.5 * before.temperature, rel=1e-3)
    assert after.similarity_floor == pytest.approx(0.5 + 0.5 * before.similarity_floor, abs=1e-3)


def test_a_scale_that_the_encoder_names_is_taken_as_it_is() -> None:
    found = scale_of(ColourEncoder())
    assert (found.features.temperature, found.features.similarity_floor) == (0.05, 0.3)
    assert found.space is ColourEncoder.object_feature_space


def test_one_patch_and_patches_all_alike_have_a_scale() -> None:
    assert measure_scale(np.ones((1, 4), np.float32) / 2).temperature > 0
    assert measure_scale(np.ones((9, 4), np.float32) / 2).temperature > 0
