"""Masks as outline paths and back."""

import numpy as np
import pytest

from backend.core.masks import iou
from backend.core.types import BoxedMask
from backend.drawing.outline_path import GRID, MOST_CHARACTERS, grid_size, mask_to_path, path_to_mask


def test_path_encloses_the_mask_with_its_hole() -> None:
    mask = np.zeros((240, 320), bool)
    mask[20:200, 30:250] = True
    mask[80:120, 100:160] = False
    path = mask_to_path(mask)
    assert path.count("M") == path.count("Z") == 2
    back = path_to_mask(path, (240, 320))
    assert back.shape == (240, 320)
    assert iou(back, mask) > 0.97
    assert not back[100, 130]


def test_grid_has_the_images_shape() -> None:
    assert grid_size((480, 640)) == (GRID * 3 // 4, GRID)
    assert grid_size((0, 0)) == (GRID, GRID)
    assert grid_size((1, 100_000)) == (1, GRID)


def test_empty_mask_has_no_path() -> None:
    assert mask_to_path(np.zeros((9, 9), bool)) == ""
    assert not path_to_mask("", (9, 9)).any()


def test_object_smaller_than_a_unit_is_drawn() -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[1500, 2000] = True
    assert path_to_mask(mask_to_path(mask), (3000, 4000)).any()


def test_object_that_leaves_no_trace_on_the_grid_is_drawn_where_it_is() -> None:
    mask = np.zeros((100, 20_000), bool)
    mask[50, 15_000] = True
    drawn = path_to_mask(mask_to_path(mask), (100, 20_000))
    assert 0 < drawn.sum() <= 9
    assert abs(int(np.flatnonzero(drawn.any(axis=0)).mean()) - 240) <= 1


@pytest.mark.parametrize("size_hw", [(3024, 4032), (3000, 4000), (479, 641), (1, 900), (200, 300), (1999, 1013)])
def test_a_mask_in_its_box_has_the_path_of_the_whole_mask(size_hw: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(size_hw))
    height, width = size_hw
    for _ in range(8):
        (top, bottom), (left, right) = (sorted(random.integers(0, side + 1, 2)) for side in size_hw)
        bottom, right = max(bottom, min(top + 1, height)), max(right, min(left + 1, width))
        top, left = min(top, bottom - 1), min(left, right - 1)
        y, x = np.ogrid[top:bottom, left:right]
        crop = np.hypot((y - top) / (bottom - top) - 0.5, (x - left) / (right - left) - 0.5) < random.uniform(0.1, 0.7)
        boxed = BoxedMask(size_hw, int(top), int(left), crop)
        assert mask_to_path(boxed) == mask_to_path(boxed.to_mask())


def test_path_of_noise_is_bounded() -> None:
    mask = np.random.default_rng(0).random((400, 400)) > 0.5
    assert 0 < len(mask_to_path(mask)) <= MOST_CHARACTERS


@pytest.mark.parametrize("path", ["<script>", "M 1 2Z M", "M 1.5 2Z", "M 1 99999Z"])
def test_what_is_no_path_is_rejected(path: str) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        path_to_mask(path, (9, 9))
