"""Labels that share patches: the same posteriors as each with a product of its own."""

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.matching import ReferenceBank, match_posterior, match_posteriors
from backend.core.shared_matching import LabelPatches, LabelSums, SharedPatches, can_share, share_patches, sum_labels
from tests.core.test_matching import bank_of, unit


def shared_of(banks: list[ReferenceBank]) -> SharedPatches:
    return share_patches([LabelPatches(one.features, one.foreground, one.background) for one in banks])


def sums_of(banks: list[ReferenceBank], target: NDArray[np.float32], floor: float = -1.0) -> LabelSums:
    return sum_labels(shared_of(banks), target, temperature=0.05, similarity_floor=floor)


def marked_on_one_image(count: int) -> list[ReferenceBank]:
    image = unit(40, seed=3)
    banks = []
    for seed in range(count):
        chance = np.random.default_rng(seed)
        own = np.concatenate([image, unit(9, seed=50 + seed)])[chance.permutation(49)]
        inside = (chance.random(49) > 0.6) * chance.random(49, np.float32)
        banks.append(bank_of(own, inside.astype(np.float32)))
    return banks


@pytest.mark.parametrize("floor", [-1.0, 0.3])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_posteriors_are_those_of_one_product_per_label(count: int, floor: float) -> None:
    banks, target = marked_on_one_image(count), unit(30, seed=9)
    sums = sums_of(banks, target, floor)
    beside = match_posteriors(banks, target, temperature=0.05, similarity_floor=floor)
    for label, bank in enumerate(banks):
        alone = match_posterior(bank, target, temperature=0.05, similarity_floor=floor).posterior
        np.testing.assert_allclose(sums.alone(label), alone, atol=2e-6)
        np.testing.assert_allclose(sums.beside(label), beside[label].posterior, atol=2e-6)


def test_a_patch_of_several_labels_is_multiplied_once() -> None:
    banks = marked_on_one_image(5)
    shared = shared_of(banks)
    assert shared.count == 40 + 5 * 9
    assert [len(rows) for rows in shared.new_rows] == [49, 9, 9, 9, 9]
    assert shared_of([banks[0], banks[0]]).count == 49


def test_patches_that_a_label_has_twice_count_twice() -> None:
    patches = unit(6)
    doubled = bank_of(np.concatenate([patches, patches]), np.random.default_rng(1).random(12, np.float32))
    target = unit(20, seed=9)
    expected = match_posterior(doubled, target, temperature=0.05).posterior
    np.testing.assert_allclose(sums_of([doubled], target).alone(0), expected, atol=2e-6)


def test_digests_that_meet_by_chance_join_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    banks, target = marked_on_one_image(3), unit(30, seed=9)
    expected = [match_posterior(bank, target, temperature=0.05).posterior for bank in banks]
    monkeypatch.setattr("backend.core.shared_matching.row_digests", lambda features: np.zeros(len(features), np.uint64))
    sums = sums_of(banks, target)
    for label, one in enumerate(expected):
        np.testing.assert_allclose(sums.alone(label), one, atol=2e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 0.005, float("nan")])
def test_sharp_temperatures_are_not_shared(temperature: float) -> None:
    assert not can_share(temperature)


def test_a_label_without_background_has_only_the_floor_to_be_told_from() -> None:
    bank, target = ReferenceBank(unit(5), np.ones(5, np.float32), np.zeros(5, np.float32)), unit(20, seed=9)
    expected = match_posterior(bank, target, temperature=0.05, similarity_floor=0.3).posterior
    np.testing.assert_allclose(sums_of([bank, bank], target, 0.3).alone(1), expected, atol=2e-6)
