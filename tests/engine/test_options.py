"""The engine's other ways: every matcher, the paper's recipe, one mask an object, and the trace of a segmentation."""

from dataclasses import replace

import numpy as np
import pytest

from backend.core.calibration import log_odds
from backend.core.masks import iou
from backend.core.matchers import MATCHERS
from backend.core.types import MatcherName
from backend.engine.options import MASKS_VERSION, MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter
from tests.engine.test_softmatcher import ColourEncoder, describe, scene

CALIBRATION = read_calibration("lite.json")


@pytest.fixture
def engine() -> Softmatcher:
    return Softmatcher(ColourEncoder(), LiteSegmenter(working_px=128), CALIBRATION)


@pytest.mark.parametrize("matcher", sorted(MATCHERS))
def test_every_matcher_finds_the_object(engine: Softmatcher, matcher: MatcherName) -> None:
    image, masks = scene(red=(70, 80, 40))
    target, truth = scene(red=(130, 70, 35))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    found = engine.segment(engine.encode(target), references, MatchOptions(matcher=matcher, minimum_presence=0.0))
    assert [one.label for one in found] == ["Cat"]
    assert iou(found[0].mask, truth["red"]) > 0.8


def test_gathered_references_give_the_same_masks(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40))
    references = [describe(engine, image, masks["red"])]
    target = engine.encode(scene(red=(130, 70, 35))[0])
    one = engine.segment(target, {"Cat": references})
    other = engine.segment(target, {"Cat": engine.gather(references)})
    assert np.array_equal(one[0].mask, other[0].mask)
    assert one[0].score == other[0].score


@pytest.mark.slow
def test_the_papers_recipe_finds_the_object(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40))
    target, truth = scene(red=(130, 70, 35))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    options = MatchOptions(matcher="softmatcher", strategy="paper", minimum_presence=0.0)
    found = engine.segment(engine.encode(target), references, options)
    assert iou(found[0].mask, truth["red"]) > 0.8


def test_instances_give_one_mask_an_object(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40))
    target, truth = scene(red1=(45, 60, 30), red2=(150, 90, 25))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    together = engine.segment(engine.encode(target), references)
    apart = engine.segment(engine.encode(target), references, MatchOptions(instances=True))
    assert len(together) == 1
    assert [one.label for one in apart] == ["Cat", "Cat"]
    assert not (apart[0].mask & apart[1].mask).any()
    assert np.array_equal(apart[0].mask | apart[1].mask, together[0].mask)
    assert iou(apart[0].mask | apart[1].mask, truth["red"]) > 0.9
    assert apart[0].mask[60, 45]
    assert apart[1].mask[90, 150]


@pytest.mark.parametrize("strategy", ["prior", "paper"])
@pytest.mark.slow
def test_a_trace_tells_what_segment_does(engine: Softmatcher, strategy: str) -> None:
    image, masks = scene(red=(60, 80, 40), blue=(150, 80, 30))
    target = engine.encode(scene(red=(130, 70, 35))[0])
    references = {
        "Cat": [describe(engine, image, masks["red"])],
        "Dog": [describe(engine, image, masks["blue"])],
        "None": [],
    }
    options = MatchOptions(strategy=strategy)  # type: ignore[arg-type]
    trace = engine.explain(target, references, options)
    found = {one.label: one for one in engine.segment(target, references, options)}
    assert [one.label for one in trace.labels] == ["Cat", "Dog"]
    assert {one.label for one in trace.labels if one.is_kept} == set(found) == {"Cat"}
    cat, dog = trace.labels
    assert cat.score == found["Cat"].score
    assert cat.mask.any()
    assert cat.score_map.shape == cat.mask.shape
    assert cat.cluster_masks
    assert all(
        part.reason == "kept" or part.reason.startswith("rejected: ") for part in cat.cluster_masks + dog.cluster_masks
    )
    assert dog.reason
    assert np.concatenate([part.points_xy for part in cat.cluster_masks]).shape[1] == 2


def test_a_trace_without_references_has_no_labels(engine: Softmatcher) -> None:
    assert engine.explain(engine.encode(scene()[0]), {}).labels == ()


@pytest.mark.parametrize("matcher", ["posterior", "softmatcher", "prototype"])
def test_several_references_are_worth_a_classifier_of_the_posterior_alone(
    engine: Softmatcher, matcher: MatcherName
) -> None:
    scenes = [scene(red=(60 + 20 * n, 80, 40 - 3 * n)) for n in range(2)]
    references = [describe(engine, image, masks["red"]) for image, masks in scenes]
    assert engine.gather(references[:1], MatchOptions(matcher=matcher)).classifier is None
    assert (engine.gather(references, MatchOptions(matcher=matcher)).classifier is not None) == (matcher == "posterior")
    assert engine.gather(references, MatchOptions(matcher=matcher, classifier=False)).classifier is None
    (found,) = engine.segment(engine.encode(scenes[0][0]), {"Cat": references}, MatchOptions(matcher=matcher))
    assert iou(found.mask, scenes[0][1]["red"]) > 0.9


def test_the_classifier_is_part_of_the_digest() -> None:
    assert MatchOptions().digest() != MatchOptions(classifier=False).digest()


def test_the_surest_label_of_an_image_needs_less_presence_than_the_others() -> None:
    weights = dict.fromkeys(CALIBRATION.presence_weights, 0.0)
    unsure = replace(CALIBRATION, presence_weights={**weights, "constant": log_odds(0.47)})
    engine = Softmatcher(ColourEncoder(), LiteSegmenter(working_px=128), unsure)
    image, masks = scene(red=(70, 80, 40), blue=(150, 80, 30))
    cat, dog = ([describe(engine, image, masks[colour])] for colour in ("red", "blue"))
    encoded = engine.encode(image)
    alone = engine.segment(encoded, {"Cat": cat})
    assert [one.label for one in alone] == ["Cat"]
    assert engine.segment(encoded, {"Cat": cat}, MatchOptions(minimum_presence_surest=0.5)) == []
    together = engine.segment(encoded, {"Cat": cat, "Dog": dog})
    assert [one.label for one in together] == ["Cat"]
    assert np.array_equal(alone[0].mask, together[0].mask)
    first, second = engine.explain(encoded, {"Cat": cat, "Dog": dog}).labels
    assert (first.is_kept, second.is_kept) == (True, False)
    assert "0.45 is required" in first.reason
    assert "less than the 0.5 required beside a surer label" in second.reason
    assert engine.segment(encoded, {"Cat": cat}, MatchOptions(minimum_score=1.0)) == []


def test_so_is_the_version_of_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    before = MatchOptions().digest()
    monkeypatch.setattr("backend.engine.options.MASKS_VERSION", MASKS_VERSION + 1)
    assert MatchOptions().digest() != before
