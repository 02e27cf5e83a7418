"""SAM 2 through its parts gives what SAM2ImagePredictor gives, for every kind of prompt, from any number of threads."""

import importlib
import importlib.util
import inspect
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from backend.core.types import Scribble
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError, ConfigurationError, ModelUnavailableError
from backend.feature_cache import FeatureCache
from backend.models.calibrations import read_calibration
from backend.models.loading import ModelSource, load_profile, missing_weights
from backend.models.sam import sam2_networks
from backend.models.sam.networks import randomise_empty_parameters
from backend.models.sam.options import KEEP_EVERYTHING, SamOptions
from backend.models.sam.prompts import SamPrompt
from backend.models.sam.sam2_networks import SAM2_MODELS, assemble_sam2, build_sam2, load_sam2_weights
from backend.models.sam.segmenter import SamSegmenter, sam2_segmenter
from backend.models.segmenters import BatchSegmenter, Prompt
from testing.small_sam import mixed_up
from tests.engine.test_softmatcher import ColourEncoder, scene
from tests.models.small_sam2 import small_sam2

CALIBRATION = read_calibration("lite.json")

needs_sam2 = pytest.mark.skipif(
    importlib.util.find_spec("sam2") is None, reason="the package sam2 is not installed: make install"
)

HEIGHT, WIDTH = 60, 96
SLOW_ONES = ("point", "mask and box and points")
SIZE_LETTERS = dict(zip(SAM2_MODELS, ("t", "s", "b+", "l"), strict=True))


def _image(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (height // 6, width // 6, 3), np.uint8), np.ones((6, 6, 1), np.uint8))


def _segmenter(sam: nn.Module | None = None, **options: Any) -> SamSegmenter:
    return sam2_segmenter(sam or small_sam2(), "small", SamOptions(**{"working_px": 96, "is_half": False, **options}))


def _predictor(sam: nn.Module, image: NDArray[Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compiles its transforms with torch.jit
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        predictor = SAM2ImagePredictor(sam)
        cells = sam.sam_image_embedding_size
        assert isinstance(cells, int)
        # It has them for 1024 px only.
        predictor._bb_feat_sizes = [(4 * cells, 4 * cells), (2 * cells, 2 * cells), (cells, cells)]
        predictor.set_image(image)
    return predictor


def _points(*points: tuple[float, float, int]) -> dict[str, NDArray[Any]]:
    return {
        "point_coords": np.array([point[:2] for point in points], np.float32),
        "point_labels": np.array([point[2] for point in points]),
    }


_BOX = np.array([10, 5, 70, 50], np.float32)


def _prompts(logits_px: int) -> dict[str, dict[str, Any]]:
    mask = {"mask_input": np.random.default_rng(1).normal(size=(1, logits_px, logits_px)).astype(np.float32) * 4}
    points = _points((20, 30, 1), (60, 40, 0))
    return {
        "point": _points((20, 30, 1)),
        "points": _points((20, 30, 1), (50, 20, 1), (70, 50, 0)),
        "negative alone": _points((20, 30, 0)),
        "box": {"box": _BOX},
        "box and points": {"box": _BOX, **points},
        "mask": mask,
        "mask and point": {**mask, **_points((20, 30, 1))},
        "mask and box and points": {**mask, "box": _BOX, **points},
    }


def _sam_prompt(given: dict[str, Any], input_hw: tuple[int, int]) -> SamPrompt:
    """SAM2ImagePredictor takes image coordinates and scales them itself."""
    factor = np.array([input_hw[1] / WIDTH, input_hw[0] / HEIGHT])
    points = (given.get("point_coords", np.zeros((0, 2))) * factor).astype(np.float32)
    labels = np.asarray(given.get("point_labels", []), np.float32)
    box = (given["box"] * np.tile(factor, 2)).astype(np.float32) if "box" in given else None
    return SamPrompt(points, labels, box, given["mask_input"][0] if "mask_input" in given else None)


def _assert_answers_as_the_predictor(
    segmenter: SamSegmenter, predictor: Any, image: NDArray[Any], only: Sequence[str] = ()
) -> None:
    embedding = segmenter.embed(image)
    features = predictor._features
    for name, expected in (
        ("image_embedding", features["image_embed"]),
        ("level_1", features["high_res_feats"][1]),
        ("level_0", features["high_res_feats"][0]),
    ):
        np.testing.assert_allclose(
            np.asarray(embedding[name], np.float32), expected[0].numpy(), atol=1e-5, rtol=1e-4, err_msg=name
        )
    kinds = {name: given for name, given in _prompts(segmenter.embedder.logits_px).items() if not only or name in only}
    for is_multimask in (True, False):
        # All in one call: each as if it were alone.
        prompts = [_sam_prompt(given, segmenter.embedder.embedded_hw(embedding)) for given in kinds.values()]
        decoded = segmenter.decode_prompts(embedding, prompts, is_multimask=is_multimask)
        for answer, (name, given) in zip(decoded, kinds.items(), strict=True):
            masks, predicted_iou, low_res = predictor.predict(**given, multimask_output=is_multimask)
            logits = answer.logits.clamp(-32, 32).numpy()
            np.testing.assert_allclose(logits, low_res, atol=1e-4, rtol=1e-4, err_msg=name)
            np.testing.assert_allclose(answer.predicted_iou.numpy(), predicted_iou, atol=1e-4, rtol=1e-4, err_msg=name)
            natural = segmenter.embedder.logits_at(answer.logits[None], (0, 0), (HEIGHT, WIDTH))[0] > 0
            assert np.mean(natural.numpy() != masks) < 0.001, name


@pytest.mark.slow
@needs_sam2
def test_every_kind_of_prompt_is_answered_as_by_the_predictor() -> None:
    image = _image()
    _assert_answers_as_the_predictor(_segmenter(), _predictor(small_sam2(), image), image)


def _official(name: str) -> nn.Module:
    """The network as the package's own configuration describes it, memory of videos included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sam2.build_sam import build_sam2 as build_from_configuration

        torch.manual_seed(5)
        sam: nn.Module = build_from_configuration(
            f"configs/sam2.1/sam2.1_hiera_{SIZE_LETTERS[name]}.yaml", device="cpu"
        )
    return sam


@needs_sam2
@pytest.mark.slow
def test_a_file_of_the_official_layout_gives_the_official_network(tmp_path: Path) -> None:
    """SAM 2.1 tiny at full size: built from its configuration, saved as Meta saves it, read by us."""
    official, path, image = _official("sam2.1_hiera_tiny"), tmp_path / "sam2.1_hiera_tiny.pt", _image()
    randomise_empty_parameters(official)
    torch.save({"model": official.state_dict()}, path)
    ours = build_sam2("sam2.1_hiera_tiny", path)
    _assert_answers_as_the_predictor(_segmenter(ours), _predictor(official, image), image, SLOW_ONES)

    state = official.state_dict()
    torch.save({"model": {key: tensor for key, tensor in state.items() if key != "no_mem_embed"}}, path)
    with pytest.raises(ModelUnavailableError, match=r"1 missing, 0 foreign .*no_mem_embed"):
        load_sam2_weights(ours, path, "sam2.1_hiera_tiny")
    torch.save({"model": state}, path)
    with pytest.raises(ModelUnavailableError, match=r"must hold sam2\.1_hiera_small"):
        build_sam2("sam2.1_hiera_small", path)


@needs_sam2
@pytest.mark.parametrize("name", SAM2_MODELS)
def test_our_sizes_are_those_of_the_packages_configurations(name: str) -> None:
    found = importlib.util.find_spec("sam2")
    assert found is not None
    assert found.origin is not None
    file_name = f"sam2.1_hiera_{SIZE_LETTERS[name]}.yaml"
    model = yaml.safe_load((Path(found.origin).parent / "configs" / "sam2.1" / file_name).read_text())["model"]
    encoder, sizes = model["image_encoder"], SAM2_MODELS[name]
    defaults = inspect.signature(importlib.import_module("sam2.modeling.backbones.hieradet").Hiera).parameters
    for field in ("embed_dim", "num_heads", "stages", "global_att_blocks", "window_pos_embed_bkg_spatial_size",
                  "window_spec"):  # fmt: skip
        said = encoder["trunk"].get(field, defaults[field].default)
        assert getattr(sizes, field) == (tuple(said) if isinstance(said, list) else said), field
    assert (model["image_size"], encoder["neck"]["d_model"], encoder["scalp"]) == (sizes.image_px, sizes.hidden_dim, 1)
    assert (encoder["neck"]["fpn_top_down_levels"], encoder["neck"]["fpn_interp_model"]) == ([2, 3], "nearest")
    for flag in ("directly_add_no_mem_embed", "use_high_res_features_in_sam", "iou_prediction_use_sigmoid",
                 "pred_obj_scores", "pred_obj_scores_mlp"):  # fmt: skip
        assert model[flag] is True, flag


@pytest.mark.slow
@needs_sam2
@pytest.mark.parametrize("decode_mb", [0.001, 1000.0])
def test_chunks_change_nothing(decode_mb: float) -> None:
    segmenter, embedding = _segmenter(decode_mb=decode_mb), _segmenter().embed(_image())
    prompts = [_sam_prompt(_points((x, 20, 1)), (128, 128)) for x in range(5, 90, 9)]
    together = segmenter.decode_prompts(embedding, prompts, is_multimask=True)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = segmenter.decode_prompts(embedding, [prompt], is_multimask=True)
        torch.testing.assert_close(answer.logits, alone.logits, atol=1e-5, rtol=1e-5)
    assert segmenter.decode_prompts(embedding, [], is_multimask=True) == []


@pytest.mark.slow
@needs_sam2
def test_images_are_squeezed_and_masks_have_their_shape() -> None:
    segmenter = _segmenter(selection=KEEP_EVERYTHING)
    assert isinstance(segmenter, BatchSegmenter)
    for height, width in [(1, 1), (1, 300), (300, 1), (7, 13), (200, 333)]:
        embedding = segmenter.embed(np.zeros((height, width, 3), np.uint8))
        assert embedding["level_0"].shape[1:] == (32, 32)
        hw = segmenter.working_hw(embedding)
        assert max(hw) == 96
        prior = np.ones(hw, np.float32)
        scribble = Scribble(hw, positive_xy=np.array([[0.5, 0.5]], np.float32))
        candidates = segmenter.decode(embedding, [Prompt(scribble), Prompt(scribble, prior=prior)])
        assert all(candidate.mask.shape == hw for candidate in candidates)
    with pytest.raises(BadInputError, match="uint8"):
        segmenter.embed(np.zeros((4, 4), np.uint8))


@pytest.mark.slow
@needs_sam2
def test_images_that_share_passes_get_their_own_masks() -> None:
    segmenter = _segmenter(selection=KEEP_EVERYTHING)
    asked = []
    for seed, (height, width) in enumerate([(60, 96), (96, 60), (60, 96), (24, 96)]):
        embedding = segmenter.embed(_image(seed, height, width))
        hw = segmenter.working_hw(embedding)
        prior = np.zeros(hw, np.float32)
        prior[2 : hw[0] // 2, 5 + seed : 30] = 0.9
        scribble = Scribble(hw, positive_xy=np.array([[10, 4]], np.float32))
        asked.append((embedding, [Prompt(scribble, prior=prior), Prompt(scribble)]))
    together = segmenter.decode_planned([segmenter.plan(*one) for one in asked])
    assert any(found for found in together)
    for found, one in zip(together, asked, strict=True):
        alone = segmenter.decode(*one)
        assert [each.prompt_index for each in found] == [each.prompt_index for each in alone]
        for candidate, other in zip(found, alone, strict=True):
            np.testing.assert_array_equal(candidate.mask, other.mask)
            assert candidate.score == pytest.approx(other.score, abs=1e-5)


@needs_sam2
def test_a_prediction_from_the_cache_is_that_of_the_fresh_image(tmp_path: Path) -> None:
    engine = Softmatcher(ColourEncoder(), _segmenter(is_half=True, selection=KEEP_EVERYTHING), CALIBRATION)
    (image, masks), (target, _) = scene(red=(70, 80, 40)), scene(red=(120, 60, 30))
    references = {"Cat": [engine.describe(image, engine.encode(image), masks["red"], is_complete=True)]}
    options = MatchOptions(minimum_presence=0.0)
    encoded = engine.encode(target)
    cache = FeatureCache(tmp_path, 64, engine.signature)
    assert cache.encode_if_absent("0" * 64, lambda: encoded)
    known = FeatureCache(tmp_path, 64, engine.signature).get("0" * 64)
    assert known is not None
    (fresh,), (cached,) = (engine.segment(one, references, options) for one in (encoded, known))
    assert fresh.mask.shape == target.shape[:2]
    np.testing.assert_array_equal(fresh.mask, cached.mask)
    assert fresh.score == cached.score
    click = Scribble(encoded.size_hw, positive_xy=np.array([[120, 60]], np.float32))
    marked = engine.mask_from_scribble(known, click)
    assert marked is None or marked.mask.shape == target.shape[:2]


@needs_sam2
def test_half_precision_embeddings_change_masks_hardly() -> None:
    half, full = _segmenter(is_half=True), _segmenter()
    assert {half.embed(_image())[name].dtype for name in half.embedder.levels} == {np.dtype(np.float16)}
    prompt = [_sam_prompt(_points((20, 30, 1)), (128, 128))]
    (rounded,), (exact,) = (
        segmenter.decode_prompts(segmenter.embed(_image()), prompt, is_multimask=True) for segmenter in (half, full)
    )
    assert float(((rounded.logits > 0) != (exact.logits > 0)).float().mean()) < 0.01


@needs_sam2
@pytest.mark.slow
def test_threads_never_see_each_others_image() -> None:
    images = [
        _image(seed, height, width) for seed, (height, width) in enumerate([(60, 96), (96, 60), (60, 60), (24, 96)])
    ]
    assert mixed_up(_segmenter(), images) == []


@needs_sam2
@pytest.mark.slow
def test_the_profile_joins_dinov2_with_sam_2(tmp_path: Path) -> None:
    assert missing_weights("sam2", tmp_path) == ["vit_base_patch14_dinov2", "sam2.1_hiera_base_plus"]
    with pytest.raises(ModelUnavailableError, match="weights fetch sam2"):
        load_profile("sam2", ModelSource(tmp_path))
    encoder, segmenter = load_profile("mobile", ModelSource(tmp_path, segmenter="sam2.1_hiera_tiny", is_random=True))
    assert isinstance(segmenter, SamSegmenter)
    assert segmenter.signature.startswith("sam2.1_hiera_tiny:random0:")
    assert encoder.signature.startswith("vit_small_patch14_dinov2")


def test_another_segmenter_is_named_by_a_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"segmenter must be one of mobile_sam, .*got sam3"):
        load_profile("base", ModelSource(tmp_path, segmenter="sam3"))
    with pytest.raises(ConfigurationError, match="lite has its own segmenter"):
        load_profile("lite", ModelSource(tmp_path, segmenter="sam_vit_b"))
    with pytest.raises(ConfigurationError, match=r"sam2\.1_hiera_tiny"):
        build_sam2("sam2_hiera_tiny", None)


def test_without_the_package_one_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sam2", None)
    for call in (
        lambda: assemble_sam2(SAM2_MODELS["sam2.1_hiera_tiny"]),
        lambda: load_profile("sam2", ModelSource(tmp_path)),
    ):
        with pytest.raises(ModelUnavailableError, match=r"SAM2_BUILD_CUDA=0 .*pip install --no-build-isolation sam2=="):
            call()


def test_the_command_installs_what_the_extra_names() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["sam2"] == [sam2_networks.SAM2_PACKAGE]


@pytest.mark.slow
def test_nothing_imports_the_package_before_it_is_asked_for() -> None:
    code = (
        "import sys, backend.engine.softmatcher, backend.cli, backend.projects.model_host; print('sam2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
