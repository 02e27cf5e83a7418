"""Which image to label next: mIoU on unseen images after 1, 2, 3, 5 and 8 references, by the rule that chose them.

    python -m benchmarks.next_references DIR [--seeds 0,1,2,3,4] [--images 12] [--targets 3] [--rules NAMES]
        [--plot FILE] [--json FILE]

Of each class with enough images some are set aside as targets, drawn by the seed; the others can be labeled. All rules
but `typical first` begin with the same image, drawn by the seed, and see the scores of the others as the backend
predicts them from what is labeled so far. `random` goes on in the order of the draw.
"""

import json
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from backend.core.masks import iou
from backend.core.task_selection import RULES, PooledFeatures, choose_next, pool_features
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.class_images import ClassImages
from backend.evaluation.datasets import ImageClass, find_classes, read_mask
from backend.evaluation.plot import Chart, draw_charts

COUNTS = (1, 2, 3, 5, 8)
NAMES = ("random", *RULES, "typical first")
Curves = dict[str, dict[int, float]]
"""Rule -> number of references -> mean IoU on the targets."""


class ClassTrial:
    """One class with one draw: what is predicted is predicted once for all rules.

    Args:
        engine: that predicts.
        one: the class.
        images: of the class, encoded.
        seed: of the draw.
        targets: number of images that are set aside.
    """

    def __init__(self, engine: Softmatcher, one: ImageClass, images: ClassImages, *, seed: int, targets: int) -> None:
        drawn = list(one.images)
        random.Random(f"next {one.name} {seed}").shuffle(drawn)
        self.targets, self.pool = drawn[:targets], drawn[targets:]
        self._engine = engine
        self._images = images
        self._found: dict[tuple[frozenset[Path], Path], tuple[float, float]] = {}

    def run(self, name: str) -> dict[int, float]:
        """Return number of references -> mean IoU on the targets, by one rule."""
        labeled = [self._typical_first() if name == "typical first" else self.pool[0]]
        curve = {}
        for count in COUNTS:
            if count > len(self.pool):
                break
            while len(labeled) < count:
                labeled += self._next(name, labeled, count - len(labeled))
            curve[count] = statistics.fmean(self._predict(labeled, path)[0] for path in self.targets)
        return curve

    def _next(self, name: str, labeled: Sequence[Path], count: int) -> list[Path]:
        left = [path for path in self.pool if path not in labeled]
        if name == "random":
            return left[:count]
        rule = "typical" if name == "typical first" else name
        needs_scores = rule in ("uncertain", "both")
        scores = [self._predict(labeled, path)[1] if needs_scores else 0.0 for path in left]
        chosen = choose_next(scores, self._pooled(left), self._pooled(labeled), count, rule=rule)  # type: ignore[arg-type]
        return [left[one.index] for one in chosen]

    def _typical_first(self) -> Path:
        none = np.zeros((0, self._pooled(self.pool[:1]).shape[1]), np.float32)
        (choice,) = choose_next([0.0] * len(self.pool), self._pooled(self.pool), none, 1, rule="typical")
        return self.pool[choice.index]

    def _pooled(self, paths: Sequence[Path]) -> PooledFeatures:
        return np.stack([pool_features(self._images.encoded(path).features) for path in paths])

    def _predict(self, labeled: Sequence[Path], path: Path) -> tuple[float, float]:
        """Return IoU and score of what the references find; without a region, the probability that absence is right."""
        key = (frozenset(labeled), path)
        if key not in self._found:
            bank = self._engine.gather([self._images.reference(each) for each in labeled])
            encoded = self._images.encoded(path)
            found, truth = self._engine.segment(encoded, {"x": bank}), read_mask(path)
            if found:
                self._found[key] = iou(found[0].mask, truth), found[0].score
            else:
                (candidate,) = self._engine.label_candidates(encoded, [bank], MatchOptions())
                self._found[key] = float(not truth.any()), 1.0 - candidate.presence
        return self._found[key]


def measure(
    engine: Softmatcher,
    classes: Sequence[ImageClass],
    *,
    seeds: Sequence[int],
    targets: int,
    rules: Sequence[str] = NAMES,
    on_class: Callable[[str, Curves], None] = lambda name, curves: None,
) -> dict[str, Curves]:
    """Return class -> curves, each the mean over the seeds."""
    found: dict[str, Curves] = {}
    for one in classes:
        images = ClassImages(engine, is_complete=True)
        runs = [ClassTrial(engine, one, images, seed=seed, targets=targets) for seed in seeds]
        by_rule = {name: [trial.run(name) for trial in runs] for name in rules}
        found[one.name] = {
            name: {count: statistics.fmean(run[count] for run in curves) for count in curves[0]}
            for name, curves in by_rule.items()
        }
        on_class(one.name, found[one.name])
    return found


def mean_curves(found: dict[str, Curves]) -> Curves:
    """Return the mean over the classes that have all numbers of references."""
    full = [curves for curves in found.values() if all(len(curve) == len(COUNTS) for curve in curves.values())]
    names = list(full[0]) if full else []
    return {name: {count: statistics.fmean(each[name][count] for each in full) for count in COUNTS} for name in names}


def main(
    directory: Path,
    seeds: Annotated[str, typer.Option("--seeds", help="Numbers with commas.")] = "0,1,2,3,4",
    images: Annotated[int, typer.Option("--images", help="Fewest images of a class.")] = 12,
    targets: Annotated[int, typer.Option("--targets", help="Images set aside.")] = 3,
    rules: Annotated[str, typer.Option("--rules", help="Names with commas.")] = ",".join(NAMES),
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the curves.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    profile: str = "lite",
) -> None:
    """Measure, print a table, and draw the curves."""
    from backend.engine.loading import load_softmatcher

    engine = load_softmatcher(profile, lambda stage, seconds: None)
    classes = [one for one in find_classes(directory) if len(one.images) >= max(images, targets + COUNTS[-1])]
    done: dict[str, Curves] = {}

    def keep(name: str, curves: Curves) -> None:
        done[name] = curves
        typer.echo(f"{name}: " + ", ".join(f"{rule} {curve[3]:.3f}" for rule, curve in curves.items()), err=True)
        if json_file is not None:
            json_file.write_text(json.dumps({"classes": done, "mean": mean_curves(done)}, indent=1))

    found = measure(
        engine, classes, seeds=[int(part) for part in seeds.split(",")], targets=targets, rules=rules.split(","),
        on_class=keep,
    )  # fmt: skip
    means = mean_curves(found)
    halves = [mean_curves({name: found[name] for name in sorted(found)[half::2]}) for half in (0, 1)]
    typer.echo(f"{len(found)} classes; mIoU on unseen images after so many references (halves of the classes)")
    for name, curve in means.items():
        shown = (f"{curve[count]:.3f} ({halves[0][name][count]:.3f} {halves[1][name][count]:.3f})" for count in COUNTS)
        typer.echo(f"{name:14} " + "  ".join(shown))
    if plot is not None:
        lines = {name: [(float(count), curve[count]) for count in COUNTS] for name, curve in means.items()}
        draw_charts([Chart("mIoU on unseen images", "references", "mIoU", lines)]).save(plot)


if __name__ == "__main__":
    typer.run(main)
