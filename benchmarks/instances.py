"""How long does it take to make regions of the objects of a large image, and how much memory?

    python -m benchmarks.instances [--runs 3] [--json FILE]

Masks of discs, as the engine has them in its working frame, are brought to the image's natural size, parted into one
region per object (`{"instances": true}`), and encoded as brush RLE and as outlines of the project's page. Beside it the
former way: each object as a mask of the whole image. Regions and outlines of both are compared. Processor time is the
median of interleaved runs; memory is what Python and NumPy allocate at most (tracemalloc, in a run of its own).
"""

import argparse
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from backend.core.instances import cut_instances, split_instances
from backend.core.masks import mask_to_size, nearest_to_size
from backend.core.types import BoxedMask, Mask
from backend.drawing.outline_path import mask_to_path
from backend.labelstudio.rle import encode_mask
from backend.projects.tiles import MOST_REGIONS

CASES = (
    ("12 megapixels, 100 regions", (3024, 4032), 1, 100),
    ("12 megapixels, 50 regions", (3024, 4032), 1, 50),
    ("12 megapixels, 10 regions", (3024, 4032), 1, 10),
    ("3 megapixels, 10 labels of 10", (1536, 2048), 10, 10),
)
WORKING_SIDE_PX = 256
"""Longer side of the working frame of `lite`."""

Cut = Callable[[Sequence[Mask], tuple[int, int]], list[BoxedMask]]


def drawn_masks(size_hw: tuple[int, int], labels: int, objects: int) -> list[Mask]:
    """Return a mask of discs for each label in the working frame; labels share no pixel."""
    scale = WORKING_SIDE_PX / max(size_hw)
    height, width = round(size_hw[0] * scale), round(size_hw[1] * scale)
    columns = int(np.ceil(np.sqrt(labels * objects * width / height)))
    step = width / columns
    masks = []
    for label in range(labels):
        picture = np.zeros((height, width), np.uint8)
        for number in range(label * objects, (label + 1) * objects):
            row, column = divmod(number, columns)
            centre = int((column + 0.5) * step), int((row + 0.5) * step)
            cv2.circle(picture, centre, max(2, int(step * 0.42)), 1, -1)
        masks.append(picture > 0)
    return masks


def cut_now(masks: Sequence[Mask], size_hw: tuple[int, int]) -> list[BoxedMask]:
    """Return the regions as the engine cuts them."""
    taken = np.zeros(size_hw, bool)
    regions: list[BoxedMask] = []
    for parted in masks:
        natural = mask_to_size(parted, size_hw) & ~taken
        taken |= natural
        regions += cut_instances(natural, parted)
    return regions


def cut_formerly(masks: Sequence[Mask], size_hw: tuple[int, int]) -> list[BoxedMask]:
    """Return the regions as masks of the whole image, compared with one another."""
    found: list[Mask] = []
    for parted in masks:
        natural = mask_to_size(parted, size_hw)
        for other in found:
            natural = natural & ~other
        owner = nearest_to_size(split_instances(parted), size_hw)
        objects = [natural & (owner == number) for number in range(int(owner.max()) + 1)]
        found += [one for one in objects if one.any()]
    return [BoxedMask.of(one) for one in found]


def written(regions: Sequence[BoxedMask]) -> tuple[list[list[int]], list[str]]:
    """Return the RLE of all regions, and the outlines of those that a tile draws."""
    return [encode_mask(one) for one in regions], [mask_to_path(one) for one in regions[:MOST_REGIONS]]


def measure(name: str, size_hw: tuple[int, int], labels: int, objects: int, runs: int) -> dict[str, object]:
    """Return the figures of one case, of both ways."""
    masks = drawn_masks(size_hw, labels, objects)
    ways: dict[str, Cut] = {"now": cut_now, "before": cut_formerly}
    results, seconds, peaks = {}, {way: [] for way in ways}, {}  # type: ignore[var-annotated]
    for way, cut in ways.items():
        tracemalloc.start()
        results[way] = written(cut(masks, size_hw))
        peaks[way] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    assert results["now"] == results["before"], "both ways must give the same regions"
    for _ in range(runs):
        for way, cut in ways.items():
            began = time.process_time()
            regions = cut(masks, size_hw)
            parted = time.process_time()
            written(regions)
            seconds[way].append((parted - began, time.process_time() - parted))
    row: dict[str, object] = {"case": name, "regions": len(results["now"][0])}
    for way in ways:
        row |= {
            f"{way}_cut_s": statistics.median(one for one, _ in seconds[way]),
            f"{way}_written_s": statistics.median(one for _, one in seconds[way]),
            f"{way}_peak_mb": peaks[way],
        }
    # The floor: one mask brought to the image's size for each label.
    began = time.process_time()
    for mask in masks:
        mask_to_size(mask, size_hw)
    row["floor_s"] = time.process_time() - began
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        rows.append(measure(*case, runs=arguments.runs))
        figures = (
            f"{name} {value:.3g}" if isinstance(value, float) else f"{value}" for name, value in rows[-1].items()
        )
        print(", ".join(figures), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
