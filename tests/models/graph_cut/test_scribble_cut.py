"""Scribbles on drawn scenes with a known right answer, and on scikit-image's coins."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data
from skimage.filters import sobel
from skimage.segmentation import watershed

from backend.core.cancellation import time_limit
from backend.core.types import Image, Mask, Scribble
from backend.errors import BadInputError
from backend.models.graph_cut.objectness import _mirrored_compactness
from backend.models.graph_cut.scribble_cut import cut_from_scribble

TILES = [(row, column) for row in range(2) for column in range(3)]


def xy(*points: tuple[float, float]) -> NDArray[np.float32]:
    return np.array(points, np.float32).reshape(-1, 2)


def iou(found: Mask, true: Mask) -> float:
    return float((found & true).sum() / (found | true).sum())


@pytest.fixture
def discs() -> tuple[Image, list[Mask]]:
    """Two red discs and a green one on grey, with noise, 120 x 160."""
    yy, xx = np.mgrid[:120, :160]
    masks = [(xx - x) ** 2 + (yy - y) ** 2 < r**2 for x, y, r in ((40, 40, 24), (115, 40, 20), (80, 92, 22))]
    image = np.full((120, 160, 3), 120.0)
    for mask, colour in zip(masks, ((200, 40, 40), (200, 40, 40), (40, 170, 60)), strict=True):
        image[mask] = colour
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), masks


@pytest.fixture
def empty() -> Scribble:
    return Scribble((120, 160))


def test_a_point_cuts_its_own_disc_and_not_its_twin(discs: tuple[Image, list[Mask]], empty: Scribble) -> None:
    image, masks = discs
    found = cut_from_scribble(image, replace(empty, positive_xy=xy((46, 34))))
    assert found is not None
    assert iou(found.mask, masks[0]) > 0.93
    assert found.score > 0.5


def test_points_on_two_discs_give_their_union(discs: tuple[Image, list[Mask]], empty: Scribble) -> None:
    image, masks = discs
    found = cut_from_scribble(image, replace(empty, positive_xy=xy((42, 44), (112, 38))))
    assert found is not None
    assert iou(found.mask, masks[0] | masks[1]) > 0.9


@pytest.mark.slow
def test_a_limit_of_time_ends_between_two_boxes(discs: tuple[Image, list[Mask]], empty: Scribble) -> None:
    image, _ = discs
    boxes = np.tile(np.array([[14, 15, 66, 65]], np.float32), (1000, 1))
    clock = iter(range(1001))
    with pytest.raises(BadInputError, match="too long"), time_limit(2, "too long", clock=lambda: next(clock)):
        cut_from_scribble(image, replace(empty, boxes_xyxy=boxes))
    assert next(clock) == 3


def test_a_mirrored_half_disc_is_as_round_as_a_disc() -> None:
    radius = 20.0
    area = np.pi * radius**2 / np.array([1, 2, 4, 1])
    length = 2 * np.pi * radius / np.array([1, 2, 4, 1])
    touch = np.array([0, 2 * radius, 2 * radius, 0])
    roundness = _mirrored_compactness(area, length, touch, np.array([0, 1, 2, 0]))
    assert np.allclose(roundness, 1)
    # A strip along the border is not round, nor is what touches all sides.
    strip = _mirrored_compactness(np.array([100.0]), np.array([102.0]), np.array([102.0]), np.array([1]))
    assert strip[0] < 0.3


@pytest.mark.slow
def test_a_box_cuts_what_is_in_it_and_two_boxes_their_union(discs: tuple[Image, list[Mask]], empty: Scribble) -> None:
    image, masks = discs
    boxes = np.array([[14, 15, 66, 65], [57, 69, 104, 116]], np.float32)
    one, both = (cut_from_scribble(image, replace(empty, boxes_xyxy=boxes[:count])) for count in (1, 2))
    assert one is not None
    assert both is not None
    assert iou(one.mask, masks[0]) > 0.93
    assert iou(both.mask, masks[0] | masks[2]) > 0.93


def test_a_stroke_cuts_the_disc_it_crosses(discs: tuple[Image, list[Mask]], empty: Scribble) -> None:
    image, masks = discs
    stroke = np.zeros((120, 160), np.uint8)
    cv2.line(stroke, (68, 86), (92, 98), 1, 3)
    found = cut_from_scribble(image, replace(empty, positive_strokes=stroke > 0))
    assert found is not None
    assert iou(found.mask, masks[2]) > 0.93
    assert found.mask[stroke > 0].all()


def test_a_negative_point_takes_its_side_of_the_object_away(empty: Scribble) -> None:
    """Two touching squares of nearly one colour: the point alone takes both or one, with a negative one its own."""
    image = np.full((120, 160, 3), 90, np.uint8)
    image[30:90, 30:80] = (180, 150, 60)
    image[30:90, 80:130] = (200, 170, 60)
    own = np.zeros((120, 160), bool)
    own[30:90, 30:80] = True
    scribble = replace(empty, positive_xy=xy((50, 60)), negative_xy=xy((110, 60)))
    found = cut_from_scribble(image, scribble)
    assert found is not None
    assert not found.mask[60, 110]
    assert iou(found.mask, own) > 0.9


def test_nothing_positive_gives_nothing(discs: tuple[Image, list[Mask]], empty: Scribble) -> None:
    assert cut_from_scribble(discs[0], empty) is None
    assert cut_from_scribble(discs[0], replace(empty, negative_xy=xy((46, 34)))) is None
    assert cut_from_scribble(discs[0], replace(empty, positive_strokes=np.zeros((120, 160), bool))) is None


def test_a_blank_image_gives_nothing(empty: Scribble) -> None:
    blank = np.full((120, 160, 3), 77, np.uint8)
    assert cut_from_scribble(blank, replace(empty, positive_xy=xy((50, 60)))) is None
    box = np.array([[20, 20, 90, 90]], np.float32)
    assert cut_from_scribble(blank, replace(empty, boxes_xyxy=box)) is None


def test_a_point_outside_the_image_counts_as_its_nearest_pixel(
    discs: tuple[Image, list[Mask]], empty: Scribble
) -> None:
    image, _ = discs
    outside = cut_from_scribble(image, replace(empty, positive_xy=xy((300, 40))))
    at_border = cut_from_scribble(image, replace(empty, positive_xy=xy((159.5, 40))))
    assert (outside is None) == (at_border is None)
    if outside is not None and at_border is not None:
        assert np.array_equal(outside.mask, at_border.mask)


def test_affinity_decides_between_the_part_and_the_whole(empty: Scribble) -> None:
    """A two-coloured object: what the features call alike is taken."""
    image = np.full((120, 160, 3), 90, np.uint8)
    image[30:90, 30:80] = (190, 60, 60)
    image[30:90, 80:130] = (60, 60, 190)
    whole = np.zeros((120, 160), np.float32)
    whole[30:90, 30:130] = 1
    part = whole.copy()
    part[:, 80:] = 0
    scribble = replace(empty, positive_xy=xy((52, 60)))
    for affinity in (whole, part):
        found = cut_from_scribble(image, scribble, affinity)
        assert found is not None
        assert iou(found.mask, affinity > 0.5) > 0.9


@pytest.mark.slow
def test_grey_images_and_threads_give_the_same_answer_each_time(empty: Scribble) -> None:
    coins = np.repeat(data.coins()[:120, :160, None], 3, axis=2)
    scribble = replace(empty, positive_xy=xy((45, 54)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: cut_from_scribble(coins, scribble), range(6)))
    assert found[0] is not None
    for other in found:
        assert other is not None
        assert np.array_equal(other.mask, found[0].mask)
        assert other.score == found[0].score


def test_wrong_shapes_are_named(discs: tuple[Image, list[Mask]]) -> None:
    image, _ = discs
    point = xy((4, 4))
    with pytest.raises(BadInputError, match="uint8"):
        cut_from_scribble(image.astype(np.float32), Scribble((120, 160), point))
    with pytest.raises(BadInputError, match="scribble"):
        cut_from_scribble(image, Scribble((240, 320), point))
    with pytest.raises(BadInputError, match="affinity"):
        cut_from_scribble(image, Scribble((120, 160), point), np.zeros((3, 3), np.float32))


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    kinds=st.sets(st.sampled_from(["point", "negative", "box", "stroke", "affinity"])),
    seed=st.integers(0, 1000),
)
def test_any_scribble_on_any_tiny_image_keeps_its_promises(height: int, width: int, kinds: set[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    size_xy = np.array([width, height])
    positive = rng.integers(0, size_xy, (2, 2)) if "point" in kinds else np.zeros((0, 2))
    negative = rng.integers(0, size_xy, (2, 2)) if "negative" in kinds else np.zeros((0, 2))
    corners = np.sort(rng.uniform(-3, size_xy + 3, (2, 2)), axis=0).reshape(1, 4)
    scribble = Scribble(
        (height, width),
        positive.astype(np.float32) + 0.5,
        negative.astype(np.float32) + 0.5,
        corners.astype(np.float32) if "box" in kinds else np.zeros((0, 4), np.float32),
        rng.random((height, width)) < 0.1 if "stroke" in kinds else None,
    )
    affinity = rng.random((height, width)).astype(np.float32) if "affinity" in kinds else None
    found = cut_from_scribble(image, scribble, affinity)
    if found is None:
        return
    assert found.mask.shape == (height, width)
    assert found.mask.dtype == np.bool_
    assert found.mask.any()
    assert 0 <= found.score <= 1
    marked_out = {tuple(point) for point in negative.tolist()}
    assert not any(found.mask[int(y), int(x)] for x, y in marked_out)
    inside = [(x, y) for x, y in positive.tolist() if (x, y) not in marked_out]
    assert all(found.mask[int(y), int(x)] for x, y in inside)


def coin_tiles() -> list[tuple[Image, Mask]]:
    """Each of the 24 coins with the tile that holds most of it; masks by scikit-image's watershed tutorial."""
    coins = data.coins()
    markers = np.where(coins < 30, 1, np.where(coins > 150, 2, 0)).astype(np.int32)
    filled = ndimage.binary_fill_holes(watershed(sobel(coins), markers) == 2)
    labels, count = ndimage.label(ndimage.binary_opening(filled, iterations=2))
    masks = [labels == index for index in range(1, count + 1) if (labels == index).sum() > 500]
    found = []
    for row, column in TILES:
        window = np.s_[row * 151 : row * 151 + 151, column * 128 : column * 128 + 128]
        tile = np.repeat(coins[window][..., None], 3, axis=2)
        found += [(tile, mask[window]) for mask in masks if mask[window].sum() > 0.5 * mask.sum()]
    return found


def coin_scribble(mask: Mask, kind: str, rng: np.random.Generator) -> Scribble:
    yx = np.argwhere(mask)
    centre, radius = yx.mean(axis=0)[::-1] + 0.5, np.sqrt(mask.sum() / np.pi)
    angle = rng.uniform(0, 2 * np.pi)
    toward = np.array([np.cos(angle), np.sin(angle)])
    if kind == "point":
        return Scribble((mask.shape[0], mask.shape[1]), xy(tuple(centre + toward * radius * 0.6 * rng.random())))
    if kind == "box":
        low, high = yx.min(axis=0)[::-1] - 2, yx.max(axis=0)[::-1] + 3
        return Scribble((mask.shape[0], mask.shape[1]), boxes_xyxy=np.array([[*low, *high]], np.float32))
    stroke = np.zeros(mask.shape, np.uint8)
    ends = [tuple(int(v) for v in centre + sign * toward * radius * 0.6) for sign in (-1, 1)]
    cv2.line(stroke, ends[0], ends[1], 1, 3)
    return Scribble((mask.shape[0], mask.shape[1]), positive_strokes=stroke > 0)


@pytest.mark.parametrize("kind", ["point", "stroke", "box"])
@pytest.mark.slow
def test_each_coin_is_cut_from_one_scribble(kind: str) -> None:
    rng = np.random.default_rng(7)
    tiles = coin_tiles()
    assert len(tiles) == 24
    found = [cut_from_scribble(tile, coin_scribble(mask, kind, rng)) for tile, mask in tiles]
    ious = [0.0 if one is None else iou(one.mask, mask) for one, (_, mask) in zip(found, tiles, strict=True)]
    assert sum(value >= 0.9 for value in ious) >= 22, sorted(ious)[:4]
