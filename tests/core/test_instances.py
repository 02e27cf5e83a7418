"""One mask an object."""

import cv2
import numpy as np
import pytest

from backend.core.instances import cut_instances, split_instances
from backend.core.masks import mask_to_size, nearest_to_size
from backend.core.types import Mask


def _discs(*discs: tuple[int, int, int], size_hw: tuple[int, int] = (120, 160)) -> Mask:
    picture = np.zeros(size_hw, np.uint8)
    for x, y, radius in discs:
        cv2.circle(picture, (x, y), radius, 1, -1)
    return picture > 0


def _counts(mask: Mask) -> list[int]:
    return [int(count) for count in np.bincount(split_instances(mask)[mask])]


def test_separate_pieces_are_objects_from_large_to_small() -> None:
    counts = _counts(_discs((30, 30, 10), (90, 60, 25), (140, 100, 5)))
    assert len(counts) == 3
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("gap", [-6, -2, 0, 2])
def test_touching_discs_are_two_objects_of_about_their_size(gap: int) -> None:
    mask = _discs((50, 60, 22), (50 + 44 + gap, 60, 22))
    counts = _counts(mask)
    assert len(counts) == 2
    assert min(counts) > 0.42 * mask.sum()


@pytest.mark.parametrize("size", [(8, 100), (30, 100), (60, 60), (1, 90), (3, 3)])
def test_a_bar_stays_one_object(size: tuple[int, int]) -> None:
    mask = np.zeros((120, 160), bool)
    mask[20 : 20 + size[0], 30 : 30 + size[1]] = True
    assert len(_counts(mask)) == 1


def test_an_ellipse_and_an_object_cut_off_by_the_image_stay_one() -> None:
    picture = np.zeros((120, 160), np.uint8)
    cv2.ellipse(picture, (80, 60), (60, 20), 30, 0, 360, 1, -1)
    assert len(_counts(picture > 0)) == 1
    assert len(_counts(_discs((0, 60, 30)))) == 1


def test_every_pixel_of_the_frame_belongs_to_an_object() -> None:
    mask = _discs((30, 60, 20), (110, 60, 25))
    owner = split_instances(mask)
    assert owner.shape == mask.shape
    assert set(np.unique(owner)) == {0, 1}
    assert owner[60, 159] == owner[60, 110] == 0
    assert owner[60, 0] == owner[60, 30] == 1


def test_everything_and_nothing_are_one_object() -> None:
    assert np.array_equal(split_instances(np.zeros((9, 7), bool)), np.zeros((9, 7), np.int32))
    assert np.array_equal(split_instances(np.ones((9, 7), bool)), np.zeros((9, 7), np.int32))


@pytest.mark.slow
@pytest.mark.parametrize("size_hw", [(120, 160), (361, 477), (700, 500), (50, 61)])
def test_objects_cut_in_boxes_are_those_of_the_whole_frame(size_hw: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(size_hw))
    for _ in range(5):
        centres = zip(random.integers(0, 160, 12), random.integers(0, 120, 12), random.integers(1, 14, 12), strict=True)
        parted = _discs(*[(int(x), int(y), int(radius)) for x, y, radius in centres])
        natural = mask_to_size(parted, size_hw)
        owner = nearest_to_size(split_instances(parted), size_hw)
        whole = [natural & (owner == number) for number in range(int(owner.max()) + 1)]
        cut = cut_instances(natural, parted)
        assert [one.to_mask().tolist() for one in cut] == [one.tolist() for one in whole if one.any()]
        edges = [edge for one in cut for edge in (one.crop[0], one.crop[-1], one.crop[:, 0], one.crop[:, -1])]
        assert all(edge.any() for edge in edges)


def test_an_empty_mask_has_no_objects() -> None:
    assert cut_instances(np.zeros((40, 50), bool), np.zeros((9, 7), bool)) == []
