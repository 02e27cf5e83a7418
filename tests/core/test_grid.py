"""Pixels to patches and back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.core.grid import map_to_size, mask_coverage
from backend.errors import BadInputError


@pytest.mark.slow
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_coverage_keeps_the_area(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    coverage = mask_coverage(mask, (rows, columns))
    assert coverage.shape == (rows, columns)
    assert float(coverage.mean()) == pytest.approx(float(mask.mean()), abs=1e-5)
    assert 0 <= float(coverage.min()) <= float(coverage.max()) <= 1 + 1e-6


def test_a_single_pixel_is_faint_but_not_lost() -> None:
    mask = np.zeros((64, 64), bool)
    mask[10, 20] = True
    coverage = mask_coverage(mask, (4, 4))
    assert float(coverage[0, 1]) == pytest.approx(1 / 256)
    assert float(coverage.sum()) == pytest.approx(1 / 256)


@pytest.mark.parametrize("mask", [np.zeros((2, 2, 3), bool), np.zeros((2, 2), np.uint8), np.zeros((0, 2), bool)])
def test_what_is_no_mask_is_rejected(mask: NDArray[Any]) -> None:
    with pytest.raises(BadInputError, match="mask must be"):
        mask_coverage(mask, (2, 2))


def test_a_map_at_another_size_stays_in_its_range() -> None:
    score_map = np.random.default_rng(0).random((5, 7), np.float32)
    picture = map_to_size(score_map, (33, 50))
    assert picture.shape == (33, 50)
    assert float(score_map.min()) <= float(picture.min())
    assert float(picture.max()) <= float(score_map.max())
