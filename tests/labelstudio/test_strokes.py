"""Draft strokes: the editor's rules, on masks small enough to reckon by hand."""

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from backend.core.types import Mask
from backend.labelstudio.strokes import draw_touches


def touch(points_percent: list[float], width_percent: float, kind: str = "add") -> dict[str, Any]:
    return {"id": "t", "type": kind, "relativePoints": points_percent, "relativeStrokeWidth": width_percent}


def blank() -> Mask:
    return np.zeros((100, 200), np.bool_)


def test_a_stroke_is_a_line_with_round_ends_as_wide_as_percent_of_the_images_width() -> None:
    drawn = draw_touches(blank(), [touch([25, 50, 75, 50], 10)])

    assert drawn[:, 100].sum() == 20
    assert drawn[50].sum() == pytest.approx(100 + 20, abs=2)
    assert drawn.sum() == pytest.approx(100 * 20 + np.pi * 10**2, rel=0.02)


def test_points_are_percent_of_width_and_height() -> None:
    drawn = draw_touches(blank(), [touch([10, 80], 2)])
    y, x = np.nonzero(drawn)

    assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx((20, 80))


def test_an_eraser_cuts_what_is_there_in_the_order_of_the_touches() -> None:
    line, cut = touch([0, 50, 100, 50], 10), touch([50, 0, 50, 100], 10, "eraser")

    erased = draw_touches(blank(), [line, cut])
    assert not erased[50, 100]
    assert erased[50, 50]
    assert draw_touches(blank(), [cut, line])[50, 100]


def test_touches_are_drawn_over_the_old_mask_which_stays_as_it_was() -> None:
    old = np.ones((100, 200), np.bool_)
    new = draw_touches(old, [touch([50, 50], 10, "eraser")])

    assert old.all()
    assert not new[50, 100]
    assert new.sum() == pytest.approx(old.size - np.pi * 10**2, rel=0.02)


def test_corners_are_round() -> None:
    drawn = draw_touches(blank(), [touch([25, 50, 50, 50, 50, 90], 10)])

    assert drawn[50 - 7, 100 + 6]
    assert not drawn[50 - 9, 100 + 9]


def test_strokes_off_the_image_are_cut_at_its_edge() -> None:
    drawn = draw_touches(blank(), [touch([-50, -50, -20, -20], 5), touch([99, 50, 150, 50], 10)])

    assert drawn[50, 199]
    assert not drawn[:, :100].any()


def test_a_long_stroke_in_pieces_is_the_whole_stroke() -> None:
    drawn = draw_touches(np.zeros((600, 900), np.bool_), [touch([2, 3, 97, 91], 1.5)])
    y, x = np.mgrid[:600, :900] + 0.5
    start, step = np.array([18, 18.0]), np.array([855, 528.0])
    along = np.clip(((x - start[0]) * step[0] + (y - start[1]) * step[1]) / (step**2).sum(), 0, 1)
    distance = np.hypot(x - start[0] - along * step[0], y - start[1] - along * step[1])

    assert np.array_equal(drawn, distance <= 900 * 0.015 / 2)


@pytest.mark.parametrize("width_percent", [0.01, 2, 300, 900])
def test_strokes_over_a_huge_image_stay_quick_and_small(width_percent: float) -> None:
    tracemalloc.start()
    begun = time.process_time()
    drawn = draw_touches(np.zeros((3000, 4000), np.bool_), [touch([0, 0, 100, 100, 0, 50], width_percent)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert drawn.any()
    assert time.process_time() - begun < 10
    assert peak < 150e6


def test_no_touches_change_nothing() -> None:
    assert not draw_touches(blank(), []).any()
