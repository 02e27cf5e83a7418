"""Which evidence tells good masks from bad and present objects from absent ones? Collects it over the data sets, fits `core.scoring`.

    python benchmarks/calibration.py collect DIR rows.json [--seeds 0,1] [--targets 4]
    python benchmarks/calibration.py fit rows.json

`fit` prints the coefficients that `core/scoring.py` holds, and their figures on sets that took no part in the fit.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from backend.core.masks import iou, mask_to_size
from backend.core.scoring import Evidence, expected_iou, weigh_mask
from backend.evaluation.datasets import draw_absent_target, draw_episode, find_classes, read_image, read_mask
from backend.evaluation.metrics import area_under_roc, calibration_error
from backend.pipeline import MatchOptions, load_softmatcher


def collect(directory: Path, out: Path, seeds: list[int], targets: int) -> None:
    """One row a pair of a reference and a target, half as many without the object."""
    engine = load_softmatcher("lite")
    classes = find_classes(directory)
    rows = []
    for one in classes:
        for seed in seeds:
            episode = draw_episode(one, shots=1, seed=seed, limit=targets)
            image = read_image(episode.references[0])
            encoded = engine.encode(image)
            reference = engine.describe(image, encoded, read_mask(episode.references[0]), is_complete=True)
            absent = [draw_absent_target(one, classes, seed=1000 + 10 * seed + n) for n in range(max(1, targets // 2))]
            for path in [*episode.targets, *(path for path in absent if path is not None)]:
                is_present = path in episode.targets
                target = engine.encode(read_image(path))
                found = engine.propose(target, [[reference]], MatchOptions())[0]
                truth = read_mask(path)
                reached = iou(mask_to_size(found.mask, truth.shape), truth) if is_present else 0.0
                evidence = weigh_mask(found.mask, found.posterior, found.prior, closeness=found.closeness)
                rows.append(
                    {"set": one.set_name, "class": one.name, "present": is_present, "iou": reached} | vars(evidence)
                )
        print(one.name, len(rows), flush=True)
    out.write_text(json.dumps(rows))


def fit(path: Path) -> None:
    """Logistic regression with the IoU itself as a soft label."""
    rows = json.loads(path.read_text())
    evidence = [Evidence(**{name: row[name] for name in Evidence.__dataclass_fields__}) for row in rows]
    x = np.array([one.features() for one in evidence])
    y = np.array([row["iou"] for row in rows])
    present = np.array([row["present"] for row in rows])
    sets = np.array([row["set"] for row in rows])
    weight = np.where(present, 1.0, 0.5)
    held_out = np.zeros(len(rows))
    for name in np.unique(sets):
        held_out[sets == name] = _sigmoid(
            x[sets == name] @ _logistic(x[sets != name], y[sets != name], weight[sets != name])
        )
    coefficients = _logistic(x, y, weight)
    print("coefficients", [round(float(value), 3) for value in coefficients])
    now = np.array([expected_iou(one) for one in evidence])
    for name, score in (("held out", held_out), ("in core/scoring.py", now)):
        auroc = area_under_roc(list(score[present]), list(y[present] > 0.5))
        error = calibration_error(list(score[present]), list(y[present]))
        print(f"{name}: AUROC {auroc:.3f} calibration {error:.3f}")
        for limit in (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4):
            kept = np.where(present & (score >= limit), y, 0.0)
            by_class = [
                kept[present & (np.array([row["class"] for row in rows]) == c)].mean()
                for c in {r["class"] for r in rows}
            ]
            print(
                f"  score >= {limit}: false positives {np.mean(score[~present] >= limit):.3f} mIoU {np.mean(by_class):.4f}"
            )


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    coefficients = np.zeros(x.shape[1])
    for _ in range(50):
        p = _sigmoid(x @ coefficients)
        gradient = x.T @ (weight * (p - y)) + 0.1 * coefficients
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + 0.1 * np.eye(x.shape[1])
        coefficients -= np.linalg.solve(hessian, gradient)
    return coefficients


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    collecting = commands.add_parser("collect")
    collecting.add_argument("directory", type=Path)
    collecting.add_argument("rows", type=Path)
    collecting.add_argument("--seeds", default="0,1")
    collecting.add_argument("--targets", type=int, default=4)
    commands.add_parser("fit").add_argument("rows", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "collect":
        collect(arguments.directory, arguments.rows, [int(s) for s in arguments.seeds.split(",")], arguments.targets)
    else:
        fit(arguments.rows)
