"""Kinship: a cosine of whole objects, from what is typical."""

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.arrays import unit as unit_length
from backend.core.matching import MINIMUM_MASS, ReferenceBank
from backend.core.object_similarity import (
    LONE_INTRA_REFERENCE_SIMILARITY,
    ObjectFeatureSpace,
    intra_reference_similarity,
    object_similarity,
)


def patches(count: int = 40, dims: int = 12, seed: int = 0) -> NDArray[np.float32]:
    return np.asarray(unit_length(np.random.default_rng(seed).standard_normal((count, dims), np.float32)))


def test_an_object_is_its_own_kin_and_the_opposite_is_none() -> None:
    target, weights = patches(), np.random.default_rng(1).random(40, np.float32)
    mean = (weights @ target / weights.sum())[None]
    assert object_similarity(mean, target, weights, ObjectFeatureSpace()) == pytest.approx(1.0, abs=1e-5)
    assert object_similarity(-mean, target, weights, ObjectFeatureSpace()) == pytest.approx(-1.0, abs=1e-5)


def test_the_most_alike_reference_counts_whatever_the_order() -> None:
    target, weights = patches(), np.ones(40, np.float32)
    objects = patches(5, seed=2)
    alone = [object_similarity(objects[index : index + 1], target, weights, ObjectFeatureSpace()) for index in range(5)]
    assert object_similarity(objects, target, weights, ObjectFeatureSpace()) == pytest.approx(max(alone))
    assert object_similarity(objects[::-1], target, weights, ObjectFeatureSpace()) == pytest.approx(max(alone))


def test_what_everything_shares_does_not_make_kin() -> None:
    shared = 5 * np.eye(12, dtype=np.float32)[0]
    target, objects = unit_length(patches(seed=3) + shared), unit_length(patches(1, seed=4) + shared)
    weights = np.ones(40, np.float32)
    typical = unit_length(patches(2000, seed=5) + shared).mean(axis=0)
    assert object_similarity(objects, target, weights, ObjectFeatureSpace()) > 0.9
    assert object_similarity(objects, target, weights, ObjectFeatureSpace(slice(None), typical)) < 0.8


def test_only_the_frame_s_channels_count() -> None:
    target, weights = patches(), np.ones(40, np.float32)
    objects = target.mean(axis=0, keepdims=True)
    objects[:, :4] = 9.0
    assert object_similarity(
        objects, target, weights, ObjectFeatureSpace(slice(4, None), np.zeros(8, np.float32))
    ) == pytest.approx(1.0, abs=1e-5)


def test_nothing_found_is_no_kin() -> None:
    assert object_similarity(patches(1), patches(), np.zeros(40, np.float32), ObjectFeatureSpace()) == -1.0


def test_a_bank_without_objects_of_its_own_has_the_mean_of_all() -> None:
    features, foreground = patches(), np.random.default_rng(6).random(40, np.float32)
    bank = ReferenceBank(features, foreground, 1 - foreground)
    assert np.allclose(bank.objects[0], foreground @ features / foreground.sum())
    empty = ReferenceBank(features, np.zeros(40, np.float32), np.ones(40, np.float32))
    assert np.array_equal(empty.objects, np.zeros((1, 12), np.float32))
    assert float(empty.foreground.sum()) < MINIMUM_MASS


def test_cohesion_is_how_alike_references_are() -> None:
    objects = patches(6, seed=7)
    assert intra_reference_similarity(objects[:1], ObjectFeatureSpace()) == LONE_INTRA_REFERENCE_SIMILARITY
    assert intra_reference_similarity(objects[:1].repeat(3, 1), ObjectFeatureSpace()) == LONE_INTRA_REFERENCE_SIMILARITY
    assert intra_reference_similarity(objects.repeat(2, 1), ObjectFeatureSpace()) == pytest.approx(
        intra_reference_similarity(objects, ObjectFeatureSpace()), abs=1e-5
    )
    assert intra_reference_similarity(objects, ObjectFeatureSpace()) == pytest.approx(
        intra_reference_similarity(objects[::-1], ObjectFeatureSpace()), abs=1e-5
    )
    assert intra_reference_similarity(objects, ObjectFeatureSpace()) < 0.9
