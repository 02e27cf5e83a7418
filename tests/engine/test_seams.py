"""What can be plugged into the engine: further score sources, refiners, calibrations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.arrays import sigmoid, unit
from backend.core.masks import iou
from backend.core.matching import ScoreMap, to_matching
from backend.core.types import EncodedImage, Image, Mask
from backend.engine.score_source import fuse
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter
from tests.engine.test_softmatcher import ColourEncoder, describe, scene

CALIBRATION = read_calibration("lite.json")


@pytest.fixture
def engine() -> Softmatcher:
    return Softmatcher(ColourEncoder(), LiteSegmenter(working_px=128), CALIBRATION)


class Reddish:
    """Scores patches by their colour, as a phrase «red» would."""

    def __init__(self, colour: tuple[float, float, float] = (0.9, -0.15, -0.15)) -> None:
        self._colour = unit(np.array(colour, np.float32))

    def score(self, encoded: EncodedImage) -> ScoreMap:
        similarity = encoded.features.astype(np.float32).reshape(-1, 3) @ self._colour
        posterior = sigmoid((similarity - 0.7) / 0.05)
        return ScoreMap(posterior, to_matching(posterior))


class Constant:
    def __init__(self, probability: float) -> None:
        self._probability = probability

    def score(self, encoded: EncodedImage) -> ScoreMap:
        posterior = np.full(encoded.features.shape[0] * encoded.features.shape[1], self._probability, np.float32)
        return ScoreMap(posterior, to_matching(posterior))


class Left:
    """Keeps the left half of the image."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def refine(self, mask: Mask, posterior: NDArray[np.float32], image: Image) -> Mask:
        self.seen.append((mask.shape, posterior.shape, posterior.dtype, image.shape))
        refined = mask.copy()
        refined[:, mask.shape[1] // 2 :] = False
        return refined


def test_a_label_without_references_is_found_by_another_source(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40), blue=(150, 60, 25))
    (found,) = engine.segment(engine.encode(image), {}, sources={"Red": [Reddish()]})
    assert found.label == "Red"
    assert iou(found.mask, masks["red"]) > 0.9


def test_a_source_whose_object_is_absent_finds_nothing(engine: Softmatcher) -> None:
    image, _ = scene(blue=(150, 60, 25))
    assert engine.segment(engine.encode(image), {}, sources={"Red": [Reddish()]}) == []


def test_a_source_that_knows_nothing_changes_nothing(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40), blue=(140, 80, 20))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    target = engine.encode(scene(red=(120, 90, 40))[0])
    (plain,) = engine.segment(target, references)
    (fused,) = engine.segment(target, references, sources={"Cat": [Constant(0.5)]})
    assert iou(plain.mask, fused.mask) > 0.99


def test_sources_of_a_label_are_joined_before_labels_compete(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40), blue=(140, 80, 20))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    target = engine.encode(scene(red=(120, 90, 40))[0])
    assert engine.segment(target, references)
    assert engine.segment(target, references, sources={"Cat": [Constant(1e-4), Constant(1e-4)]}) == []


def test_fused_log_odds_add_up() -> None:
    maps = [ScoreMap(np.array([one], np.float32), np.ones(1, np.float32)) for one in (0.8, 0.5, 0.8)]
    assert fuse(maps).posterior.item() == pytest.approx(16 / 17, abs=1e-6)
    assert fuse(maps[:1]) is maps[0]


def test_refiner_changes_the_masks_of_its_label_alone(engine: Softmatcher) -> None:
    image, masks = scene(red=(100, 80, 40), blue=(100, 20, 15))
    references = {"Cat": [describe(engine, image, masks["red"])], "Dog": [describe(engine, image, masks["blue"])]}
    refiner = Left()
    encoded = engine.encode(image)
    plain = {one.label: one.mask for one in engine.segment(encoded, references)}
    found = {
        one.label: one.mask for one in engine.segment(encoded, references, refiners={"Cat": refiner}, pixels=image)
    }
    assert not found["Cat"][:, 100:].any()
    assert np.array_equal(found["Cat"][:, :100], plain["Cat"][:, :100])
    assert np.array_equal(found["Dog"], plain["Dog"])
    assert refiner.seen == [((160, 200), (160, 200), np.float32, (160, 200, 3))]


@pytest.mark.parametrize("pixels", [None, np.zeros((10, 10, 3), np.uint8)])
def test_refiners_need_the_pixels_of_the_target(engine: Softmatcher, pixels: Image | None) -> None:
    image, masks = scene(red=(100, 80, 40))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    with pytest.raises(BadInputError, match="refiners need the target's pixels"):
        engine.segment(engine.encode(image), references, refiners={"Cat": Left()}, pixels=pixels)


def test_calibration_decides_presence_and_score() -> None:
    image, masks = scene(red=(70, 80, 40))
    strict = replace(CALIBRATION, presence_weights={**CALIBRATION.presence_weights, "constant": -99.0})
    modest = replace(CALIBRATION, expected_iou_weights={**CALIBRATION.expected_iou_weights, "constant": -5.0})
    scores = {}
    for name, calibration in (("lite", CALIBRATION), ("strict", strict), ("modest", modest)):
        engine = Softmatcher(ColourEncoder(), LiteSegmenter(working_px=128), calibration)
        found = engine.segment(engine.encode(image), {"Cat": [describe(engine, image, masks["red"])]})
        scores[name] = [one.score for one in found]
    assert scores["strict"] == []
    assert scores["modest"][0] < scores["lite"][0]
