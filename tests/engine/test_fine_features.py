"""Thin things: references decide by their masks alone, and targets are matched at twice the size."""

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.arrays import unit
from backend.core.calibration import mask_features
from backend.core.masks import iou
from backend.core.matching import ScoreMap
from backend.core.memory_bank import build_bank, thinned
from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.types import EncodedImage, Image, Mask, Reference
from backend.engine.competition import compete
from backend.engine.fine_features import needs_fine
from backend.engine.options import MatchOptions
from backend.engine.plans import LabelCandidate
from backend.engine.refiner_training import ReferenceImage, train_label_refiner
from backend.engine.softmatcher import Softmatcher
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter

GREEN, RED, BLUE = (40, 150, 40), (200, 40, 40), (40, 40, 200)
CALIBRATION = read_calibration("lite.json")


class CoarseEncoder:
    """A patch is 16 px wide; its feature is its colour."""

    signature = "coarse colours"
    temperature = 0.05
    similarity_floor = 0.3
    object_feature_space = ObjectFeatureSpace()

    def encode(self, image: Image) -> NDArray[np.float32]:
        return self.at(image, 16)

    def at(self, image: Image, patch_px: int) -> NDArray[np.float32]:
        rows, columns = (max(1, side // patch_px) for side in image.shape[:2])
        small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
        return np.asarray(unit(small - 60.0))


class FineColourEncoder(CoarseEncoder):
    """The same, which can also see patches of 8 px."""

    def __init__(self) -> None:
        self.fine_passes = 0

    def encode_fine(self, image: Image) -> NDArray[np.float32]:
        self.fine_passes += 1
        return self.at(image, 8)


def scene(line_x: int | None = None, disc_xy: tuple[int, int] | None = None) -> tuple[Image, Mask, Mask]:
    """Return a noisy green image of 160x320 px with a red line, 8 px wide, and a blue disc; and the masks of both."""
    image = np.full((160, 320, 3), GREEN, np.int16)
    line, disc = np.zeros((160, 320), bool), np.zeros((160, 320), bool)
    if line_x is not None:
        line[16:144, line_x : line_x + 8] = True
    if disc_xy is not None:
        y, x = np.mgrid[:160, :320]
        disc = (x - disc_xy[0]) ** 2 + (y - disc_xy[1]) ** 2 < 60**2
    image[disc], image[line] = BLUE, RED
    noise = np.random.default_rng(0).integers(-15, 16, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), line, disc


@pytest.fixture
def encoder() -> FineColourEncoder:
    return FineColourEncoder()


@pytest.fixture
def engine(encoder: FineColourEncoder) -> Softmatcher:
    return Softmatcher(encoder, LiteSegmenter(working_px=320), CALIBRATION)


def describe(engine: Softmatcher, image: Image, mask: Mask) -> Reference:
    return engine.describe(image, engine.encode(image), mask, is_complete=True)


def test_only_thin_objects_are_described_at_twice_the_size(engine: Softmatcher) -> None:
    image, line, disc = scene(104, (220, 80))
    thin, thick = describe(engine, image, line), describe(engine, image, disc)
    assert thin.fine is not None
    assert thick.fine is None
    assert len(thin.fine.features) > 3 * len(thin.features)
    assert needs_fine({"Line": [thin], "Disc": engine.gather([thick])})
    assert needs_fine({"Line": engine.gather([thin])})
    assert not needs_fine({"Disc": engine.gather([thick])})


def test_a_line_thinner_than_a_patch_is_found_by_fine_features(engine: Softmatcher) -> None:
    image, line, _ = scene(104)
    target, truth, _ = scene(216)
    thin = [describe(engine, image, line)]
    coarse = Softmatcher(CoarseEncoder(), LiteSegmenter(working_px=320), CALIBRATION)
    usual = [describe(coarse, image, line)]
    options = MatchOptions(minimum_presence=0.0)
    found = engine.segment(engine.encode(target), {"Line": thin}, options, pixels=target)[0].mask
    before = coarse.segment(coarse.encode(target), {"Line": usual}, options, pixels=target)
    assert iou(found, truth) > 0.8
    assert not before or iou(before[0].mask, truth) < iou(found, truth) - 0.1


def test_an_encoder_that_cannot_leaves_every_label_as_it_is() -> None:
    coarse = Softmatcher(CoarseEncoder(), LiteSegmenter(working_px=320), CALIBRATION)
    image, line, _ = scene(104)
    assert describe(coarse, image, line).fine is None


def test_without_pixels_a_target_is_matched_with_the_features_that_it_has(engine: Softmatcher) -> None:
    image, line, _ = scene(104)
    assert engine.segment(engine.encode(image), {"Line": [describe(engine, image, line)]})


def test_of_two_labels_only_the_thin_one_is_matched_at_twice_the_size(engine: Softmatcher) -> None:
    image, line, disc = scene(104, (220, 80))
    target, line_there, disc_there = scene(264, (120, 80))
    references = {"Line": [describe(engine, image, line)], "Disc": [describe(engine, image, disc)]}
    encoded = engine.encode(target)
    together = {one.label: one.mask for one in engine.segment(encoded, references, pixels=target)}
    assert iou(together["Line"], line_there) > 0.8
    assert iou(together["Disc"], disc_there) > 0.9
    # The thick label's mask is what it is without the thin one.
    (alone,) = engine.segment(encoded, {"Disc": references["Disc"]})
    assert np.array_equal(together["Disc"], alone.mask)


def test_the_feature_map_of_a_target_is_made_once(engine: Softmatcher, encoder: FineColourEncoder) -> None:
    image, line, _ = scene(104)
    references = {"Line": [describe(engine, image, line)]}
    target = scene(216)[0]
    encoded = engine.encode(target)
    before = encoder.fine_passes
    first = engine.segment(encoded, references, pixels=target)
    again = engine.segment(encoded, references, pixels=target)
    assert encoder.fine_passes == before + 1
    ready = engine.add_fine_features(encoded, target)
    given = engine.segment(ready, references)
    assert encoder.fine_passes == before + 1
    assert np.array_equal(first[0].mask, again[0].mask)
    assert np.array_equal(first[0].mask, given[0].mask)


def test_another_target_is_not_taken_for_one_that_is_gone(engine: Softmatcher) -> None:
    image, line, _ = scene(104)
    references = {"Line": [describe(engine, image, line)]}
    for line_x in (24, 56, 120, 152, 184, 216, 248, 280):
        target, truth, _ = scene(line_x)
        found = engine.segment(engine.encode(target), references, pixels=target)
        assert iou(found[0].mask, truth) > 0.8, line_x


@pytest.mark.parametrize(
    ("thin", "thick", "wanted"), [(1, 0, True), (0, 1, False), (1, 1, True), (1, 2, False), (2, 1, True)]
)
def test_a_label_is_matched_at_twice_the_size_if_at_least_half_of_its_references_are_thin(
    engine: Softmatcher, thin: int, thick: int, *, wanted: bool
) -> None:
    image, line, disc = scene(104, (220, 80))
    references = [describe(engine, image, line)] * thin + [describe(engine, image, disc)] * thick
    absence = engine.describe_absence(engine.encode(image))
    fine = engine.gather([*references, absence]).fine
    assert (fine is not None) == wanted
    if fine is not None:
        assert len(fine.objects) == thin


def test_what_is_kept_at_twice_the_size_weighs_as_much_as_the_whole() -> None:
    random = np.random.default_rng(0)
    features = unit(random.normal(size=(5000, 8))).astype(np.float16)
    coverage = np.zeros(5000, np.float16)
    coverage[1000:1100] = 1
    whole = Reference(features, coverage, np.ones(5000, np.float16), "model")
    kept = thinned(whole, 400)
    assert thinned(kept, 400) is kept
    assert len(kept.features) == 400
    bank, full = (build_bank([one], "model", most_patches=5000) for one in (kept, whole))
    assert bank.foreground.sum() == pytest.approx(full.foreground.sum())
    assert bank.background.sum() == pytest.approx(full.background.sum(), rel=1e-3)
    assert int((bank.foreground > 0).sum()) == 100


def test_mixed_references_and_absences_are_matched(engine: Softmatcher) -> None:
    image, line, _ = scene(104)
    wide = cv2.dilate(line.astype(np.uint8), np.ones((1, 81))).astype(bool)
    broad = image.copy()
    broad[wide] = RED
    stranger = scene(None, (220, 80))[0]
    references = [
        describe(engine, image, line),
        describe(engine, broad, wide),
        engine.describe_absence(engine.encode(stranger)),
    ]
    assert [one.fine is not None for one in references] == [True, False, False]
    target, truth, _ = scene(216)
    found = engine.segment(engine.encode(target), {"Line": references}, pixels=target)
    assert iou(found[0].mask, truth) > 0.8


def test_a_label_with_a_further_source_is_matched_at_the_usual_size(engine: Softmatcher) -> None:
    class Nothing:
        def score(self, encoded: EncodedImage) -> ScoreMap:
            patches = encoded.features.shape[0] * encoded.features.shape[1]
            return ScoreMap(np.full(patches, 0.5, np.float32), np.full(patches, 1 / patches, np.float32))

    image, line, _ = scene(104)
    target = scene(216)[0]
    references = {"Line": [describe(engine, image, line)]}
    encoded = engine.encode(target)
    plain = engine.segment(encoded, references)
    joined = engine.segment(encoded, references, pixels=target, sources={"Line": [Nothing()]})
    assert iou(plain[0].mask, joined[0].mask) > 0.99


def test_a_reference_keeps_its_size_as_arrays(engine: Softmatcher) -> None:
    image, line, disc = scene(104, (220, 80))
    for mask in (line, disc):
        reference = describe(engine, image, mask)
        again = Reference.from_arrays(reference.to_arrays(), reference.signature)
        assert (again.fine is None) == (reference.fine is None)
        if again.fine is not None and reference.fine is not None:
            assert np.array_equal(again.fine.features, reference.fine.features)
            assert np.array_equal(again.fine.ignore_weight, reference.fine.ignore_weight)


def test_explain_shows_the_same_masks(engine: Softmatcher) -> None:
    image, line, _ = scene(104)
    target, truth, _ = scene(216)
    references = {"Line": [describe(engine, image, line)]}
    (explained,) = engine.explain(engine.encode(target), references, pixels=target).labels
    assert explained.score_map.shape == explained.mask.shape
    size = (truth.shape[1], truth.shape[0])
    assert iou(cv2.resize(explained.mask.astype(np.uint8), size) > 0, truth) > 0.6


def test_explain_shows_refined_masks(engine: Softmatcher) -> None:
    class Everything:
        def refine(self, mask: Mask, posterior: NDArray[np.float32], image: Image) -> Mask:
            return np.ones_like(mask)

    image, line, _ = scene(104)
    references = {"Line": [describe(engine, image, line)]}
    encoded = engine.encode(image)
    (plain,) = engine.explain(encoded, references, pixels=image).labels
    (refined,) = engine.explain(encoded, references, refiners={"Line": Everything()}, pixels=image).labels
    assert not plain.mask.all()
    assert refined.mask.all()


def test_labels_are_compared_by_their_presence_at_the_usual_size() -> None:
    measured = mask_features(
        np.ones((2, 2), bool), np.ones((2, 2), np.float32), np.ones((2, 2), np.float32),
        object_similarity=1.0, intra_reference_similarity=0.4,
    )  # fmt: skip

    def candidate(column: int, presence: float, score: float = 0.5) -> LabelCandidate:
        mask = np.zeros((10, 10), bool)
        mask[:, column : column + 3] = True
        return LabelCandidate(mask, mask.astype(np.float32), presence, score, measured, ())

    thin = candidate(0, 0.33).joined_with(candidate(1, 0.87, 0.7))
    assert thin.presence == pytest.approx(0.6)
    assert thin.score == 0.7
    assert thin.mask[0, 3]
    other, absent, options = candidate(6, 0.55), candidate(6, 0.1), MatchOptions()
    # A surer label is there, beside which the thin one is not; without one it is.
    beside = {0: candidate(0, 0.2), 1: other}
    assert [one.is_kept for one in compete([thin, other], options, beside=beside)] == [False, True]
    assert [one.is_kept for one in compete([thin, absent], options)] == [True, False]
    assert [one.is_kept for one in compete([thin], options)] == [True]


def test_a_refiner_is_trained_on_fine_references(engine: Softmatcher) -> None:
    images = [scene(x) for x in (40, 104, 168)]
    references = [describe(engine, image, line) for image, line, _ in images]
    loaded = [ReferenceImage(image, engine.encode(image), line) for image, line, _ in images]
    trial: Any = train_label_refiner(engine, references, lambda number: loaded[number])
    assert trial.posterior_iou > 0.8
