"""What does a prediction of an image that was never seen cost, beside an earlier state of this project?

    python -m benchmarks.cold_prediction --before TREE [--runs 40] [--json FILE]

TREE is another checkout, `git worktree add TREE COMMIT`. A process of each checkout, on one core, loads `lite` and
describes one reference; then both predict the same photographs of 640 x 480 px in turn: encoding, matching and mask.
Printed are medians of the processor time and of the ratio of each pair, with its quartiles, and how far the masks of
both agree.
"""

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

CHILD = """
import base64, json, os, sys, time, zlib
os.sched_setaffinity(0, {CORE})
import cv2, numpy as np
from skimage import data
from backend.engine.loading import load_softmatcher

engine = load_softmatcher("lite")
cat, coffee = (cv2.resize(one, (700, 540), interpolation=cv2.INTER_CUBIC) for one in (data.chelsea(), data.coffee()))
image = np.ascontiguousarray(coffee[30:510, 30:670])
y, x = np.mgrid[:480, :640]
mask = ((x - 300) / 200) ** 2 + ((y - 270) / 130) ** 2 < 1
references = {"cup": [engine.describe(image, engine.encode(image), mask)]}
print("ready", file=sys.stdout, flush=True)
for line in sys.stdin:
    top, left, which = json.loads(line)
    target = np.ascontiguousarray((cat if which else coffee)[top : top + 480, left : left + 640])
    began = time.process_time()
    found = engine.segment(engine.encode(target), references)
    spent = 1000 * (time.process_time() - began)
    mask = found[0].mask if found else np.zeros((480, 640), bool)
    shown = base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()
    print(json.dumps([spent, shown]), flush=True)
"""


class Checkout:
    """A process that predicts with the code of a checkout."""

    def __init__(self, tree: Path) -> None:
        code = CHILD.replace("{CORE}", str({min(os.sched_getaffinity(0))}))
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != b"ready":
            raise SystemExit(f"{tree} does not predict")

    def predict(self, crop: tuple[int, int, int]) -> tuple[float, bytes]:
        """Return the processor time of a prediction, ms, and its mask as bits."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(crop).encode() + b"\n")
        stdin.flush()
        spent, mask = json.loads(stdout.readline())
        return float(spent), zlib.decompress(base64.b64decode(mask))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def measure(before: Path, runs: int) -> dict[str, Any]:
    """Return the figures of both checkouts."""
    trees = [Checkout(tree) for tree in (before, Path(__file__).parents[1])]
    times: list[list[float]] = [[], []]
    agreements = []
    try:
        for run in range(-2, runs):
            found = [tree.predict((run % 7 * 9, run % 5 * 12, run % 2)) for tree in trees]
            if run >= 0:  # the first calls are slower
                for own, (spent, _) in zip(times, found, strict=True):
                    own.append(spent)
                agreements.append(_iou(*(mask for _, mask in found)))
    finally:
        for tree in trees:
            tree.close()
    ratios = [now / then for then, now in zip(*times, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "before_ms": statistics.median(times[0]),
        "now_ms": statistics.median(times[1]),
        "ratio": statistics.median(ratios),
        "lower_quartile": quartiles[0],
        "upper_quartile": quartiles[2],
        "masks_iou": statistics.fmean(agreements),
    }


def _iou(one: bytes, other: bytes) -> float:
    both = sum((a & b).bit_count() for a, b in zip(one, other, strict=True))
    either = sum((a | b).bit_count() for a, b in zip(one, other, strict=True))
    return both / either if either else 1.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments.before.resolve(), arguments.runs)
    print(
        ", ".join(f"{name} {value if isinstance(value, list) else round(value, 3)}" for name, value in figures.items())
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
