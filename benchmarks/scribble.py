"""How good and how fast are masks cut from a scribble without a network?

    python -m benchmarks.scribble [--sets coins,davis_video] [--per-class 3] [--affinity] [--baseline] [--json FILE]

Scribbles are simulated from the known mask with fixed seeds: one point, one point and a negative one, three points, a
box whose sides are off by up to 5 %, a stroke along the middle of the object. Where a mask has several components, one
is drawn (by area) and the cut is compared with that component, at the image's natural size. `--baseline` adds plain
GrabCut (OpenCV) with the same scribbles: a box is its rectangle; points and strokes are sure foreground discs.

`coins` are scikit-image's coins in six tiles; the masks come from scikit-image's watershed tutorial. The other sets are
folders `<set>/<class>/<n>.jpg|.png` below `--data` (default: SOFTMATCHER_TEST_DATASETS, or ../shared/datasets beside
the repository). `--affinity` is `lite`'s deep features as `cut+affinity`. Times are CPU time of one thread,
so that other work on the machine does not count; encoding is not in them.
"""

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data as skimage_data
from skimage.filters import sobel
from skimage.graph import route_through_array
from skimage.measure import label as connected_components
from skimage.segmentation import watershed

from backend.core.self_similarity import scribble_affinity
from backend.core.types import Image, Mask, ScoredMask, Scribble
from backend.errors import BadInputError
from backend.models.encoders.efficientnet_lite import EfficientNetLiteEncoder
from backend.models.graph_cut.scribble_cut import cut_from_scribble

KINDS = ("point", "point+negative", "three points", "box", "stroke")


@dataclass(frozen=True, eq=False)
class Case:
    """One object: its image (H, W, 3) uint8, its mask (H, W) bool, what may not be marked negative (H, W) bool."""

    set_name: str
    name: str
    image: Image
    mask: Mask
    same_label: Mask


@dataclass(frozen=True)
class Outcome:
    """One scribble cut: IoU at natural size, the score that was promised, seconds."""

    set_name: str
    name: str
    kind: str
    method: str
    iou: float
    score: float
    seconds: float


def coin_masks() -> list[Mask]:
    """The 24 coins of `skimage.data.coins()`, each (303, 384) bool, by rows from the top left.

    Source: scikit-image's tutorial "Region-based segmentation" (sobel, markers by grey value, watershed).
    """
    coins = skimage_data.coins()
    markers = np.zeros_like(coins, np.int32)
    markers[coins < 30] = 1
    markers[coins > 150] = 2
    filled = ndimage.binary_fill_holes(watershed(sobel(coins), markers) == 2)
    labels = connected_components(ndimage.binary_opening(filled, iterations=2))
    masks = [labels == index for index in range(1, labels.max() + 1) if (labels == index).sum() > 500]
    return sorted(masks, key=lambda mask: tuple(np.round(np.argwhere(mask).mean(0) / [70.0, 60.0]).astype(int)))


def coin_cases(upscaled_side_px: int | None = None) -> list[Case]:
    """The coins in 2 x 3 tiles of about 151 x 128 px, each coin in the tile that holds most of it."""
    coins = np.repeat(skimage_data.coins()[..., None], 3, axis=2)
    masks = coin_masks()
    cases = []
    for row, rows in enumerate((slice(0, 151), slice(151, 303))):
        for column in range(3):
            columns = slice(column * 128, (column + 1) * 128)
            tile = coins[rows, columns]
            for index, mask in enumerate(masks):
                part = mask[rows, columns]
                if part.sum() <= 0.5 * mask.sum():
                    continue
                image, part_at_size = tile, part
                if upscaled_side_px:
                    size = _size_for((tile.shape[0], tile.shape[1]), upscaled_side_px)
                    image = cv2.resize(tile, size[::-1], interpolation=cv2.INTER_CUBIC)
                    part_at_size = cv2.resize(part.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
                cases.append(Case("coins", f"tile{row}{column}/coin{index}", image, part_at_size, part_at_size))
    return cases


def dataset_cases(folder: Path, per_class: int, seed: int) -> Iterator[Case]:
    """One object of each of `per_class` images of every class of one set."""
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        pictures = sorted(class_folder.glob("*.jpg"))
        rng = np.random.default_rng(zlib.crc32(f"{folder.name}/{class_folder.name}/{seed}".encode()))
        order = rng.permutation(len(pictures))[:per_class]
        for picture in (pictures[index] for index in order):
            bgr = cv2.imread(str(picture), cv2.IMREAD_COLOR)
            grey = cv2.imread(str(picture.with_suffix(".png")), cv2.IMREAD_GRAYSCALE)
            if bgr is None or grey is None:
                raise BadInputError(f"{picture} and its mask must be images, got a file that OpenCV cannot read")
            mask = grey > 127
            component = _draw_component(mask, rng)
            if component is not None:
                name = f"{class_folder.name}/{picture.stem}"
                yield Case(folder.name, name, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), component, mask)


def _draw_component(mask: Mask, rng: np.random.Generator, smallest_share: float = 1e-3) -> Mask | None:
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:].astype(float)
    areas[areas < smallest_share * mask.size] = 0
    if not areas.any():
        return None
    drawn: Mask = labels == 1 + rng.choice(count, p=areas / areas.sum())
    return drawn


def simulate(case: Case, kind: str, seed: int) -> Scribble:
    """What a labeler might draw on the object; the same for the same case, kind and seed."""
    rng = np.random.default_rng(zlib.crc32(f"{case.set_name}/{case.name}/{kind}/{seed}".encode()))
    height, width = case.mask.shape
    inner = cv2.distanceTransform(np.pad(case.mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    empty = Scribble((height, width))
    if kind == "box":
        rows, columns = np.nonzero(case.mask)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
        jitter = rng.uniform(-0.05, 0.05, 4) * np.tile(box[2:] - box[:2], 2)
        return replace(empty, boxes_xyxy=np.clip(box + jitter, 0, [width, height] * 2).astype(np.float32)[None])
    if kind == "stroke":
        return replace(empty, positive_strokes=_middle_stroke(case.mask, inner, rng))
    positive = _points(inner >= 0.4 * inner.max(), 3 if kind == "three points" else 1, rng)
    if kind != "point+negative":
        return replace(empty, positive_xy=positive)
    outside = cv2.distanceTransform((~case.same_label).astype(np.uint8), cv2.DIST_L2, 5)
    reach = np.sqrt(case.mask.sum())
    near = (outside > max(2.0, 0.05 * reach)) & (outside < max(6.0, 0.5 * reach))
    return replace(empty, positive_xy=positive, negative_xy=_points(near, 1, rng) if near.any() else empty.negative_xy)


def _points(where: Mask, count: int, rng: np.random.Generator) -> NDArray[Any]:
    yx = np.argwhere(where)
    return (yx[rng.choice(len(yx), count)][:, ::-1] + 0.5).astype(np.float32)


def _middle_stroke(mask: Mask, inner: NDArray[Any], rng: np.random.Generator) -> Mask:
    """A stroke between two points well inside, kept to the middle of the object, and nowhere outside it."""
    scale = min(1.0, 160 / max(mask.shape))
    small = cv2.resize(inner, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    yx = np.argwhere(small >= 0.3 * small.max())
    start = yx[rng.integers(len(yx))]
    end = yx[np.linalg.norm(yx - start, axis=1).argmax()]
    path, _ = route_through_array(np.where(small > 0, 1 / (small + 0.5), 1e4), start, end, fully_connected=True)
    stroke = np.zeros(mask.shape, np.uint8)
    corners = ((np.array(path)[:, ::-1] + 0.5) / scale).astype(np.int32)
    cv2.polylines(stroke, [corners], False, 1, thickness=max(2, round(max(mask.shape) / 128)))
    kept: Mask = (stroke > 0) & mask
    return kept if kept.any() else inner == inner.max()


def cut_at_natural_size(
    case: Case,
    scribble: Scribble,
    side_px: int,
    cut: Callable[..., ScoredMask | None],
    features: NDArray[Any] | None = None,
) -> ScoredMask | None:
    """Shrink image and scribble to the working size, cut, bring the mask back."""
    size_hw = _size_for((case.mask.shape[0], case.mask.shape[1]), side_px, grow=False)
    resized = scribble_to_size(scribble, size_hw)
    evidence = [] if features is None else [scribble_affinity(features, resized)]
    found = cut(cv2.resize(case.image, size_hw[::-1], interpolation=cv2.INTER_AREA), resized, *evidence)
    if found is None:
        return None
    mask = cv2.resize(found.mask.astype(np.float32), case.mask.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    return ScoredMask(mask, found.score)


def scribble_to_size(scribble: Scribble, size_hw: tuple[int, int]) -> Scribble:
    """The scribble in the frame of the image resized to `size_hw`."""
    scale_xy = np.array([size_hw[1] / scribble.size_hw[1], size_hw[0] / scribble.size_hw[0]], np.float32)

    def shrink(strokes: Mask | None) -> Mask | None:
        if strokes is None:
            return None
        resized: Mask = cv2.resize(strokes.astype(np.float32), size_hw[::-1], interpolation=cv2.INTER_AREA) > 0.25
        return resized

    return Scribble(
        size_hw,
        scribble.positive_xy * scale_xy,
        scribble.negative_xy * scale_xy,
        scribble.boxes_xyxy * np.tile(scale_xy, 2),
        shrink(scribble.positive_strokes),
        shrink(scribble.negative_strokes),
    )


def _size_for(shape_hw: tuple[int, int], side_px: int, grow: bool = True) -> tuple[int, int]:
    scale = side_px / max(shape_hw)
    scale = scale if grow else min(1.0, scale)
    return max(1, round(shape_hw[0] * scale)), max(1, round(shape_hw[1] * scale))


def plain_grabcut(image: Image, scribble: Scribble) -> ScoredMask | None:
    """The baseline: OpenCV's GrabCut, five rounds, the component under the scribble where there is no box."""
    height, width = image.shape[:2]
    trimap = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    if len(scribble.boxes_xyxy):
        trimap[:] = cv2.GC_BGD
        x0, y0, x1, y1 = np.round(scribble.boxes_xyxy[0]).astype(int)
        trimap[y0:y1, x0:x1] = cv2.GC_PR_FGD
    sure = np.zeros((height, width), np.uint8)
    for x, y in scribble.positive_xy:
        cv2.circle(sure, (int(x), int(y)), max(2, max(height, width) // 64), 1, -1)
    if scribble.positive_strokes is not None:
        sure |= scribble.positive_strokes.astype(np.uint8)
    trimap[sure > 0] = cv2.GC_FGD
    for x, y in scribble.negative_xy:
        cv2.circle(trimap, (int(x), int(y)), max(2, max(height, width) // 64), cv2.GC_BGD, -1)
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(image, trimap, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return None
    mask = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    if sure.any():
        labels, _ = ndimage.label(mask)
        mask = np.isin(labels, np.unique(labels[sure > 0])) & mask
    return ScoredMask(mask, 0.5)


METHODS: dict[str, Callable[..., ScoredMask | None]] = {
    "cut": cut_from_scribble,
    "cut+affinity": cut_from_scribble,
    "grabcut": plain_grabcut,
}


@cache
def lite_encoder() -> EfficientNetLiteEncoder:
    """One encoder a process."""
    return EfficientNetLiteEncoder()


def evaluate(
    case: Case, methods: tuple[str, ...], side_px: int, seed: int, kinds: tuple[str, ...] = KINDS
) -> list[Outcome]:
    """Every kind of scribble on one object, by every method."""
    cv2.setNumThreads(1)
    outcomes = []
    features = lite_encoder().encode(case.image) if "cut+affinity" in methods else None
    for kind in kinds:
        scribble = simulate(case, kind, seed)
        for method in methods:
            with_features = features if method == "cut+affinity" else None
            start = time.thread_time()
            found = cut_at_natural_size(case, scribble, side_px, METHODS[method], with_features)
            seconds = time.thread_time() - start
            iou = 0.0 if found is None else (found.mask & case.mask).sum() / (found.mask | case.mask).sum()
            score = 0.0 if found is None else found.score
            outcomes.append(Outcome(case.set_name, case.name, kind, method, float(iou), float(score), seconds))
    return outcomes


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("SOFTMATCHER_TEST_DATASETS", "../shared/datasets")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument(
        "--sets", default="", help="comma separated; default: coins, coins-384 and every folder of --data"
    )
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--per-class", type=int, default=3, help="images a class")
    parser.add_argument("--side", type=int, default=256, help="longest side in px at which masks are cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes; 1 for timings that mean something")
    parser.add_argument("--affinity", action="store_true")
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folders = sorted(path for path in arguments.data.iterdir() if path.is_dir()) if arguments.data.is_dir() else []
    if not folders:
        print(f"no data sets in {arguments.data}: only the coins are measured", file=sys.stderr)
    wanted = arguments.sets.split(",") if arguments.sets else ["coins", "coins-384", *(path.name for path in folders)]
    cases: list[Case] = []
    for name in wanted:
        if name.startswith("coins"):
            upscaled = int(name.removeprefix("coins-")) if "-" in name else None
            cases += [replace(case, set_name=name) for case in coin_cases(upscaled)]
        else:
            cases += dataset_cases(arguments.data / name, arguments.per_class, arguments.seed)
    methods = ("cut", *["cut+affinity"] * arguments.affinity, *["grabcut"] * arguments.baseline)
    torch.set_num_threads(1)
    kinds = tuple(arguments.kinds.split(","))
    work = [
        (case, methods, arguments.side if "coins-" not in case.set_name else 384, arguments.seed, kinds)
        for case in cases
    ]
    if arguments.jobs > 1:
        # Forked children would inherit the locks of OpenCV's and PyTorch's threads, and wait for them forever.
        with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
            outcomes = [outcome for part in pool.map(evaluate, *zip(*work, strict=True)) for outcome in part]
    else:
        evaluate(*work[0])  # first calls load and compile
        outcomes = [outcome for item in work for outcome in evaluate(*item)]
    print_table(outcomes, wanted, kinds, methods)
    if arguments.json:
        rows = [vars(outcome) for outcome in outcomes]
        arguments.json.write_text(
            json.dumps({"settings": {**vars(arguments), "data": None, "json": None}, "outcomes": rows})
        )


def print_table(outcomes: list[Outcome], sets: list[str], kinds: tuple[str, ...], methods: tuple[str, ...]) -> None:
    """set, prompt kind, mean IoU and median ms of each method; means over photographs; error of the promised score."""
    print(f"{'set':14}{'prompt':16}{'objects':>8}" + "".join(f"{m + ' IoU':>17}{'ms':>7}" for m in methods))
    for set_name in [*sets, "photographs"]:
        for kind in kinds:
            chosen = [o for o in outcomes if o.kind == kind and (o.set_name == set_name or set_name == "photographs")]
            if set_name == "photographs":
                chosen = [o for o in chosen if not o.set_name.startswith("coins")]
            if not chosen:
                continue
            line = f"{set_name:14}{kind:16}{len(chosen) // len(methods):>8}"
            for method in methods:
                ious = [o.iou for o in chosen if o.method == method]
                times = [o.seconds for o in chosen if o.method == method]
                line += f"{np.mean(ious):>17.3f}{1000 * np.median(times):>7.0f}"
            print(line)
    own = [o for o in outcomes if o.method == "cut"]
    gaps = np.array([o.score - o.iou for o in own])
    print(f"promised score minus IoU: mean {gaps.mean():+.3f}, mean absolute {np.abs(gaps).mean():.3f}")
    for set_name in sets:
        if set_name.startswith("coins"):
            for kind in kinds:
                good = [o.iou >= 0.9 for o in own if o.set_name == set_name and o.kind == kind]
                print(f"{set_name}, {kind}: IoU >= 0.9 for {sum(good)} of {len(good)}")


if __name__ == "__main__":
    main()
