"""The first sample project: Greek coins from Pompeii, a photograph inside scikit-image's wheel, cut into tasks.

The photograph comes without masks; they are computed here, and were looked at coin by coin.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from skimage import data, filters, measure, segmentation
from skimage.morphology import closing, disk, opening, remove_small_holes

from backend.core.types import Image, Mask
from backend.labelstudio.sample_label_config import make_label_config

COIN = "Coin"

LABEL_CONFIG = make_label_config(COIN)

_DARK, _BRIGHT = 30, 150
# Upper half and lower half, each cut into three where the fewest coins are hurt: the rows are not aligned.
_HALVES_Y = ((0, 150, (0, 127, 243, 384)), (150, 303, (0, 135, 247, 384)))


@dataclass(frozen=True, eq=False)
class SampleTask:
    """One image of the sample project and what is on it.

    Attributes:
        name: file name without its ending.
        image: (H, W, 3) uint8 RGB.
        masks: label -> (H, W) bool, all objects of that label.
        objects: (H, W) int32: 0 where nothing is, else the number of the object, from 1.
    """

    name: str
    image: Image
    masks: Mapping[str, Mask]
    objects: NDArray[np.int32]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image, px."""
        height, width = self.image.shape[:2]
        return height, width


def find_coins(photograph: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return number the coins of the photograph.

    Args:
        photograph: (H, W) uint8: scikit-image's `coins`.

    Returns:
        (H, W) int32: 0 off the coins, 1 to 24 on them.

    Source: scikit-image's user guide, "Image segmentation", region-based (watershed of the gradient magnitude from
    the surely dark and the surely bright pixels); the closing and opening are ours: one coin has a
    bright chip, two have spots at their rims.
    """
    markers = np.zeros(photograph.shape, np.int32)
    markers[photograph < _DARK] = 1
    markers[photograph > _BRIGHT] = 2
    on_coins = segmentation.watershed(filters.sobel(photograph), markers) == 2
    on_coins = remove_small_holes(closing(on_coins, disk(3)), max_size=3000)
    on_coins = opening(on_coins, disk(6))
    coins = np.zeros(photograph.shape, np.int32)
    for number, region in enumerate(measure.regionprops(measure.label(on_coins)), start=1):
        padded = np.pad(region.image, 10)
        closed = closing(padded, disk(8))[10:-10, 10:-10]
        coins[region.slice][closed] = number
    return coins


def sample_tasks() -> list[SampleTask]:
    """Return the six tiles of the photograph, two to five coins each; a coin at a cut is on both sides of it."""
    photograph = data.coins()
    coins = find_coins(photograph)
    tasks: list[SampleTask] = []
    for top, bottom, cuts_x in _HALVES_Y:
        for left, right in pairwise(cuts_x):
            window = np.s_[top:bottom, left:right]
            image = np.repeat(photograph[window][..., None], 3, axis=-1)
            objects = coins[window].copy()
            tasks.append(SampleTask(f"coins-{len(tasks) + 1}", image, {COIN: objects > 0}, objects))
    return tasks
