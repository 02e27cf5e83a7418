"""The bulk path of `base` on a GPU that is not there: the networks' passes are sleeps, everything else is what runs.

    python benchmarks/simulated_gpu.py --images 200

What the networks (random weights) say to a photograph is computed once on the CPU; then the worker's own code predicts
many files of it. A pass sleeps as long as an H100 took for it, and the Python that launches its kernels is played by as
many small operations, each of which gives Python's lock away and takes it again, as PyTorch's do. Transfers are copies.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backend import feature_cache, pipeline
from backend.cli import bench_pipeline
from backend.cli.bench_service import photograph, square
from backend.cli.bench_times import Bench
from backend.core.matching import ScoreMap
from backend.labelstudio.image_decoding import decode_image
from backend.models import sam_segmenter
from backend.models.accelerator import OnDevice
from backend.models.sam_selection import Selected
from backend.projects import images

ENCODE_MS, EMBED_MS, PROMPT_MS, MATCH_MS = 3.0, 10.5, 0.8, 1.0
"""An image in DINOv2 ViT-B and in SAM ViT-B, a prompt of eight, a match: of an H100."""
LAUNCHES = {"encode": 250, "embed": 400, "decode": 250, "match": 60}
"""Kernels of a pass, about."""
AT_ONCE = {"encode": 8, "embed": 4, "decode": 8}


class Gpu:
    """Streams whose passes take their time, beside each other or, on a device that each of them fills, in turns."""

    def __init__(self, *, in_turns: bool, slower: float) -> None:
        self._slower = slower
        self._stream_of = {name: "one" if in_turns else name for name in LAUNCHES}
        self._free_at = dict.fromkeys(self._stream_of.values(), 0.0)
        self._lock = threading.Lock()
        self._small = torch.zeros(1)

    def run(self, name: str, milliseconds: float) -> None:
        """One pass: launched, then waited for."""
        began, stream = time.perf_counter(), self._stream_of[name]
        for _ in range(LAUNCHES[name]):
            self._small.add_(1)
        with self._lock:
            end = max(began, self._free_at[stream]) + self._slower * milliseconds / 1000
            self._free_at[stream] = end
        time.sleep(max(0.0, end - time.perf_counter()))


def simulate(bench: Bench, gpu: Gpu) -> None:
    """Have the networks of a bench say what they say to its photograph, in a GPU's time."""
    engine, segmenter = bench.softmatcher, bench.segmenter
    image = decode_image(photograph(), 10**9)
    real_select, real_match = sam_segmenter.select_by_prior, pipeline.MATCHERS["posterior"]
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
    maps = real_match(
        reference,
        features.float().flatten(0, 1),
        temperature=engine.temperature,
        strange_similarity=engine.strange_similarity,
    )

    def match(bank: Any, target: Tensor, /, **_: float) -> ScoreMap:
        gpu.run("match", MATCH_MS)
        return maps

    def decoder(images: Tensor, points: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        gpu.run("decode", PROMPT_MS * len(points))
        which = torch.tensor([by_points[one.numpy().tobytes()] for one in points]).float()
        return which[:, None, None, None].expand(-1, 3, 1, 1), which[:, None].expand(-1, 3)

    def select(masks: Tensor, predicted_iou: Tensor, prior: Tensor, options: Any) -> Selected:
        own = [chosen[int(one)] for one in predicted_iou[:, 0].tolist()]
        return Selected(torch.tensor([one[0] for one in own]), torch.tensor([one[1] for one in own]))

    def logits_at(logits: Tensor, input_hw: Any, size_hw: Any) -> Tensor:
        return torch.stack([chosen[int(one)][2] for one in logits[:, 0, 0, 0].tolist()])

    pipeline.MATCHERS["posterior"] = match
    sam_segmenter.select_by_prior = select
    segmenter.logits_at = logits_at
    sam_segmenter.Images.of = lambda self, owners, device: (torch.zeros(len(owners), 1),)  # the GPU's own work
    real_run_parts = segmenter._decoder.run_parts
    segmenter._decoder._network = decoder
    segmenter._decoder.run_parts = lambda count, at_once, *more: real_run_parts(count, min(count, 8), *more)
    OnDevice.good_batch = property(lambda self: 8)
    bench.encoder.encode = lambda image: features.float()
    for on_device, name, milliseconds, answer in (
        (bench.encoder.on_devices[0], "encode", ENCODE_MS, features),
        (segmenter.on_devices[0], "embed", EMBED_MS, embedding),
    ):
        on_device.run = partial(_run, on_device, gpu, name, milliseconds, answer, {})


def _run(
    on_device: OnDevice,
    gpu: Gpu,
    name: str,
    milliseconds: float,
    answer: Tensor,
    pinned: dict[Any, Any],
    items: Sequence[Tensor],
    call: Any,
    *,
    at_once: int = 0,
) -> list[Tensor]:
    done: list[Tensor] = []
    began = time.perf_counter()
    while len(done) < len(items):
        part = items[len(done) : len(done) + AT_ONCE[name]]
        for position, item in enumerate(part):
            np.copyto(pinned.setdefault((position, item.shape), torch.empty_like(item)).numpy(), item.numpy())
        gpu.run(name, milliseconds * len(part))
        if on_device.on_forward is not None:
            on_device.on_forward(time.perf_counter() - began)
        done += [answer.clone() for _ in part]
        began = time.perf_counter()
    return done


def free_cores(bench: Bench) -> None:
    """Let what needs a core, but not Python's lock, sleep instead: as if it ran on one of many other cores."""
    image = decode_image(photograph(), 10**9)
    for owner, name, argument in (
        (bench.encoder, "prepare", image),
        (bench.segmenter, "prepare", image),
        (images, "decode_image", photograph()),
    ):
        call = getattr(owner, name)
        answer = call(argument)
        began = time.thread_time()
        call(argument)
        setattr(owner, name, partial(_sleep, time.thread_time() - began, answer))
    feature_cache._write_beside = partial(_sleep, 0.010, None)


def _sleep(seconds: float, answer: Any, *_: Any) -> Any:
    time.sleep(seconds)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--in-turns", action="store_true", help="encoders and decoder never run beside each other")
    parser.add_argument("--slower", type=float, default=1.0, help="than an H100, so many times")
    parser.add_argument("--free-cores", action="store_true", help="what needs a core but not Python's lock sleeps")
    arguments = parser.parse_args()
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
