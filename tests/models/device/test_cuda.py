"""On a real GPU: the CPU's answers, and what happens when its memory is full. Skipped where there is none."""

import gc
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.core.types import Scribble
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.models.calibrations import read_calibration
from backend.models.device.cuda_graphs import CudaGraphCache
from backend.models.device.on_device import DeviceRunner
from backend.models.device.placement import choose_device
from backend.models.encoders.timm_encoder import TimmEncoder, VitOptions
from backend.models.sam.options import KEEP_EVERYTHING, SamOptions, SelectionOptions
from backend.models.sam.prompts import SamPrompt
from backend.models.sam.segmenter import SamSegmenter, sam_segmenter
from backend.models.sam.selection import select_by_prior
from testing.small_sam import small_sam

CALIBRATION = read_calibration("lite.json")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
DINOV2, DINOV2_REGISTERS, DINOV3 = (
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
)
HEIGHT, WIDTH = 60, 96


def _image(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (height // 6, width // 6, 3), np.uint8), np.ones((6, 6, 1), np.uint8))


def _encoder(device: torch.device, name: str = DINOV2, **options: Any) -> TimmEncoder:
    small = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    return TimmEncoder(name, None, VitOptions(**{"side_px": 112, **options}), device=device, network_options=small)


def _segmenter(device: torch.device, **options: Any) -> SamSegmenter:
    chosen = SamOptions(**{"working_px": 96, "selection": KEEP_EVERYTHING, **options})
    return sam_segmenter(small_sam(), "small", chosen, device=device)


def _engine(device: torch.device) -> Softmatcher:
    return Softmatcher(_encoder(device), _segmenter(device), CALIBRATION, MatchOptions(minimum_presence=0.0))


def test_the_gpu_is_what_auto_means() -> None:
    assert choose_device("auto").type == "cuda"
    assert choose_device("cuda:0").type == "cuda"
    assert _encoder(CUDA).batch_size > 1
    assert _encoder(CPU).batch_size == 1


@pytest.mark.parametrize("name", [DINOV2, DINOV2_REGISTERS, DINOV3])
@pytest.mark.parametrize(("half", "least"), [(torch.bfloat16, 0.999), (torch.float16, 0.9999), (None, 0.999999)])
def test_features_are_the_cpus(name: str, half: torch.dtype | None, least: float) -> None:
    expected, found = _encoder(CPU, name), _encoder(CUDA, name)
    if half is None:
        found.runner.uses_half = False
    else:
        found.runner.half_dtype = half
    images = [_image(), _image(1, 96, 60), _image(2), _image(3)]
    for one, other in zip(expected.encode_batch(images), found.encode_batch(images), strict=True):
        assert other.device == CPU
        assert other.dtype == torch.float32
        assert other.shape == one.shape
        assert float((one * other).sum(dim=-1).min()) > least
        torch.testing.assert_close(other.norm(dim=-1), torch.ones(other.shape[:2]))
    (rounded,) = found.encode_async([found.prepare(images[0])], is_half=True)()
    assert rounded.dtype == torch.float16
    assert float((rounded.float() * found.encode(images[0])).sum(dim=-1).min()) > 0.999


def test_positional_directions_are_gone_there_too() -> None:
    expected, found = _encoder(CPU, positional_rank=3), _encoder(CUDA, positional_rank=3)
    found.runner.uses_half = False
    assert float((expected.encode(_image()) * found.encode(_image())).sum(dim=-1).min()) > 0.9999


def test_embeddings_and_masks_are_the_cpus() -> None:
    expected, found = _segmenter(CPU, is_half=False), _segmenter(CUDA, is_half=False)
    image = _image()
    embedding, on_cuda = expected.embed(image), found.embed(image)
    apart = np.abs(np.asarray(embedding["image_embedding"]) - np.asarray(on_cuda["image_embedding"])).max()
    assert 0 < apart < 0.1  # bfloat16
    found.embedder.runner.uses_half = False
    exact = np.asarray(found.embed(image)["image_embedding"], np.float32)
    np.testing.assert_allclose(
        exact, np.asarray(embedding["image_embedding"], np.float32), atol=5e-3
    )  # TF32 in convolutions

    rng = np.random.default_rng(0)
    mask = rng.normal(size=(32, 32)).astype(np.float32) * 4
    prompts = [
        SamPrompt(rng.uniform(0, 80, (count, 2)).astype(np.float32), np.ones(count, np.float32), box, logits)
        for count, box, logits in [
            (1, None, None), (1, None, None), (3, None, None), (2, None, mask),
            (0, np.array([5, 5, 60, 50], np.float32), None),
        ]
    ]  # fmt: skip
    for is_multimask in (True, False):
        of_cpu, of_cuda = (
            segmenter.decode_prompts(embedding, prompts, is_multimask=is_multimask) for segmenter in (expected, found)
        )
        for one, other in zip(of_cpu, of_cuda, strict=True):
            torch.testing.assert_close(other.logits, one.logits, atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(other.predicted_iou, one.predicted_iou, atol=2e-3, rtol=2e-3)


def test_masks_are_chosen_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(30, 3, 24, 32, generator=generator) > torch.tensor([0.3, 0.6, 0.95])[:, None, None]
    opinions, priors = torch.rand(30, 3, generator=generator), torch.rand(30, 24, 32, generator=generator)
    options = SelectionOptions(minimum_contrast=-0.01)
    expected = select_by_prior(masks, opinions, priors, options)
    found = select_by_prior(masks.to(CUDA), opinions.to(CUDA), priors.to(CUDA), options)
    assert found.index.tolist() == expected.index.tolist()
    assert set(expected.index.tolist()) > {-1}
    assert found.criteria_met.tolist() == expected.criteria_met.tolist()
    torch.testing.assert_close(found.score.cpu(), expected.score)


@pytest.mark.parametrize(
    "matcher", ["posterior", "softmatcher", "prototype", "softmatcher-rff", "sinkhorn", "hungarian"]
)
def test_the_whole_pipeline_finds_what_the_cpu_finds(matcher: Any) -> None:
    on_cpu, on_cuda = _engine(CPU), _engine(CUDA)
    image, target = _image(), _image(5)
    target[12:30, 12:48] = image[12:30, 12:48]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[12:30, 12:48] = True
    encoded, seen = on_cpu.encode(image), on_cpu.encode(target)
    reference = on_cpu.describe(image, encoded, mask)
    options = MatchOptions(matcher=matcher, minimum_presence=0.0)
    expected = on_cpu.label_candidates(seen, [[reference]], options)[0]
    found = on_cuda.label_candidates(seen, [on_cuda.gather([reference], options)], options)[
        0
    ]  # one signature: one cache
    np.testing.assert_allclose(found.posterior, expected.posterior, atol=1e-3)
    assert np.mean(found.mask != expected.mask) < 0.02
    assert found.features.object_similarity == pytest.approx(expected.features.object_similarity, abs=1e-2)
    point = Scribble((HEIGHT, WIDTH), positive_xy=np.array([[30, 20]], np.float32))
    clicked = [engine.mask_from_scribble(seen, point) for engine in (on_cpu, on_cuda)]
    assert clicked[0] is not None
    assert clicked[1] is not None
    assert np.mean(clicked[0].mask != clicked[1].mask) < 0.02
    assert clicked[0].score == pytest.approx(clicked[1].score, abs=1e-2)


def test_batches_are_what_single_images_are() -> None:
    engine = _engine(CUDA)
    images = [_image(seed, *hw) for seed, hw in enumerate([(60, 96), (96, 60), (60, 96), (60, 60), (60, 96)] * 3)]
    for together, image in zip(engine.encode_many(images), images, strict=True):
        alone = engine.encode(image)
        assert together.size_hw == alone.size_hw
        np.testing.assert_allclose(together.features, alone.features, atol=2e-2)
        first, second = (np.asarray(one.embedding["image_embedding"], np.float32) for one in (together, alone))
        np.testing.assert_allclose(first, second, atol=5e-2)
        np.testing.assert_array_equal(together.embedding["input_hw"], alone.embedding["input_hw"])


def test_images_that_share_passes_get_their_own_masks() -> None:
    engine = _engine(CUDA)
    images = [_image(seed, *hw) for seed, hw in enumerate([(60, 96), (96, 60), (60, 96), (24, 96)])]
    encoded = engine.encode_many(images)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[12:30, 12:48] = True
    references = {
        "one": engine.gather([engine.describe(images[0], encoded[0], mask)]),
        "other": engine.gather([engine.describe(images[2], encoded[2], ~mask)]),
    }
    with ThreadPoolExecutor(3) as pool:
        plans = list(pool.map(lambda one: engine.plan(one, references), encoded))
    together = [masks() for masks in engine.segment_planned(plans)]
    assert any(together)
    for found, one in zip(together, encoded, strict=True):
        alone = engine.segment(one, references)
        assert [each.label for each in found] == [each.label for each in alone]
        for each, other in zip(found, alone, strict=True):
            assert np.mean(each.mask != other.mask) < 0.01
            assert each.score == pytest.approx(other.score, abs=1e-2)


def test_threads_never_see_each_others_image() -> None:
    engine = _engine(CUDA)
    images = [_image(seed, *hw) for seed, hw in enumerate([(60, 96), (96, 60), (60, 60), (24, 96)])]
    embeddings = [engine.encode(image) for image in images]
    mixed: list[str] = []

    def answer(number: int) -> NDArray[Any]:
        encoded = embeddings[number]
        point = np.array([[encoded.size_hw[1] / 2, encoded.size_hw[0] / 2]], np.float32)
        found = engine.mask_from_scribble(encoded, Scribble(encoded.size_hw, positive_xy=point))
        assert found is not None
        return found.mask

    expected = [answer(number) for number in range(len(images))]

    def work(number: int) -> None:
        for turn in range(20):
            chosen = (number + turn) % len(images)
            again = engine.encode(images[chosen])
            if np.abs(again.features.astype(np.float32) - embeddings[chosen].features).max() > 2e-2:
                mixed.append(f"features {chosen}")
            if np.mean(answer(chosen) != expected[chosen]) > 0.001:
                mixed.append(f"mask {chosen}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert mixed == []


def test_what_is_queued_before_it_is_waited_for_gets_its_own_answers() -> None:
    """Memory for copies is used again; nobody's answer may change when it is."""
    on_device = DeviceRunner(nn.Identity(), CUDA, uses_half=False)
    answers: list[list[Tensor]] = []
    for turn in range(6):
        waits = [
            on_device.run_async(
                [torch.full((2**18,), float(100 * turn + 10 * call + number)) for number in range(8)],
                lambda network, batch: batch * 2,
                at_once=3,
            )
            for call in range(3)
        ]
        answers += [wait() for wait in waits]
    for number, answer in enumerate(answers):
        expected = [2.0 * (100 * (number // 3) + 10 * (number % 3) + one) for one in range(8)]
        assert [float(one.min()) for one in answer] == expected
        assert [float(one.max()) for one in answer] == expected


def _recorded(runner: DeviceRunner) -> CudaGraphCache:
    assert runner.recordings is not None
    return runner.recordings


@pytest.mark.parametrize("name", [DINOV2, DINOV2_REGISTERS, DINOV3])
def test_recorded_passes_say_what_passes_say(name: str) -> None:
    encoder, segmenter = _encoder(CUDA, name, batch_size=2), _segmenter(CUDA)
    images = [_image(seed, *((HEIGHT, WIDTH) if seed % 2 else (WIDTH, HEIGHT))) for seed in range(6)]
    features, embeddings = encoder.encode_batch(images), segmenter.embed_batch(images)
    recorded = [_recorded(one) for one in (encoder.runner, segmenter.embedder.runner)]
    assert all(len(one) == 0 for one in recorded)
    for _ in range(4):
        for before, one in zip(features, encoder.encode_batch(images), strict=True):
            torch.testing.assert_close(one, before, atol=1e-5, rtol=0)
        for embedded, again in zip(embeddings, segmenter.embed_batch(images), strict=True):
            assert again["input_hw"].tolist() == embedded["input_hw"].tolist()
            first, second = (np.asarray(one["image_embedding"], np.float32) for one in (again, embedded))
            np.testing.assert_allclose(first, second, atol=2e-3)
    # Two shapes, of two and of one image, unless the network waits for the CPU; SAM's input is square.
    waits = name == DINOV3
    assert [len(one) for one in recorded] == [0 if waits else 4, 2]
    assert [one.is_off for one in recorded] == [waits, False]


def test_what_cannot_be_recorded_runs_kernel_by_kernel(caplog: pytest.LogCaptureFixture) -> None:
    on_device = DeviceRunner(nn.Identity(), CUDA)
    items = [torch.full((3,), float(number)) for number in range(4)]

    def call(network: nn.Module, batch: Tensor) -> Tensor:
        return batch * float(batch.amax().cpu())  # waits for the CPU

    with caplog.at_level(logging.INFO):
        for _ in range(6):
            answers = on_device.run_async(items, call, kind="waits")()
            assert [float(one[0]) for one in answers] == [0, 3, 6, 9]
    assert "not recorded" in caplog.text
    other = [on_device.run_async(items, lambda network, batch: batch + 1, kind="good")() for _ in range(5)]
    assert [float(one[0]) for one in other[-1]] == [1, 2, 3, 4]


def test_threads_that_record_get_their_own_answers() -> None:
    network = nn.Linear(512, 512, bias=False)
    on_device = DeviceRunner(network, CUDA, uses_half=False)
    weight = network.weight.detach().cpu()

    def work(number: int) -> bool:
        generator = torch.Generator().manual_seed(number)
        for turn in range(60):
            kind = None if turn % 7 == 0 else "linear"
            items = [torch.rand(512, generator=generator) for _ in range(1 + (number + turn) % 3)]
            found = on_device.run_async(items, lambda network, batch: network(batch), kind=kind)()
            for item, one in zip(items, found, strict=True):
                torch.testing.assert_close(one, weight @ item, atol=2e-3, rtol=1e-3)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert len(_recorded(on_device)) == 3


def test_benchmarks_are_told_what_the_gpu_took_and_no_copies() -> None:
    """A pass of some 10 ms is told as such; one that does nothing as nearly nothing, however much is carried for it."""
    on_device = DeviceRunner(nn.Identity(), CUDA, uses_half=False)
    items = [torch.zeros(2**22) for _ in range(8)]
    told: list[float] = []
    on_device.on_forward = told.append

    def long(network: nn.Module, there: Any) -> Tensor:
        torch.cuda._sleep(2 * 10**7)  # type: ignore[no-untyped-call]
        return torch.zeros(len(there), device=CUDA)

    def short(network: nn.Module, there: Any) -> Tensor:
        return torch.zeros(len(there), device=CUDA)

    for call in (long, short):
        for _ in range(3):  # pinned memory is made in the first of them
            on_device.run(items, call, at_once=4)
    assert len(told) == 12
    assert min(told[:6]) > 5 * max(told[8:])


class _Hungry(nn.Module):
    """Takes so many MB of the device for each item, and doubles it."""

    def __init__(self, mb_an_item: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self._floats = mb_an_item * 2**18

    def forward(self, batch: Tensor) -> Tensor:
        if batch.device.type == "cuda":
            torch.zeros(len(batch), self._floats, device=batch.device)
        return batch * self.scale


@pytest.fixture
def two_gb() -> Iterator[None]:
    """The process may take 2 GB of the GPU, no more: what is beyond is a real refusal by the allocator."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # tens of MB for each thread and stream
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("two_gb")
@pytest.mark.parametrize(
    ("mb_an_item", "sizes", "warning"), [(100, [8], ""), (400, [4, 4], "batches of 4"), (3000, [], "runs on the CPU")]
)
def test_a_full_gpu_halves_the_batch_and_then_leaves_it_to_the_cpu(
    mb_an_item: int, sizes: list[int], warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    on_device = DeviceRunner(_Hungry(mb_an_item), CUDA, uses_half=False)
    items = [torch.full((3,), float(number)) for number in range(8)]
    seen: list[int] = []

    def call(network: nn.Module, batch: Tensor) -> Tensor:
        answer: Tensor = network(batch)
        if answer.device.type == "cuda":
            seen.append(len(batch))
        return answer

    with caplog.at_level(logging.WARNING):
        answers = on_device.run(items, call)
    assert [answer.tolist() for answer in answers] == [[2.0 * number] * 3 for number in range(8)]
    assert seen == sizes
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.records)
