"""Are several marks in one annotation cut as what they mean: each its own object, or one object together?

    python -m benchmarks.marked_objects DIR [--images 1] [--seed 0] [--grid] [--json FILE]

DIR holds image sets as `python -m backend evaluate` reads them; without it nothing is measured. Of each class so many
images are drawn by the seed. Annotations are simulated from the masks, whose connected pieces are the objects:

- `points`, `strokes`, `boxes`, `mixed`: a mark on each of up to five objects of an image. Counted are the share of each
  object that is covered, how many are covered to 0.9 at least, and the IoU of all masks with all marked objects.
- `touching`: a stroke on each of two neighbours, as two regions, from the middle of the object to where they meet.
- `two points`, `two strokes`, `point and stroke`: marks that are all on one object. Counted is the IoU with it.

Every second class is "tuned on": on these the constants of `backend/core/marked_objects.py` are tried (`--grid`: one
constant changed at a time, and strokes of several regions as those of one). The others are "unseen". The engine is
`lite`, on one thread.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from backend.core import marked_objects
from backend.core.masks import iou
from backend.core.strokes import mask_to_stroke
from backend.core.types import EncodedImage, Mask, Scribble
from backend.engine.loading import load_softmatcher
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError
from backend.evaluation.datasets import draw_episode, find_classes, read_image, read_mask
from backend.evaluation.simulated_annotations import largest_pieces, simulated_points, simulated_strokes

COVERED = 0.9
NEIGHBOURS_PX = 0.1
"""Objects count as neighbours up to this gap, as a share of the image's longer side."""
GRID = {
    "COVERED_SHARE": (0.3, 0.7),
    "SURER_AS_ONE": (0.1, 0.3, 0.4),
    "SURER_CLUSTER": (0.15, 0.35),
}


@dataclass(frozen=True, eq=False)
class Case:
    """An annotation: its kind, its class, whether that is tuned on, the encoded image, the marks and their objects."""

    kind: str
    class_name: str
    is_tuned_on: bool
    encoded: EncodedImage
    scribble: Scribble
    objects: tuple[Mask, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    kind: str
    is_tuned_on: bool
    covered: tuple[float, ...]
    iou: float


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="image sets as `evaluate` reads them")
    parser.add_argument("--images", type=int, default=1, help="of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", action="store_true", help="each constant at other values too, tuned-on classes only")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.directory is None or not given.directory.is_dir():
        print("skipped: no folder of image sets was given; see `python -m backend evaluate --help` for its layout")
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    engine = load_softmatcher("lite")
    try:
        cases = list(simulate(engine, given.directory, images=given.images, seed=given.seed))
    except BadInputError as error:
        print(f"skipped: {error}")
        return
    outcomes = [measure(engine, case) for case in cases]
    figures = {"tuned on": table(outcomes, is_tuned_on=True), "unseen": table(outcomes, is_tuned_on=False)}
    if given.grid:
        figures |= try_others(engine, [case for case in cases if case.is_tuned_on])
    for name, rows in figures.items():
        print(f"\n| {name} | annotations | mean share covered | covered to {COVERED} | IoU |\n|---|---|---|---|---|")
        for kind, row in rows.items():
            print(f"| {kind} | {row['count']:.0f} | {row['share']:.3f} | {row['covered']:.2f} | {row['iou']:.3f} |")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


def simulate(engine: Softmatcher, directory: Path, *, images: int, seed: int) -> Iterator[Case]:
    """Draw images, and mark their objects in every way that they allow."""
    for number, one in enumerate(find_classes(directory)):
        for path in draw_episode(one, shots=images, seed=seed).references:
            mask = read_mask(path)
            if not mask.any():
                continue
            encoded = engine.encode(read_image(path))
            objects = largest_pieces(mask)
            for kind, scribble, marked in annotations(objects, seed=seed):
                yield Case(kind, one.name, number % 2 == 0, encoded, scribble, tuple(marked))


def annotations(objects: list[Mask], *, seed: int) -> Iterator[tuple[str, Scribble, list[Mask]]]:
    """Yield kind, marks and marked objects."""
    first = objects[0]
    size_hw = first.shape[0], first.shape[1]
    points, (left, right) = simulated_points(first, seed=seed).positive_xy, two_strokes(first, seed=seed)
    yield "two points", Scribble(size_hw, points), [first]
    yield "two strokes", painted(left, right), [first]
    yield "point and stroke", joined(Scribble(size_hw, points[1:]), painted(left)), [first]
    if len(objects) < 2:
        return
    ways = {
        "points": [Scribble(size_hw, simulated_points(one, seed=seed).positive_xy[:1]) for one in objects],
        "strokes": [painted(simulated_strokes(one, seed=seed).positive_strokes) for one in objects],
        "boxes": [boxed(one) for one in objects],
    }
    for kind, marks in ways.items():
        yield kind, joined(*marks), objects
    mixed = [each[index] for index, each in zip(range(len(objects)), itertools.cycle(ways.values()), strict=False)]
    yield "mixed", joined(*mixed), objects
    for one, other in itertools.combinations(objects, 2):
        ends = meeting_strokes(one, other)
        if ends is not None:
            yield "touching", painted(*ends), [one, other]
            return


def painted(*regions: Mask | None) -> Scribble:
    """Return the strokes of regions, each kept apart."""
    masks = [region for region in regions if region is not None]
    apart = tuple(stroke for mask in masks if (stroke := mask_to_stroke(mask)) is not None)
    size_hw = masks[0].shape[0], masks[0].shape[1]
    return Scribble(size_hw, positive_strokes=np.logical_or.reduce(masks), strokes_apart=apart)


def boxed(mask: Mask) -> Scribble:
    """Return the box around a mask."""
    rows, columns = np.nonzero(mask)
    box = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    return Scribble((mask.shape[0], mask.shape[1]), boxes_xyxy=np.array(box, np.float32))


def joined(*scribbles: Scribble) -> Scribble:
    """Return all marks as one annotation."""
    strokes = [one.positive_strokes for one in scribbles if one.positive_strokes is not None]
    return Scribble(
        scribbles[0].size_hw,
        np.concatenate([one.positive_xy for one in scribbles]),
        boxes_xyxy=np.concatenate([one.boxes_xyxy for one in scribbles]),
        positive_strokes=np.logical_or.reduce(strokes) if strokes else None,
        strokes_apart=tuple(stroke for one in scribbles for stroke in one.strokes_apart),
    )


def two_strokes(mask: Mask, *, seed: int) -> tuple[Mask, Mask]:
    """Return a stroke in each half of an object, as two regions."""
    columns = np.nonzero(mask)[1]
    is_left = np.arange(mask.shape[1]) < np.median(columns)
    halves = [mask & is_left, mask & ~is_left]
    strokes = [simulated_strokes(half, seed=seed).positive_strokes for half in halves if half.any()]
    kept = [stroke for stroke in strokes if stroke is not None]
    return kept[0], kept[-1]


def meeting_strokes(one: Mask, other: Mask) -> tuple[Mask, Mask] | None:
    """Return strokes from the middle of each object to where they are nearest; None if they are no neighbours."""
    to_one, to_other = (cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) for mask in (one, other))
    if to_one[other].min() > NEIGHBOURS_PX * max(one.shape):
        return None
    row, column = np.unravel_index(int(np.maximum(to_one, to_other).argmin()), one.shape)
    strokes = []
    for mask in (one, other):
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        middle = np.unravel_index(int(depth.argmax()), depth.shape)
        width = max(3, round(0.5 * float(depth.max())))
        drawn = cv2.line(
            np.zeros(mask.shape, np.uint8), (int(middle[1]), int(middle[0])), (int(column), int(row)), 1, width
        )
        is_near = (to_one if mask is one else to_other) <= max(1.0, float(np.maximum(to_one, to_other).min()))
        strokes.append((drawn > 0) & is_near)
    return strokes[0], strokes[1]


def measure(engine: Softmatcher, case: Case) -> Outcome:
    """Cut the marks of a case."""
    found = engine.mask_from_scribble(case.encoded, case.scribble)
    mask = np.zeros(case.scribble.size_hw, bool) if found is None else found.mask
    covered = tuple(float(mask[one].mean()) for one in case.objects)
    return Outcome(case.kind, case.is_tuned_on, covered, iou(mask, np.logical_or.reduce(case.objects)))


def table(outcomes: list[Outcome], *, is_tuned_on: bool) -> dict[str, dict[str, float]]:
    """Return figures by kind, and their mean over the kinds."""
    rows: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.kind == kind and outcome.is_tuned_on == is_tuned_on]
        shares = np.array([share for outcome in own for share in outcome.covered])
        if own:
            rows[kind] = {
                "count": len(own), "share": float(shares.mean()), "covered": float((shares >= COVERED).mean()),
                "iou": float(np.mean([outcome.iou for outcome in own])),
            }  # fmt: skip
    rows["mean"] = {name: float(np.mean([row[name] for row in rows.values()])) for name in next(iter(rows.values()))}
    return rows


def try_others(engine: Softmatcher, cases: list[Case]) -> Mapping[str, dict[str, dict[str, float]]]:
    """Measure with one constant changed at a time, and with strokes that are not kept apart."""
    figures = {}
    for name, values in GRID.items():
        chosen = getattr(marked_objects, name)
        for value in values:
            setattr(marked_objects, name, value)
            rows = table([measure(engine, case) for case in cases], is_tuned_on=True)
            figures[f"{name} = {value} (chosen: {chosen})"] = rows
        setattr(marked_objects, name, chosen)
    joined_strokes = [replace(case, scribble=replace(case.scribble, strokes_apart=())) for case in cases]
    outcomes = [measure(engine, case) for case in joined_strokes if "stroke" in case.kind or case.kind == "touching"]
    return figures | {"strokes that touch count as one": table(outcomes, is_tuned_on=True)}


if __name__ == "__main__":
    main()
