"""The threshold that a map sets itself."""

import numpy as np
import pytest

from backend.core.grid import map_to_size
from backend.core.score_map import map_peak, recentre_log_odds


def test_peak_is_the_mean_of_the_highest_percent() -> None:
    score_map = np.zeros((20, 20), np.float32)
    score_map[0, :4] = np.array([0.9, 0.7, 0.8, 0.6], np.float32)
    assert map_peak(score_map) == pytest.approx(0.75)
    assert map_peak(np.array([[0.3]], np.float32)) == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["smooth", "one high patch between the samples", "flat", "the sample misleads"])
def test_peak_of_a_picture_is_that_of_all_its_pixels(kind: str) -> None:
    draw = np.random.default_rng(0)
    score_map = draw.random((384, 512), np.float32)
    if kind == "smooth":
        score_map = map_to_size(score_map[:24, :32], (384, 512))
    elif kind == "flat":
        score_map = np.full((384, 512), 0.25, np.float32)
    elif kind == "one high patch between the samples":
        score_map = np.zeros(384 * 512, np.float32)
        score_map[1:60] = 0.9
        score_map[::61] = 0.5
    elif kind == "the sample misleads":
        score_map.reshape(-1)[: 61 * 200 : 61] = 2.0
    highest = np.sort(score_map.flatten())[::-1][: 384 * 512 // 100]
    assert map_peak(score_map) == pytest.approx(float(highest.mean()), rel=1e-6)


@pytest.mark.parametrize("peak", [0.05, 0.5, 1.0])
def test_recentred_map_keeps_order_and_crosses_a_half_below_its_peak(peak: float) -> None:
    score_map = np.linspace(0, peak, 101, dtype=np.float32)
    prior = recentre_log_odds(score_map, peak)
    assert bool((np.diff(prior) >= 0).all())
    assert bool((prior[score_map > 0.61 * peak] > 0.5).all())
    assert bool((prior[score_map < 0.59 * peak] < 0.5).all())
