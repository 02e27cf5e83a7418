"""What forward passes do on a GPU, seen without one: tensors of PyTorch's `FakeTensorMode` know their device, type and
shape but no values. It refuses what mixes devices, and what asks a GPU for a value, for which a CPU has to wait.

What they answer on a real one: `test_cuda.py`.
"""

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from backend.models.device.on_device import DeviceRunner
from backend.models.encoders.timm_encoder import TimmEncoder, VitOptions
from backend.models.sam.networks import build_sam
from backend.models.sam.options import KEEP_EVERYTHING, SamOptions
from backend.models.sam.prompts import SamPrompt
from backend.models.sam.segmenter import SamSegmenter, sam2_segmenter, sam_segmenter
from backend.models.sam.selection import select_by_prior
from testing.small_sam import small_sam
from tests.models.small_sam2 import small_sam2

CUDA = torch.device("cuda", 0)


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what goes from one device to another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        given = [one.device for one in args if isinstance(one, Tensor) and one.ndim]
        if isinstance(answer, Tensor) and any(device != answer.device for device in given):
            self.found.append(str(func))
        return answer


class Pretended:
    """In the place of an `DeviceRunner`: the network as it would lie on a GPU, each pass run at once.

    Attributes:
        copies: between devices, of the passes that may be recorded: a CUDA graph has none.
        answers: of the passes.
    """

    def __init__(self, of: DeviceRunner, mode: FakeTensorMode) -> None:
        self.device, self.memory_mb, self.preferred_batch_size = CUDA, 80_000.0, 8
        self.network = _carried(of.network, mode)
        self.copies: list[str] = []
        self.answers: list[Tensor] = []

    def run_async(
        self,
        items: Sequence[Tensor],
        call: Callable[[nn.Module, Tensor], Tensor],
        *,
        at_once: int,
        assemble: Callable[[list[Tensor]], Tensor] = torch.stack,
        kind: Hashable = None,
    ) -> Callable[[], list[Tensor]]:
        assert kind is not None
        for start in range(0, len(items), at_once):
            batch = assemble([item.to(CUDA) for item in items[start : start + at_once]])
            with torch.no_grad(), Copies() as copies:
                self.answers.append(call(self.network, batch))
            self.copies += copies.found
        return lambda: self.answers

    def begin(self) -> None:
        """Forget what was."""
        self.copies, self.answers = [], []

    def run_parts(self, count: int, at_once: int, forward: Any, finish: Any) -> list[Any]:
        with torch.no_grad():
            parts = [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]
            return [one for part in parts for one in finish(forward(self.network, CUDA, part), part)]

    def timed(self, device: torch.device, call: Callable[[], Any]) -> Any:
        """A pass: all that it reads is there by then."""
        with Copies() as copies:
            answer = call()
        self.copies += copies.found
        return answer


def _carried(network: nn.Module, mode: FakeTensorMode) -> nn.Module:
    there = copy.deepcopy(network)
    with mode:
        for part in there.modules():
            for name, own in part.named_parameters(recurse=False):
                part._parameters[name] = nn.Parameter(mode.from_tensor(own.detach()).to(CUDA), requires_grad=False)
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = mode.from_tensor(buffer).to(CUDA)
    return there


@pytest.fixture
def mode() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def _image(height: int = 60, width: int = 96) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


ENCODERS = ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3")
SEGMENTERS: dict[str, Callable[[], SamSegmenter]] = {
    "sam": lambda: sam_segmenter(small_sam(), "sam", SamOptions(96, selection=KEEP_EVERYTHING)),
    "mobile_sam": lambda: sam_segmenter(build_sam("mobile_sam", None), "mobile_sam", SamOptions()),
    "sam2": lambda: sam2_segmenter(small_sam2(), "sam2", SamOptions(96, selection=KEEP_EVERYTHING)),
}


def test_mixed_devices_and_waits_are_seen(mode: FakeTensorMode) -> None:
    with mode:
        there, here = torch.ones(3, device=CUDA), torch.ones(3)
        assert isinstance(there, FakeTensor)
        assert there.is_cuda
        with pytest.raises(RuntimeError, match="device"):
            there + here
        with pytest.raises(DataDependentOutputException):
            float(there.sum())
        with pytest.raises(DynamicOutputShapeException):
            there[there > 0]
        with Copies() as copies:
            here.to(CUDA) + there
    assert len(copies.found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_run_where_they_lie(name: str, mode: FakeTensorMode) -> None:
    small = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    encoder = TimmEncoder(name, None, VitOptions(side_px=112), network_options=small)
    images = [encoder.prepare(image) for image in (_image(), _image(), _image(96, 60))]
    expected = encoder.encode_async(images, is_half=True)()
    there = encoder.runner = Pretended(encoder.runner, mode)  # type: ignore[assignment]
    with mode:
        encoder.encode_async(images, is_half=True)
        there.begin()  # constants are there by now
        encoder.encode_async(images, is_half=True)
    assert [(one.device, one.dtype) for one in there.answers] == 2 * [(CUDA, torch.float16)]
    assert [one.shape[1:] for one in there.answers] == [expected[0].shape, expected[2].shape]
    # timm's DINOv3 makes its positions on the CPU, in every pass.
    assert bool(there.copies) == (name == "vit_small_patch16_dinov3")


@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.slow
def test_image_encoders_run_where_they_lie(name: str, mode: FakeTensorMode) -> None:
    segmenter = SEGMENTERS[name]()
    images = [segmenter.prepare(image) for image in (_image(), _image(96, 60), _image())]
    channels = sum(one.nbytes for key, one in segmenter.embed(_image()).items() if not key.endswith("hw")) // 2
    there = segmenter.embedder.runner = Pretended(segmenter.embedder.runner, mode)  # type: ignore[assignment]
    with mode:
        segmenter.embed_async(images)
        there.begin()
        segmenter.embed_async(images)
    assert [(one.device, one.dtype, len(one)) for one in there.answers] == [(CUDA, torch.float16, 3)]
    assert there.answers[0][0].numel() == channels
    assert not there.copies


@pytest.mark.parametrize("is_multimask", [True, False])
@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.slow
def test_decoders_run_where_they_lie(name: str, is_multimask: bool, mode: FakeTensorMode) -> None:
    segmenter = SEGMENTERS[name]()
    embeddings = [segmenter.embed(_image()), segmenter.embed(_image(96, 60))]
    side = segmenter.embedder.logits_px
    mask, box = np.zeros((side, side), np.float32), np.array([2, 3, 40, 50], np.float32)
    prompts = [
        SamPrompt(np.zeros((count, 2), np.float32), np.ones(count, np.float32), *others)
        for count in (1, 3)
        for others in [(None, None), (box, None), (None, mask), (box, mask)]
    ]
    asked = [one for one in prompts for _ in range(3)]
    owners = [number % 2 for number in range(len(asked))]
    there = segmenter.prompt_decoder.runner = Pretended(segmenter.prompt_decoder.runner, mode)  # type: ignore[assignment]

    def finish(logits: Tensor, predicted_iou: Tensor, group: Sequence[int]) -> list[Any]:
        assert logits.device == predicted_iou.device == CUDA
        assert logits.dtype == predicted_iou.dtype == torch.float32
        masks = 3 if is_multimask else 1
        assert logits.shape == (len(group), masks, side, side)
        assert predicted_iou.shape == (len(group), masks)
        return list(group)

    with mode:
        answers = segmenter.prompt_decoder.decode(embeddings, owners, asked, finish, is_multimask=is_multimask)
    assert answers == list(range(len(asked)))
    # In the passes themselves embeddings go there, once, and mask inputs, in the four passes with one.
    assert len(there.copies) == len(segmenter.embedder.levels) * len(embeddings) + 4


def test_masks_are_chosen_where_they_lie(mode: FakeTensorMode) -> None:
    with mode, torch.no_grad(), Copies() as copies:
        masks = torch.zeros(5, 3, 24, 32, dtype=torch.bool, device=CUDA)
        chosen = select_by_prior(
            masks, torch.zeros(5, 3, device=CUDA), torch.zeros(5, 24, 32, device=CUDA), KEEP_EVERYTHING
        )
    assert (chosen.index.device, chosen.index.dtype, chosen.index.shape) == (CUDA, torch.int64, (5,))
    assert (chosen.score.device, chosen.score.shape) == (CUDA, (5,))
    assert not copies.found
