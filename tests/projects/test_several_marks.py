"""Several marks in one annotation, on the demonstration's coins, with the `lite` engine: each has its own object."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest

from backend.cli.demo.coins import SampleTask, sample_tasks
from backend.core.types import Mask
from backend.engine.softmatcher import Softmatcher, load_softmatcher
from backend.labelstudio.codec import Region, RegionKind
from backend.labelstudio.label_prompts import group_annotation
from backend.projects.references import reference_mask

KINDS = ("click", "stroke", "painted", "box", "accepted")
LEAST_COVERED = 0.9


@functools.cache
def engine() -> Softmatcher:
    return load_softmatcher("lite")


@functools.cache
def tiles() -> list[SampleTask]:
    return sample_tasks()


def coins_of(tile: SampleTask) -> list[Mask]:
    """The tile's coins but for slivers at its edge, the largest first."""
    coins = [tile.objects == number for number in np.unique(tile.objects[tile.objects > 0])]
    return sorted((coin for coin in coins if coin.sum() > 400), key=lambda coin: -int(coin.sum()))


def mark(coin: Mask, kind: str, number: int) -> Region:
    size_hw = coin.shape[0], coin.shape[1]
    depth = cv2.distanceTransform(np.pad(coin, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = (int(one) for one in np.unravel_index(int(depth.argmax()), depth.shape))
    region = Region(
        f"region{number}", "brush", "Coin", "brush", "image", size_hw,
        origin="prediction" if kind == "accepted" else "manual",
    )  # fmt: skip
    kind_of: dict[str, RegionKind] = {"click": "keypoint", "box": "rectangle"}
    region = replace(region, kind=kind_of.get(kind, "brush"))
    if kind == "click":
        return replace(region, point_xy=(x + 0.5, y + 0.5))
    if kind == "box":
        rows, columns = np.nonzero(coin)
        corners = float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)
        return replace(region, box_xyxy=corners)
    if kind == "stroke":
        half = int(depth.max() * 0.7)
        drawn = cv2.line(np.zeros(size_hw, np.uint8), (x - half, y), (x + half, y), 1, 5)
        return replace(region, mask=(drawn > 0) & coin)
    return replace(region, mask=coin)


def covered(tile: SampleTask, coins: Sequence[Mask], kinds: Sequence[str]) -> list[float]:
    regions = [mark(coin, kind, number) for number, (coin, kind) in enumerate(zip(coins, kinds, strict=True))]
    (marks,) = group_annotation(regions)
    found, _ = reference_mask(engine(), engine().encode(tile.image), marks)
    assert found is not None
    off_coins = found & (tile.objects == 0)
    assert off_coins.sum() < 0.25 * sum(int(coin.sum()) for coin in coins)
    return [float(found[coin].mean()) for coin in coins]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("kinds", [*itertools.combinations_with_replacement(KINDS, 2)], ids="-".join)
def test_two_marks_of_any_kinds_cover_a_coin_each(kinds: tuple[str, str], number: int) -> None:
    tile = tiles()[number]
    coins = coins_of(tile)[:2]
    assert min(covered(tile, coins, kinds)) >= LEAST_COVERED


@pytest.mark.parametrize("kind", KINDS)
def test_five_coins_are_marked_at_once(kind: str) -> None:
    tile = next(tile for tile in tiles() if len(coins_of(tile)) >= 5)
    coins = coins_of(tile)[:5]
    turned = KINDS[KINDS.index(kind) :] + KINDS[: KINDS.index(kind)]
    for kinds in ([kind] * 5, turned):
        for coin, each, share in zip(coins, kinds, covered(tile, coins, kinds), strict=True):
            # One coin is cut off by the edge; alone, too, a stroke gets two thirds of it.
            least = LEAST_COVERED if each != "stroke" else min(LEAST_COVERED, *covered(tile, [coin], [each]))
            assert share >= least
