"""The threshold that a map sets itself."""

import pytest
import torch

from backend.core.score_map import map_peak, recentre_log_odds


def test_peak_is_the_mean_of_the_highest_percent() -> None:
    score_map = torch.zeros(20, 20)
    score_map[0, :4] = torch.tensor([0.9, 0.7, 0.8, 0.6])
    assert map_peak(score_map) == pytest.approx(0.75)
    assert map_peak(torch.tensor([[0.3]])) == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["smooth", "one high patch between the samples", "flat", "the sample misleads"])
def test_peak_of_a_picture_is_that_of_all_its_pixels(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    score_map = torch.rand(384, 512, generator=generator)
    if kind == "smooth":
        score_map = torch.nn.functional.interpolate(score_map[None, None, :24, :32], (384, 512), mode="bilinear")[0, 0]
    elif kind == "flat":
        score_map = torch.full((384, 512), 0.25)
    elif kind == "one high patch between the samples":
        score_map = torch.zeros(384 * 512)
        score_map[1:60] = 0.9
        score_map[::61] = 0.5
    elif kind == "the sample misleads":
        score_map.view(-1)[: 61 * 200 : 61] = 2.0
    highest = score_map.flatten().sort(descending=True).values[: 384 * 512 // 100]
    assert map_peak(score_map) == float(highest.mean())


@pytest.mark.parametrize("peak", [0.05, 0.5, 1.0])
def test_recentred_map_keeps_order_and_crosses_a_half_below_its_peak(peak: float) -> None:
    score_map = torch.linspace(0, peak, 101)
    prior = recentre_log_odds(score_map, peak)
    assert bool((prior.diff() >= 0).all())
    assert bool((prior[score_map > 0.61 * peak] > 0.5).all())
    assert bool((prior[score_map < 0.59 * peak] < 0.5).all())
