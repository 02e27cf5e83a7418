"""Draft strokes: the editor's rules, on masks small enough to reckon by hand."""

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


def test_no_touches_change_nothing() -> None:
    assert not draw_touches(blank(), []).any()
