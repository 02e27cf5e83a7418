"""SAM through its parts gives what SamPredictor gives, for every kind of prompt, from any number of threads."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.core.types import Scribble
from backend.errors import BadInputError, ConfigurationError, ModelUnavailableError
from backend.models.sam import networks
from backend.models.sam.networks import build_sam, load_sam_weights
from backend.models.sam.options import SamOptions, SelectionOptions
from backend.models.sam.prompts import (
    SamPrompt,
    points_by_object,
    prior_to_logits,
    scribble_to_prompts,
    uncovered_points,
)
from backend.models.sam.segmenter import SamSegmenter, sam_segmenter
from backend.models.sam.selection import rejection_reasons, select_by_prior
from backend.models.segmenters import Prompt
from testing.small_sam import mixed_up, small_sam

HEIGHT, WIDTH = 60, 96
EVERYTHING = SelectionOptions(minimum_iou=-9.0, minimum_contrast=-1.0, minimum_prior=0.0)


def _image(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (height // 6, width // 6, 3), np.uint8), np.ones((6, 6, 1), np.uint8))


def _segmenter(**options: Any) -> SamSegmenter:
    return sam_segmenter(small_sam(), "small", SamOptions(**{"working_px": 96, "is_half": False, **options}))


def _predictor(sam: torch.nn.Module, image: NDArray[Any]) -> Any:
    from segment_anything import SamPredictor

    predictor = SamPredictor(sam)
    predictor.set_image(image)
    return predictor


def _points(*points: tuple[float, float, int]) -> dict[str, NDArray[Any]]:
    return {
        "point_coords": np.array([point[:2] for point in points], np.float32),
        "point_labels": np.array([point[2] for point in points]),
    }


_MASK_INPUT = np.random.default_rng(1).normal(size=(1, 32, 32)).astype(np.float32) * 4
_BOX = np.array([10, 5, 70, 50], np.float32)
PROMPTS: dict[str, dict[str, Any]] = {
    "point": _points((20, 30, 1)),
    "points": _points((20, 30, 1), (50, 20, 1), (70, 50, 0)),
    "negative alone": _points((20, 30, 0)),
    "box": {"box": _BOX},
    "box and points": {"box": _BOX, **_points((20, 30, 1), (60, 40, 0))},
    "mask": {"mask_input": _MASK_INPUT},
    "mask and point": {"mask_input": _MASK_INPUT, **_points((20, 30, 1))},
    "mask and box and points": {"mask_input": _MASK_INPUT, "box": _BOX, **_points((20, 30, 1), (60, 40, 0))},
}


def _sam_prompt(given: dict[str, Any], input_hw: tuple[int, int]) -> SamPrompt:
    """SamPredictor takes image coordinates and scales them itself."""
    factor = np.array([input_hw[1] / WIDTH, input_hw[0] / HEIGHT])
    points = (given.get("point_coords", np.zeros((0, 2))) * factor).astype(np.float32)
    labels = np.asarray(given.get("point_labels", []), np.float32)
    box = (given["box"] * np.tile(factor, 2)).astype(np.float32) if "box" in given else None
    mask = given["mask_input"][0] if "mask_input" in given else None
    return SamPrompt(points, labels, box, mask)


@pytest.mark.parametrize("is_multimask", [True, False])
def test_every_kind_of_prompt_is_answered_as_by_sam_predictor(is_multimask: bool) -> None:
    image, segmenter = _image(), _segmenter()
    predictor = _predictor(small_sam(), image)
    embedding = segmenter.embed(image)
    np.testing.assert_allclose(
        np.asarray(embedding["image_embedding"], np.float32),
        predictor.get_image_embedding()[0].numpy(),
        atol=1e-5,
        rtol=0,
    )
    height, width = (int(side) for side in embedding["input_hw"].astype(int))
    input_hw = (height, width)
    assert input_hw == tuple(predictor.input_size)
    # All in one call: each as if it were alone.
    prompts = [_sam_prompt(given, input_hw) for given in PROMPTS.values()]
    decoded = segmenter.decode_prompts(embedding, prompts, is_multimask=is_multimask)
    for answer, (name, given) in zip(decoded, PROMPTS.items(), strict=True):
        masks, predicted_iou, low_res = predictor.predict(**given, multimask_output=is_multimask)
        np.testing.assert_allclose(answer.logits.numpy(), low_res, atol=1e-4, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(answer.predicted_iou.numpy(), predicted_iou, atol=1e-4, rtol=1e-4, err_msg=name)
        natural = segmenter.embedder.logits_at(answer.logits[None], input_hw, (HEIGHT, WIDTH))[0] > 0
        assert np.mean(natural.numpy() != masks) < 0.001, name


@pytest.mark.skipif(
    os.environ.get("SOFTMATCHER_TEST_FULL_SAM") != "1", reason="minutes and 3 GB: set SOFTMATCHER_TEST_FULL_SAM=1"
)
@pytest.mark.parametrize("name", ["sam_vit_b", "mobile_sam"])
def test_full_size_sam_answers_as_sam_predictor_does(name: str) -> None:
    image = _image(height=HEIGHT * 6, width=WIDTH * 6)
    segmenter = sam_segmenter(build_sam(name, None), name, SamOptions(is_half=False))
    predictor = _predictor(build_sam(name, None), image)
    embedding = segmenter.embed(image)
    np.testing.assert_allclose(
        np.asarray(embedding["image_embedding"], np.float32),
        predictor.get_image_embedding()[0].numpy(),
        atol=1e-5,
        rtol=1e-5,
    )
    mask = np.random.default_rng(1).normal(size=(1, 256, 256)).astype(np.float32) * 4
    given = {kind: {**one, **({"mask_input": mask} if "mask_input" in one else {})} for kind, one in PROMPTS.items()}
    factor = 1024 / (WIDTH * 6)
    for is_multimask in (True, False):
        prompts = [
            SamPrompt(
                (one.get("point_coords", np.zeros((0, 2))) * factor).astype(np.float32),
                np.asarray(one.get("point_labels", []), np.float32),
                (one["box"] * factor).astype(np.float32) if "box" in one else None,
                mask[0] if "mask_input" in one else None,
            )
            for one in given.values()
        ]
        decoded = segmenter.decode_prompts(embedding, prompts, is_multimask=is_multimask)
        for answer, (kind, one) in zip(decoded, given.items(), strict=True):
            masks, predicted_iou, low_res = predictor.predict(**one, multimask_output=is_multimask)
            np.testing.assert_allclose(answer.logits.numpy(), low_res, atol=1e-4, rtol=1e-4, err_msg=kind)
            np.testing.assert_allclose(answer.predicted_iou.numpy(), predicted_iou, atol=1e-4, rtol=1e-4, err_msg=kind)
            natural = (
                segmenter.embedder.logits_at(
                    answer.logits[None], tuple(predictor.input_size), (image.shape[0], image.shape[1])
                )[0]
                > 0
            )
            assert np.mean(natural.numpy() != masks) < 1e-4, kind


@pytest.mark.slow
@pytest.mark.parametrize("decode_mb", [0.001, 1000.0])
def test_chunks_change_nothing(decode_mb: float) -> None:
    segmenter, embedding = _segmenter(decode_mb=decode_mb), _segmenter().embed(_image())
    prompts = [_sam_prompt(_points((x, 20, 1)), (80, 128)) for x in range(5, 90, 9)]
    together = segmenter.decode_prompts(embedding, prompts, is_multimask=True)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = segmenter.decode_prompts(embedding, [prompt], is_multimask=True)
        torch.testing.assert_close(answer.logits, alone.logits, atol=1e-5, rtol=1e-5)
    assert segmenter.decode_prompts(embedding, [], is_multimask=True) == []


def _begun_by(segmenter: SamSegmenter) -> list[int]:
    """Note of each call of `SamDecoder.begin` how many images it gets."""
    begun: list[int] = []
    network: Any = segmenter.prompt_decoder.runner.network
    begin = network.begin

    def noticed(images: Any, masks: Any) -> Any:
        begun.append(len(masks))
        return begin(images, masks)

    network.begin = noticed
    return begun


def test_what_prompts_of_one_image_share_is_computed_once() -> None:
    segmenter = _segmenter(decode_mb=0.001)  # one prompt a pass
    embedding = segmenter.embed(_image())
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(32, 32)).astype(np.float32) * 4 for _ in range(2))
    points = np.array([[20, 30], [50, 40]], np.float32)
    prompts = [SamPrompt(points + x, np.ones(2, np.float32), None, first) for x in range(3)]
    prompts += [SamPrompt(points, np.ones(2, np.float32), None, second)]
    begun = _begun_by(segmenter)
    together = segmenter.decode_prompts(embedding, prompts, is_multimask=True)
    assert begun == [1, 1]
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = segmenter.decode_prompts(embedding, [prompt], is_multimask=True)
        torch.testing.assert_close(answer.logits, alone.logits, atol=1e-5, rtol=1e-5)
    assert float((together[0].logits - together[3].logits).abs().max()) > 1e-3
    roomy = _segmenter(decode_mb=1000.0)
    begun = _begun_by(roomy)
    at_once = roomy.decode_prompts(embedding, prompts, is_multimask=True)
    assert begun == [2]
    for one, answer in zip(at_once, together, strict=True):
        torch.testing.assert_close(one.logits, answer.logits, atol=1e-5, rtol=1e-5)


def test_half_precision_embeddings_change_masks_hardly() -> None:
    image = _image()
    half, full = _segmenter(is_half=True), _segmenter()
    assert half.embed(image)["image_embedding"].dtype == np.float16
    prompt = [_sam_prompt(_points((20, 30, 1)), (80, 128))]
    (rounded,), (exact,) = (
        segmenter.decode_prompts(segmenter.embed(image), prompt, is_multimask=True) for segmenter in (half, full)
    )
    assert float(((rounded.logits > 0) != (exact.logits > 0)).float().mean()) < 0.01


@pytest.mark.slow
def test_threads_never_see_each_others_image() -> None:
    images = [
        _image(seed, height, width) for seed, (height, width) in enumerate([(60, 96), (96, 60), (60, 60), (24, 96)])
    ]
    assert mixed_up(_segmenter(), images) == []


def test_images_of_any_size_fit_the_frame() -> None:
    segmenter = _segmenter()
    for height, width in [(1, 1), (1, 300), (300, 1), (7, 13), (200, 333)]:
        image = np.zeros((height, width, 3), np.uint8)
        embedding = segmenter.embed(image)
        hw = segmenter.working_hw(embedding)
        assert max(hw) == 96
        candidates = segmenter.decode(embedding, [Prompt(Scribble(hw, positive_xy=np.array([[0.5, 0.5]], np.float32)))])
        assert all(candidate.mask.shape == hw for candidate in candidates)
    with pytest.raises(BadInputError, match="uint8"):
        segmenter.embed(np.zeros((4, 4), np.uint8))


def test_proposals_are_one_an_object() -> None:
    segmenter = _segmenter(selection=EVERYTHING)
    embedding = segmenter.embed(_image())
    hw = segmenter.working_hw(embedding)
    prior = np.zeros(hw, np.float32)
    prior[10:40, 10:40] = 1.0
    prior[45:55, 60:80] = 0.9
    scribbles = [Scribble(hw, positive_xy=np.array([[x, 20], [x + 5, 25]], np.float32)) for x in (12, 20, 30)]
    scribbles.append(Scribble(hw, positive_xy=np.array([[70, 50], [2, 2]], np.float32)))
    candidates = segmenter.decode(embedding, [Prompt(scribble, prior=prior) for scribble in scribbles])
    assert [candidate.prompt_index for candidate in candidates if not candidate.rejection_reason] == [0, 3]
    assert all(0.0 <= candidate.score <= 1.0 and candidate.mask.shape == hw for candidate in candidates)
    already = "on an object that other points have asked for"
    assert [candidate.rejection_reason for candidate in candidates] == ["", already, already, ""]
    strict = _segmenter(selection=SelectionOptions(minimum_iou=99.0))
    refused = strict.decode(embedding, [Prompt(scribble, prior=prior) for scribble in scribbles])
    assert [candidate.prompt_index for candidate in refused] == [0, 1, 2, 3]
    assert not any(candidate.mask.any() for candidate in refused)
    assert ["predicted IoU below 99" in candidate.rejection_reason for candidate in refused] == [
        True,
        False,
        False,
        True,
    ]
    assert strict.signature != segmenter.signature


def test_two_dozen_objects_are_all_asked_for() -> None:
    segmenter = _segmenter(selection=EVERYTHING)
    embedding = segmenter.embed(_image())
    hw = segmenter.working_hw(embedding)
    prior = np.zeros(hw, np.float32)
    centres = [(x, y) for y in range(8, 60, 14) for x in range(8, 96, 15)]
    for x, y in centres:
        prior[y - 3 : y + 4, x - 3 : x + 4] = 0.9
    clusters = [np.array(centres[start::8], np.float32) for start in range(8)]
    found = segmenter.decode(embedding, [Prompt(Scribble(hw, positive_xy=points), prior=prior) for points in clusters])
    assert len(centres) == 24
    assert [candidate.prompt_index for candidate in found] == sorted(3 * list(range(8)))
    assert not any(candidate.rejection_reason for candidate in found)


def test_crumbs_of_a_score_map_are_no_objects() -> None:
    segmenter = _segmenter(selection=EVERYTHING)
    embedding = segmenter.embed(_image())
    hw = segmenter.working_hw(embedding)
    prior = np.zeros(hw, np.float32)
    prior[4:44, 4:44], prior[50:52, 80:82], prior[50:55, 60:64] = 0.9, 0.9, 0.9
    places = ([20, 20], [81, 51], [62, 52])
    prompts = [Prompt(Scribble(hw, positive_xy=np.array([place], np.float32)), prior=prior) for place in places]
    refused = [bool(candidate.rejection_reason) for candidate in segmenter.decode(embedding, prompts)]
    assert refused == [False, True, False]


def test_points_without_a_mask_say_why() -> None:
    segmenter = _segmenter(selection=EVERYTHING, most_objects=1)
    embedding = segmenter.embed(_image())
    hw = segmenter.working_hw(embedding)
    prior = np.zeros(hw, np.float32)
    prior[10:40, 10:40] = 1.0
    prior[45:55, 60:80] = 0.9
    places = ([[20, 20]], [[2, 2]], [[70, 50]], [[70, 50], [25, 25]])
    prompts = [Prompt(Scribble(hw, positive_xy=np.array(place, np.float32)), prior=prior) for place in places]
    found = segmenter.decode(embedding, prompts)
    assert [candidate.rejection_reason for candidate in found] == [
        "",
        "the score map is below 0.5 under these points",
        "their object is not among the 1 largest, or has less than 0.01 of the largest one's score map",
        "on an object that other points have asked for",
    ]


@pytest.mark.slow
def test_images_that_share_passes_get_their_own_masks() -> None:
    segmenter = _segmenter(selection=EVERYTHING)
    asked = []
    for seed, (height, width) in enumerate([(60, 96), (96, 60), (60, 96), (24, 96)]):
        embedding = segmenter.embed(_image(seed, height, width))
        hw = segmenter.working_hw(embedding)
        prior = np.zeros(hw, np.float32)
        prior[2 : hw[0] // 2, 5 + seed : 30] = 0.9
        prior[-6:-2, -20:-2] = 0.8
        points = [
            np.array([[10, 4]], np.float32),
            np.array([[hw[1] - 9, hw[0] - 4], [hw[1] - 4, hw[0] - 3]], np.float32),
        ]
        asked.append((embedding, [Prompt(Scribble(hw, positive_xy=one), prior=prior) for one in points]))
    # A second label of the first image, a click on the second.
    asked.append((asked[0][0], [Prompt(asked[0][1][0].scribble, prior=np.ones((60, 96), np.float32))]))
    asked.append((asked[1][0], [Prompt(asked[1][1][0].scribble)]))
    together = segmenter.decode_planned([segmenter.plan(*one) for one in asked])
    assert [[one.prompt_index for one in found] for found in together] == [[0, 1]] * 4 + [[0]] * 2
    for found, one in zip(together, asked, strict=True):
        for candidate, alone in zip(found, segmenter.decode(*one), strict=True):
            np.testing.assert_array_equal(candidate.mask, alone.mask)
            assert candidate.score == pytest.approx(alone.score, abs=1e-5)
    assert not np.array_equal(together[0][0].mask, together[2][0].mask)


# -- prompts


def test_a_pixels_centre_stays_its_centre() -> None:
    # The whole image is 10 x 10 px here and 100 x 100 in SAM's frame: (5, 5) is the corner between pixels 49 and 50.
    (prompt,) = scribble_to_prompts(Scribble((10, 10), positive_xy=np.array([[5, 5]], np.float32)), (100, 100))
    np.testing.assert_allclose(prompt.points_xy, [[49.5, 49.5]])
    assert prompt.is_ambiguous


def test_background_points_are_zero_not_minus_one() -> None:
    scribble = Scribble(
        (10, 10), positive_xy=np.array([[5, 5]], np.float32), negative_xy=np.array([[1, 1]], np.float32)
    )
    (prompt,) = scribble_to_prompts(scribble, (100, 100))
    assert prompt.point_labels.tolist() == [1, 0]
    assert not prompt.is_ambiguous


def test_each_box_gets_the_points_in_it() -> None:
    scribble = Scribble(
        (100, 100),
        positive_xy=np.array([[10, 10], [80, 80], [50, 5]], np.float32),
        negative_xy=np.array([[12, 12]], np.float32),
        boxes_xyxy=np.array([[0, 0, 20, 20], [70, 70, 99, 99]], np.float32),
    )
    first, second, rest = scribble_to_prompts(scribble, (100, 100))
    assert first.point_labels.tolist() == [1, 0]
    assert second.point_labels.tolist() == [1]
    assert rest.box_xyxy is None
    np.testing.assert_allclose(rest.points_xy[rest.point_labels == 1], [[49.5, 4.5]])


def test_strokes_become_points_on_them() -> None:
    strokes = np.zeros((50, 80), bool)
    strokes[20:26, 10:70] = True
    (prompt,) = scribble_to_prompts(Scribble((50, 80), positive_strokes=strokes), (50, 80))
    x, y = (prompt.points_xy + 0.5).astype(int).T
    assert strokes[y, x].all()
    assert 3 <= len(x) <= 6
    assert np.ptp(x) > 40


def test_empty_scribble_prompts_nothing() -> None:
    assert scribble_to_prompts(Scribble((5, 5)), (10, 10)) == []


def test_score_map_becomes_bounded_logits_and_padding_is_outside() -> None:
    prior = np.zeros((30, 60), np.float32)
    prior[:, 30:] = 1.0
    logits = prior_to_logits(prior, (64, 128), input_px=128, logits_px=32)
    assert logits.shape == (32, 32)
    assert (logits[16:] == -8).all()
    np.testing.assert_allclose(logits[:16, :15], -8, atol=1e-4)
    np.testing.assert_allclose(logits[:16, 17:], 8, atol=1e-4)
    half = prior_to_logits(np.full((8, 8), 0.5, np.float32), (128, 128), input_px=128, logits_px=32)
    np.testing.assert_allclose(half, 0, atol=1e-6)


def test_points_are_joined_by_the_piece_of_the_score_map_they_lie_on() -> None:
    prior = np.zeros((20, 40), np.float32)
    prior[2:8, 2:8], prior[2:18, 20:38], prior[15:18, 2:5] = 0.9, 0.8, 0.6
    scribbles = [
        Scribble((20, 40), positive_xy=np.array([[3, 3], [30, 10]], np.float32)),
        Scribble((20, 40), positive_xy=np.array([[6, 6], [12, 12]], np.float32)),
    ]
    (largest_from, largest, whole), (other_from, other, share) = points_by_object(scribbles, prior)
    assert whole == 1.0
    assert share == pytest.approx(36 * 0.9 / (16 * 18 * 0.8))
    assert (largest_from, largest.positive_xy.tolist()) == ([0], [[30, 10]])
    assert (other_from, other.positive_xy.tolist()) == ([0, 1], [[3, 3], [6, 6]])
    assert points_by_object(scribbles, np.zeros((20, 40), np.float32)) == []


def test_points_left_out_are_named() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    scribble = Scribble((10, 10), positive_xy=np.array([[2, 2], [2, 8]], np.float32))
    missed = uncovered_points(scribble, [mask])
    assert missed is not None
    assert missed.positive_xy.tolist() == [[2, 8]]
    assert uncovered_points(scribble, [np.ones((10, 10), bool)]) is None


# -- selection


def _square(low: int, high: int) -> NDArray[Any]:
    mask = np.zeros((40, 40), bool)
    mask[low:high, low:high] = True
    return mask


def _select(masks: list[NDArray[Any]], opinions: list[float], prior: NDArray[Any]) -> tuple[int, float]:
    given = torch.from_numpy(np.stack(masks))[None], torch.tensor([opinions]), torch.from_numpy(prior)[None]
    chosen = select_by_prior(*given, SelectionOptions())
    return int(chosen.index), float(chosen.score)


def test_the_mask_that_fits_the_score_map_wins() -> None:
    prior = np.where(_square(10, 25), 0.9, 0.05).astype(np.float32)
    index, score = _select([_square(15, 20), _square(10, 25), _square(0, 40)], [0.95, 0.9, 0.95], prior)
    assert index == 1
    assert score == pytest.approx(0.9 * 0.9)


def test_nothing_is_kept_where_the_score_map_shows_nothing() -> None:
    flat = np.full((40, 40), 0.45, np.float32)
    assert _select([_square(10, 25)], [0.99], flat)[0] == -1  # no contrast
    dark = np.where(_square(10, 25), 0.3, 0.0).astype(np.float32)
    assert _select([_square(10, 25)], [0.99], dark)[0] == -1  # too low inside
    clear = np.where(_square(10, 25), 0.9, 0.0).astype(np.float32)
    assert _select([_square(10, 25)], [0.3], clear)[0] == -1  # SAM doubts it
    assert _select([_square(10, 25)], [0.6], clear)[0] == 0
    assert _select([_square(0, 0)], [0.9], clear)[0] == -1  # an empty mask


def test_what_the_masks_fail_at_is_told() -> None:
    clear = np.where(_square(10, 25), 0.9, 0.0).astype(np.float32)
    dark = np.where(_square(10, 25), 0.3, 0.0).astype(np.float32)
    flat = np.full((40, 40), 0.45, np.float32)
    square, nothing = _square(10, 25), _square(0, 0)
    # The second mask of each prompt gets further than the first.
    masks = np.stack([[nothing, nothing], [nothing, square], [nothing, square], [nothing, square], [nothing, square]])
    opinions = torch.tensor([[0.9, 0.9], [0.9, 0.3], [0.9, 0.9], [0.9, 0.9], [0.9, 0.9]])
    priors = np.stack([clear, clear, dark, flat, clear])
    chosen = select_by_prior(torch.from_numpy(masks), opinions, torch.from_numpy(priors), SelectionOptions())
    assert chosen.criteria_met.tolist() == [0, 1, 2, 3, 4]
    assert chosen.index.tolist() == [-1, -1, -1, -1, 1]
    told = rejection_reasons(SelectionOptions(minimum_iou=0.51, minimum_prior=0.36, minimum_contrast=0.11))
    for text, expected in zip(told, ("are empty", "below 0.51", "below 0.36", "by 0.11"), strict=True):
        assert text.endswith(expected)


def _select_slowly(
    masks: NDArray[Any], opinions: NDArray[Any], prior: NDArray[Any], options: SelectionOptions
) -> tuple[int, float]:
    """One mask after the other, the ring drawn by OpenCV."""
    best, best_fit = (-1, 0.0), 0.0
    width_px = max(1, round(options.ring_percent / 100 * max(prior.shape)))
    kernel = np.ones((2 * width_px + 1, 2 * width_px + 1), np.uint8)
    for index, (mask, opinion) in enumerate(zip(masks, opinions, strict=True)):
        if not mask.any() or opinion < options.minimum_iou:
            continue
        ring = (cv2.dilate(mask.astype(np.uint8), kernel) > 0) & ~mask
        inside, around = prior[mask].mean(), prior[ring].mean() if ring.any() else 0.0
        if inside < options.minimum_prior or inside - around < options.minimum_contrast:
            continue
        fit = opinion * prior[mask].sum() / (mask.sum() + prior[~mask].sum())
        if fit > best_fit:
            best, best_fit = (index, float(opinion * inside)), fit
    return best


def test_all_prompts_at_once_are_judged_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    options = SelectionOptions(minimum_prior=0.2, minimum_contrast=0.02)
    coarse = rng.random((20, 3, 6, 8))
    masks = np.stack(
        [
            [cv2.resize(one, (32, 24)) > level for one, level in zip(three, (0.4, 0.6, 0.97), strict=True)]
            for three in coarse
        ]
    )
    masks[3] = False
    priors = np.stack([cv2.resize(one, (32, 24)) for one in rng.random((20, 6, 8)).astype(np.float32)])
    opinions = rng.uniform(0.3, 1.0, (20, 3)).astype(np.float32)
    together = select_by_prior(torch.from_numpy(masks), torch.from_numpy(opinions), torch.from_numpy(priors), options)
    one_by_one = [_select_slowly(*each, options) for each in zip(masks, opinions, priors, strict=True)]
    assert together.index.tolist() == [index for index, _ in one_by_one]
    assert {-1, 0, 1} <= set(together.index.tolist())
    for score, (index, expected) in zip(together.score.tolist(), one_by_one, strict=True):
        assert index == -1 or score == pytest.approx(expected, rel=1e-5)


# -- networks and their weights


@pytest.fixture(scope="module")
def mobile() -> torch.nn.Module:
    return build_sam("mobile_sam", None)


@pytest.mark.slow
def test_mobile_sams_import_leaves_timm_as_it_was(mobile: torch.nn.Module) -> None:
    import timm

    assert "mobile_sam" not in timm.model_entrypoint("tiny_vit_5m_224").__module__


@pytest.mark.slow
def test_mobile_sams_weights_take_effect(mobile: torch.nn.Module, tmp_path: Path) -> None:
    """Its attention keeps a table derived from the weights: loaded after `eval()` it would be the old one."""
    other = build_sam("mobile_sam", None, seed=1)
    path = tmp_path / "mobile_sam.pt"
    torch.save(mobile.state_dict(), path)
    load_sam_weights(other, path, "mobile_sam")
    other.eval()
    tables = [name for name, _ in other.named_buffers() if name.endswith(".ab")]
    assert tables
    for name in tables:
        torch.testing.assert_close(other.get_buffer(name), mobile.get_buffer(name))


@pytest.mark.slow
def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save(small_sam().state_dict(), path)
    sam = small_sam(seed=1)
    load_sam_weights(sam, path, "small")
    for one, other in zip(sam.parameters(), small_sam().parameters(), strict=True):
        torch.testing.assert_close(one, other)
    torch.save(dict(list(small_sam().state_dict().items())[:-1]), path)
    with pytest.raises(ModelUnavailableError, match="must hold small"):
        load_sam_weights(small_sam(), path, "small")


def test_missing_package_and_unknown_model_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="sam_vit_b"):
        build_sam("sam_vit_x", None)

    def fail() -> None:
        raise ImportError("No module named 'segment_anything'")

    monkeypatch.setattr(networks, "_import_segment_anything", fail)
    with pytest.raises(ModelUnavailableError, match="pip install"):
        build_sam("sam_vit_b", None)
