"""Clicks on a crack become the crack; clicks on anything else do not."""

import time

import cv2
import numpy as np
import pytest

from backend.core.cancellation import TimeLimitError, time_limit
from backend.core.masks import iou
from backend.core.ridge_path import is_line, ridge_path
from backend.core.types import Image, Mask

CRACK = [(20, 30), (70, 60), (120, 50), (190, 100), (260, 90), (300, 130)]


def drawn(*lines: list[tuple[int, int]], width: int = 5, contrast: int = 70, seed: int = 0) -> tuple[Image, Mask]:
    """A grey image of 200x320 px with lines of `contrast`, and their mask."""
    mask = np.zeros((200, 320), np.uint8)
    for line in lines:
        cv2.polylines(mask, [np.array(line, np.int32)], False, 1, width)
    noise = np.random.default_rng(seed).normal(0, 6, (200, 320, 1))
    grey = cv2.GaussianBlur(150 - contrast * mask.astype(np.float32), (0, 0), 0.8)[..., None] + noise
    return np.repeat(np.clip(grey, 0, 255), 3, axis=2).astype(np.uint8), mask > 0


@pytest.mark.parametrize("contrast", [70, -70])
@pytest.mark.parametrize("width", [3, 7])
def test_two_clicks_at_its_ends_give_the_whole_line(width: int, contrast: int) -> None:
    image, mask = drawn(CRACK, width=width, contrast=contrast)
    found = ridge_path(image, np.array([CRACK[0], CRACK[-1]], np.float32))
    assert found is not None
    assert iou(found.mask, mask) > 0.6


@pytest.mark.slow
def test_a_line_in_a_large_image_is_found_at_its_own_width() -> None:
    image, mask = drawn(CRACK, width=5)
    image, mask = (
        cv2.resize(one, (1600, 1000), interpolation=cv2.INTER_LINEAR) for one in (image, mask.astype(np.uint8))
    )
    found = ridge_path(image, np.array([CRACK[0], CRACK[-1]], np.float32) * 5)
    assert found is not None
    assert found.mask.shape == (1000, 1600)
    assert iou(found.mask, mask > 0) > 0.6


def test_clicks_on_two_lines_give_both_and_nothing_between() -> None:
    upper, lower = [(20, 30), (300, 40)], [(20, 150), (300, 170)]
    image, mask = drawn(upper, lower)
    found = ridge_path(image, np.array([upper[0], upper[1], lower[1], lower[0]], np.float32))
    assert found is not None
    assert iou(found.mask, mask) > 0.5
    assert not found.mask[70:120].any()


@pytest.mark.parametrize("points", [[(60, 100)], [(60, 100), (240, 60)], [(20, 30), (300, 130), (100, 180)]])
def test_a_click_on_no_line_gives_nothing(points: list[tuple[int, int]]) -> None:
    image, _ = drawn(CRACK)
    assert ridge_path(image, np.array(points, np.float32)) is None


def test_clicks_on_two_discs_give_nothing() -> None:
    noise = np.random.default_rng(0).normal(0, 6, (200, 320, 3))
    image: Image = np.clip(150 + noise, 0, 255).astype(np.uint8)
    for centre in ((80, 100), (240, 100)):
        cv2.circle(image, centre, 30, (60, 60, 60), cv2.FILLED)
    assert ridge_path(image, np.array([(80, 100), (240, 100)], np.float32)) is None


def test_clicks_outside_the_image_are_moved_to_its_border() -> None:
    image, _ = drawn([(0, 30), (319, 30)])
    found = ridge_path(image, np.array([(-5, 30), (400, 30)], np.float32))
    assert found is not None
    assert found.mask.any()


def test_clicks_far_outside_the_image_are_no_error() -> None:
    image, _ = drawn(CRACK)
    assert ridge_path(image, np.array([(5000, 9000), (6000, 9000)], np.float32)) is None


@pytest.mark.slow
def test_a_path_through_many_clicks_ends_when_its_time_is_over() -> None:
    image, _ = drawn(CRACK)
    clicks = np.array([CRACK[0], CRACK[-1]] * 2000, np.float32)
    with pytest.raises(TimeLimitError, match="too many"), time_limit(time.thread_time() + 1, "too many"):
        ridge_path(image, clicks)


def test_a_mask_of_lines_is_told_from_one_of_dots_and_one_of_a_thing() -> None:
    assert is_line(drawn(CRACK)[1])
    assert is_line(drawn([(20, 30), (300, 40)], [(20, 150), (300, 170)])[1])
    dots = np.zeros((200, 320), np.uint8)
    for x in range(20, 320, 40):
        cv2.circle(dots, (x, 100), 4, 1, cv2.FILLED)
    assert not is_line(dots > 0)
    assert not is_line(drawn([(20, 100), (300, 100)], width=60)[1])
    assert not is_line(np.zeros((50, 50), bool))
