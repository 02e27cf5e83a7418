"""`bench pipeline`: every part of a prediction timed, cold (nothing cached) and warm (the image is encoded already)."""

import io
import json
import logging
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import requests
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from werkzeug.serving import make_server

from backend.core.types import Image, Mask
from backend.errors import BadInputError, ConfigurationError
from backend.jobs import JobQueue
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.rle import encode_mask
from backend.metrics import Metrics
from backend.models.accelerator import choose_device, set_threads
from backend.models.profiles import ModelSource, load_profile, missing_weights
from backend.models.segmenter import BatchSegmenter
from backend.pipeline import MatchOptions, Softmatcher
from backend.projects import Projects
from backend.projects.models import Models
from backend.projects.predictions import KnownReferences
from backend.service import create_app
from backend.settings import Settings, load_settings
from backend.store import Store

T = TypeVar("T")

PARTS = ("read", "encode", "embed", "match", "decode", "clean-up", "RLE", "HTTP and the rest")
_LABEL_CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="Thing"/></BrushLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="Thing"/></KeyPointLabels></View>"""
_PROJECT_KEY = "1.1"
_MOST_PIXELS = 200_000_000


@dataclass
class _Times:
    """Seconds by part of one run, and of networks' forward passes among them, of which those of the two encoders."""

    parts: dict[str, float] = field(default_factory=dict)
    raw: dict[str, float] = field(default_factory=dict)
    forward_s: float = 0.0
    encoders_s: float = 0.0
    total_s: float = 0.0

    def add(self, part: str, seconds: float) -> None:
        self.parts[part] = self.parts.get(part, 0.0) + seconds


class _KeepingSoftmatcher(Softmatcher):
    """Random networks believe in nothing: with them every mask counts, or what comes after it would cost nothing."""

    def segment_later(self, encoded: Any, references: Any, options: MatchOptions | None = None, **more: Any) -> Any:
        kept = replace(options or MatchOptions(), minimum_presence=0.0)
        return super().segment_later(encoded, references, kept, **more)


class _Bench:
    """One profile on one device."""

    def __init__(self, profile: str, device: torch.device, weights_folder: Path) -> None:
        source = ModelSource(weights_folder, device, is_random=True)
        self.encoder, self.segmenter = load_profile(profile, source)
        self._now = _Times()
        self._lock = threading.Lock()
        networks = (*getattr(self.encoder, "on_devices", ()), *getattr(self.segmenter, "on_devices", ()))
        for part in networks:
            part.on_forward = partial(self._on_forward, is_encoder=part is not networks[-1])
        self.has_forward_times = bool(networks)
        # What decodes one image asks what decodes many, where there is such a thing.
        name = "decode_many" if isinstance(self.segmenter, BatchSegmenter) else "decode"
        setattr(self.segmenter, name, self._timed("decode", getattr(self.segmenter, name)))
        kind = _KeepingSoftmatcher if missing_weights(profile, weights_folder) else Softmatcher
        self.softmatcher = kind(self.encoder, self.segmenter, on_stage=self.on_stage)

    def _timed(self, stage: str, call: Callable[..., T]) -> Callable[..., T]:
        def timed(*arguments: Any) -> T:
            started = time.perf_counter()
            answer = call(*arguments)
            self.on_stage(stage, time.perf_counter() - started)
            return answer

        return timed

    def _on_forward(self, seconds: float, *, is_encoder: bool) -> None:
        with self._lock:
            self._now.forward_s += seconds
            self._now.encoders_s += seconds * is_encoder

    def on_stage(self, stage: str, seconds: float) -> None:
        """Observer of the pipeline and of the service."""
        with self._lock:
            if stage == "encode" and not self.has_forward_times:
                self._now.forward_s += seconds
            self._now.add(stage, seconds)

    def on_service_stage(self, stage: str, seconds: float) -> None:
        """Observer of the service: its "scribble" is what the pipeline tells in parts."""
        if stage != "scribble":
            self.on_stage(stage, seconds)

    @contextmanager
    def run(self) -> Iterator[_Times]:
        """Time what the block does."""
        self._now = times = _Times()
        started = time.perf_counter()
        yield times
        times.total_s = time.perf_counter() - started
        times.raw = dict(times.parts)
        self._now = _Times()  # what is done between two runs belongs to neither
        parts = times.parts
        decode_s = parts.get("decode", 0.0)
        # What surrounds decoding: points sampled, masks joined and cleaned, brought to the image's size.
        around_s = sum(parts.pop(stage, 0.0) for stage in ("segment", "scribble")) - decode_s
        parts["clean-up"] = max(0.0, around_s) + parts.pop("upsample", 0.0) + parts.pop("affinity", 0.0)
        parts["RLE"] = parts.pop("rle", 0.0)
        parts["HTTP and the rest"] = max(0.0, times.total_s - sum(parts.get(part, 0.0) for part in PARTS[:-1]))


def bench_pipeline(
    settings: Settings,
    profiles: Sequence[str],
    *,
    device: str,
    images: Sequence[str],
    repeats: int,
    bulk: int,
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
        _require_matplotlib()
    set_threads(threads)
    files = [_read(path) for path in images] or [_photograph()]
    figures: dict[str, Any] = {
        "machine": {
            "platform": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
            "torch": torch.__version__, "threads": torch.get_num_threads(), "device": str(chosen),
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
        bench = _Bench(profile, chosen, settings.weights_folder)
        of_profile = figures["profiles"][profile] = _bench_profile(bench, files, repeats, random_weights=missing)
        console.print(_table(profile, of_profile))
        if bulk:
            of_profile["bulk"] = _bench_bulk(bench, files, bulk)
            console.print(_bulk_table(profile, of_profile["bulk"]))
    if json_file is not None:
        Path(json_file).write_text(json.dumps(figures, indent=1) + "\n")
    if chart is not None:
        _draw(figures, Path(chart))
    return figures


def _bench_profile(bench: _Bench, files: Sequence[bytes], repeats: int, *, random_weights: list[str]) -> dict[str, Any]:
    runs: dict[str, list[_Times]] = {name: [] for name in ("click cold", "click warm", "predict cold", "predict warm")}
    with _service(bench) as (click, _):
        for number in range(repeats + 1):
            for name in ("click cold", "click warm"):
                with bench.run() as times:
                    click(number, files[number % len(files)])
                runs[name].append(times)
    engine = bench.softmatcher
    content = files[0]
    image = decode_image(content, _MOST_PIXELS)
    reference = engine.describe(image, engine.encode(image), _square(image))
    for _ in range(repeats + 1):
        with bench.run() as times:
            started = time.perf_counter()
            image = decode_image(content, _MOST_PIXELS)
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


def _bench_bulk(bench: _Bench, files: Sequence[bytes], count: int) -> dict[str, Any]:
    """Images a second through the workers' own code, from the file to the region, and of the two encoders alone."""
    engine = bench.softmatcher
    size = engine.good_batch
    prepared = [engine.prepare(decode_image(files[number % len(files)], _MOST_PIXELS)) for number in range(size)]
    alone: list[float] = []
    for _ in range(1 + max(1, min(10, count // size))):
        started = time.perf_counter()
        engine.encode_prepared(prepared)
        alone.append((time.perf_counter() - started) / size)
    with _service(bench) as (_, predict):
        predict(range(10_000, 10_000 + 2 * size), files)  # the first of each kind of call
        with bench.run() as times:
            found = predict(range(count), files)
    return {
        "images": count,
        "with_masks": found,
        "at_once": size,
        "images_per_s": count / times.total_s,
        "encoders_alone_images_per_s": 1 / statistics.median(alone[1:]),
        "of_the_encoders_alone": statistics.median(alone[1:]) * count / times.total_s,
        "encoders_share": times.encoders_s / times.total_s,
        "parts_ms_an_image": {part: 1000 * seconds / count for part, seconds in sorted(times.raw.items())},
    }


def _segment(engine: Softmatcher, encoded: Any, reference: Any, times: _Times) -> None:
    found = engine.segment(encoded, {"Thing": [reference]})
    started = time.perf_counter()
    for one in found or ():
        encode_mask(one.mask)
    times.add("rle", time.perf_counter() - started)


def _prompt_figures(bench: _Bench, embedding: Mapping[str, NDArray[np.generic]], repeats: int) -> dict[str, float]:
    """Milliseconds a prompt, alone and in a batch of eight."""
    from backend.models.sam_prompts import SamPrompt
    from backend.models.sam_segmenter import SamSegmenter

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


def _summary(runs: Sequence[_Times]) -> dict[str, Any]:
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


@contextmanager
def _service(
    bench: _Bench,
) -> Iterator[tuple[Callable[[int, bytes], None], Callable[[Sequence[int], Sequence[bytes]], int]]]:
    """The real service on loopback, with this one project; gives a function that clicks on a task, and one that
    predicts many tasks as a worker does and says how many have masks."""
    files: dict[int, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(data_dir=Path(folder), prefetch_tasks=0)
        store, metrics = Store(settings.store_url), Metrics()
        store.create_tables()
        store.save_project(_PROJECT_KEY, label_config=_LABEL_CONFIG)
        metrics.on_stage = bench.on_service_stage  # type: ignore[method-assign]
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        models = Models(settings, metrics, load=lambda profile, on_stage: bench.softmatcher)
        projects = Projects(settings, store, metrics, models, _LocalImages(files))  # type: ignore[arg-type]
        models.get(60)
        server = make_server("127.0.0.1", 0, create_app(projects, JobQueue("redis://127.0.0.1:1")), threaded=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        session = requests.Session()

        def add(number: int, content: bytes) -> dict[str, Any]:
            if number not in files:
                # A comment after the picture: the same pixels, another file, so nothing of it is cached.
                files[number] = content + number.to_bytes(4, "big")
            return {"id": number + 1, "data": {"image": f"/{number}"}}

        def predict(numbers: Sequence[int], contents: Sequence[bytes]) -> int:
            tasks = [add(number, contents[number % len(contents)]) for number in numbers]
            engine = bench.softmatcher
            image = decode_image(contents[0], _MOST_PIXELS)
            config = parse_label_config(_LABEL_CONFIG)
            bank = engine.gather([engine.describe(image, engine.encode(image), _square(image))])
            project = projects.store.project(_PROJECT_KEY)
            assert project is not None  # saved above
            each = projects.predictions.each(
                project, config, KnownReferences({"image": {"Thing": bank}}), "bench", tasks, lambda: False
            )
            return sum(one() is not None for _, one in each)

        def click(number: int, content: bytes) -> None:
            task = add(number, content)
            width, height = PIL.Image.open(io.BytesIO(content)).size
            point = {
                "id": "p", "type": "keypointlabels", "from_name": "point", "to_name": "image", "origin": "manual",
                "original_width": width, "original_height": height, "image_rotation": 0,
                "value": {"x": 45.0, "y": 40.0, "width": 0.5, "keypointlabels": ["Thing"]},
            }  # fmt: skip
            body = {
                "tasks": [task], "project": _PROJECT_KEY,
                "label_config": _LABEL_CONFIG, "params": {"context": {"result": [point]}},
            }  # fmt: skip
            answer = session.post(f"http://127.0.0.1:{server.server_port}/predict", json=body, timeout=600)
            answer.raise_for_status()

        try:
            yield click, predict
        finally:
            server.shutdown()
            thread.join(10)
            projects.close()


class _LocalImages:
    """In place of Label Studio: images from memory."""

    def __init__(self, files: Mapping[int, bytes]) -> None:
        self._files = files

    def fetcher(self, project_key: str) -> "_LocalImages":
        return self

    def fetch(self, url: str, task_id: int | None) -> bytes:
        return self._files[int(url.strip("/"))]

    def close(self) -> None:
        pass


def _square(image: Image) -> Mask:
    """A mask in the middle of the upper left."""
    mask = np.zeros(image.shape[:2], bool)
    mask[image.shape[0] // 4 : image.shape[0] // 2, image.shape[1] // 4 : image.shape[1] // 2] = True
    return mask


def _photograph() -> bytes:
    """scikit-image's astronaut as a 640 x 480 px JPEG."""
    import cv2
    from skimage import data

    crop = cv2.resize(data.astronaut()[:384], (640, 480), interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    PIL.Image.fromarray(crop).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInputError(f"image must be a file that can be read, got {path} ({error})") from error


def _table(profile: str, figures: Mapping[str, Any]) -> Table:
    runs = ("click cold", "click warm", "predict cold", "predict warm")
    table = Table(
        "part", *runs, title=f"{profile}: median milliseconds at {figures['image_hw'][1]} x {figures['image_hw'][0]}"
    )
    for part in PARTS:
        table.add_row(part, *(f"{figures[run]['parts_ms'][part]:.1f}" for run in runs))
    table.add_section()
    table.add_row("total", *(f"{figures[run]['total_ms']:.1f}" for run in runs))
    if figures["prompt_ms"]:
        table.add_row("not in a forward pass", *(f"{100 * figures[run]['overhead_share']:.1f} %" for run in runs))
    ratio = figures["click cold"]["total_ms"] / figures["click warm"]["total_ms"]
    table.add_row("click: cold / warm", f"{ratio:.1f}", "", "", "")
    if figures["prompt_ms"]:
        alone, of_eight = figures["prompt_ms"]["alone"], figures["prompt_ms"]["of eight"]
        table.add_row("a prompt alone / of eight", f"{alone:.0f} / {of_eight:.0f}", "", "", "")
    return table


def _bulk_table(profile: str, figures: Mapping[str, Any]) -> Table:
    table = Table(
        "what", "images/s", title=f"{profile}: {figures['images']} images in bulk, {figures['at_once']} at a time"
    )
    table.add_row("file to region", f"{figures['images_per_s']:.2f}")
    table.add_row("the two encoders alone", f"{figures['encoders_alone_images_per_s']:.2f}")
    table.add_row("share of the time in the encoders", f"{100 * figures['encoders_share']:.1f} %")
    return table


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigurationError("a chart needs matplotlib, which is not installed: pip install matplotlib") from error


def _draw(figures: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = [
        (f"{profile}\n{run}", of[run]["parts_ms"])
        for profile, of in figures["profiles"].items()
        for run in ("click cold", "click warm", "predict cold", "predict warm")
    ]
    figure, axes = pyplot.subplots(figsize=(1.6 + 1.2 * len(runs), 5), layout="constrained")
    bottoms = np.zeros(len(runs))
    for part, colour in zip(PARTS, pyplot.get_cmap("tab10").colors, strict=False):
        heights = np.array([parts[part] for _, parts in runs])
        # Shares: seconds of a cold prediction would leave nothing to see of a warm one.
        totals = np.array([sum(parts.values()) for _, parts in runs])
        axes.bar([name for name, _ in runs], 100 * heights / totals, bottom=bottoms, label=part, color=colour)
        bottoms += 100 * heights / totals
    for position, (_, parts) in enumerate(runs):
        axes.text(position, 101, f"{sum(parts.values()):.0f} ms", ha="center", fontsize=8)
    axes.set_ylabel("share of the time, %")
    axes.set_ylim(0, 110)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    machine = figures["machine"]
    axes.set_title(f"Median of {figures['repeats']} runs, {machine['device']}, {machine['cores']} cores", fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
