"""What does one more annotation cost a project that has hundreds or thousands of references?

    python -m benchmarks.reference_growth [--references 200,2000] [--patches 2320] [--channels 728]

References of random patches, of the size that `lite` makes, go into a store of their own. Then annotations come one by
one, and after each the banks are asked for as a prediction asks, with the patch classifier: processor time, its median
and its least, and growth of the peak of the memory.
Printed too: the first reading, the size of the database, and the exponent of the growth over references.
`--json FILE` writes the figures.
"""

import argparse
import ctypes
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from backend.core.types import Reference
from backend.labelstudio.label_config import parse_label_config
from backend.metrics import Metrics
from backend.projects.composition import Projects
from backend.projects.connections import LabelStudioConnections
from backend.projects.model_host import Models
from backend.settings import load_settings
from backend.store import AnnotationRecord, NewReference, Store

KEY = "1.1795365244"
LABEL_CONFIG = """<View><Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Cat"/></BrushLabels></View>"""
REPEATS = 15


def measure(folder: Path, count: int, *, patches: int, channels: int) -> dict[str, float]:
    """Return the figures of a project with so many references."""
    settings = load_settings(data_dir=folder, profile="lite")
    store = Store(f"sqlite:///{folder}/store.db")
    store.create_tables()
    project = store.save_project(KEY, label_config=LABEL_CONFIG)
    config = parse_label_config(LABEL_CONFIG)
    models = Models(settings, Metrics())
    signature = models.get(120)[0].signature
    rng = np.random.default_rng(0)

    def annotate(number: int) -> float:
        began = time.process_time()
        record = AnnotationRecord(KEY, number, number, "2026-11-22T10:00:00Z", signature, "content")
        store.replace_references(record, [_reference(rng, number, patches, channels, signature)])
        return time.process_time() - began

    written = [annotate(number) for number in range(count)]
    banks = Projects(settings, store, Metrics(), models, LabelStudioConnections(settings, store)).banks
    began = time.process_time()
    _reset_peak()
    before = _memory_mb("VmRSS")
    banks.context(project, config)
    first, first_mb = time.process_time() - began, _memory_mb("VmHWM") - before
    seconds, megabytes = [], []
    for number in range(count, count + REPEATS):
        annotate(number)
        _reset_peak()
        before, began = _memory_mb("VmRSS"), time.process_time()
        banks.context(project, config)
        seconds.append(time.process_time() - began)
        megabytes.append(_memory_mb("VmHWM") - before)
    began = time.process_time()
    banks.context(project, config)
    warm = time.process_time() - began
    store.close()
    return {
        "references": count,
        "one_more_ms": 1000 * statistics.median(seconds),
        "one_more_least_ms": 1000 * min(seconds),
        "one_more_peak_mb": max(megabytes),
        "warm_ms": 1000 * warm,
        "first_ms": 1000 * first,
        "first_peak_mb": first_mb,
        "written_ms": 1000 * statistics.median(written),
        "database_mb": (folder / "store.db").stat().st_size / 1e6,
    }


def _reference(rng: np.random.Generator, number: int, patches: int, channels: int, signature: str) -> NewReference:
    features = rng.standard_normal((patches, channels), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    coverage = (rng.random(patches) * (rng.random(patches) < 0.2)).astype(np.float16)
    weight = (rng.random(patches) < 0.9).astype(np.float16)
    reference = Reference(features.astype(np.float16), coverage, weight, signature)
    return NewReference("Cat", "image", f"{number:064x}", np.ones((480, 640), bool), reference)


def _memory_mb(field: str) -> float:
    """Return a field of Linux' /proc/self/status, MB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1000


def _reset_peak() -> None:
    # What was freed before would hide what is needed now.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", default="200,2000")
    parser.add_argument("--patches", type=int, default=2320)
    parser.add_argument("--channels", type=int, default=728)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for count in (int(one) for one in arguments.references.split(",")):
        with tempfile.TemporaryDirectory() as made:
            rows.append(measure(Path(made), count, patches=arguments.patches, channels=arguments.channels))
        print(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    if len(rows) > 1:
        low, high = rows[0], rows[-1]
        growth = math.log(high["references"] / low["references"])
        print(f"exponent of one more: {math.log(high['one_more_ms'] / low['one_more_ms']) / growth:.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
