"""What does a second propagation cost, with one more reference, when every image is encoded already?

    python -m benchmarks.second_propagation [--profile mobile] [--tasks 12] [--references 1] [--json FILE]

The workers' own code over a Label Studio in memory: plan, download, encode, match, decode, clean-up, RLE, import and
removal of the older predictions. 640 x 480 px photographs made of scikit-image's, no two the same. Weights that are
missing are random: then every mask that the decoder gives is kept, so that nothing after it is left out, and the masks
mean nothing.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data

from backend.cli.bench.timing import KeepingSoftmatcher
from backend.core.types import Json
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.label_config import parse_label_config
from backend.metrics import Metrics
from backend.models.calibrations import read_calibration
from backend.models.loading import ModelSource, load_profile
from backend.projects.composition import Projects
from backend.projects.model_host import Models
from backend.settings import load_settings
from backend.store import Store
from backend.store.records import PropagationFilter
from testing.fakes import LABEL_CONFIG, FakeConnections, FakeLabelStudio, png

WIDTH, HEIGHT = 640, 480


def photographs(count: int) -> list[NDArray[Any]]:
    """(480, 640, 3) uint8 each, crops of photographs, no two the same."""
    rng = np.random.default_rng(0)
    sources = [data.astronaut(), data.chelsea(), data.coffee()]
    found = []
    for number in range(count):
        source = sources[number % len(sources)]
        height = int(source.shape[0] * rng.uniform(0.6, 0.95))
        width = min(source.shape[1], height * 4 // 3)
        y, x = rng.integers(0, source.shape[0] - height + 1), rng.integers(0, source.shape[1] - width + 1)
        crop = source[y : y + height, x : x + width]
        found.append(cv2.resize(crop, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    return found


def measure(profile: str, tasks: int, references: int, *, source: ModelSource | None = None) -> Json:
    """Two propagations of `tasks` tasks: seconds, parts and encoder calls of each."""
    stages: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    def on_stage(stage: str, seconds: float) -> None:
        stages[stage] += seconds  # type: ignore[assignment]
        calls[stage] += 1

    encoder, segmenter = load_profile(profile, source or ModelSource(is_random=True))
    engine = KeepingSoftmatcher(encoder, segmenter, read_calibration("lite.json"), on_stage=on_stage)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(data_dir=Path(folder), prefetch_tasks=0, min_score=0.0)
        label_studio = FakeLabelStudio()
        for number, picture in enumerate(photographs(tasks + references + 1), start=1):
            label_studio.add_task(number, png(picture))
        store, metrics = Store(settings.store_url), Metrics()
        store.create_tables()
        metrics.on_stage = on_stage  # type: ignore[method-assign]
        models = Models(settings, metrics, load=lambda profile, on_stage: engine)
        connections: Any = FakeConnections(label_studio)
        projects = Projects(settings, store, metrics, models, connections)
        models.get(600)
        key = projects.note_project(label_studio.project(1))
        for number in range(1, references + 1):
            _annotate(label_studio, number)
        runs: dict[str, Json] = {}
        engine.encode(photographs(1)[0])  # what a first call allocates is no part of the first propagation
        for name in ("first", "second"):
            if name == "second":
                _annotate(label_studio, references + 1)
                projects.references.ingest(key, references + 1)
            record = projects.propagations.start(key, PropagationFilter(only_unlabeled=False), "bench", supersede=False)
            projects.propagation_plans.plan(record.id)
            stages.clear()
            calls.clear()
            started = time.perf_counter()
            worked = projects.propagation_work.run(
                record.id, "bench:1", is_alive=lambda claim: True, should_stop=lambda: False
            )
            seconds = time.perf_counter() - started
            counts = store.propagation_tasks.counts(record.id)
            assert worked.left == "nothing", worked
            assert counts.failed == 0, counts
            runs[name] = {
                "seconds": seconds,
                "ms_a_task": 1000 * seconds / counts.total,
                "tasks": counts.total,
                "predicted": counts.done,
                "encoder_calls": calls["encode"] + calls["embed"],
                "parts_ms_a_task": {stage: 1000 * spent / counts.total for stage, spent in stages.most_common()},
            }
        projects.close()
    return {
        "profile": profile,
        "threads": torch.get_num_threads(),
        "references": [references, references + 1],
        **runs,
        "ratio": runs["first"]["seconds"] / runs["second"]["seconds"],
    }


def _annotate(label_studio: FakeLabelStudio, task_id: int) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[160:320, 200:440] = True
    (brush,) = parse_label_config(LABEL_CONFIG).brushes
    label_studio.annotate(task_id, task_id, [mask_to_region(mask, brush=brush, label="Cat", score=1.0)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="mobile")
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--references", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments.profile, arguments.tasks, arguments.references)
    print(json.dumps(figures, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
