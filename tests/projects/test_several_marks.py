"""Several marks in one annotation, on the demonstration's coins, with the `lite` engine: each has its own object."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest

from backend.cli.demo.coins import SampleTask, sample_tasks
from backend.core.types import EncodedImage, Mask
from backend.engine.loading import load_softmatcher
from backend.engine.softmatcher import Softmatcher
from backend.labelstudio.codec import Region, RegionKind
from backend.labelstudio.label_prompts import group_annotation
from backend.projects.references.reference_mask import reference_mask

KINDS = ("click", "stroke", "painted", "box", "accepted")
LEAST_COVERED = 0.9


@functools.cache
def engine() -> Softmatcher:
    return load_softmatcher("lite")


@functools.cache
def tiles() -> list[SampleTask]:
    return sample_tasks()


@functools.cache
def encoded(number: int) -> EncodedImage:
    return engine().encode(tiles()[number].image)


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
        return replace(region, mask=stroke(coin))
    if kind == "painted without its rim":
        return replace(region, mask=depth > 0.1 * depth.max())
    return replace(region, mask=coin)


def stroke(coin: Mask, *, length: float = 0.7, width_px: int = 5, angle_rad: float = 0.0) -> Mask:
    """A straight stroke through the middle of a coin, as long as this share of its thickness."""
    depth = cv2.distanceTransform(np.pad(coin, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = (int(one) for one in np.unravel_index(int(depth.argmax()), depth.shape))
    along = length * float(depth.max()) * np.array([np.cos(angle_rad), np.sin(angle_rad)])
    ends = [tuple(round(one) for one in (x, y) + sign * along) for sign in (-1, 1)]
    line: Mask = cv2.line(np.zeros(coin.shape, np.uint8), ends[0], ends[1], 1, width_px) > 0
    return line & coin


def covered(number: int, coins: Sequence[Mask], regions: Sequence[Region]) -> list[float]:
    (marks,) = group_annotation(regions)
    found, _ = reference_mask(engine(), encoded(number), marks)
    assert found is not None
    off_coins = found & (tiles()[number].objects == 0)
    assert off_coins.sum() < 0.25 * sum(int(coin.sum()) for coin in coins)
    return [float(found[coin].mean()) for coin in coins]


def marks_of(coins: Sequence[Mask], kinds: Sequence[str]) -> list[Region]:
    return [mark(coin, kind, number) for number, (coin, kind) in enumerate(zip(coins, kinds, strict=True))]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("kinds", [*itertools.combinations_with_replacement(KINDS, 2)], ids="-".join)
@pytest.mark.slow
def test_two_marks_of_any_kinds_cover_a_coin_each(kinds: tuple[str, str], number: int) -> None:
    coins = coins_of(tiles()[number])
    for pair in (coins[:2], [coins[-1], coins[0]]):
        assert min(covered(number, pair, marks_of(pair, kinds))) >= LEAST_COVERED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_five_coins_are_marked_at_once(kind: str) -> None:
    number = next(number for number, tile in enumerate(tiles()) if len(coins_of(tile)) >= 5)
    coins = coins_of(tiles()[number])[:5]
    turned = KINDS[KINDS.index(kind) :] + KINDS[: KINDS.index(kind)]
    for kinds in ([kind] * 5, turned):
        assert min(covered(number, coins, marks_of(coins, kinds))) >= LEAST_COVERED


@pytest.mark.slow
@pytest.mark.parametrize("width_px", [2, 4, 7])
@pytest.mark.parametrize("angle_rad", [0.0, 0.6, 2.2])
def test_a_stroke_covers_the_coin_that_the_edge_cuts_off(angle_rad: float, width_px: int) -> None:
    cut_off = coins_of(tiles()[5])[-1]
    assert cut_off[:, 0].any()
    for length in (0.35, 0.85):
        drawn = replace(
            mark(cut_off, "stroke", 0), mask=stroke(cut_off, length=length, width_px=width_px, angle_rad=angle_rad)
        )
        assert min(covered(5, [cut_off], [drawn])) >= LEAST_COVERED


def nearest_coins(number: int) -> list[Mask]:
    def gap_px(pair: Iterable[Mask]) -> float:
        one, other = pair
        return float(cv2.distanceTransform((~one).astype(np.uint8), cv2.DIST_L2, 5)[other].min())

    return list(min(itertools.combinations(coins_of(tiles()[number]), 2), key=gap_px))


def touching_strokes(one: Mask, other: Mask) -> list[Region]:
    """A stroke from the middle of each coin to the middle between them: their ends overlap there."""
    to_one, to_other = (cv2.distanceTransform((~coin).astype(np.uint8), cv2.DIST_L2, 5) for coin in (one, other))
    y, x = (int(axis) for axis in np.unravel_index(int((np.maximum(to_one, to_other)).argmin()), one.shape))
    drawn = []
    for number, coin in enumerate((one, other)):
        middle = tuple(round(float(axis.mean())) for axis in np.nonzero(coin)[::-1])
        line = cv2.line(np.zeros(coin.shape, np.uint8), middle, (x, y), 1, 5) > 0
        drawn.append(replace(mark(coin, "stroke", number), mask=line))
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_strokes_of_two_regions_that_touch_are_on_two_coins(number: int) -> None:
    coins = nearest_coins(number)
    drawn = touching_strokes(*coins)
    joined = np.logical_or(*(np.asarray(one.mask) for one in drawn))
    assert cv2.connectedComponents(joined.astype(np.uint8), connectivity=8)[0] == 2, "the ends touch"
    # A third of the stroke on the coin that the sixth tile's edge cuts off is beside it.
    is_whole = [not coin[:, 0].any() for coin in coins]
    shares = covered(number, coins, drawn)
    assert min(share for share, whole in zip(shares, is_whole, strict=True) if whole) >= LEAST_COVERED


@pytest.mark.slow
def test_the_order_of_the_regions_changes_nothing() -> None:
    number = next(number for number, tile in enumerate(tiles()) if len(coins_of(tile)) >= 4)
    coins = nearest_coins(number)
    coins += [coin for coin in coins_of(tiles()[number]) if not any(coin is near for near in coins)][:2]
    regions = [*touching_strokes(*coins[:2]), *marks_of(coins[2:], ["click", "box"]), mark(coins[0], "click", 9)]
    masks = []
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 1, 0, 3]):
        (marks,) = group_annotation([regions[index] for index in order])
        fresh = replace(encoded(number), size_hw=encoded(number).size_hw)  # nothing is remembered of it
        masks.append(reference_mask(engine(), fresh, marks)[0])
    assert masks[0] is not None
    assert all(np.array_equal(masks[0], np.asarray(mask)) for mask in masks[1:])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_coins_painted_without_their_rims_are_covered_to_it(number: int) -> None:
    coins = coins_of(tiles()[number])[:2]
    regions = [mark(coin, "painted without its rim", place) for place, coin in enumerate(coins)]
    painted = [float((region.mask & coin).sum() / coin.sum()) for region, coin in zip(regions, coins, strict=True)]  # type: ignore[operator]
    assert max(painted) < 0.9
    assert min(covered(number, coins, regions)) >= LEAST_COVERED


@pytest.mark.slow
def test_what_is_painted_to_its_border_stays_as_it_was_painted() -> None:
    for number in range(6):
        coin = coins_of(tiles()[number])[0]
        (marks,) = group_annotation([mark(coin, "painted", 0)])
        found, uncertainty = reference_mask(engine(), encoded(number), marks)
        assert found is not None
        assert np.array_equal(found, coin)
        assert uncertainty is None
