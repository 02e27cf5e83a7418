"""What does one point on one coin give, whichever coin it is?

    python -m benchmarks.coins

Every coin of the six tiles of scikit-image's photograph, pieces at a cut included, gets one point where it is thickest;
its mask, which nobody has confirmed, is the only reference, and the other five tiles are the targets. The same with the
true mask of the coin as a reference that somebody has confirmed. Prints the mean IoU over coins and tiles.
"""

import cv2
import numpy as np

from backend.cli.demo.coins import COIN, sample_tasks
from backend.core.masks import iou
from backend.core.types import Mask, Reference, Scribble
from backend.engine.loading import load_softmatcher


def main() -> None:
    """Measure all coins, and print a line for each and the means."""
    engine = load_softmatcher("lite")
    tasks = sample_tasks()
    encoded = [engine.encode(task.image) for task in tasks]

    def reached(reference: Reference | None, number: int) -> float:
        if reference is None:
            return 0.0
        bank = {COIN: engine.gather([reference])}
        ious = []
        for other, task in enumerate(tasks):
            if other != number:
                found = engine.segment(encoded[other], bank)
                mask = found[0].mask if found else np.zeros(task.size_hw, bool)
                ious.append(iou(mask, task.masks[COIN]))
        return float(np.mean(ious))

    rows = []
    for number, task in enumerate(tasks):
        for coin in np.unique(task.objects[task.objects > 0]):
            truth = task.objects == coin
            objects = engine.objects_from_scribble(encoded[number], _one_point(truth))
            by_point = None
            if objects:
                mask = np.logical_or.reduce([one.found.mask for one in objects])
                uncertainty = engine.uncertainty(encoded[number], objects)
                by_point = engine.describe(task.image, encoded[number], mask, uncertainty=uncertainty)
            by_mask = engine.describe(task.image, encoded[number], truth)
            rows.append((reached(by_point, number), reached(by_mask, number)))
            print(f"tile {number + 1} coin {coin}: point {rows[-1][0]:.3f} mask {rows[-1][1]:.3f}", flush=True)
    means = np.mean(rows, axis=0)
    print(f"{len(rows)} coins: mean IoU from one point {means[0]:.3f}, from the coin's own mask {means[1]:.3f}")


def _one_point(mask: Mask) -> Scribble:
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return Scribble((mask.shape[0], mask.shape[1]), positive_xy=np.array([[x, y]], np.float32))


if __name__ == "__main__":
    main()
