"""Mixed requests of eight threads against a service whose every answer is known beforehand.

Two threads click, two open tasks (with prefetch), four ask for batches, on a service with small networks of SAM's and
DINOv2's own layout and random weights. Every request brings files that no cache knows. A test runs it for some
seconds, `benchmarks/eight_threads.py` for two minutes.
"""

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend.cli.bench.timing import KeepingSoftmatcher
from backend.engine.softmatcher import Softmatcher
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.label_config import parse_label_config
from backend.metrics import Metrics
from backend.models.calibrations import read_calibration
from backend.models.encoders.timm_encoder import TimmEncoder, VitOptions
from backend.models.sam.options import SamOptions, SelectionOptions
from backend.models.sam.segmenter import sam_segmenter
from backend.projects.composition import Projects
from backend.projects.model_host import Models
from backend.projects.model_scheduler import Priority, Waiter
from backend.settings import load_settings
from backend.store import Store
from backend.web.app import create_app
from testing.fakes import LABEL_CONFIG, FakeConnections, FakeLabelStudio, PatientQueue, png
from testing.small_sam import small_sam

CALIBRATION = read_calibration("lite.json")

PICTURES = 8
BATCH = 4
PAUSE_S = {"click": 0.2, "open": 1.0, "batch": 0.0}
FAR_AWAY = 10**9
HEIGHT, WIDTH = 60, 96


def small_softmatcher() -> Softmatcher:
    """DINOv2 and SAM of two blocks each."""
    encoder = TimmEncoder(
        "vit_small_patch14_dinov2",
        None,
        VitOptions(side_px=112),
        network_options={"depth": 2, "embed_dim": 48, "num_heads": 3},
    )
    everything = SelectionOptions(minimum_iou=-99.0, minimum_contrast=-1.0, minimum_prior=0.0)
    segmenter = sam_segmenter(small_sam(), "small", SamOptions(working_px=96, selection=everything))
    return KeepingSoftmatcher(encoder, segmenter, CALIBRATION)


@dataclass
class Report:
    """What happened.

    Attributes:
        answers: requests by kind.
        wrong: those whose answer was another than the single-threaded one.
        overtaken: interactive calls during whose wait a batch call or a prefetch began.
        longest_wait_s: of an interactive call for its turn.
        longest_call_s: that held the models.
        memory_mb: resident memory after a quarter of the time, and at the end.
        prefetched: images looked at ahead, by outcome.
    """

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    overtaken: int = 0
    longest_wait_s: float = 0.0
    longest_call_s: float = 0.0
    memory_mb: tuple[float, float] = (0.0, 0.0)
    prefetched: dict[str, float] = field(default_factory=dict)


class _Watch(list[Waiter]):
    """The gate's queue, which notes under the gate's own lock when calls came into it and when they were let in."""

    def __init__(self, models: Models) -> None:
        super().__init__()
        self._came: dict[int, float] = {}
        self._held_s: list[float] = [0.0]
        self.calls: list[tuple[bool, float, float]] = []
        self._turn = models.scheduler.slot
        models.scheduler.waiters = self
        models.scheduler.slot = self.slot  # type: ignore[method-assign]

    def append(self, waiter: Waiter) -> None:
        self._came[waiter.number] = time.perf_counter()
        super().append(waiter)

    def remove(self, waiter: Waiter) -> None:
        is_interactive = waiter.place[0] == Priority.INTERACTIVE
        super().remove(waiter)
        self.calls.append((is_interactive, self._came.pop(waiter.number), time.perf_counter()))

    @contextmanager
    def slot(self, **kind: Any) -> Iterator[None]:
        with self._turn(**kind):
            began = time.perf_counter()
            try:
                yield
            finally:
                self._held_s.append(time.perf_counter() - began)

    def judge(self, report: Report) -> None:
        """Interactive calls against all others."""
        others = np.array(sorted(let_in for is_interactive, _, let_in in self.calls if not is_interactive))
        for is_interactive, came, let_in in self.calls:
            if is_interactive:
                report.longest_wait_s = max(report.longest_wait_s, let_in - came)
                report.overtaken += int(np.searchsorted(others, let_in) > np.searchsorted(others, came))
        report.longest_call_s = max(self._held_s)


class _Load:
    """The service, its pictures and what the right answers are."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        blocks = [rng.integers(0, 255, (HEIGHT // 6, WIDTH // 6, 3), np.uint8) for _ in range(PICTURES)]
        self.pictures = [np.kron(block, np.ones((6, 6, 1), np.uint8)) for block in blocks]
        self.files = [png(picture) for picture in self.pictures]
        self.label_studio = FakeLabelStudio()
        self.softmatcher = small_softmatcher()
        # What is marked is no object, so its masks score low: they are compared, not judged.
        settings = load_settings(data_dir=folder, cache_mb=4, prefetch_tasks=2, reference_wait_s=0, min_score=0.0)
        store, self.metrics = Store(settings.store_url), Metrics()
        store.create_tables()
        self.models = Models(settings, self.metrics, load=lambda profile, on_stage: self.softmatcher)
        connections: Any = FakeConnections(self.label_studio)
        self.projects = Projects(settings, store, self.metrics, self.models, connections)
        self.models.get(60)
        queue: Any = PatientQueue()
        self.app = create_app(self.projects, queue)
        self._number = 0
        self._lock = threading.Lock()
        self._refer()
        self.clicked = [self._masks(self.ask([number], is_click=True)) for number in range(PICTURES)]
        self.predicted = [self._masks(self.ask([number])) for number in range(PICTURES)]
        assert all(masks[0] for masks in self.clicked), "every click must give a mask"
        assert all(masks[0] for masks in self.predicted), "every prediction must give a mask"

    def _refer(self) -> None:
        """One annotation of a finished mask: the project's reference."""
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[12:30, 12:40] = True
        (brush,) = parse_label_config(LABEL_CONFIG).brushes
        self.label_studio.add_task(1, self.files[0])
        region = mask_to_region(mask, brush=brush, label="Cat", score=1.0)
        self.label_studio.annotate(1, 1, [region])
        self.projects.store.save_project(self.label_studio.key, label_config=LABEL_CONFIG)
        self.projects.references.ingest(self.label_studio.key, 1)
        del self.label_studio.tasks[1]

    def ask(self, numbers: Sequence[int], *, is_click: bool = False) -> list[Any]:
        """A request for tasks with these pictures, in files that nobody has seen yet; its results."""
        tasks = []
        for number in numbers:
            with self._lock:
                self._number += 1
                task_id = self._number + 10
                # Bytes after the picture's end: another file, the same picture.
                tasks.append(self.label_studio.add_task(task_id, self.files[number] + task_id.to_bytes(4, "big")))
        value = {"x": 30.0, "y": 40.0, "width": 0.5, "keypointlabels": ["Cat"]}
        point = {
            "id": "p", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "origin": "manual",
            "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "value": value,
        }  # fmt: skip
        params = {"context": {"result": [point]}} if is_click else {}
        body = {
            "tasks": tasks, "project": self.label_studio.key, "label_config": LABEL_CONFIG, "params": params,
        }  # fmt: skip
        answer = self.app.test_client().post("/predict", json=body)
        if answer.status_code != 200:
            raise AssertionError(f"{answer.status_code}: {answer.text}")
        with self._lock:
            for task in tasks:
                self.label_studio.images.pop(task["data"]["image"], None)
                self.label_studio.tasks.pop(task["id"], None)
        results: list[Any] = answer.json["results"]  # type: ignore[index]
        return results

    def _add_next_task(self) -> None:
        """A task that comes after all that are asked for: prefetch finds it."""
        with self._lock:
            self._number += 1
            task_id = FAR_AWAY + self._number
            self.label_studio.add_task(task_id, self.files[task_id % PICTURES] + task_id.to_bytes(8, "big"))
            for old in [known for known in self.label_studio.tasks if FAR_AWAY < known < task_id - 20]:
                self.label_studio.images.pop(self.label_studio.tasks.pop(old)["data"]["image"], None)

    @staticmethod
    def _masks(results: list[Any]) -> list[Any]:
        return [[region["value"]["rle"] for region in one["result"]] if one else [] for one in results]

    def work(self, kind: str, seed: int, until: float, report: Report) -> None:
        """Ask until the time is over; note answers that are not the known ones."""
        rng = np.random.default_rng(seed)
        while time.monotonic() < until:
            time.sleep(PAUSE_S[kind])  # people look at what they got: without it batches would starve
            if kind == "open":
                self._add_next_task()
            numbers = [int(number) for number in rng.integers(0, PICTURES, BATCH if kind == "batch" else 1)]
            try:
                masks = self._masks(self.ask(numbers, is_click=kind == "click"))
            except Exception as error:  # the thread would end in silence
                report.wrong.append(f"{kind}: {type(error).__name__}: {error}")
                return
            right = self.clicked if kind == "click" else self.predicted
            if masks != [right[number][0] for number in numbers]:
                report.wrong.append(f"{kind} {numbers}")
            report.answers[kind] += 1


def run_mixed_load(seconds: float) -> Report:
    """Load the service for some seconds."""
    report = Report()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        load = _Load(Path(folder))
        watch = _Watch(load.models)
        until = time.monotonic() + seconds
        kinds = ["click", "click", "open", "open", "batch", "batch", "batch", "batch"]
        threads = [
            threading.Thread(target=load.work, args=(kind, seed, until, report)) for seed, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 4)
        early_mb = _resident_mb()
        for thread in threads:
            thread.join(seconds + 60)
        report.memory_mb = (early_mb, _resident_mb())
        watch.judge(report)
        for outcome in ("encoded", "known", "interrupted", "failed"):
            report.prefetched[outcome] = load.metrics.prefetched.labels(outcome)._value.get()
        load.projects.close()
    return report


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
