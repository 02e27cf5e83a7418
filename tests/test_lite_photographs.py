"""The lite profile on photographs that scikit-image's wheel carries: the demonstration's own case."""

import functools

import numpy as np
import pytest
from scipy import ndimage
from skimage import data, filters, segmentation

from backend.core.masks import iou
from backend.core.types import Image, Mask, Scribble
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher

ROWS, COLUMNS = 2, 3


@functools.cache
def engine() -> Softmatcher:
    return load_softmatcher("lite")


@functools.cache
def coin_tiles() -> tuple[list[Image], list[Mask]]:
    """The coins in 2 x 3 tiles, with masks by the watershed of scikit-image's tutorial."""
    coins = data.coins()
    markers = np.where(coins > 150, 2, np.where(coins < 30, 1, 0))
    truth = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(coins), markers) == 2)
    pieces, count = ndimage.label(truth)
    sizes = ndimage.sum(truth, pieces, range(1, count + 1))
    truth = np.isin(pieces, [n + 1 for n, size in enumerate(sizes) if size > 100])
    rgb = np.repeat(coins[:, :, None], 3, axis=2)
    height, width = coins.shape[0] // ROWS, coins.shape[1] // COLUMNS
    windows = [
        (slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]
    return [np.ascontiguousarray(rgb[window]) for window in windows], [truth[window] for window in windows]


def largest_coin(mask: Mask) -> Mask:
    pieces, count = ndimage.label(mask)
    largest: Mask = pieces == 1 + int(np.argmax(ndimage.sum(mask, pieces, range(1, count + 1))))
    return largest


@pytest.mark.parametrize("marked_tile", [0, 3])
@pytest.mark.slow
def test_one_coin_marked_finds_the_coins_of_all_other_tiles(marked_tile: int) -> None:
    tiles, truths = coin_tiles()
    encoded = engine().encode(tiles[marked_tile])
    reference = engine().describe(tiles[marked_tile], encoded, largest_coin(truths[marked_tile]))
    reached = []
    for index, (tile, truth) in enumerate(zip(tiles, truths, strict=True)):
        if index != marked_tile:
            found = engine().segment(engine().encode(tile), {"Coin": [reference]})
            reached.append(iou(found[0].mask, truth) if found else 0.0)
    assert np.mean(reached) >= 0.85, reached


@pytest.mark.slow
def test_a_short_stroke_on_a_coin_gives_the_whole_coin() -> None:
    tiles, truths = coin_tiles()
    coin = largest_coin(truths[1])
    rows, columns = (int(one.mean()) for one in np.nonzero(coin))
    stroke = np.zeros_like(coin)
    stroke[rows - 2 : rows + 3, columns - 10 : columns + 10] = True
    found = engine().mask_from_scribble(
        engine().encode(tiles[1]), Scribble((coin.shape[0], coin.shape[1]), positive_strokes=stroke)
    )
    assert found is not None
    assert iou(found.mask, coin) > 0.9


@pytest.mark.slow
def test_coins_are_not_found_on_other_photographs() -> None:
    tiles, truths = coin_tiles()
    reference = engine().describe(tiles[0], engine().encode(tiles[0]), largest_coin(truths[0]))
    for photograph in (data.astronaut(), data.chelsea(), data.rocket()):
        assert engine().segment(engine().encode(photograph), {"Coin": [reference]}) == []


@pytest.mark.slow
def test_a_photograph_matched_with_itself_finds_its_mask() -> None:
    cat = data.chelsea()
    y, x = np.mgrid[: cat.shape[0], : cat.shape[1]]
    face = ((x - 235) / 130) ** 2 + ((y - 150) / 120) ** 2 < 1
    encoded = engine().encode(cat)
    found = engine().segment(encoded, {"Face": [engine().describe(cat, encoded, face, is_complete=True)]})
    assert len(found) == 1
    assert iou(found[0].mask, face) > 0.6


@pytest.mark.slow
def test_a_reference_is_small_and_known_where_the_mask_is() -> None:
    tiles, truths = coin_tiles()
    reference = engine().describe(tiles[0], engine().encode(tiles[0]), largest_coin(truths[0]))
    size = reference.features.nbytes + reference.foreground_coverage.nbytes + reference.ignore_weight.nbytes
    assert size < 4_000_000
    assert (reference.ignore_weight[reference.foreground_coverage > 0] == 1).all()
    assert (reference.ignore_weight == 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_coin_of_a_tray_is_found(seed: int) -> None:
    """Two dozen objects, one of them marked on a crop of the photograph: each has points of its own."""
    tiles, truths = coin_tiles()
    reference = engine().describe(tiles[1], engine().encode(tiles[1]), largest_coin(truths[1]))
    tray = np.repeat(data.coins()[:, :, None], 3, axis=2)
    found = engine().segment(engine().encode(tray), {"Coin": [reference]}, MatchOptions(instances=True, seed=seed))
    assert len(found) == 24
