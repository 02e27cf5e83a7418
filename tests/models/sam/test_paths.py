"""The fast path of SAM gives what the packages' own forward passes give, for every kind of prompt."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.core.types import Scribble
from backend.models.sam.attention import RelativeAttention
from backend.models.sam.options import KEEP_EVERYTHING, SamOptions
from backend.models.sam.package_decoder import PackageDecoder
from backend.models.sam.prompts import SamPrompt
from backend.models.sam.segmenter import SamSegmenter, sam2_segmenter, sam_segmenter
from backend.models.segmenters import Prompt
from testing.small_sam import small_sam
from tests.models.small_sam2 import small_sam2

HAS_SAM2 = importlib.util.find_spec("sam2") is not None
KINDS = [
    "sam",
    pytest.param("sam2", marks=pytest.mark.skipif(not HAS_SAM2, reason="the package sam2 is not installed")),
]


def _segmenter(kind: str, **options: Any) -> SamSegmenter:
    chosen = SamOptions(**{"working_px": 96, "is_half": False, "selection": KEEP_EVERYTHING, **options})
    return sam_segmenter(small_sam(), kind, chosen) if kind == "sam" else sam2_segmenter(small_sam2(), kind, chosen)


def _image(seed: int, height: int = 60, width: int = 96) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (height // 6, width // 6, 3), np.uint8), np.ones((6, 6, 1), np.uint8))


def _prompts() -> list[SamPrompt]:
    rng = np.random.default_rng(0)
    mask, box = rng.normal(size=(32, 32)).astype(np.float32) * 4, np.array([5, 8, 60, 70], np.float32)
    prompts = [
        SamPrompt(rng.uniform(0, 80, (count, 2)).astype(np.float32), np.arange(count, dtype=np.float32) % 2, *others)
        for count in (0, 1, 3)
        for others in [(None, None), (box, None), (None, mask), (box, mask)]
    ]
    return prompts[1:]  # the first one asks for nothing


@pytest.mark.slow
@pytest.mark.parametrize("is_multimask", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_both_paths_give_the_same_logits(kind: str, is_multimask: bool) -> None:
    fast, package = _segmenter(kind), _segmenter(kind, path="package")
    embeddings = [(one.embed(_image(0)), one.embed(_image(1, 96, 60))) for one in (fast, package)]
    for own, other in zip(*embeddings, strict=True):
        for name in fast.embedder.levels:
            np.testing.assert_allclose(own[name], other[name], atol=1e-5, rtol=1e-4)
    # Of two images in turns: each is answered with its own.
    prompts = [one for one in _prompts() for _ in range(2)]
    owners = [number % 2 for number in range(len(prompts))]

    def finish(logits: torch.Tensor, predicted_iou: torch.Tensor, group: Any) -> list[Any]:
        return list(zip(logits, predicted_iou, strict=True))

    answers = [
        one.prompt_decoder.decode(own, owners, prompts, finish, is_multimask=is_multimask)
        for one, own in zip((fast, package), embeddings, strict=True)
    ]
    for number, ((logits, iou), (expected, expected_iou)) in enumerate(zip(*answers, strict=True)):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4, msg=str(prompts[number]))
        torch.testing.assert_close(iou, expected_iou, atol=1e-4, rtol=1e-4)
    assert float((answers[1][0][0] - answers[1][1][0]).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_both_paths_give_the_same_masks(kind: str) -> None:
    found = []
    for path in ("fast", "package"):
        segmenter = _segmenter(kind, path=path)
        embedding = segmenter.embed(_image(0))
        hw = segmenter.working_hw(embedding)
        prior = np.zeros(hw, np.float32)
        prior[5:30, 10:40], prior[40:55, 60:90] = 0.9, 0.8
        first, second = np.array([[20, 10]], np.float32), np.array([[70, 45], [80, 50]], np.float32)
        box = np.array([[10, 5, 60, 50]], np.float32)
        prompts = [
            Prompt(Scribble(hw, positive_xy=first), prior=prior),
            Prompt(Scribble(hw, positive_xy=second), prior=prior),
            Prompt(Scribble(hw, positive_xy=first)),
            Prompt(Scribble(hw, positive_xy=first, boxes_xyxy=box)),
        ]
        found.append(segmenter.decode(embedding, prompts))
    assert [one.prompt_index for one in found[0]] == [one.prompt_index for one in found[1]]
    assert {0, 1} <= {one.prompt_index for one in found[0]}
    for candidate, other in zip(*found, strict=True):
        assert np.mean(candidate.mask != other.mask) < 0.001
        assert candidate.score == pytest.approx(other.score, abs=1e-4)


def test_the_package_path_runs_none_of_our_networks() -> None:
    """Neither the fused attention nor the own decoder; and the image encoder is not recorded."""

    class NoticedError(Exception):
        pass

    fast, package = _segmenter("sam"), _segmenter("sam", path="package")
    own = [
        sum(isinstance(part, RelativeAttention) for part in one.embedder.runner.network.modules())
        for one in (fast, package)
    ]
    assert own == [2, 0]
    assert isinstance(package.prompt_decoder.runner.network, PackageDecoder)
    kinds: list[Any] = []
    for one in (fast, package):

        def run_async(*_: Any, kind: Any = None, **__: Any) -> Any:
            kinds.append(kind)
            raise NoticedError

        one.embedder.runner.run_async = run_async  # type: ignore[method-assign]
        with pytest.raises(NoticedError):
            one.embed(_image(0))
    assert kinds == [torch.float32, None]


def test_a_signature_names_the_path() -> None:
    assert ":fast:" in _segmenter("sam").signature
    assert ":package:" in _segmenter("sam", path="package").signature
