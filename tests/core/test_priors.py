"""The threshold that a map sets itself."""

import pytest
import torch

from backend.core.priors import map_peak, recentre_map


def test_peak_is_the_mean_of_the_highest_percent() -> None:
    score_map = torch.zeros(20, 20)
    score_map[0, :4] = torch.tensor([0.9, 0.7, 0.8, 0.6])
    assert map_peak(score_map) == pytest.approx(0.75)
    assert map_peak(torch.tensor([[0.3]])) == pytest.approx(0.3)


@pytest.mark.parametrize("peak", [0.05, 0.5, 1.0])
def test_recentred_map_keeps_order_and_crosses_a_half_below_its_peak(peak: float) -> None:
    score_map = torch.linspace(0, peak, 101)
    prior = recentre_map(score_map, peak)
    assert bool((prior.diff() >= 0).all())
    assert bool((prior[score_map > 0.61 * peak] > 0.5).all())
    assert bool((prior[score_map < 0.59 * peak] < 0.5).all())
