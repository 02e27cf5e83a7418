"""Score maps: the closed form against its pairwise oracle, and what must not change them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.core.matchers import FeatureScale, make_matcher
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


def unit(count: int, depth: int = 16, seed: int = 0) -> Tensor:
    vectors = torch.randn(count, depth, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def bank_of(features: Tensor, inside: Tensor, known: Tensor | None = None) -> ReferenceBank:
    certain = torch.ones_like(inside) if known is None else known
    return ReferenceBank(features, inside * certain, (1 - inside) * certain)


def reference(features: Tensor, inside: Tensor, known: Tensor | None = None, signature: str = "m") -> Reference:
    certain = torch.ones_like(inside) if known is None else known
    arrays = [array.numpy().astype(np.float16) for array in (features, inside, certain)]
    return Reference(arrays[0], arrays[1], arrays[2], signature)


def pairwise_softmatcher(foreground: Tensor, target: Tensor, temperature: float) -> Tensor:
    """The paper's definition: geometric mean over reference patches of the softmax over target patches."""
    log_softmax = torch.log_softmax(foreground.double() @ target.double().T / temperature, dim=1)
    return torch.softmax(log_softmax.mean(dim=0), dim=0)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("patches", [1, 7, 256, 2304])
def test_closed_form_equals_the_pairwise_oracle(patches: int, temperature: float) -> None:
    features, target = unit(40), unit(patches, seed=1)
    inside = (torch.arange(40) < 15).float()
    fast = match_softmatcher(bank_of(features, inside), target, temperature=temperature).matching
    slow = pairwise_softmatcher(features[:15], target, temperature)
    assert torch.allclose(fast.double(), slow, rtol=2e-4, atol=1e-12)


def test_posterior_equals_its_definition() -> None:
    features, target = unit(30), unit(20, seed=1)
    inside = torch.rand(30, generator=torch.Generator().manual_seed(2))
    kernel = torch.exp(features.double() @ target.double().T / 0.1)
    a = (inside.double() @ kernel) / inside.double().sum().sqrt()
    b = ((1 - inside.double()) @ kernel) / (1 - inside.double()).sum().sqrt()
    found = match_posterior(bank_of(features, inside), target, temperature=0.1, similarity_floor=0.2).posterior
    assert torch.allclose(found.double(), a / (a + b + np.exp(0.2 / 0.1)), rtol=1e-4)


@matchers
@pytest.mark.parametrize("temperature", [1e-4, 0.05, 10.0])
def test_posterior_is_in_range_and_matching_sums_to_one(name: MatcherName, temperature: float) -> None:
    bank = bank_of(unit(50), torch.rand(50, generator=torch.Generator().manual_seed(3)))
    found = make_matcher(name, FeatureScale(temperature))(bank, unit(30, seed=1))
    assert bool(((found.posterior >= 0) & (found.posterior <= 1)).all())
    assert float(found.matching.sum()) == pytest.approx(1, abs=1e-4)


@matchers
def test_order_of_references_changes_nothing(name: MatcherName) -> None:
    one = reference(unit(20), (torch.arange(20) < 5).float())
    other = reference(unit(30, seed=1), (torch.arange(30) < 9).float())
    target = unit(25, seed=2)
    first = make_matcher(name, FeatureScale(0.05))(gather_references([one, other], "m"), target)
    second = make_matcher(name, FeatureScale(0.05))(gather_references([other, one], "m"), target)
    assert torch.allclose(first.posterior, second.posterior, atol=1e-5)


@matchers
def test_a_duplicated_reference_changes_nothing(name: MatcherName) -> None:
    one = reference(unit(20), (torch.arange(20) < 5).float())
    target = unit(25, seed=2)
    once = make_matcher(name, FeatureScale(0.05))(gather_references([one], "m"), target)
    twice = make_matcher(name, FeatureScale(0.05))(gather_references([one, one], "m"), target)
    assert torch.allclose(once.posterior, twice.posterior, atol=1e-5)


@matchers
def test_a_target_made_of_the_reference_shows_its_mask(name: MatcherName) -> None:
    features = torch.cat([unit(1).repeat(5, 1), unit(1, seed=9).repeat(15, 1)])
    inside = (torch.arange(20) < 5).float()
    posterior = make_matcher(name, FeatureScale(0.05))(bank_of(features, inside), features).posterior
    assert bool((posterior[:5] > 0.9).all())
    assert bool((posterior[5:] < 0.1).all())


def test_an_unknown_patch_is_neither_object_nor_background() -> None:
    features = torch.cat([unit(1), unit(1), unit(1, seed=9)])
    inside = torch.tensor([1.0, 0.0, 0.0])
    target = unit(1)
    told = match_posterior(bank_of(features, inside), target, temperature=0.05).posterior
    unknown = match_posterior(
        bank_of(features, inside, torch.tensor([1.0, 0.0, 1.0])), target, temperature=0.05
    ).posterior
    assert float(told) < 0.6
    assert float(unknown) > 0.95


def test_a_negative_reference_lowers_the_posterior() -> None:
    positive = reference(torch.cat([unit(1), unit(1, seed=9)]), torch.tensor([1.0, 0.0]))
    negative = reference(unit(1), torch.zeros(1))
    alone = match_posterior(gather_references([positive], "m"), unit(1), temperature=0.05).posterior
    opposed = match_posterior(gather_references([positive, negative], "m"), unit(1), temperature=0.05).posterior
    assert float(opposed) < float(alone) - 0.2


def _banks(count: int) -> list[ReferenceBank]:
    inside = [torch.rand(12, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    return [bank_of(unit(12, seed=seed), own) for seed, own in enumerate(inside)]


@pytest.mark.parametrize("strange", [-1.0, 0.5])
def test_labels_know_each_others_objects_as_background(strange: float) -> None:
    """Each as if the others' objects were in its own bank, at one product a label."""
    banks, target = _banks(3), unit(20, seed=9)
    scales = {"temperature": 0.1, "similarity_floor": strange}
    together = match_posteriors(banks, target, **scales)
    each = [match_posterior(bank, target, **scales) for bank in with_others_as_background(banks)]
    for one, other in zip(together, each, strict=True):
        torch.testing.assert_close(one.posterior, other.posterior, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.matching, other.matching, atol=1e-6, rtol=1e-3)
    in_other_order = match_posteriors(banks[::-1], target, **scales)[::-1]
    for one, other in zip(together, in_other_order, strict=True):
        torch.testing.assert_close(one.posterior, other.posterior)


def test_a_sharp_temperature_gives_no_nan() -> None:
    """Where another label's background is far more alike, every term of a label vanishes."""
    alike, other = unit(1), -unit(1)
    banks = [bank_of(torch.cat([alike, other]), torch.tensor([0.0, 1.0])), bank_of(other, torch.ones(1))]
    for one in match_posteriors(banks, alike, temperature=0.005):
        assert float(one.posterior) == 0.0


def test_one_label_alone_is_the_posterior_itself() -> None:
    (bank,), target = _banks(1), unit(20, seed=9)
    (alone,) = match_posteriors([bank], target, temperature=0.1)
    assert torch.equal(alone.posterior, match_posterior(bank, target, temperature=0.1).posterior)
    assert with_others_as_background([bank]) == [bank]


def test_anothers_object_lowers_the_posterior_on_it_alone() -> None:
    mine, others = unit(1), unit(1, seed=9)
    banks = [bank_of(feature, torch.ones(1)) for feature in (mine, others)]
    target = torch.cat([mine, others])
    (own, _) = match_posteriors(banks, target, temperature=0.1, similarity_floor=0.0)
    alone = match_posterior(banks[0], target, temperature=0.1, similarity_floor=0.0)
    assert float(own.posterior[0]) > 0.9
    assert float(own.posterior[1]) < float(alone.posterior[1]) + 1e-6


@matchers
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_above_zero(name: MatcherName, temperature: float) -> None:
    with pytest.raises(BadInputError, match="temperature must be above 0"):
        make_matcher(name, FeatureScale(temperature))(bank_of(unit(4), torch.ones(4)), unit(3))


@matchers
def test_nan_in_the_target_is_rejected(name: MatcherName) -> None:
    with pytest.raises(BadInputError, match="target features must be finite"):
        make_matcher(name, FeatureScale(0.05))(bank_of(unit(4), torch.ones(4)), torch.full((3, 16), float("nan")))


@matchers
def test_target_of_another_depth_is_rejected(name: MatcherName) -> None:
    with pytest.raises(BadInputError, match=r"target must be \(T, 16\)"):
        make_matcher(name, FeatureScale(0.05))(bank_of(unit(4), torch.ones(4)), unit(3, depth=8))


def test_no_reference_is_rejected() -> None:
    with pytest.raises(BadInputError, match="at least one reference"):
        gather_references([], "m")


def test_references_that_mark_nothing_are_rejected() -> None:
    with pytest.raises(BadInputError, match="must mark something"):
        gather_references([reference(unit(4), torch.zeros(4))], "m")


def test_reference_of_another_model_is_rejected() -> None:
    with pytest.raises(BadInputError, match="must come from the models m, got other"):
        gather_references([reference(unit(4), torch.ones(4), signature="other")], "m")


def test_reference_with_nan_is_rejected() -> None:
    with pytest.raises(BadInputError, match="reference features must be finite"):
        gather_references([reference(torch.full((4, 16), float("nan")), torch.ones(4))], "m")


def test_reference_with_shapes_that_disagree_is_rejected() -> None:
    broken = Reference(np.zeros((4, 2), np.float16), np.ones(3, np.float16), np.ones(4, np.float16), "m")
    with pytest.raises(BadInputError, match="reference must have features"):
        gather_references([broken], "m")
