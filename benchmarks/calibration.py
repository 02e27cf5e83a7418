"""Which evidence tells good masks from bad, and present objects from absent ones? Fits the weights of `core.scoring`.

    python benchmarks/calibration.py collect DIR rows.json [--seeds 0,1] [--targets 4] [--shots 1]
    python benchmarks/calibration.py fit rows.json

`fit` prints the coefficients that `core/calibration.py` holds, and their figures on sets that took no part in the fit.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from backend.core.calibration import MaskFeatures, expected_iou, presence
from backend.core.masks import iou, mask_to_size
from backend.core.types import Reference
from backend.engine.softmatcher import MatchOptions, Softmatcher, load_softmatcher
from backend.evaluation.datasets import draw_absent_target, draw_episode, find_classes, read_image, read_mask
from backend.evaluation.metrics import area_under_roc, calibration_error


def collect(directory: Path, out: Path, seeds: list[int], targets: int, shots: int) -> None:
    """One row a pair of references and a target, half as many without the object."""
    engine = load_softmatcher("lite")
    classes = find_classes(directory)
    rows = []
    for one in classes:
        for seed in seeds:
            episode = draw_episode(one, shots=shots, seed=seed, limit=targets)
            references = [_describe(engine, path) for path in episode.references]
            absent = [draw_absent_target(one, classes, seed=1000 + 10 * seed + n) for n in range(max(1, targets // 2))]
            for path in [*episode.targets, *(path for path in absent if path is not None)]:
                is_present = path in episode.targets
                target = engine.encode(read_image(path))
                found = engine.propose(target, [references], MatchOptions())[0]
                truth = read_mask(path)
                reached = iou(mask_to_size(found.mask, truth.shape), truth) if is_present else 0.0
                evidence = found.weigh()
                rows.append(
                    {"set": one.set_name, "class": one.name, "present": is_present, "iou": reached} | vars(evidence)
                )
        print(one.name, len(rows), flush=True)
    out.write_text(json.dumps(rows))


def _describe(engine: Softmatcher, path: Path) -> Reference:
    image = read_image(path)
    return engine.describe(image, engine.encode(image), read_mask(path), is_complete=True)


def fit(path: Path) -> None:
    """Logistic regressions: the IoU as a soft label over present objects, presence over all."""
    rows = [row for row in json.loads(path.read_text()) if row["area"] > 0]
    evidence = [MaskFeatures(**{name: row[name] for name in MaskFeatures.__dataclass_fields__}) for row in rows]
    reached = np.array([row["iou"] for row in rows])
    present = np.array([row["present"] for row in rows])
    sets = np.array([row["set"] for row in rows])
    classes = np.array([row["class"] for row in rows])
    ones = np.ones(len(rows))
    object_similarity = np.array([one.object_similarity for one in evidence])
    intra_reference_similarity = np.array([one.intra_reference_similarity for one in evidence])
    inside = np.array([_logit(one.inside) for one in evidence])
    support = np.array([one.support for one in evidence])
    agreement = np.array([one.agreement for one in evidence])

    x = np.stack([ones, inside, support, agreement], axis=1)
    equal = present.astype(float)
    score = _held_out(x, reached, sets, equal)
    print("IoU weights (constant, inside, support, agreement)", _logistic(x, reached, equal).round(2))
    now = np.array([expected_iou(one) for one in evidence])
    for name, values in (("fitted on the other sets", score), ("core/calibration.py", now)):
        auroc = area_under_roc(list(values[present]), list(reached[present] > 0.5))
        error = calibration_error(list(values[present]), list(reached[present]))
        print(f"  {name}: AUROC {auroc:.3f} calibration error {error:.3f}")

    x = np.stack([ones, object_similarity, intra_reference_similarity, inside, agreement], axis=1)
    # What is lost with a mask is its IoU; both sides weigh the same in all.
    loss = np.where(present, np.clip(reached, 0.02, 1.0), 1.0)
    loss /= np.where(present, loss[present].sum(), loss[~present].sum()) * 2 / len(rows)
    chance = _held_out(x, equal, sets, loss)
    print("presence weights (constant, kinship, cohesion, inside, agreement)", _logistic(x, equal, loss).round(2))
    now = np.array([presence(one) for one in evidence])
    for name, values in (("fitted on the other sets", chance), ("core/calibration.py", now)):
        print(f"  {name}: AUROC {area_under_roc(list(values), list(present)):.3f}")
        for limit in (0.3, 0.4, 0.5, 0.6, 0.7):
            kept = np.where(values >= limit, reached, 0.0)
            miou = np.mean([kept[present & (classes == one)].mean() for one in np.unique(classes[present])])
            # Rows without a mask were dropped above: the rate is that of the absent pairs with one.
            print(f"    >= {limit}: false positives {np.mean(values[~present] >= limit):.3f} mIoU {miou:.4f}")


def _held_out(x: np.ndarray, y: np.ndarray, sets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    found = np.zeros(len(x))
    for name in np.unique(sets):
        others = sets != name
        found[sets == name] = _sigmoid(x[sets == name] @ _logistic(x[others], y[others], weights[others]))
    return found


def _logit(value: float) -> float:
    bounded = min(max(value, 1e-3), 1 - 1e-3)
    return float(np.log(bounded / (1 - bounded)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _logistic(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    coefficients = np.zeros(x.shape[1])
    for _ in range(50):
        p = _sigmoid(x @ coefficients)
        gradient = x.T @ (weights * (p - y)) + 0.1 * coefficients
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x + 0.1 * np.eye(x.shape[1])
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
    collecting.add_argument("--shots", type=int, default=1)
    commands.add_parser("fit").add_argument("rows", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "collect":
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        collect(arguments.directory, arguments.rows, seeds, arguments.targets, arguments.shots)
    else:
        fit(arguments.rows)
