"""Score maps: the closed form against its pairwise oracle, and what must not change them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from backend.core.arrays import unit as unit_length
from backend.core.feature_scale import FeatureScale
from backend.core.matchers import make_matcher
from backend.core.matching import (
    ReferenceBank,
    gather_references,
    match_posterior,
    match_posteriors,
    match_softmatcher,
    with_others_as_background,
)
from backend.core.types import MatcherName, Reference
from backend.errors import BadInputError

matchers = pytest.mark.parametrize("name", ["posterior", "softmatcher"])


def unit(count: int, depth: int = 16, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, depth), np.float32)
    return np.asarray(unit_length(vectors))


def bank_of(
    features: NDArray[np.float32], inside: NDArray[np.float32], known: NDArray[np.float32] | None = None
) -> ReferenceBank:
    certain = np.ones_like(inside) if known is None else known
    return ReferenceBank(features, inside * certain, (1 - inside) * certain)


def reference(
    features: NDArray[np.float32],
    inside: NDArray[np.float32],
    known: NDArray[np.float32] | None = None,
    signature: str = "m",
) -> Reference:
    certain = np.ones_like(inside) if known is None else known
    arrays = [array.astype(np.float16) for array in (features, inside, certain)]
    return Reference(arrays[0], arrays[1], arrays[2], signature)


def pairwise_softmatcher(
    foreground: NDArray[np.float32], target: NDArray[np.float32], temperature: float
) -> NDArray[np.float32]:
    """The paper's definition: geometric mean over reference patches of the softmax over target patches."""
    logs = log_softmax(foreground.astype(np.float64) @ target.astype(np.float64).T / temperature, axis=1)
    return np.asarray(softmax(logs.mean(axis=0)))


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("patches", [1, 7, 256, 2304])
def test_closed_form_equals_the_pairwise_oracle(patches: int, temperature: float) -> None:
    features, target = unit(40), unit(patches, seed=1)
    inside = (np.arange(40) < 15).astype(np.float32)
    fast = match_softmatcher(bank_of(features, inside), target, temperature=temperature).matching
    slow = pairwise_softmatcher(features[:15], target, temperature)
    assert np.allclose(fast.astype(np.float64), slow, rtol=2e-4, atol=1e-12)


def test_posterior_equals_its_definition() -> None:
    features, target = unit(30), unit(20, seed=1)
    inside = np.random.default_rng(2).random(30, np.float32)
    kernel = np.exp(features.astype(np.float64) @ target.astype(np.float64).T / 0.1)
    a = (inside.astype(np.float64) @ kernel) / np.sqrt(inside.astype(np.float64).sum())
    b = ((1 - inside.astype(np.float64)) @ kernel) / np.sqrt((1 - inside.astype(np.float64)).sum())
    found = match_posterior(bank_of(features, inside), target, temperature=0.1, similarity_floor=0.2).posterior
    assert np.allclose(found.astype(np.float64), a / (a + b + np.exp(0.2 / 0.1)), rtol=1e-4)


@matchers
@pytest.mark.parametrize("temperature", [1e-4, 0.05, 10.0])
def test_posterior_is_in_range_and_matching_sums_to_one(name: MatcherName, temperature: float) -> None:
    bank = bank_of(unit(50), np.random.default_rng(3).random(50, np.float32))
    found = make_matcher(name, FeatureScale(temperature))(bank, unit(30, seed=1))
    assert bool(((found.posterior >= 0) & (found.posterior <= 1)).all())
    assert float(found.matching.sum()) == pytest.approx(1, abs=1e-4)


@matchers
def test_order_of_references_changes_nothing(name: MatcherName) -> None:
    one = reference(unit(20), (np.arange(20) < 5).astype(np.float32))
    other = reference(unit(30, seed=1), (np.arange(30) < 9).astype(np.float32))
    target = unit(25, seed=2)
    first = make_matcher(name, FeatureScale(0.05))(gather_references([one, other], "m"), target)
    second = make_matcher(name, FeatureScale(0.05))(gather_references([other, one], "m"), target)
    assert np.allclose(first.posterior, second.posterior, atol=1e-5)


@matchers
def test_a_duplicated_reference_changes_nothing(name: MatcherName) -> None:
    one = reference(unit(20), (np.arange(20) < 5).astype(np.float32))
    target = unit(25, seed=2)
    once = make_matcher(name, FeatureScale(0.05))(gather_references([one], "m"), target)
    twice = make_matcher(name, FeatureScale(0.05))(gather_references([one, one], "m"), target)
    assert np.allclose(once.posterior, twice.posterior, atol=1e-5)


@matchers
def test_a_target_made_of_the_reference_shows_its_mask(name: MatcherName) -> None:
    features = np.concatenate([unit(1)] * 5 + [unit(1, seed=9)] * 15)
    inside = (np.arange(20) < 5).astype(np.float32)
    posterior = make_matcher(name, FeatureScale(0.05))(bank_of(features, inside), features).posterior
    assert bool((posterior[:5] > 0.9).all())
    assert bool((posterior[5:] < 0.1).all())


def test_an_unknown_patch_is_neither_object_nor_background() -> None:
    features = np.concatenate([unit(1), unit(1), unit(1, seed=9)])
    inside = np.array([1.0, 0.0, 0.0], np.float32)
    target = unit(1)
    told = match_posterior(bank_of(features, inside), target, temperature=0.05).posterior
    unknown = match_posterior(
        bank_of(features, inside, np.array([1.0, 0.0, 1.0], np.float32)), target, temperature=0.05
    ).posterior
    assert told.item() < 0.6
    assert unknown.item() > 0.95


def test_a_negative_reference_lowers_the_posterior() -> None:
    positive = reference(np.concatenate([unit(1), unit(1, seed=9)]), np.array([1.0, 0.0], np.float32))
    negative = reference(unit(1), np.zeros(1, np.float32))
    alone = match_posterior(gather_references([positive], "m"), unit(1), temperature=0.05).posterior
    opposed = match_posterior(gather_references([positive, negative], "m"), unit(1), temperature=0.05).posterior
    assert opposed.item() < alone.item() - 0.2


def _banks(count: int) -> list[ReferenceBank]:
    inside = [np.random.default_rng(seed).random(12, np.float32) for seed in range(count)]
    return [bank_of(unit(12, seed=seed), own) for seed, own in enumerate(inside)]


@pytest.mark.parametrize("strange", [-1.0, 0.5])
def test_labels_know_each_others_objects_as_background(strange: float) -> None:
    """Each as if the others' objects were in its own bank, at one product a label."""
    banks, target = _banks(3), unit(20, seed=9)
    scales = {"temperature": 0.1, "similarity_floor": strange}
    together = match_posteriors(banks, target, **scales)
    each = [match_posterior(bank, target, **scales) for bank in with_others_as_background(banks)]
    for one, other in zip(together, each, strict=True):
        np.testing.assert_allclose(one.posterior, other.posterior, atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(one.matching, other.matching, atol=1e-6, rtol=1e-3)
    in_other_order = match_posteriors(banks[::-1], target, **scales)[::-1]
    for one, other in zip(together, in_other_order, strict=True):
        np.testing.assert_allclose(one.posterior, other.posterior, rtol=1e-5)


def test_a_sharp_temperature_gives_no_nan() -> None:
    """Where another label's background is far more alike, every term of a label vanishes."""
    alike, other = unit(1), -unit(1)
    banks = [
        bank_of(np.concatenate([alike, other]), np.array([0.0, 1.0], np.float32)),
        bank_of(other, np.ones(1, np.float32)),
    ]
    for one in match_posteriors(banks, alike, temperature=0.005):
        assert one.posterior.item() == 0.0


def test_one_label_alone_is_the_posterior_itself() -> None:
    (bank,), target = _banks(1), unit(20, seed=9)
    (alone,) = match_posteriors([bank], target, temperature=0.1)
    assert np.array_equal(alone.posterior, match_posterior(bank, target, temperature=0.1).posterior)
    assert with_others_as_background([bank]) == [bank]


def test_anothers_object_lowers_the_posterior_on_it_alone() -> None:
    mine, others = unit(1), unit(1, seed=9)
    banks = [bank_of(feature, np.ones(1, np.float32)) for feature in (mine, others)]
    target = np.concatenate([mine, others])
    (own, _) = match_posteriors(banks, target, temperature=0.1, similarity_floor=0.0)
    alone = match_posterior(banks[0], target, temperature=0.1, similarity_floor=0.0)
    assert float(own.posterior[0]) > 0.9
    assert float(own.posterior[1]) < float(alone.posterior[1]) + 1e-6


@matchers
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_above_zero(name: MatcherName, temperature: float) -> None:
    with pytest.raises(BadInputError, match="temperature must be above 0"):
        make_matcher(name, FeatureScale(temperature))(bank_of(unit(4), np.ones(4, np.float32)), unit(3))


@matchers
def test_nan_in_the_target_is_rejected(name: MatcherName) -> None:
    with pytest.raises(BadInputError, match="target features must be finite"):
        make_matcher(name, FeatureScale(0.05))(
            bank_of(unit(4), np.ones(4, np.float32)), np.full((3, 16), np.nan, np.float32)
        )


@matchers
def test_target_of_another_depth_is_rejected(name: MatcherName) -> None:
    with pytest.raises(BadInputError, match=r"target must be \(T, 16\)"):
        make_matcher(name, FeatureScale(0.05))(bank_of(unit(4), np.ones(4, np.float32)), unit(3, depth=8))


def test_no_reference_is_rejected() -> None:
    with pytest.raises(BadInputError, match="at least one reference"):
        gather_references([], "m")


def test_references_that_mark_nothing_are_rejected() -> None:
    with pytest.raises(BadInputError, match="must mark something"):
        gather_references([reference(unit(4), np.zeros(4, np.float32))], "m")


def test_reference_of_another_model_is_rejected() -> None:
    with pytest.raises(BadInputError, match="must come from the models m, got other"):
        gather_references([reference(unit(4), np.ones(4, np.float32), signature="other")], "m")


def test_reference_with_nan_is_rejected() -> None:
    with pytest.raises(BadInputError, match="reference features must be finite"):
        gather_references([reference(np.full((4, 16), np.nan, np.float32), np.ones(4, np.float32))], "m")


def test_reference_with_shapes_that_disagree_is_rejected() -> None:
    broken = Reference(np.zeros((4, 2), np.float16), np.ones(3, np.float16), np.ones(4, np.float16), "m")
    with pytest.raises(BadInputError, match="reference must have features"):
        gather_references([broken], "m")
