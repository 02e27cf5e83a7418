"""The bulk path of `base` on a GPU that is not there: the networks' passes are sleeps, everything else is what runs.

    python benchmarks/simulated_gpu.py --images 200

What the networks (random weights) say to a photograph is computed once on the CPU; then the worker's own code predicts
many files of it. A pass sleeps as long as an H100 took for it, and the Python that launches its kernels is played by as
many small operations, each of which gives Python's lock away and takes it again, as PyTorch's do. Copies into pinned
memory are copies, those over the bus cost nothing.
"""

import argparse
import json
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from backend import feature_cache, pipeline
from backend.cli import bench_pipeline
from backend.cli.bench_service import photograph, square
from backend.cli.bench_times import Bench
from backend.labelstudio.image_decoding import decode_image
from backend.models import sam_segmenter
from backend.models.accelerator import Answer, NetworkCall, OnDevice, Transfers
from backend.models.sam_selection import Selected
from backend.projects import images

ENCODE_MS, EMBED_MS, PROMPT_MS, MATCH_MS = 3.0, 10.5, 0.8, 1.0
"""An image in DINOv2 ViT-B and in SAM ViT-B, a prompt of eight, a match: of an H100."""
LAUNCHES = {"encode": 250, "embed": 400, "decode": 250, "match": 60}
"""Kernels of a pass, about."""
MEMORY_MB = 80_000.0
AT_ONCE = {"encode": 8, "embed": 4}


class Gpu:
    """Streams whose passes take their time: the encoders', which each fill a device, in turns, the decoder's and the
    matching's beside them or, with `in_turns`, in turns too."""

    def __init__(self, *, in_turns: bool, slower: float) -> None:
        self.slower = slower
        streams = {"encode": "encoders", "embed": "encoders", "decode": "decoder", "match": "match"}
        self._stream_of = dict.fromkeys(LAUNCHES, "one") if in_turns else streams
        self._free_at = dict.fromkeys(self._stream_of.values(), 0.0)
        self._lock = threading.Lock()
        self._small = torch.zeros(1)

    def launch(self, name: str, milliseconds: float) -> Callable[[], None]:
        """One pass, launched; gives what waits for its end."""
        began, stream = time.perf_counter(), self._stream_of[name]
        for _ in range(LAUNCHES[name]):
            self._small.add_(1)
        with self._lock:
            end = max(began, self._free_at[stream]) + self.slower * milliseconds / 1000
            self._free_at[stream] = end
        return lambda: time.sleep(max(0.0, end - time.perf_counter()))


class SimulatedTransfers(Transfers):
    """Copies into pinned memory cost what they cost, the device's own copies nothing."""

    def __init__(self) -> None:
        super().__init__(None)
        self.launched: Callable[[], None] = lambda: None

    def carry(self, pinned: Tensor, device: torch.device) -> Tensor:
        return pinned

    def bring_back(self, answer: Tensor) -> Answer:
        return Answer(answer, self.launched)

    def _new(self, like: Tensor) -> Tensor:
        return torch.empty_like(like)


def simulate(bench: Bench, gpu: Gpu) -> None:
    """Have the networks of a bench say what they say to its photograph, in a GPU's time."""
    engine, segmenter = bench.softmatcher, bench.segmenter
    image = decode_image(photograph(), 10**9)
    real_select = sam_segmenter.select_by_prior
    real_logits_at = segmenter.logits_at

    prepared = engine.prepare(image)
    encoded = engine.encode_prepared([prepared])[0]
    reference = engine.gather([engine.describe(image, encoded, square(image))])
    features = torch.from_numpy(encoded.features)
    embedding = torch.from_numpy(encoded.embedding["image_embedding"])
    print(features.shape, embedding.shape)

    # What the decoder says: recorded prompt by prompt, found again by its points.
    chosen: list[tuple[int, float, Tensor]] = []
    by_points: dict[bytes, int] = {}
    real_decoder = segmenter._decoder.network
    asked: list[bytes] = []

    def note_points(_m: nn.Module, inputs: Any) -> None:
        asked[:] = [one.numpy().tobytes() for one in inputs[1]]

    hook = real_decoder.register_forward_pre_hook(note_points)

    def note_select(masks: Tensor, predicted_iou: Tensor, prior: Tensor, options: Any) -> Selected:
        selected = real_select(masks, predicted_iou, prior, options)
        for points, index, score in zip(asked, selected.index.tolist(), selected.score.tolist(), strict=True):
            by_points[points] = len(chosen)
            chosen.append((index, score, torch.empty(0)))
        return selected

    def note_logits_at(logits: Tensor, input_hw: Any, size_hw: Any) -> Tensor:
        full = real_logits_at(logits, input_hw, size_hw)
        kept = [one for one in (by_points[points] for points in asked) if chosen[one][0] >= 0]
        for one, own in zip(kept, full, strict=True):
            chosen[one] = (*chosen[one][:2], own)
        return full

    sam_segmenter.select_by_prior = note_select
    segmenter.logits_at = note_logits_at
    engine.segment(encoded, {"Thing": reference})
    hook.remove()
    print(f"{len(chosen)} prompts an image", flush=True)
    matched = engine._match(encoded, [reference], engine._options)

    def match(*_: Any) -> Any:
        gpu.launch("match", MATCH_MS)()
        return matched

    def decoder(images: Tensor, points: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        gpu.launch("decode", PROMPT_MS * len(points))()
        which = torch.tensor([by_points[one.numpy().tobytes()] for one in points]).float()
        return which[:, None, None, None].expand(-1, 3, 1, 1), which[:, None].expand(-1, 3)

    def select(masks: Tensor, predicted_iou: Tensor, prior: Tensor, options: Any) -> Selected:
        own = [chosen[int(one)] for one in predicted_iou[:, 0].tolist()]
        return Selected(torch.tensor([one[0] for one in own]), torch.tensor([one[1] for one in own]))

    def logits_at(logits: Tensor, input_hw: Any, size_hw: Any) -> Tensor:
        return torch.stack([chosen[int(one)][2] for one in logits[:, 0, 0, 0].tolist()])

    engine._match = match
    sam_segmenter.select_by_prior = select
    segmenter.logits_at = logits_at
    sam_segmenter.Images.of = lambda self, owners, device: (torch.zeros(len(owners), 1),)  # the GPU's own work
    segmenter._decoder._network = decoder
    OnDevice.good_batch = property(lambda self: 8)
    OnDevice.memory_mb = property(lambda self: MEMORY_MB)
    bench.encoder.encode = lambda image: features.float()
    for on_device, name, milliseconds, answer in (
        (bench.encoder.on_devices[0], "encode", ENCODE_MS, features),
        (segmenter.on_devices[0], "embed", EMBED_MS, embedding),
    ):
        simulate_passes(on_device, gpu, name, milliseconds, answer)


def simulate_passes(on_device: OnDevice, gpu: Gpu, name: str, milliseconds: float, answer: Tensor) -> None:
    """Have a network give this answer to every image, in the GPU's time."""
    transfers = SimulatedTransfers()
    real_run_later = on_device.run_later

    def call(network: nn.Module, batch: Tensor) -> Tensor:
        transfers.launched = gpu.launch(name, milliseconds * len(batch))
        if on_device.on_forward is not None:
            on_device.on_forward(gpu.slower * milliseconds * len(batch) / 1000)
        return answer[None].expand(len(batch), *answer.shape)

    def run_later(items: Sequence[Tensor], _: NetworkCall, **_options: Any) -> Callable[[], list[Tensor]]:
        return real_run_later(items, call, at_once=AT_ONCE[name])

    on_device._transfers = transfers
    on_device.timed = lambda device, forward: forward()
    on_device.run_later = run_later


def free_cores(bench: Bench) -> None:
    """Let what needs a core, but not Python's lock, sleep instead: as if it ran on one of many other cores.

    Every image is the same one here: such a function runs once, alone, then sleeps as long as that took and gives what
    it gave.
    """
    engine, image = bench.softmatcher, decode_image(photograph(), 10**9)
    for owner, name in (
        (bench.encoder, "prepare"),
        (bench.segmenter, "prepare"),
        (images, "decode_image"),
        (pipeline, "map_to_size"),
        (pipeline, "map_peak"),
        (pipeline, "recentre_map"),
        (pipeline, "clean_mask"),
        (pipeline, "mask_to_size"),
        (sam_segmenter, "prior_to_logits"),
    ):
        setattr(owner, name, _only_once(getattr(owner, name)))
    feature_cache.zlib = SimpleNamespace(crc32=_only_once(zlib.crc32))
    images.decode_image(photograph(), 10**9)
    encoded = engine.encode_prepared([engine.prepare(image)])[0]
    engine.segment(encoded, {"Thing": [engine.describe(image, encoded, square(image))]})
    feature_cache._pack(encoded)
    feature_cache._write_beside = lambda *_: time.sleep(0.010)


def _only_once(call: Callable[..., Any]) -> Callable[..., Any]:
    known: list[tuple[float, Any]] = []

    def answer(*arguments: Any, **more: Any) -> Any:
        if not known:
            began = time.thread_time()
            result = call(*arguments, **more)
            known.append((time.thread_time() - began, result))
        seconds, result = known[0]
        time.sleep(seconds)
        return result

    return answer


def use_lanes(lanes: int, tasks: int) -> None:
    """Let tasks be taken as a worker takes them: so many batches of so many tasks at a time."""
    real_service = bench_pipeline.service

    @contextmanager
    def service(bench: Bench) -> Iterator[Any]:
        with real_service(bench) as (click, predict), ThreadPoolExecutor(lanes) as pool:

            def in_lanes(numbers: Sequence[int], contents: Sequence[bytes]) -> int:
                batches = [numbers[start : start + tasks] for start in range(0, len(numbers), tasks)]
                return sum(pool.map(lambda batch: predict(batch, contents), batches))

            yield click, in_lanes

    bench_pipeline.service = service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--in-turns", action="store_true", help="encoders and decoder never run beside each other")
    parser.add_argument("--slower", type=float, default=1.0, help="than an H100, so many times")
    parser.add_argument("--free-cores", action="store_true", help="what needs a core but not Python's lock sleeps")
    parser.add_argument("--lanes", type=int, default=0, help="batches at a time; 0: all images are one batch")
    parser.add_argument("--tasks", type=int, default=48, help="of a batch, with --lanes")
    arguments = parser.parse_args()
    if arguments.lanes:
        use_lanes(arguments.lanes, arguments.tasks)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench("base", torch.device("cpu"), Path(folder))
        simulate(bench, Gpu(in_turns=arguments.in_turns, slower=arguments.slower))
    torch.set_num_threads(1)
    if arguments.free_cores:
        free_cores(bench)
    before = time.process_time()
    began = time.perf_counter()
    figures = bench_pipeline._bench_bulk(bench, [photograph()], arguments.images)
    figures["cpu_ms_an_image"] = 1000 * (time.process_time() - before) / arguments.images
    figures["wall"] = time.perf_counter() - began
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
