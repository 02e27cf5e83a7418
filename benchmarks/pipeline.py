"""Time and memory of the lite pipeline, stage by stage.

    python -m benchmarks.pipeline [--width 640 --height 480] [--runs 20] [--json FILE]

Photographs of scikit-image stand in for tasks. Warm: models are loaded and run once before anything is timed.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage import data

from backend.engine.loading import load_softmatcher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--references", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    stages_s: dict[str, list[float]] = {}
    engine = load_softmatcher("lite", lambda stage, seconds: stages_s.setdefault(stage, []).append(seconds))
    size = (arguments.width, arguments.height)
    image, target = (
        cv2.resize(photograph, size, interpolation=cv2.INTER_CUBIC) for photograph in (data.chelsea(), data.coffee())
    )
    y, x = np.mgrid[: arguments.height, : arguments.width]
    mask = (x / arguments.width - 0.5) ** 2 + (y / arguments.height - 0.5) ** 2 < 0.06
    reference = engine.describe(image, engine.encode(image), mask)
    references = {"it": [reference] * arguments.references}
    engine.segment(engine.encode(image), references)
    cold, cached = [], []
    for run in range(arguments.runs):
        picture = image if run % 2 else target
        start = time.perf_counter()
        encoded = engine.encode(picture)
        between = time.perf_counter()
        engine.segment(encoded, references)
        cold.append(time.perf_counter() - start)
        cached.append(time.perf_counter() - between)
    figures = {
        "size": size,
        "references": arguments.references,
        "threads": torch.get_num_threads(),
        "predict_median_ms": 1000 * statistics.median(cold),
        "predict_minimum_ms": 1000 * min(cold),
        "predict_cached_median_ms": 1000 * statistics.median(cached),
        "stages_ms": {stage: 1000 * statistics.median(seconds) for stage, seconds in stages_s.items()},
        "reference_bytes": sum(array.nbytes for array in reference.to_arrays().values()),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
