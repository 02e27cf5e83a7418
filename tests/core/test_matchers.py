"""What holds for every matcher, and what for those of other modules than `matching`."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.core.arrays import unit as unit_length
from backend.core.feature_scale import FeatureScale
from backend.core.matchers import MATCHERS, make_matcher
from backend.core.matching import (
    ReferenceBank,
    ScoreMap,
    gather_references,
    match_posterior,
    match_prototype,
    match_softmatcher,
)
from backend.core.optimal_transport import match_sinkhorn
from backend.core.random_features import match_random_features
from backend.core.types import MatcherName, Reference
from backend.errors import BadInputError

EVERY_MATCHER = pytest.mark.parametrize("name", sorted(MATCHERS))
DIMS, SIGNATURE = 24, "unit-vectors"
TEMPERATURE = 0.1


def random_features(bank: ReferenceBank, target: NDArray[np.float32], **options: Any) -> ScoreMap:
    """`match_random_features`, which takes and gives tensors."""
    found = match_random_features(bank.to_tensors(), torch.from_numpy(target), **options)
    return ScoreMap(found.posterior.numpy(), found.matching.numpy(), found.error)


def _directions(seed: int = 0) -> NDArray[np.float32]:
    """Three directions: object, background, something else."""
    return np.asarray(unit_length(np.random.default_rng(seed).standard_normal((3, DIMS), np.float32)))


def _around(direction: NDArray[np.float32], count: int, seed: int, noise: float = 0.4) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return np.asarray(unit_length(direction + noise * unit_length(draw.standard_normal((count, DIMS), np.float32))))


def _reference(
    seed: int = 1, inside: int = 12, outside: int = 28, unknown: NDArray[np.float32] | None = None
) -> Reference:
    thing, background, _ = _directions()
    features = [_around(thing, inside, seed), _around(background, outside, seed + 50)]
    marks = [np.ones(inside), np.zeros(outside)]
    known = [np.ones(inside + outside)]
    if unknown is not None:
        features.append(unknown)
        marks.append(np.zeros(len(unknown)))
        known.append(np.zeros(len(unknown)))
    return Reference(
        np.concatenate(features).astype(np.float16),
        np.concatenate(marks).astype(np.float16),
        np.concatenate(known).astype(np.float16),
        SIGNATURE,
    )


def _target(seed: int = 7) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(40, D) patches and which of them show the object."""
    thing, background, _ = _directions()
    return np.concatenate([_around(thing, 10, seed), _around(background, 30, seed + 1)]), np.arange(40) < 10


def _random_bank(count: int, seed: int) -> ReferenceBank:
    draw = np.random.default_rng(seed)
    features = unit_length(draw.standard_normal((count, DIMS), np.float32))
    inside = draw.random(count, np.float32)
    return ReferenceBank(features, inside, 1 - inside)


def test_every_name_of_the_setting_has_a_matcher() -> None:
    assert set(MATCHERS) == set(get_args(MatcherName))


@EVERY_MATCHER
def test_object_is_told_from_background(name: MatcherName) -> None:
    target, is_object = _target()
    found = make_matcher(name, FeatureScale(TEMPERATURE))(gather_references([_reference()], SIGNATURE), target)
    assert float(found.posterior[is_object].min()) > float(found.posterior[~is_object].max())
    assert np.array_equal(found.posterior > 0.5, is_object)
    assert float(found.matching[is_object].sum()) > 0.5


@EVERY_MATCHER
def test_posterior_is_between_0_and_1_and_matching_sums_to_1(name: MatcherName) -> None:
    for seed in range(3):
        target = unit_length(np.random.default_rng(seed).standard_normal((50, DIMS), np.float32))
        found = make_matcher(name, FeatureScale(TEMPERATURE))(_random_bank(60, seed + 10), target)
        assert found.posterior.shape == found.matching.shape == (50,)
        assert bool(((found.posterior >= 0) & (found.posterior <= 1)).all())
        total = float(found.matching.sum())
        assert total == pytest.approx(1, abs=1e-4) or (name == "hungarian" and total == 0)


@EVERY_MATCHER
def test_order_of_references_changes_nothing(name: MatcherName) -> None:
    references = [_reference(seed) for seed in (1, 2, 3)]
    target, _ = _target()
    one = make_matcher(name, FeatureScale(TEMPERATURE))(gather_references(references, SIGNATURE), target)
    other = make_matcher(name, FeatureScale(TEMPERATURE))(gather_references(references[::-1], SIGNATURE), target)
    assert np.allclose(one.posterior, other.posterior, atol=1e-4)
    assert np.allclose(one.matching, other.matching, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(MATCHERS) - {"hungarian"}))
def test_a_reference_given_twice_changes_nothing(name: MatcherName) -> None:
    # Not so for `hungarian`: twice the foreground patches find up to twice the target patches.
    target, _ = _target()
    once = make_matcher(name, FeatureScale(TEMPERATURE))(gather_references([_reference()], SIGNATURE), target)
    twice = make_matcher(name, FeatureScale(TEMPERATURE))(gather_references([_reference()] * 2, SIGNATURE), target)
    assert np.allclose(once.posterior, twice.posterior, atol=1e-4)
    assert np.allclose(once.matching, twice.matching, atol=1e-4)


@EVERY_MATCHER
def test_order_of_target_patches_is_kept(name: MatcherName) -> None:
    bank, (target, _) = gather_references([_reference()], SIGNATURE), _target()
    plain = make_matcher(name, FeatureScale(TEMPERATURE))(bank, target)
    flipped = make_matcher(name, FeatureScale(TEMPERATURE))(bank, target[::-1])
    assert np.allclose(plain.posterior, flipped.posterior[::-1], atol=1e-4)


@EVERY_MATCHER
def test_negatives_push_their_look_alikes_out(name: MatcherName) -> None:
    thing, background, stranger = _directions()
    halfway = unit_length(0.75 * thing + 0.55 * stranger)
    target = np.concatenate([_around(thing, 10, 7), _around(halfway, 4, 8, noise=0.2), _around(background, 30, 9)])
    marked = _reference()
    negative = Reference(
        _around(halfway, 60, 21, noise=0.2).astype(np.float16),
        np.zeros(60, np.float16), np.ones(60, np.float16), SIGNATURE,
    )  # fmt: skip
    without = make_matcher(name, FeatureScale(TEMPERATURE))(gather_references([marked], SIGNATURE), target)
    told = make_matcher(name, FeatureScale(TEMPERATURE))(gather_references([marked, negative], SIGNATURE), target)
    assert float(told.posterior[10:14].mean()) <= 0.98 * float(without.posterior[10:14].mean())
    assert float(told.posterior[:10].mean()) > float(told.posterior[10:14].mean())
    if name not in ("softmatcher", "sinkhorn"):
        # These two know averages over all patches of a kind, which one negative among others moves little.
        assert float(told.posterior[10:14].max()) < 0.5
        assert float(told.posterior[:10].min()) > 0.5


@EVERY_MATCHER
def test_unknown_patches_say_nothing(name: MatcherName) -> None:
    target, _ = _target()
    look_alikes = _around(_directions()[0], 20, 33)
    plain = make_matcher(name, FeatureScale(TEMPERATURE))(gather_references([_reference()], SIGNATURE), target)
    more = make_matcher(name, FeatureScale(TEMPERATURE))(
        gather_references([_reference(unknown=look_alikes)], SIGNATURE), target
    )
    assert np.allclose(plain.posterior, more.posterior, atol=1e-4)


@EVERY_MATCHER
def test_a_reference_matched_with_itself_finds_its_mask(name: MatcherName) -> None:
    reference = _reference()
    target = reference.features.astype(np.float32)
    found = make_matcher(name, FeatureScale(TEMPERATURE))(gather_references([reference], SIGNATURE), target)
    assert np.array_equal((found.posterior > 0.5), reference.foreground_coverage > 0.5)


@EVERY_MATCHER
def test_target_of_one_patch(name: MatcherName) -> None:
    thing, background, _ = _directions()
    bank = gather_references([_reference()], SIGNATURE)
    assert make_matcher(name, FeatureScale(TEMPERATURE))(bank, thing[None]).posterior.item() > 0.5
    assert make_matcher(name, FeatureScale(TEMPERATURE))(bank, background[None]).posterior.item() < 0.5


@EVERY_MATCHER
def test_mask_that_covers_everything_makes_everything_object(name: MatcherName) -> None:
    reference = _reference(outside=0)
    target, is_object = _target()
    found = make_matcher(name, FeatureScale(TEMPERATURE))(gather_references([reference], SIGNATURE), target)
    assert bool(np.isfinite(found.posterior).all())
    assert bool((found.posterior[is_object] > 0.5).all())


@EVERY_MATCHER
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_above_0(name: MatcherName, temperature: float) -> None:
    target, _ = _target()
    with pytest.raises(BadInputError, match="temperature must be above 0"):
        make_matcher(name, FeatureScale(temperature))(gather_references([_reference()], SIGNATURE), target)


@EVERY_MATCHER
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_target_features_must_be_finite(name: MatcherName, value: float) -> None:
    target, _ = _target()
    target[3, 2] = value
    with pytest.raises(BadInputError, match="target features must be finite"):
        make_matcher(name, FeatureScale(TEMPERATURE))(gather_references([_reference()], SIGNATURE), target)


@EVERY_MATCHER
def test_target_of_another_width_is_refused(name: MatcherName) -> None:
    with pytest.raises(BadInputError, match=r"target must be \(T, 24\)"):
        make_matcher(name, FeatureScale(TEMPERATURE))(
            gather_references([_reference()], SIGNATURE), np.ones((4, 5), np.float32)
        )


def test_mask_smaller_than_a_patch_still_marks_it() -> None:
    reference = _reference(inside=1)
    faint = np.where(reference.foreground_coverage > 0, 0.05, 0.0).astype(np.float16)
    target, is_object = _target()
    bank = gather_references([replace(reference, foreground_coverage=faint)], SIGNATURE)
    found = match_posterior(bank, target, temperature=TEMPERATURE).posterior
    assert float(found[is_object].min()) > float(found[~is_object].max())


def test_sinkhorn_tends_to_softmatcher_as_the_regularisation_grows() -> None:
    bank, (target, _) = gather_references([_reference()], SIGNATURE), _target()
    limit = match_softmatcher(bank, target, temperature=TEMPERATURE).matching
    gaps = [
        float(np.abs(match_sinkhorn(bank, target, temperature=TEMPERATURE, regularisation=eps).matching - limit).sum())
        for eps in (0.05, 0.5, 5.0, 50.0)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.05
    assert gaps[-1] < 1e-3


def test_sinkhorn_below_the_underflow_agrees_with_itself() -> None:
    bank, (target, is_object) = gather_references([_reference()], SIGNATURE), _target()
    one, other = (
        match_sinkhorn(bank, target, temperature=TEMPERATURE, regularisation=eps).posterior for eps in (0.0099, 0.0101)
    )
    assert np.array_equal(one > 0.5, is_object)
    assert np.allclose(one, other, atol=0.02)


@pytest.mark.slow
def test_random_features_come_near_the_posterior_and_say_how_near() -> None:
    # Vectors in all directions at once are the hardest there is; a warm temperature makes the test quick.
    bank, (target, _) = _random_bank(200, 5), _target()
    exact = match_posterior(bank, target, temperature=0.3).posterior
    few, many = (
        random_features(bank, target, temperature=0.3, directions=DIMS, features=count) for count in (256, 16384)
    )
    few_gap, many_gap = (float(np.abs(found.posterior - exact).mean()) for found in (few, many))
    assert many_gap < min(few_gap, 0.005)
    assert 0 < many.error < few.error
    assert 0.3 < few_gap / few.error < 3


def test_random_features_are_seeded() -> None:
    bank, (target, _) = _random_bank(50, 5), _target()
    state = torch.get_rng_state()
    one, same = (random_features(bank, target, temperature=TEMPERATURE).posterior for _ in range(2))
    other = random_features(bank, target, temperature=TEMPERATURE, seed=1).posterior
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.array_equal(state, torch.get_rng_state())


def test_prototype_ranks_as_the_mean_features_do() -> None:
    bank, target = _random_bank(64, 5), _random_bank(32, 6).features
    found = match_prototype(bank, target, temperature=TEMPERATURE)
    softmatcher = match_softmatcher(bank, target, temperature=TEMPERATURE)
    assert np.array_equal(np.argsort(found.matching), np.argsort(softmatcher.matching))
