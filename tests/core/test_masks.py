"""Masks cleaned, kept apart, resized."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.masks import clean_mask, iou, mask_to_size, resolve_overlaps
from backend.core.types import Mask


def disc(size: int, radius: float) -> Mask:
    y, x = np.mgrid[:size, :size] + 0.5
    inside: Mask = (y - size / 2) ** 2 + (x - size / 2) ** 2 < radius**2
    return inside


def test_specks_go_and_holes_are_filled() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    mask[15:17, 15:17] = False
    mask[2, 2] = True
    cleaned = clean_mask(mask, small_component_px=5, hole_px=5)
    assert cleaned[10:30, 10:30].all()
    assert cleaned.sum() == 400


@pytest.mark.parametrize("mask", [np.zeros((5, 5), bool), np.ones((5, 5), bool)])
def test_uniform_masks_stay(mask: NDArray[Any]) -> None:
    assert np.array_equal(clean_mask(mask, small_component_px=3, hole_px=3), mask)


def test_overlaps_go_to_the_higher_prior_and_nothing_is_lost() -> None:
    left, right = np.zeros((4, 10), bool), np.zeros((4, 10), bool)
    left[:, :6], right[:, 4:] = True, True
    slope = np.tile(np.linspace(0, 1, 10, dtype=np.float32), (4, 1))
    first, second = resolve_overlaps([left, right], [1 - slope, slope])
    assert not (first & second).any()
    assert np.array_equal(first | second, left | right)
    assert first[:, 4].all()
    assert second[:, 5].all()


@pytest.mark.parametrize("size_hw", [(400, 400), (50, 50), (333, 291)])
def test_a_resized_disc_stays_a_disc(size_hw: tuple[int, int]) -> None:
    y, x = (np.arange(side) + 0.5 for side in size_hw)
    wanted = ((y[:, None] / size_hw[0] - 0.5) ** 2 + (x[None] / size_hw[1] - 0.5) ** 2) < 0.3**2
    assert iou(mask_to_size(disc(100, 30), size_hw), wanted) > 0.95


def test_iou_of_empty_masks_is_one() -> None:
    assert iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1.0
    assert iou(np.ones((2, 2), bool), np.zeros((2, 2), bool)) == 0.0
