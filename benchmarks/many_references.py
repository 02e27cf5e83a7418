"""What does the memory bank lose with hundreds of references of one label?

    python -m benchmarks.many_references DIR [--sets coco_mini,via_objects] [--references 200] [--targets 16]

No class of the data sets has hundreds of images, so all classes of some sets become one label: the hardest label there
is for a bank, whose few patches must stand for everything. Posteriors of targets that are no reference, from the bank
at several sizes and from every patch, against their masks, on the patch grid. `--json FILE` writes the figures.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.core.grid import mask_coverage
from backend.core.matching import balanced_mass, gather_references, match_posterior
from backend.core.types import Reference
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.datasets import find_classes, read_image, read_mask
from backend.evaluation.matching_quality import soft_iou

BANKS = (3072, 1024)
ROWS_AT_ONCE = 16384


def measure(directory: Path, sets: list[str], count: int, targets: int, seed: int) -> dict[str, object]:
    """Best IoU, IoU at 0.5 and milliseconds of a match: with every patch, and with each bank."""
    engine = load_softmatcher("lite")
    images = [path for one in find_classes(directory) if one.set_name in sets for path in one.images]
    random.Random(seed).shuffle(images)
    held, used = images[:targets], images[targets : targets + count]
    references = [_describe(engine, path) for path in used]
    banks = {size: engine.gather(references, MatchOptions(bank_patches=size, classifier=False)) for size in BANKS}
    scales = {"temperature": engine.scale.temperature, "similarity_floor": engine.scale.similarity_floor}
    figures: dict[str, list[tuple[float, float, float, float]]] = {}
    everything = gather_references(references, engine.signature)
    foreground, background = balanced_mass(everything.foreground), balanced_mass(everything.background)
    masses = np.stack([foreground, background])
    for path in held:
        features = engine.encode(read_image(path)).features.astype(np.float32)
        covered = mask_coverage(read_mask(path), (features.shape[0], features.shape[1])).flatten()
        target = features.reshape(-1, features.shape[2])
        start = time.perf_counter()
        exact = _posterior(everything.features, masses, target, **scales)
        figures.setdefault("every patch", []).append(_score(exact, exact, covered, time.perf_counter() - start))
        for size, bank in banks.items():
            start = time.perf_counter()
            found = match_posterior(bank, target, **scales).posterior
            score = _score(found, exact, covered, time.perf_counter() - start)
            figures.setdefault(f"bank of {size}", []).append(score)
        print(path.parent.name, path.name, flush=True)
    return {
        "references": len(references),
        "patches": len(everything.features),
        "targets": len(held),
        "sets": sets,
        "seed": seed,
        **{
            name: dict(
                zip(
                    ("best_iou", "iou", "distance_to_every_patch", "milliseconds"),
                    (statistics.fmean(column) for column in zip(*rows, strict=True)),
                    strict=True,
                )
            )
            for name, rows in figures.items()
        },
    }


def _describe(engine: Softmatcher, path: Path) -> Reference:
    image = read_image(path)
    return engine.describe(image, engine.encode(image), read_mask(path), is_complete=True)


def _posterior(
    features: NDArray[np.float32],
    masses: NDArray[np.float32],
    target: NDArray[np.float32],
    *,
    temperature: float,
    similarity_floor: float,
) -> NDArray[np.float32]:
    """`match_posterior` in parts: the whole matrix would be gigabytes. Cosines are at most 1, so 1 is the offset."""
    sums = np.zeros((2, len(target)), np.float32)
    for start in range(0, len(features), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        sums += masses[:, rows] @ np.exp((features[rows] @ target.T - 1.0) / temperature)
    rest = float(np.exp((similarity_floor - 1.0) / temperature))
    return np.asarray(sums[0] / (sums.sum(axis=0) + rest))


def _score(
    found: NDArray[np.float32], exact: NDArray[np.float32], covered: NDArray[np.float32], seconds: float
) -> tuple[float, float, float, float]:
    best = max(soft_iou(found > threshold, covered) for threshold in np.arange(0.05, 1.0, 0.05, dtype=np.float32))
    return best, soft_iou(found > 0.5, covered), float(np.abs(found - exact).mean()), 1000 * seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sets", default="coco_mini,via_objects")
    parser.add_argument("--references", type=int, default=200)
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(
        arguments.directory, arguments.sets.split(","), arguments.references, arguments.targets, arguments.seed
    )
    print(json.dumps(result, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
