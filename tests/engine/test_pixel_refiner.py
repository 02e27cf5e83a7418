"""The refiner that references switch on: trained, judged by leaving each out, taken only if it is better."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core import matching, patches, pixel_filters
from backend.core.cancellation import cancellable
from backend.core.masks import iou
from backend.core.pixel_classifier import PixelClassifier
from backend.core.types import Image, Mask, Reference
from backend.engine.options import MatchOptions
from backend.engine.pixel_refiner import LEAST_GAIN, FoundByOthers, MarkedImage, PixelRefiner, train_refiner
from backend.engine.refiner_training import ReferenceImage, train_label_refiner
from backend.engine.softmatcher import Softmatcher
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter
from tests.core.test_pixel_classifier import cracked
from tests.engine.test_softmatcher import ColourEncoder, scene

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> Softmatcher:
    return Softmatcher(ColourEncoder(), LiteSegmenter(working_px=128), read_calibration("lite.json"))


def references_of(
    engine: Softmatcher, drawn: list[tuple[Image, Mask]]
) -> tuple[list[Reference], Callable[[int], ReferenceImage]]:
    images = [ReferenceImage(image, engine.encode(image), mask) for image, mask in drawn]
    references = [engine.describe(one.image, one.encoded, one.mask, is_complete=True) for one in images]
    return references, images.__getitem__


def noted(call: Callable[..., Any], steps: list[str]) -> Callable[..., Any]:
    """Return the same that notes its name with each call."""

    def noting(*args: Any, **kwargs: Any) -> Any:
        steps.append(call.__name__)
        return call(*args, **kwargs)

    return noting


@pytest.fixture(scope="module")
def refiner(engine: Softmatcher) -> PixelRefiner:
    trial = train_label_refiner(engine, *references_of(engine, [cracked(seed) for seed in range(3)]))
    assert trial is not None
    assert trial.refiner is not None, trial
    return trial.refiner


def test_a_line_thinner_than_a_patch_switches_it_on_and_is_found(engine: Softmatcher, refiner: PixelRefiner) -> None:
    references, _ = references_of(engine, [cracked(seed) for seed in range(3)])
    image, mask = cracked(9)
    encoded = engine.encode(image)
    (plain,) = engine.segment(encoded, {"Crack": references})
    (refined,) = engine.segment(encoded, {"Crack": references}, refiners={"Crack": refiner}, pixels=image)
    assert iou(plain.mask, mask) < 0.5
    assert iou(refined.mask, mask) > 0.8


def test_objects_that_patches_suffice_for_do_not_switch_it_on(engine: Softmatcher) -> None:
    drawn = [(image, masks["red"]) for image, masks in (scene(red=(60 + 15 * n, 80, 40)) for n in range(3))]
    trial = train_label_refiner(engine, *references_of(engine, drawn))
    assert trial is not None
    assert trial.refiner is None
    assert trial.posterior_iou > 0.9


def test_training_makes_way_between_any_two_steps(engine: Softmatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    references, load = references_of(engine, [cracked(seed) for seed in range(3)])
    steps: list[str] = []
    for module, name in (
        (patches, "summarize_patches"),
        (pixel_filters, "_octave_responses"),
        (matching, "match_posterior"),
    ):
        monkeypatch.setattr(module, name, noted(getattr(module, name), steps))

    def is_unwanted() -> bool:
        steps.append("asked")
        return False

    with cancellable(is_unwanted):
        assert train_label_refiner(engine, references, load) is not None
    worked = [step for step in steps if step != "asked"]
    assert set(worked) == {"summarize_patches", "_octave_responses", "match_posterior"}
    # Each reference is summarized once, however often it is matched.
    assert worked.count("summarize_patches") == len(references)
    assert not any(one != "asked" and other != "asked" for one, other in pairwise(steps))


def test_two_references_are_too_few_to_judge(engine: Softmatcher) -> None:
    assert train_label_refiner(engine, *references_of(engine, [cracked(0), cracked(1)])) is None


def test_it_survives_its_arrays_and_has_a_digest_of_its_own(refiner: PixelRefiner) -> None:
    again = PixelRefiner.from_arrays(refiner.to_arrays())
    image, mask = cracked(5)
    posterior = np.full(mask.shape, 0.5, np.float32)
    np.testing.assert_array_equal(again.refine(mask, posterior, image), refiner.refine(mask, posterior, image))
    assert again.digest() == refiner.digest()
    other = PixelRefiner(refiner.classifier, refiner.threshold + 1, refiner.least_length_px)
    assert other.digest() != refiner.digest()


def test_arrays_of_another_version_are_refused(refiner: PixelRefiner) -> None:
    arrays = refiner.to_arrays()
    with pytest.raises(ValueError, match="version"):
        PixelRefiner.from_arrays({**arrays, "numbers": np.array([0.0, 0.0, 0.0])})


def test_an_image_above_the_bound_is_classified_smaller(refiner: PixelRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = cracked(9, (320, 416))
    posterior = np.full(mask.shape, 0.5, np.float32)
    seen: list[tuple[int, int]] = []
    real = PixelClassifier.log_odds

    def log_odds(self: PixelClassifier, responses: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append((responses.shape[1], responses.shape[2]))
        return real(self, responses)

    monkeypatch.setattr(PixelClassifier, "log_odds", log_odds)
    monkeypatch.setattr("backend.engine.pixel_refiner.MOST_PX", 160 * 208)
    assert refiner.refine(mask, posterior, image).shape == mask.shape
    assert seen == [(160, 208)]


def test_what_another_label_was_given_stays_its_own(engine: Softmatcher) -> None:
    class Everywhere:
        def refine(self, mask: Mask, posterior: NDArray[np.float32], image: Image) -> Mask:
            return np.ones_like(mask)

    image, masks = scene(red=(70, 80, 40), blue=(150, 60, 25))
    encoded = engine.encode(image)
    references = {name: [engine.describe(image, encoded, masks[name], is_complete=True)] for name in ("red", "blue")}
    plain = {one.label: one.mask for one in engine.segment(encoded, references)}
    for instances in (False, True):
        found = engine.segment(
            encoded, references, MatchOptions(instances=instances), refiners={"red": Everywhere()}, pixels=image
        )
        blue = np.logical_or.reduce([one.mask for one in found if one.label == "blue"])
        red = np.logical_or.reduce([one.mask for one in found if one.label == "red"])
        np.testing.assert_array_equal(blue, plain["blue"])
        np.testing.assert_array_equal(red, ~plain["blue"])


def test_a_gain_on_one_reference_does_not_outweigh_losses_on_most() -> None:
    lost_image, lost_mask = cracked(0)
    lost = MarkedImage(lost_image, lost_mask, np.ones_like(lost_mask))
    uncertain = np.full(lost_mask.shape, 0.5, np.float32)
    found = [MarkedImage(image, mask, np.ones_like(mask)) for image, mask in (cracked(1), cracked(2))]
    # The posterior has no mask on the first one, and the very masks of the other two: nothing is better there.
    references = [FoundByOthers(lost, np.zeros_like(lost_mask), uncertain)]
    references += [FoundByOthers(one, one.mask, uncertain) for one in found]
    trial = train_refiner(3, lambda number: references[number].marked, references.__getitem__)
    assert trial is not None
    assert trial.refined_iou > trial.posterior_iou + LEAST_GAIN
    assert trial.refiner is None
