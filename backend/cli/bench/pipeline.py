"""`bench pipeline`: every part of a prediction timed, cold (nothing cached) and warm (the image is encoded already)."""

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from backend.cli.bench.bulk import BulkWork, bench_bulk
from backend.cli.bench.in_process_service import MOST_PIXELS, photograph, service, square
from backend.cli.bench.tables import bulk_table, draw, require_matplotlib, table
from backend.cli.bench.timing import PARTS, Bench, Times
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.rle import encode_mask
from backend.models.device.placement import choose_device, good_threads, set_threads
from backend.models.loading import missing_weights
from backend.settings import Settings


def bench_pipeline(
    settings: Settings,
    profiles: Sequence[str],
    *,
    device: str,
    images: Sequence[str],
    repeats: int,
    bulk: int,
    workers: int,
    json_file: str | None,
    chart: str | None,
    threads: int,
    console: Console | None = None,
) -> dict[str, Any]:
    """Print a table of milliseconds; write JSON and a chart where asked.

    Raises:
        ConfigurationError: no such profile or device, or a chart without matplotlib.
        BadInputError: an image cannot be read.
    """
    console = console or Console()
    chosen = choose_device(device)
    if chart is not None:
        require_matplotlib()
    all_threads = torch.get_num_threads()
    files = [_read(path) for path in images] or [photograph()]
    figures: dict[str, Any] = {
        "machine": {
            "platform": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
            "torch": torch.__version__, "device": str(chosen),
        },
        "repeats": repeats,
        "profiles": {},
    }  # fmt: skip
    for profile in profiles:
        missing = missing_weights(profile, settings.weights_folder)
        console.print(
            f"profile {profile} on {chosen}"
            + (f": random weights for {', '.join(missing)} (times are real, masks are not)" if missing else "")
        )
        bench = Bench(profile, chosen, settings.weights_folder, threads=threads)
        set_threads(threads or good_threads(bench.softmatcher.device) or all_threads)
        of_profile = figures["profiles"][profile] = _bench_profile(bench, files, repeats, random_weights=missing)
        of_profile["threads"] = torch.get_num_threads()
        console.print(table(profile, of_profile))
        if bulk:
            work = BulkWork(profile, chosen, settings.weights_folder, files, bulk, workers, threads)
            of_profile["bulk"] = bench_bulk(bench, work)
            console.print(bulk_table(profile, of_profile["bulk"]))
    if json_file is not None:
        Path(json_file).write_text(json.dumps(figures, indent=1) + "\n")
    if chart is not None:
        draw(figures, Path(chart))
    return figures


def _bench_profile(bench: Bench, files: Sequence[bytes], repeats: int, *, random_weights: list[str]) -> dict[str, Any]:
    runs: dict[str, list[Times]] = {name: [] for name in ("click cold", "click warm", "predict cold", "predict warm")}
    with service(bench) as (click, _):
        for number in range(repeats + 1):
            for name in ("click cold", "click warm"):
                with bench.run() as times:
                    click(number, files[number % len(files)])
                runs[name].append(times)
    engine = bench.softmatcher
    content = files[0]
    image = decode_image(content, MOST_PIXELS)
    reference = engine.describe(image, engine.encode(image), square(image))
    for _ in range(repeats + 1):
        with bench.run() as times:
            started = time.perf_counter()
            image = decode_image(content, MOST_PIXELS)
            times.add("read", time.perf_counter() - started)
            encoded = engine.encode(image)
            _segment(engine, encoded, reference, times)
        runs["predict cold"].append(times)
        with bench.run() as times:
            _segment(engine, encoded, reference, times)
        runs["predict warm"].append(times)
    return {
        "random_weights": random_weights,
        "image_hw": list(image.shape[:2]),
        **{name: _summary(of[1:]) for name, of in runs.items()},
        "prompt_ms": _prompt_figures(bench, encoded.embedding, repeats),
    }


def _segment(engine: Softmatcher, encoded: Any, reference: Any, times: Times) -> None:
    found = engine.segment(encoded, {"Thing": [reference]})
    started = time.perf_counter()
    for one in found or ():
        encode_mask(one.boxed)
    times.add("rle", time.perf_counter() - started)


def _prompt_figures(bench: Bench, embedding: Mapping[str, NDArray[np.generic]], repeats: int) -> dict[str, float]:
    """Milliseconds a prompt, alone and in a batch of eight."""
    from backend.models.sam.prompts import SamPrompt
    from backend.models.sam.segmenter import SamSegmenter

    if not isinstance(bench.segmenter, SamSegmenter):
        return {}
    rng = np.random.default_rng(0)
    prompts = [SamPrompt(rng.uniform(0, 1000, (3, 2)).astype(np.float32), np.ones(3, np.float32)) for _ in range(8)]
    alone: list[float] = []
    together: list[float] = []
    # In turns: what else the machine does then slows both alike.
    for _ in range(repeats + 1):
        started = time.perf_counter()
        bench.segmenter.decode_prompts(embedding, prompts[:1], is_multimask=True)
        alone.append(time.perf_counter() - started)
        started = time.perf_counter()
        bench.segmenter.decode_prompts(embedding, prompts, is_multimask=True)
        together.append((time.perf_counter() - started) / len(prompts))
    return {"alone": _ms(alone[1:]), "of eight": _ms(together[1:])}


def _summary(runs: Sequence[Times]) -> dict[str, Any]:
    total_s = statistics.median(times.total_s for times in runs)
    forward_s = statistics.median(times.forward_s for times in runs)
    return {
        "total_ms": 1000 * total_s,
        "fastest_ms": 1000 * min(times.total_s for times in runs),
        "forward_ms": 1000 * forward_s,
        "overhead_share": statistics.median(1 - times.forward_s / times.total_s for times in runs),
        "parts_ms": {part: _ms([times.parts.get(part, 0.0) for times in runs]) for part in PARTS},
    }


def _ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInputError(f"image must be a file that can be read, got {path} ({error})") from error
