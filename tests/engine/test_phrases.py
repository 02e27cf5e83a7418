"""Phrases beside references in the engine, in a world whose words and pictures are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.masks import iou
from backend.core.text_scores import PRESENT_Z, LabelPhrases, TextScale, mean_of_phrases, scale_of_images
from backend.core.types import Image, LabelMask, Mask, Reference
from backend.engine.phrase_source import PhraseSource
from backend.engine.softmatcher import Softmatcher
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter
from testing.colour_words import TEXT_SPACE, ColourWords, ColourWordsEncoder, draw_discs
from tests.engine.test_softmatcher import ColourEncoder

STRIPED_RED = ("red", "striped", 50, 50, 26)
OTHERS = (("blue", "striped", 150, 50, 26), ("red", "plain", 60, 120, 26))
TARGET = (("red", "striped", 150, 110, 26), ("blue", "striped", 50, 110, 26), ("red", "plain", 110, 40, 26))


def engine_of(*, sees_colours: bool = False) -> Softmatcher:
    encoder = ColourWordsEncoder(sees_colours=sees_colours)
    return Softmatcher(encoder, LiteSegmenter(working_px=128), read_calibration("lite.json"))


@pytest.fixture
def engine() -> Softmatcher:
    return engine_of()


def phrases_of(*texts: str, others: tuple[str, ...] = ()) -> LabelPhrases:
    words = ColourWords()
    return LabelPhrases(mean_of_phrases(list(words.encode(texts))), words.encode(others)[:, :4])


def reference(engine: Softmatcher, image: Image, mask: Mask) -> Reference:
    return engine.describe(image, engine.encode(image, with_text=True), mask, is_complete=True)


def scores_on(engine: Softmatcher, phrases: LabelPhrases, image: Image) -> NDArray[np.float32]:
    text_features = engine.encode(image, with_text=True).text_features
    assert text_features is not None
    return phrases.scores(text_features.astype(np.float32).reshape(-1, text_features.shape[2]))


def mask_of(found: list[LabelMask], image: Image) -> Mask:
    return found[0].mask if found else np.zeros(image.shape[:2], bool)


def test_one_pass_gives_both_kinds_of_features() -> None:
    encoder = ColourWordsEncoder()
    engine = Softmatcher(encoder, LiteSegmenter(working_px=128), read_calibration("lite.json"))
    image, _ = draw_discs(STRIPED_RED)
    both = engine.encode(image, with_text=True)
    assert encoder.passes == 1
    assert both.text_features is not None
    assert both.text_features.shape[:2] == both.features.shape[:2]
    plain = engine.encode(image)
    assert plain.text_features is None
    assert np.array_equal(plain.features, both.features)
    assert engine.text_space == TEXT_SPACE


def test_an_encoder_without_a_text_space_gives_no_text_features() -> None:
    engine = Softmatcher(ColourEncoder(), LiteSegmenter(working_px=128), read_calibration("lite.json"))
    image, _ = draw_discs(STRIPED_RED)
    assert engine.text_space is None
    assert engine.encode(image, with_text=True).text_features is None


def test_a_phrase_alone_finds_its_objects_and_nothing_where_they_are_not(engine: Softmatcher) -> None:
    phrases = phrases_of("red discs")
    images = [draw_discs(("red", "plain", 60 + 20 * n, 70, 25))[0] for n in range(3)]
    images += [draw_discs(("blue", "plain", 60, 70, 25))[0], draw_discs()[0]]
    scale = scale_of_images([scores_on(engine, phrases, image) for image in images])
    assert scale is not None
    assert scale.is_gated
    sources = {"Red": [PhraseSource(phrases, scale)]}
    image, (red, _) = draw_discs(("red", "plain", 120, 60, 30), ("blue", "plain", 50, 110, 25))
    (found,) = engine.segment(engine.encode(image, with_text=True), {}, sources=sources)
    assert iou(found.mask, red) > 0.9
    for without in (draw_discs(("blue", "plain", 60, 90, 30))[0], draw_discs(("green", "striped", 90, 80, 30))[0]):
        assert engine.segment(engine.encode(without, with_text=True), {}, sources=sources) == []


def test_a_phrase_that_no_image_shows_has_no_scale(engine: Softmatcher) -> None:
    phrases = phrases_of("red")
    images = [draw_discs(("blue", "plain", 60, 70, 25))[0], draw_discs()[0]]
    assert scale_of_images([scores_on(engine, phrases, image) for image in images]) is None
    assert scale_of_images([]) is None


def test_a_phrase_beside_a_reference_beats_either_alone(engine: Softmatcher) -> None:
    image, masks = draw_discs(STRIPED_RED, *OTHERS)
    references = [reference(engine, image, masks[0])]
    bank = {"Disc": engine.gather(references)}
    phrases = phrases_of("red")
    scale = engine.fit_phrases("Disc", phrases, [references], bank)
    assert scale.weight > 0.5
    target, truth = draw_discs(*TARGET)
    encoded = engine.encode(target, with_text=True)
    alone = scale_of_images([scores_on(engine, phrases, one) for one in (image, target, draw_discs()[0])])
    assert alone is not None
    by_reference = mask_of(engine.segment(encoded, bank), target)
    by_phrase = mask_of(engine.segment(encoded, {}, sources={"Disc": [PhraseSource(phrases, alone)]}), target)
    by_both = mask_of(engine.segment(encoded, bank, sources={"Disc": [PhraseSource(phrases, scale)]}), target)
    reached = [iou(found, truth[0]) for found in (by_reference, by_phrase, by_both)]
    assert reached[2] > 0.85, reached
    assert reached[2] > max(reached[:2]) + 0.2, reached


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("text", ["blue", "something else"])
def test_a_phrase_that_misleads_gets_no_weight(text: str, count: int) -> None:
    engine = engine_of(sees_colours=True)
    scenes = [draw_discs(("red", "plain", 60 + 40 * n, 80, 30), ("blue", "plain", 170, 40, 20)) for n in range(count)]
    references = [[reference(engine, image, masks[0])] for image, masks in scenes]
    bank = {"Disc": engine.gather([one for some in references for one in some])}
    scale = engine.fit_phrases("Disc", phrases_of(text), references, bank)
    assert scale.weight == 0
    assert scale.references == count
    target = engine.encode(draw_discs(("red", "plain", 120, 60, 30))[0], with_text=True)
    plain = engine.segment(target, bank)
    fused = engine.segment(target, bank, sources={"Disc": [PhraseSource(phrases_of(text), scale)]})
    assert iou(plain[0].mask, fused[0].mask) > 0.99


def test_references_without_text_features_measure_nothing(engine: Softmatcher) -> None:
    image, masks = draw_discs(STRIPED_RED, *OTHERS)
    plain = engine.describe(image, engine.encode(image), masks[0], is_complete=True)
    assert engine.fit_phrases("Disc", phrases_of("red"), [[plain]], {}).weight == 0


def test_a_negative_phrase_takes_what_it_names_away(engine: Softmatcher) -> None:
    image, _ = draw_discs(("red", "plain", 60, 80, 30), ("blue", "plain", 150, 80, 30))
    both = phrases_of("red", "blue")
    without_blue = phrases_of("red", "blue", others=("blue",))
    column = 150 // 8
    scores = [scores_on(engine, one, image).reshape(20, 26)[10, column] for one in (both, without_blue)]
    assert scores[1] < scores[0] - 0.5


def test_a_source_says_nothing_of_an_image_without_text_features(engine: Softmatcher) -> None:
    source = PhraseSource(phrases_of("red"), TextScale(0.0, 0.1, 1.0))
    score_map = source.score(engine.encode(draw_discs(STRIPED_RED)[0]))
    assert bool((score_map.posterior == 0.5).all())


def test_the_gate_keeps_an_image_without_the_object_below_it() -> None:
    scale = TextScale(0.0, 1.0, 1.0, is_gated=True)
    assert float(scale.log_odds(np.full(100, PRESENT_Z - 0.5, np.float32)).max()) < 0
    shown = np.concatenate([np.full(90, -3.0), np.full(10, PRESENT_Z + 1)]).astype(np.float32)
    assert np.array_equal(scale.log_odds(shown), shown)
