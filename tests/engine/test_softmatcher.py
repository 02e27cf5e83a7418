"""The engine on drawn images with an encoder that sees colours: the right answer is known to the pixel."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.arrays import CPU, unit
from backend.core.calibration import MaskFeatures
from backend.core.cancellation import CancelledWorkError, cancellable, time_limit
from backend.core.marked_objects import MarkedObject
from backend.core.masks import iou
from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.scribbles import scale_scribble
from backend.core.types import Image, Mask, MatcherName, Reference, ScoredMask, Scribble
from backend.engine.competition import compete
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.plans import LabelCandidate
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError, ConfigurationError
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter
from backend.models.segmenters import SegmenterInput

CALIBRATION = read_calibration("lite.json")

GREEN, RED, BLUE = (40, 150, 40), (200, 40, 40), (40, 40, 200)


class ColourEncoder:
    """A patch is 8 px wide; its feature is its colour."""

    signature = "colours"
    temperature = 0.05
    similarity_floor = 0.3
    object_feature_space = ObjectFeatureSpace()

    def encode(self, image: Image) -> NDArray[np.float32]:
        rows, columns = (max(1, side // 8) for side in image.shape[:2])
        small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
        return np.asarray(unit(small - 60.0))


def scene(**discs: tuple[int, int, int]) -> tuple[Image, dict[str, Mask]]:
    """A noisy green image of 160x200 px with discs (x, y, radius) named by their colour, and their masks."""
    y, x = np.mgrid[:160, :200] + 0.5
    image = np.full((160, 200, 3), GREEN, np.int16)
    masks: dict[str, Mask] = {}
    for name, (centre_x, centre_y, radius) in discs.items():
        colour = name.rstrip("0123456789")
        mask = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
        image[mask] = {"red": RED, "blue": BLUE}[colour]
        masks[colour] = masks.get(colour, np.zeros_like(mask)) | mask
    noise = np.random.default_rng(0).integers(-15, 16, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), masks


@pytest.fixture
def engine() -> Softmatcher:
    return Softmatcher(ColourEncoder(), LiteSegmenter(working_px=128), CALIBRATION)


def describe(engine: Softmatcher, image: Image, mask: Mask, *, is_complete: bool = True) -> Reference:
    return engine.describe(image, engine.encode(image), mask, is_complete=is_complete)


@pytest.mark.parametrize("matcher", ["posterior", "softmatcher"])
def test_an_image_matched_with_itself_finds_its_own_mask(engine: Softmatcher, matcher: MatcherName) -> None:
    image, masks = scene(red=(70, 80, 40))
    options = MatchOptions(matcher=matcher)
    found = engine.segment(engine.encode(image), {"Cat": [describe(engine, image, masks["red"])]}, options)
    assert [one.label for one in found] == ["Cat"]
    assert iou(found[0].mask, masks["red"]) > 0.93
    assert found[0].score > 0.6


@pytest.mark.parametrize("matcher", ["posterior", "softmatcher"])
def test_an_object_elsewhere_and_of_another_size_is_found(engine: Softmatcher, matcher: MatcherName) -> None:
    image, masks = scene(red=(70, 80, 40))
    target, truth = scene(red=(140, 50, 25))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    found = engine.segment(engine.encode(target), references, MatchOptions(matcher=matcher))
    assert iou(found[0].mask, truth["red"]) > 0.9


def test_two_labels_are_found_and_do_not_overlap(engine: Softmatcher) -> None:
    image, masks = scene(red=(60, 60, 35), blue=(140, 100, 30))
    target, truth = scene(red=(120, 60, 30), blue=(90, 90, 30))
    references = {
        "Cat": [describe(engine, image, masks["red"])],
        "Dog": [describe(engine, image, masks["blue"])],
    }
    found = {one.label: one.mask for one in engine.segment(engine.encode(target), references)}
    assert not (found["Cat"] & found["Dog"]).any()
    assert iou(found["Cat"], truth["red"] & ~truth["blue"]) > 0.85
    assert iou(found["Dog"], truth["blue"]) > 0.85


def test_an_absent_object_gives_nothing(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    for target in (scene()[0], scene(blue=(100, 80, 40))[0]):
        assert engine.segment(engine.encode(target), references) == []


def test_no_references_give_nothing(engine: Softmatcher) -> None:
    encoded = engine.encode(scene()[0])
    assert engine.segment(encoded, {}) == []
    assert engine.segment(encoded, {"Cat": []}) == []


def test_order_of_references_changes_nothing(engine: Softmatcher) -> None:
    first, first_masks = scene(red=(70, 80, 40))
    second, second_masks = scene(red=(120, 70, 25))
    references = [describe(engine, first, first_masks["red"]), describe(engine, second, second_masks["red"])]
    target = engine.encode(scene(red=(50, 100, 30))[0])
    one = engine.segment(target, {"Cat": references})
    other = engine.segment(target, {"Cat": references[::-1]})
    assert iou(one[0].mask, other[0].mask) > 0.999
    assert one[0].score == pytest.approx(other[0].score, abs=1e-3)


def test_a_mirrored_target_has_the_mirrored_mask(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    target, truth = scene(red=(140, 60, 30))
    found = engine.segment(engine.encode(np.ascontiguousarray(target[:, ::-1])), references)
    assert iou(found[0].mask[:, ::-1], truth["red"]) > 0.9


def test_one_of_two_marked_objects_finds_both_unless_complete(engine: Softmatcher) -> None:
    image, masks = scene(red=(50, 80, 30), red2=(150, 80, 30))
    left = masks["red"] & (np.arange(200) < 100)
    encoded = engine.encode(image)
    open_reference = engine.describe(image, encoded, left)
    told = engine.describe(image, encoded, left, background=masks["red"] & ~left)
    assert iou(engine.segment(encoded, {"Cat": [open_reference]})[0].mask, masks["red"]) > 0.9
    assert told.ignore_weight.astype(np.float32).sum() > open_reference.ignore_weight.astype(np.float32).sum() + 5


def test_a_doubted_mask_finds_what_it_missed_and_what_was_told_stays_outside(engine: Softmatcher) -> None:
    image, masks = scene(red=(50, 80, 30), red2=(150, 80, 30))
    encoded = engine.encode(image)
    left = masks["red"] & (np.arange(200) < 100)
    part = left & (np.arange(160)[:, None] < 70)  # the upper part of one of two
    scribble = Scribble((160, 200), np.array([[50, 60]], np.float32))
    uncertainty = engine.uncertainty(encoded, [MarkedObject(scribble, ScoredMask(part, 0.3))])
    assert uncertainty is not None
    reference = engine.describe(image, encoded, part, uncertainty=uncertainty, is_complete=True)
    assert iou(engine.segment(encoded, {"Cat": [reference]})[0].mask, masks["red"]) > 0.9
    right = masks["red"] & ~left
    told = engine.describe(image, encoded, part, background=right, uncertainty=uncertainty)
    assert float(told.foreground_coverage[told.ignore_weight > 0].sum()) < float(
        reference.foreground_coverage[reference.ignore_weight > 0].sum()
    )


@pytest.mark.slow
def test_masks_come_at_natural_size_and_same_input_gives_the_same_answer(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    large = cv2.resize(image, (1000, 800), interpolation=cv2.INTER_CUBIC)
    first, second = (engine.segment(engine.encode(large), references)[0] for _ in range(2))
    assert first.mask.shape == (800, 1000)
    assert np.array_equal(first.mask, second.mask)
    truth = cv2.resize(masks["red"].astype(np.uint8), (1000, 800), interpolation=cv2.INTER_NEAREST) > 0
    assert iou(first.mask, truth) > 0.93


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 40, 3), (300, 1, 3), (2, 2, 3)])
def test_tiny_images_are_survived(engine: Softmatcher, shape: tuple[int, int, int]) -> None:
    image, masks = scene(red=(70, 80, 40))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    assert engine.segment(engine.encode(np.full(shape, 90, np.uint8)), references) == []


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize("fill", ["everything", "pixel"])
def test_masks_of_everything_and_of_one_pixel_are_references(engine: Softmatcher, fill: str, is_complete: bool) -> None:
    image, _ = scene(red=(70, 80, 40))
    mask = np.full(image.shape[:2], fill == "everything")
    mask[80, 70] = True
    reference = describe(engine, image, mask, is_complete=is_complete)
    assert np.isfinite(reference.features.astype(np.float32)).all()
    for found in engine.segment(engine.encode(image), {"Cat": [reference]}):
        assert 0 <= found.score <= 1


def test_key_point_becomes_the_disc_under_it(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40), blue=(160, 40, 20))
    scribble = Scribble((160, 200), np.array([[70, 80]], np.float32), np.array([[160, 40]], np.float32))
    found = engine.mask_from_scribble(engine.encode(image), scribble)
    assert found is not None
    assert iou(found.mask, masks["red"]) > 0.9


def test_a_limit_of_time_ends_between_two_cuts(engine: Softmatcher) -> None:
    image, _ = scene(red=(70, 80, 40), blue=(160, 40, 20))
    encoded = engine.encode(image)
    marks = Scribble((160, 200), np.array([[70, 80], [160, 40]], np.float32))
    clock = iter(range(10))
    with pytest.raises(BadInputError, match="too long"), time_limit(1, "too long", clock=lambda: next(clock)):
        engine.objects_from_scribble(encoded, marks)
    assert next(clock) == 2, "asked once before each of two cuts"
    assert len(engine.objects_from_scribble(encoded, marks)) == 2


def test_a_scribble_without_anything_positive_has_no_mask(engine: Softmatcher) -> None:
    scribble = Scribble((160, 200), negative_xy=np.array([[5, 5]], np.float32))
    assert engine.mask_from_scribble(engine.encode(scene()[0]), scribble) is None


def test_scaled_scribbles_keep_their_place_and_thin_strokes() -> None:
    strokes = np.zeros((100, 200), bool)
    strokes[50] = True
    scribble = Scribble((100, 200), np.array([[20, 10]], np.float32), positive_strokes=strokes)
    scaled = scale_scribble(scribble, (25, 50))
    assert scaled.positive_xy.tolist() == [[5, 2.5]]
    assert scaled.positive_strokes is not None
    assert scaled.positive_strokes.sum() == 50
    assert scaled.positive_strokes[12].all()


def test_wrong_shapes_and_models_are_rejected(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40))
    encoded = engine.encode(image)
    with pytest.raises(BadInputError, match=r"mask must be \(160, 200\) bool"):
        engine.describe(image, encoded, masks["red"][:50])
    with pytest.raises(BadInputError, match="reference mask must mark the object"):
        engine.describe(image, encoded, np.zeros((160, 200), bool))
    with pytest.raises(BadInputError, match="scribble must be drawn on"):
        engine.mask_from_scribble(encoded, Scribble((10, 10), np.array([[1, 1]], np.float32)))
    other = Softmatcher(ColourEncoder(), LiteSegmenter(working_px=64), CALIBRATION)
    with pytest.raises(BadInputError, match="image must be encoded by the models"):
        other.segment(encoded, {"Cat": [describe(engine, image, masks["red"])]})
    with pytest.raises(BadInputError, match="references must come from the models"):
        other.segment(other.encode(image), {"Cat": [describe(engine, image, masks["red"])]})


def test_wrong_settings_are_rejected(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40))
    encoded, references = engine.encode(image), {"Cat": [describe(engine, image, masks["red"])]}
    with pytest.raises(BadInputError, match="temperature must be above 0"):
        engine.segment(encoded, references, MatchOptions(temperature=0))
    with pytest.raises(ConfigurationError, match="matcher must be one of"):
        engine.segment(encoded, references, MatchOptions(matcher="magic"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="profile must be one of lite, mobile"):
        load_softmatcher("huge")


def test_digest_changes_with_every_option() -> None:
    variants = [
        MatchOptions(),
        MatchOptions(matcher="softmatcher"),
        MatchOptions(seed=1),
        MatchOptions(temperature=0.1),
    ]
    assert len({options.digest() for options in variants}) == 4
    assert MatchOptions().digest() == MatchOptions().digest()


def test_stages_are_reported_and_threads_do_not_mix_images() -> None:
    stages: list[str] = []

    def record(name: str, _: float) -> None:
        stages.append(name)

    engine = Softmatcher(
        ColourEncoder(), LiteSegmenter(working_px=128), CALIBRATION, on_stage=lambda name, _: stages.append(name)
    )
    image, masks = scene(red=(70, 80, 40))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    places = [(50, 60), (140, 60), (60, 110), (140, 110)]
    reached: dict[tuple[int, int], float] = {}

    def work(place: tuple[int, int]) -> None:
        target, truth = scene(red=(*place, 30))
        reached[place] = iou(engine.segment(engine.encode(target), references)[0].mask, truth["red"])

    threads = [threading.Thread(target=work, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(reached[place] for place in places) > 0.9
    assert {"encode", "describe", *SEGMENT_STAGES} <= set(stages)


def test_a_label_that_is_absent_changes_nothing_of_one_that_is_there(engine: Softmatcher) -> None:
    image, masks = scene(red=(60, 80, 35), blue=(150, 60, 25))
    red, blue = describe(engine, image, masks["red"]), describe(engine, image, masks["blue"])
    target = engine.encode(scene(red=(120, 90, 40))[0])
    (alone,) = engine.segment(target, {"Cat": [red]})
    (together,) = engine.segment(target, {"Cat": [red], "Dog": [blue]})
    assert together.label == "Cat"
    assert np.array_equal(together.mask, alone.mask)
    assert together.score == alone.score


def test_labels_that_are_both_there_keep_their_objects(engine: Softmatcher) -> None:
    image, masks = scene(red=(60, 80, 35), blue=(150, 60, 25))
    references = {"Cat": [describe(engine, image, masks["red"])], "Dog": [describe(engine, image, masks["blue"])]}
    image, truth = scene(red=(150, 100, 30), blue=(50, 60, 30))
    found = {one.label: one.mask for one in engine.segment(engine.encode(image), references)}
    assert iou(found["Cat"], truth["red"]) > 0.9
    assert iou(found["Dog"], truth["blue"]) > 0.9
    assert not (found["Cat"] & found["Dog"]).any()


def test_labels_on_one_object_are_one_label_unless_overlap_is_allowed(engine: Softmatcher) -> None:
    image, masks = scene(red=(60, 80, 35))
    same = describe(engine, image, masks["red"])
    target = engine.encode(scene(red=(120, 90, 40))[0])
    propose = engine.label_candidates(target, [[same]], MatchOptions())
    claims = compete([propose[0], propose[0]], MatchOptions(overlap="allowed"))
    assert [claim.is_kept for claim in claims] == [True, True]
    assert np.array_equal(claims[0].mask, claims[1].mask)
    assert [claim.is_kept for claim in compete([propose[0], propose[0]], MatchOptions())] == [True, False]


def _proposal(box: tuple[int, int, int, int], posterior: float, chance: float) -> LabelCandidate:
    mask = np.zeros((100, 100), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    flat = mask.astype(np.float32)
    return LabelCandidate(
        mask, flat * np.float32(posterior), chance, 0.9, MaskFeatures(0.5, 0.5, posterior, 0.0, 0.9, 0.9, 0.1), ()
    )


def test_a_label_that_is_dropped_gives_back_what_it_took() -> None:
    """It may have the higher posterior on a part of another's mask, and lose the rest of its own to a third."""
    large = _proposal((0, 0, 60, 100), 0.7, 0.9)
    dropped = _proposal((50, 0, 90, 20), 0.8, 0.6)
    third = _proposal((60, 0, 100, 20), 0.9, 0.8)
    claims = compete([large, dropped, third], MatchOptions())
    assert [claim.is_kept for claim in claims] == [True, False, True]
    assert np.array_equal(claims[0].mask, large.mask)
    assert np.array_equal(claims[2].mask, third.mask)


def test_who_lost_a_region_takes_none_from_others() -> None:
    first, second, third = (
        _proposal((0, top, 100, top + 40), posterior, chance)
        for top, posterior, chance in ((0, 0.95, 0.9), (8, 0.9, 0.8), (24, 0.85, 0.7))
    )
    claims = compete([third, second, first], MatchOptions())
    assert [claim.is_kept for claim in claims] == [True, False, True]
    assert np.array_equal(claims[2].mask, first.mask)


def test_labels_within_one_another_keep_their_pixels_where_that_is_allowed() -> None:
    leaf, lesion = _proposal((0, 0, 100, 100), 0.7, 0.9), _proposal((20, 20, 40, 40), 0.9, 0.8)
    allowed = compete([leaf, lesion], MatchOptions(overlap="allowed"))
    assert np.array_equal(allowed[0].mask, leaf.mask)
    exclusive = compete([leaf, lesion], MatchOptions())
    assert not (exclusive[0].mask & exclusive[1].mask).any()
    assert np.array_equal(exclusive[0].mask | exclusive[1].mask, leaf.mask)


def test_a_label_that_is_absent_beside_the_others_is_dropped_unless_it_is_the_surest() -> None:
    sure, unsure = _proposal((0, 0, 40, 40), 0.9, 0.9), _proposal((60, 0, 100, 40), 0.7, 0.6)
    refuted = {0: replace(sure, presence=0.1), 1: replace(unsure, presence=0.1)}
    assert [claim.is_kept for claim in compete([sure, unsure], MatchOptions())] == [True, True]
    assert [claim.is_kept for claim in compete([sure, unsure], MatchOptions(), beside=refuted)] == [True, False]


def test_shared_pixels_go_by_the_posteriors_beside_the_others() -> None:
    left, right = _proposal((0, 0, 60, 100), 0.9, 0.9), _proposal((50, 0, 100, 100), 0.8, 0.8)
    assert np.array_equal(compete([left, right], MatchOptions())[0].mask, left.mask)
    beside = {0: replace(left, posterior=left.posterior * np.float32(0.5))}
    claims = compete([left, right], MatchOptions(), beside=beside)
    assert np.array_equal(claims[1].mask, right.mask)
    assert not (claims[0].mask & claims[1].mask).any()


@pytest.mark.slow
@pytest.mark.parametrize("look_alike", [(190, 30, 30), (170, 60, 30), (30, 30, 200)])
def test_no_image_loses_iou_because_another_label_got_a_reference(
    engine: Softmatcher, look_alike: tuple[int, int, int]
) -> None:
    """The other label's object looks like this one's, or not at all."""
    image, masks = scene(red=(60, 80, 35))
    red = describe(engine, image, masks["red"])
    other_image, other_masks = scene(blue=(150, 60, 30))
    other_image[other_masks["blue"]] = look_alike
    other = describe(engine, other_image, other_masks["blue"])
    for place in ((120, 90, 40), (50, 60, 25), (160, 50, 30)):
        drawn, truth = scene(red=place)
        target = engine.encode(drawn)
        (alone,) = engine.segment(target, {"Cat": [red]})
        together = {one.label: one.mask for one in engine.segment(target, {"Cat": [red], "Dog": [other]})}
        assert iou(together["Cat"], truth["red"]) >= iou(alone.mask, truth["red"])


def test_regions_below_the_least_score_are_not_returned(engine: Softmatcher) -> None:
    image, masks = scene(red=(60, 80, 35))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    target = engine.encode(scene(red=(120, 90, 40))[0])
    (found,) = engine.segment(target, references)
    assert engine.segment(target, references, MatchOptions(minimum_score=found.score - 0.01))
    assert engine.segment(target, references, MatchOptions(minimum_score=min(1.0, found.score + 0.01))) == []
    assert "less than" in engine.explain(target, references, MatchOptions(minimum_score=1.0)).labels[0].reason


SEGMENT_STAGES = ("match", "prompt", "decode", "clean-up", "upsample", "separate")


def test_each_stage_is_told_once_for_each_image() -> None:
    seconds: list[tuple[str, float]] = []

    def record(name: str, taken_s: float) -> None:
        seconds.append((name, taken_s))

    engine = Softmatcher(
        ColourEncoder(), LiteSegmenter(working_px=128), CALIBRATION, on_stage=lambda *told: seconds.append(told)
    )
    image, masks = scene(red=(70, 80, 40), blue=(140, 80, 20))
    references = {"Cat": [describe(engine, image, masks["red"])], "Dog": [describe(engine, image, masks["blue"])]}
    targets = engine.encode_many([image, scene(red=(50, 60, 30))[0], scene(blue=(120, 60, 30))[0]])
    seconds.clear()
    started = time.perf_counter()
    planned = [engine.plan(target, references) for target in targets]
    assert [len(finish()) for finish in engine.segment_planned(planned)] == [2, 1, 1]
    elapsed_s = time.perf_counter() - started
    # One of the images shows both labels, which are then matched again beside each other.
    wanted = dict.fromkeys(SEGMENT_STAGES, 4) | {"upsample": 3, "separate": 3}
    assert Counter(name for name, _ in seconds) == wanted
    assert 0 < sum(told for _, told in seconds) <= elapsed_s
    seconds.clear()
    assert engine.segment_planned([]) == []
    assert seconds == []


def test_images_that_share_a_pass_share_its_time() -> None:
    class Encoder(ColourEncoder):
        """Takes a whole batch at once, in 20 ms."""

        device, batch_size = CPU, 4

        def prepare(self, image: Image) -> Image:
            return image

        def encode_async(
            self, prepared: Sequence[Image], *, is_half: bool = False
        ) -> Callable[[], list[NDArray[np.floating]]]:
            time.sleep(0.02)
            return lambda: [self.encode(one).astype(np.float16 if is_half else np.float32) for one in prepared]

    class Segmenter(LiteSegmenter):
        def prepare(self, image: Image) -> SegmenterInput:
            return SegmenterInput(image, (image.shape[0], image.shape[1]))

        def embed_async(self, prepared: Sequence[SegmenterInput]) -> Callable[[], list[Any]]:
            return lambda: [self.embed(one.pixels) for one in prepared]

        def plan(self, embedding: Any, prompts: Any) -> Any:
            return embedding, prompts

        def decode_planned(self, plans: Any) -> list[Any]:
            return [self.decode(*one) for one in plans]

    seconds: dict[str, list[float]] = {}
    engine = Softmatcher(
        Encoder(),
        Segmenter(working_px=64),
        CALIBRATION,
        on_stage=lambda name, told: seconds.setdefault(name, []).append(told),
    )
    started = time.perf_counter()
    engine.encode_many([scene(red=(50, 60, 30))[0]] * 4)
    assert 0.02 <= sum(seconds["encode"]) <= time.perf_counter() - started
    assert len(set(seconds["encode"])) == 1
    assert {name: len(told) for name, told in seconds.items()} == {"prepare": 4, "encode": 4, "embed": 4}


def test_labels_of_one_image_share_its_mirrored_view() -> None:
    class Counting(ColourEncoder):
        images = 0

        def encode(self, image: Image) -> NDArray[np.float32]:
            self.images += 1
            return super().encode(image)

    encoder = Counting()
    engine = Softmatcher(encoder, LiteSegmenter(working_px=128), CALIBRATION)
    image, masks = scene(red=(60, 80, 30), blue=(150, 80, 30))
    encoded, again = engine.encode(image), engine.encode(image)
    encoder.images = 0
    shared = [engine.describe(image, encoded, masks[name]) for name in ("red", "blue")]
    assert encoder.images == 3  # the mirrored view once, the zoomed one of each
    own = engine.describe(image, again, masks["blue"])
    assert encoder.images == 5
    assert np.array_equal(shared[1].features, own.features)


def test_views_of_a_reference_are_encoded_side_by_side_where_the_encoder_gains_by_it(engine: Softmatcher) -> None:
    meeting = threading.Barrier(2, timeout=30)

    class Meeting(ColourEncoder):
        calls_at_a_time = 2
        is_met = False

        def encode(self, image: Image) -> NDArray[np.float32]:
            if self.is_met:
                meeting.wait()
            return super().encode(image)

    encoder = Meeting()
    other = Softmatcher(encoder, LiteSegmenter(working_px=128), CALIBRATION)
    image, masks = scene(red=(60, 80, 30))
    encoded = other.encode(image)
    encoder.is_met = True
    described, expected = other.describe(image, encoded, masks["red"]), describe(engine, image, masks["red"])
    assert np.array_equal(described.features, expected.features)


def test_labels_matched_together_have_the_masks_of_labels_matched_one_by_one(
    engine: Softmatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, masks = scene(red=(60, 80, 30), blue=(150, 80, 30))
    target, _ = scene(red=(120, 60, 34), blue=(50, 110, 28))
    references = {name: [describe(engine, image, mask)] for name, mask in masks.items()}
    together = engine.segment(engine.encode(target), references)
    monkeypatch.setattr("backend.engine.matching.can_share", lambda temperature: False)
    apart = engine.segment(engine.encode(target), references)
    for one, other in zip(together, apart, strict=True):
        assert one.label == other.label
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert np.array_equal(one.mask, other.mask)
    assert len(together) == 2


def test_work_that_nobody_waits_for_ends_before_its_next_stage() -> None:
    stages: list[str] = []
    engine = Softmatcher(
        ColourEncoder(), LiteSegmenter(working_px=128), CALIBRATION, on_stage=lambda name, _: stages.append(name)
    )
    image, masks = scene(red=(60, 80, 40))
    encoded = engine.encode(image)
    references = [engine.describe(image, encoded, masks["red"])]
    stages.clear()
    with cancellable(lambda: "match" in stages), pytest.raises(CancelledWorkError):
        engine.segment(encoded, {"red": references})
    assert stages == ["match"]


def test_a_target_that_is_matched_again_has_the_same_posterior_and_masks() -> None:
    engine = Softmatcher(ColourEncoder(), LiteSegmenter(working_px=128), CALIBRATION)
    image, _ = scene(red=(60, 80, 40))
    encoded = engine.encode(image)
    references: list[Reference] = []
    kept = []
    for number in range(4):
        drawn, masks = scene(red=(50 + 12 * number, 60, 30 + 4 * number))
        references.append(engine.describe(drawn, engine.encode(drawn), masks["red"]))
        bank = engine.gather(references, MatchOptions(bank_patches=200))
        again = engine.plan(encoded, {"red": bank}, is_matched_again=True)
        once = engine.plan(encoded, {"red": bank})
        assert again.image is not None
        assert once.image is not None
        np.testing.assert_array_equal(again.image.posteriors[0], once.image.posteriors[0])
        (found,), (other,) = (engine.segment_planned([plan])[0]() for plan in (again, once))
        np.testing.assert_array_equal(found.mask, other.mask)
        assert found.score == other.score
        kept.append(len(engine._matching.products))
    assert kept == [1, 1, 1, 1]
    engine.forget_products()
    assert len(engine._matching.products) == 0
