"""Strokes kept apart: cropped, packed, split into pieces."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from backend.core.strokes import MOST_STROKES, connected_pieces, mask_to_stroke, paint_strokes, stroke_mask
from backend.core.types import Mask

SIZE_HW = (9, 13)


@given(hypothesis_numpy.arrays(bool, SIZE_HW, elements=st.booleans()))
def test_a_mask_comes_back_whole_and_in_pieces(mask: Mask) -> None:
    stroke = mask_to_stroke(mask)
    if stroke is None:
        assert not mask.any()
        return
    assert stroke.area_px == mask.sum()
    assert np.array_equal(paint_strokes([stroke], SIZE_HW), mask)
    pieces = connected_pieces(stroke)
    assert sum(piece.area_px for piece in pieces) == stroke.area_px
    assert np.array_equal(paint_strokes(pieces, SIZE_HW), mask)


def test_a_stroke_is_cropped() -> None:
    mask = np.zeros((100, 200), bool)
    mask[40:50, 160:164] = True
    stroke = mask_to_stroke(mask)
    assert stroke is not None
    assert (stroke.left, stroke.top, stroke.size_hw, stroke.area_px) == (160, 40, (10, 4), 40)
    assert stroke.bits.nbytes == 5
    assert stroke_mask(stroke).all()


def test_too_many_pieces_stay_one() -> None:
    dots = np.zeros((2, 2 * MOST_STROKES + 2), bool)
    dots[0, ::2] = True
    stroke = mask_to_stroke(dots)
    assert stroke is not None
    assert connected_pieces(stroke) == [stroke]
