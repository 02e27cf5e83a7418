"""Polygons enclose the masks that they are of, as their readers draw them."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from scipy import ndimage

from backend.core.types import Mask
from backend.exports.coco import to_coco_polygons
from backend.exports.outlines import edge_polygons, pixel_polygon

MASKS = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def as_coco_reads(mask: Mask, tolerance_px: float) -> Mask:
    """The mask that pycocotools makes of the polygons."""
    polygons = to_coco_polygons(mask, tolerance_px)
    if not polygons:
        return np.zeros_like(mask)
    height, width = mask.shape
    decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    return np.asarray(decoded) > 0


def as_ultralytics_draws(mask: Mask, tolerance_px: float) -> Mask:
    """As ultralytics.data.utils.polygon2mask does with a label file's numbers, at the image's size."""
    height, width = mask.shape
    written = np.round(pixel_polygon(mask, tolerance_px) / (width, height), 6)
    drawn = np.zeros(mask.shape, np.uint8)
    points = (written * (width, height)).astype(np.int32)
    cv2.fillPoly(drawn, [points], color=1)
    return drawn > 0


def blob(seed: int, size: int = 160) -> Mask:
    """Several components with holes."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 6)
    return np.asarray(noise > 0.02)


@pytest.mark.slow
@given(MASKS)
@settings(max_examples=300, deadline=None)
def test_edge_polygons_without_tolerance_are_the_mask_pixel_for_pixel(mask: Mask) -> None:
    assert np.array_equal(as_coco_reads(mask, 0), mask)


@pytest.mark.slow
@given(MASKS)
@settings(max_examples=300, deadline=None)
def test_a_pixel_polygon_covers_the_mask_and_adds_lines_only_between_components(mask: Mask) -> None:
    if not mask.any():
        return
    drawn = as_ultralytics_draws(mask, 0)
    assert not (mask & ~drawn).any()
    if ndimage.label(mask, np.ones((3, 3)))[1] == 1 and ndimage.label(~np.pad(mask, 1))[1] == 1:
        assert np.array_equal(drawn, mask)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance_px", [0.5, 1.0, 2.0])
def test_simplified_polygons_differ_near_the_outline_only(seed: int, tolerance_px: float) -> None:
    mask = blob(seed)
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # beyond the image is outside
    to_outline = np.where(mask, inside, ndimage.distance_transform_edt(~mask))
    wrong = as_coco_reads(mask, tolerance_px) != mask
    assert to_outline[wrong].max(initial=0) <= tolerance_px + 1
    missing = mask & ~as_ultralytics_draws(mask, tolerance_px)
    assert to_outline[missing].max(initial=0) <= tolerance_px + 1
    points = sum(len(ring) for ring in edge_polygons(mask, tolerance_px))
    assert points < sum(len(ring) for ring in edge_polygons(mask, 0))


def test_a_hole_stays_a_hole() -> None:
    ring = np.zeros((60, 60), bool)
    ring[5:55, 5:55] = True
    ring[20:40, 20:40] = False
    assert np.array_equal(as_coco_reads(ring, 1), ring)
    assert np.array_equal(as_ultralytics_draws(ring, 0), ring)
    assert not as_ultralytics_draws(ring, 2)[23:37, 23:37].any()


def test_two_components_of_one_object_stay_one_line_of_a_label_file() -> None:
    mask = np.zeros((40, 80), bool)
    mask[5:30, 5:30] = mask[10:35, 50:70] = True
    added = as_ultralytics_draws(mask, 1) & ~mask
    assert 0 < added.sum() <= 25, "a line of one pixel between the two"
    assert len(edge_polygons(mask, 1)) == 2


@pytest.mark.parametrize("pixels", [[(3, 4)], [(3, 4), (3, 5), (3, 6)], [(3, 4), (4, 5)]])
def test_points_and_lines_keep_their_pixels_and_have_a_box(pixels: list[tuple[int, int]]) -> None:
    mask = np.zeros((9, 9), bool)
    for row, column in pixels:
        mask[row, column] = True
    assert np.array_equal(as_ultralytics_draws(mask, 1), mask)
    polygon = pixel_polygon(mask, 1)
    assert len(polygon) >= 4
    assert (np.ptp(polygon, axis=0) > 0).all()
    assert np.array_equal(as_coco_reads(mask, 1), mask)


@pytest.mark.slow
def test_a_mask_of_noise_is_one_polygon_in_reasonable_time() -> None:
    mask = np.random.default_rng(0).random((300, 300)) < 0.3
    polygon = pixel_polygon(mask, 0)
    drawn = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(drawn, [polygon.astype(np.int32)], color=1)
    assert not (mask & (drawn == 0)).any()
