"""The bulk part of `bench pipeline`: many images through the workers' own code, in one process or in several."""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

from backend.cli.bench.in_process_service import MOST_PIXELS, service
from backend.cli.bench.timing import Bench, Times
from backend.core.arrays import Device
from backend.labelstudio.image_decoding import decode_image
from backend.models.device.placement import good_threads, set_threads

_LOAD_S = 600
"""For all workers to have their models and to have predicted their first images."""
_WARM_UP_BATCHES = 4
"""By the third a pass is recorded where passes are (`models.recorded_passes`)."""


@dataclass(frozen=True)
class BulkWork:
    """The work of each of several workers.

    Attributes:
        profile, device, weights_folder: as `Bench` takes them.
        files: images, taken in turns.
        images: how many to predict.
        workers: how many workers do this at a time.
        threads: of one model call; 0: as a worker chooses them.
    """

    profile: str
    device: Device
    weights_folder: Path
    files: Sequence[bytes]
    images: int
    workers: int
    threads: int


@dataclass(frozen=True)
class _Share:
    """Of one worker: s of the system's monotonic clock, images with masks, seconds by stage."""

    started_s: float
    ended_s: float
    with_masks: int
    raw: dict[str, float]


def bench_bulk(bench: Bench, work: BulkWork) -> dict[str, Any]:
    """Images a second from the file to the region, of all workers together, and of the two encoders alone.

    The encoders' share of the time is that of their forward passes over as many images while nothing else runs (on
    CUDA between two events in their stream), divided by the time of the whole. What they wait for in the run (a copy,
    Python's lock, a core) so never counts as theirs, on whatever machine. For several workers on a processor it is
    None: alone the encoders have all cores for one call, there each has some, which is more images a second.
    """
    engine = bench.softmatcher
    size = engine.preferred_batch_size
    prepared = [engine.prepare(decode_image(work.files[n % len(work.files)], MOST_PIXELS)) for n in range(size)]
    alone: list[Times] = []
    for _ in range(1 + max(1, min(10, work.images // size))):
        with bench.run() as times:
            engine.encode_prepared(prepared)
        alone.append(times)
    alone_s = statistics.median(one.total_s for one in alone[1:]) / size
    passes_s = statistics.median(one.encoders_s for one in alone[1:]) / size
    shares = [_predict(bench, work)] if work.workers == 1 else in_processes(work)
    total_s = max(one.ended_s for one in shares) - min(one.started_s for one in shares)
    images = work.images * work.workers
    is_comparable = work.workers == 1 or engine.device.type == "cuda"
    return {
        "workers": work.workers,
        "images": images,
        "with_masks": sum(one.with_masks for one in shares),
        "at_once": size,
        "images_per_s": images / total_s,
        "encoders_alone_images_per_s": 1 / alone_s,
        "of_the_encoders_alone": alone_s * images / total_s if is_comparable else None,
        "encoders_share": passes_s * images / total_s if is_comparable else None,
        "parts_ms_an_image": {
            part: 1000 * sum(one.raw.get(part, 0.0) for one in shares) / images
            for part in sorted({part for one in shares for part in one.raw})
        },
    }


def _predict(bench: Bench, work: BulkWork, all_are_ready: Any = None) -> _Share:
    with service(bench) as (_, predict):
        predict(range(10_000, 10_000 + _WARM_UP_BATCHES * bench.softmatcher.preferred_batch_size), work.files)
        if all_are_ready is not None:
            all_are_ready.wait(_LOAD_S)
        started_s = time.monotonic()
        with bench.run() as times:
            with_masks = predict(range(work.images), work.files)
        return _Share(started_s, time.monotonic(), with_masks, times.raw)


def in_processes(work: BulkWork) -> list[_Share]:
    """Run the workers' shares, each in a process of its own, begun together.

    Raises:
        SoftmatcherError: what kept one of them from its work.
    """
    # Spawned: CUDA cannot be used in a forked process.
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(work.workers)
    with ProcessPoolExecutor(work.workers, context, _begin_worker, (barrier,)) as pool:
        shares = [pool.submit(_work, work) for _ in range(work.workers)]
        errors = [error for one in shares if (error := one.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
            raise error  # the one that let the others wait in vain comes first
        return [one.result() for one in shares]


_all_are_ready: Any = None
"""In a worker: the barrier that all of them begin at."""


def _begin_worker(barrier: Any) -> None:
    global _all_are_ready
    _all_are_ready = barrier


def _work(work: BulkWork) -> _Share:
    try:
        bench = Bench(
            work.profile, work.device, work.weights_folder, threads=work.threads, calls_at_a_time=work.workers
        )
        set_threads(work.threads or good_threads(bench.softmatcher.device, work.workers))
        return _predict(bench, work, _all_are_ready)
    except BaseException:
        _all_are_ready.abort()
        raise
