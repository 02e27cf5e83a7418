"""Matching is written once for NumPy's arrays and PyTorch's tensors: both give the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from backend.core import arrays
from backend.core.arrays import CPU, like, to_device, to_numpy
from backend.core.matching import (
    ReferenceBank,
    match_posterior,
    match_posteriors,
    match_prototype,
    match_softmatcher,
    with_others_as_background,
)
from backend.core.object_similarity import ObjectFeatureSpace, intra_reference_similarity, object_similarity
from backend.core.patch_classifier import PatchClassifier
from backend.core.score_map import map_peak, recentre_log_odds
from backend.engine.score_source import fuse

META = torch.device("meta")
MATCHES: dict[str, Callable[..., Any]] = {
    "posterior": match_posterior,
    "softmatcher": match_softmatcher,
    "prototype": match_prototype,
}


def bank_of(seed: int) -> ReferenceBank:
    draw = np.random.default_rng(seed)
    features = arrays.unit(draw.standard_normal((60, 16), np.float32))
    inside, weight = draw.random((2, 60), np.float32)
    classifier = PatchClassifier(features[0] * 3, np.array(0.1, np.float32), 0.25)
    return ReferenceBank(features, inside * weight, (1 - inside) * weight, features[:3], classifier)


def as_tensors(bank: ReferenceBank) -> ReferenceBank:
    assert bank.classifier is not None
    own = bank.classifier
    classifier = PatchClassifier(torch.from_numpy(own.direction), torch.from_numpy(own.constant), own.share)
    parts = bank.features, bank.foreground, bank.background, bank.objects
    features, foreground, background, objects = (torch.from_numpy(part) for part in parts)
    return ReferenceBank(features, foreground, background, objects, classifier)


TARGET = arrays.unit(np.random.default_rng(9).standard_normal((40, 16), np.float32))


def assert_same(found: Any, wanted: Any) -> None:
    for name in ("posterior", "matching"):
        own, other = getattr(found, name), getattr(wanted, name)
        assert isinstance(own, np.ndarray)
        assert isinstance(other, torch.Tensor)
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, other.numpy(), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", MATCHES)
def test_matchers_give_the_same_of_both(name: str) -> None:
    bank, target = bank_of(0), torch.from_numpy(TARGET)
    match = MATCHES[name]
    assert_same(match(bank, TARGET, temperature=0.1), match(as_tensors(bank), target, temperature=0.1))


def test_several_labels_give_the_same_of_both() -> None:
    banks, target = [bank_of(seed) for seed in (0, 1, 2)], torch.from_numpy(TARGET)
    tensors = [as_tensors(bank) for bank in banks]
    found, wanted = (
        match_posteriors(own, patches, temperature=0.1, similarity_floor=0.2)
        for own, patches in ((banks, TARGET), (tensors, target))
    )
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)
    for own, moved in zip(with_others_as_background(banks), with_others_as_background(tensors), strict=True):
        np.testing.assert_array_equal(own.background, moved.background.numpy())
    assert_same(fuse(found[:2]), fuse(wanted[:2]))


def test_similarities_and_score_maps_give_the_same_of_both() -> None:
    bank = bank_of(3)
    tensors, target = as_tensors(bank), torch.from_numpy(TARGET)
    weights = np.random.default_rng(1).random(len(TARGET), np.float32)
    typical = np.full(8, 0.05, np.float32)
    space = ObjectFeatureSpace(slice(-8, None), typical)
    of_tensors = ObjectFeatureSpace(slice(-8, None), torch.from_numpy(typical))
    assert object_similarity(bank.objects, TARGET, weights, space) == pytest.approx(
        object_similarity(tensors.objects, target, weights, of_tensors), abs=1e-5
    )
    assert intra_reference_similarity(bank.objects, space) == pytest.approx(
        intra_reference_similarity(tensors.objects, of_tensors), abs=1e-5
    )
    score_map = np.random.default_rng(2).random((150, 150), np.float32)
    peak = map_peak(score_map)
    assert peak == pytest.approx(map_peak(torch.from_numpy(score_map)), rel=1e-6)
    np.testing.assert_allclose(
        recentre_log_odds(score_map, peak), recentre_log_odds(torch.from_numpy(score_map), peak).numpy(), atol=1e-5
    )


def test_values_move_to_where_they_are_compared() -> None:
    assert to_device(torch.ones(2), CPU).tolist() == [1.0, 1.0]
    assert isinstance(to_device(TARGET, torch.device("cpu")), np.ndarray)
    assert to_device(TARGET, META).device == META
    assert to_device(torch.from_numpy(TARGET), META).device == META
    assert isinstance(like(TARGET, torch.ones(1)), torch.Tensor)
    assert isinstance(like(torch.ones(1), TARGET), np.ndarray)
    assert to_numpy(TARGET) is TARGET
    bank = bank_of(0)
    assert bank.to(CPU) is bank
    moved = bank.to(META)
    assert moved.classifier is not None
    assert (moved.features.device, moved.classifier.direction.device) == (META, META)


def test_extreme_odds_stay_finite() -> None:
    values = np.array([-1e4, -90.0, 0.0, 90.0, 1e4], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = arrays.sigmoid(values)
    np.testing.assert_allclose(found, [0, 0, 0.5, 1, 1], atol=1e-6)
    assert found.dtype == np.float32
