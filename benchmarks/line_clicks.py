"""Does joining clicks along a crack beat cutting at them, on classes of thin lines?

    python -m benchmarks.line_clicks DIR [--images 8] [--clicks 3]

DIR has <set>/<class>/<n>.jpg with the mask <n>.png beside it. Clicks lie evenly along the longest line of an image's
mask; both masks are compared with the whole mask, which may have more lines, and with the line clicked.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.graph import MCP_Geometric, route_through_array
from skimage.morphology import skeletonize

from backend.core.masks import iou
from backend.core.types import Mask, Scribble
from backend.engine.loading import load_softmatcher
from backend.evaluation.datasets import read_image, read_mask

CLASSES = ("road_crack/crack", "mvtec_mini/tile_crack", "steel_strip/scratches")


def main() -> None:
    """Print the mean IoU of each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--clicks", type=int, default=3)
    given = parser.parse_args()
    engine = load_softmatcher("lite")
    print("class, images, joined along the line, cut at the clicks; each: whole mask / line clicked")
    for name in CLASSES:
        rows = []
        for path in sorted((given.directory / name).glob("*.jpg"))[: given.images]:
            image, mask = read_image(path), read_mask(path)
            clicks, line = clicks_along(mask, given.clicks)
            scribble = Scribble((mask.shape[0], mask.shape[1]), positive_xy=clicks)
            encoded = engine.encode(image)
            row = []
            for pixels in (image, None):
                found = engine.mask_from_scribble(encoded, scribble, line_pixels=pixels)
                row += [0.0, 0.0] if found is None else [iou(found.mask, mask), iou(found.mask, line)]
            rows.append(row)
        joined, joined_line, cut, cut_line = np.mean(rows, axis=0)
        print(f"{name:24} {len(rows):3}  {joined:.3f} / {joined_line:.3f}  {cut:.3f} / {cut_line:.3f}")


def clicks_along(mask: Mask, count: int) -> tuple[NDArray[np.float32], Mask]:
    """Return clicks along the longest line of a mask, (count, 2) float32, and the piece of the mask that it is in."""
    pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1]
    skeletons = cv2.connectedComponents(skeletonize(mask).astype(np.uint8), connectivity=8)[1]
    longest = skeletons == 1 + int(np.bincount(skeletons.ravel())[1:].argmax())
    cost = np.where(longest, 1.0, 1e6)
    rows, columns = np.nonzero(longest)

    def farthest(start: tuple[int, int]) -> tuple[int, int]:
        reached = np.where(longest, MCP_Geometric(cost).find_costs([start])[0], -1)
        row, column = np.unravel_index(int(reached.argmax()), reached.shape)
        return int(row), int(column)

    first = farthest((int(rows[0]), int(columns[0])))
    path = np.array(route_through_array(cost, first, farthest(first), geometric=True)[0])
    chosen = path[(np.linspace(0.03, 0.97, count) * (len(path) - 1)).astype(int)]
    middle = path[len(path) // 2]
    return chosen[:, ::-1].astype(np.float32), pieces == pieces[middle[0], middle[1]]


if __name__ == "__main__":
    main()
