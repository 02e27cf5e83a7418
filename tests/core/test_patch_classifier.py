"""The classifier of patches: fitted to the optimum, from enough images only, blended with the posterior."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.core.arrays import logit
from backend.core.arrays import unit as unit_length
from backend.core.matching import ReferenceBank, match_posterior, match_posteriors
from backend.core.memory_bank import build_bank, with_classifier
from backend.core.patch_classifier import (
    CONSTANT_SCALE,
    GRADIENT_BOUND,
    RIDGE,
    PatchClassifier,
    classifier_share,
    fit_patch_classifier,
)
from backend.core.patches import summarize_patches
from backend.core.score_metrics import area_under_roc
from backend.core.types import Reference

DIMS, SIGNATURE = 24, "unit-vectors"


def _with_classifier(bank: ReferenceBank, references: Sequence[Reference]) -> ReferenceBank:
    return with_classifier(bank, [summarize_patches(reference) for reference in references])


def patches(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features of which the first channel alone tells the object, and the coverage of each patch."""
    draw = np.random.default_rng(seed)
    inside = (draw.random(count, np.float32) < 0.3).astype(np.float32)
    features = draw.standard_normal((count, DIMS), np.float32)
    features[:, 0] += 1.5 * inside - 0.75
    features[:, 1:6] *= 3.0
    return unit_length(features), inside


def reference(seed: int, count: int = 200) -> Reference:
    features, inside = patches(count, seed)
    arrays = [one.astype(np.float16) for one in (features, inside, np.ones(count, np.float32))]
    return Reference(arrays[0], arrays[1], arrays[2], SIGNATURE)


def bank_of(count: int, *, most_patches: int = 4000) -> ReferenceBank:
    references = [reference(seed) for seed in range(1, count + 1)]
    return _with_classifier(build_bank(references, SIGNATURE, most_patches=most_patches), references)


def fitted(
    features: NDArray[np.float32], foreground: NDArray[np.float32], background: NDArray[np.float32]
) -> PatchClassifier:
    found = fit_patch_classifier(features, foreground, background, reference_images=5)
    assert found is not None
    return found


def test_the_fit_is_the_optimum_of_its_definition() -> None:
    features, inside = patches(300, 1)
    weight = np.random.default_rng(2).random(300, np.float32)
    found = fitted(features, inside * weight, (1 - inside) * weight)
    direction = found.direction.astype(np.float64)
    odds = features.astype(np.float64) @ direction + found.constant
    a = (inside * weight / np.sqrt((inside * weight).sum())).astype(np.float64)
    b = ((1 - inside) * weight / np.sqrt(((1 - inside) * weight).sum())).astype(np.float64)
    # The derivative by <v, f> + b of a log(1 + exp(-z)) + b log(1 + exp(z)).
    slope = (a + b) / (1 + np.exp(-odds)) - a
    mean = (a + b) @ features / (a + b).sum()
    assert np.abs(slope @ (features - mean) + RIDGE * direction).max() < 1.01 * GRADIENT_BOUND
    assert abs(slope.sum()) * CONSTANT_SCALE < 1.01 * GRADIENT_BOUND
    # No better coefficients are near: Newton's step in float64 changes the log-odds of no patch by much.
    both = np.column_stack([features, np.ones(len(features))])
    bent = both.T @ (both * ((a + b) / (2 + np.exp(odds) + np.exp(-odds)))[:, None])
    bent[:-1, :-1] += RIDGE * np.eye(DIMS)
    step = np.linalg.solve(bent, np.append(slope @ features + RIDGE * direction, slope.sum()))
    assert np.abs(both @ step).max() < 0.05


def test_several_references_show_which_channel_counts() -> None:
    target, inside = patches(400, 99)
    bank = bank_of(6)
    plain = match_posterior(replace(bank, classifier=None), target, temperature=0.1).posterior
    blended = match_posterior(bank, target, temperature=0.1).posterior
    without, with_it = (area_under_roc(one.tolist(), (inside > 0.5).tolist()) for one in (plain, blended))
    assert without is not None
    assert with_it is not None
    assert with_it > without + 0.01


@pytest.mark.parametrize(("count", "share"), [(1, 0.0), (2, 0.25), (4, 0.25), (5, 0.5), (200, 0.5)])
def test_share_grows_with_the_reference_images(count: int, share: float) -> None:
    assert classifier_share(count) == share


def test_one_reference_has_no_classifier_and_keeps_its_posterior() -> None:
    assert bank_of(1).classifier is None


def test_two_regions_of_one_image_are_one_image() -> None:
    one = reference(1)
    other = replace(one, foreground_coverage=np.roll(one.foreground_coverage, 3))
    bank = build_bank([one, other], SIGNATURE, most_patches=4000)
    assert _with_classifier(bank, [one, other]).classifier is None
    two = [one, reference(2)]
    assert _with_classifier(build_bank(two, SIGNATURE, most_patches=4000), two).classifier is not None


def test_an_image_without_the_object_is_background_but_no_reference_image() -> None:
    negative = replace(reference(2), foreground_coverage=np.zeros(200, np.float16))
    some = [reference(1), negative]
    assert _with_classifier(build_bank(some, SIGNATURE, most_patches=4000), some).classifier is None
    three = [*some, reference(3)]
    with_negative = _with_classifier(build_bank(three, SIGNATURE, most_patches=4000), three).classifier
    two = [three[0], three[2]]
    without = _with_classifier(build_bank(two, SIGNATURE, most_patches=4000), two).classifier
    assert with_negative is not None
    assert without is not None
    assert not np.allclose(with_negative.direction, without.direction, atol=1e-3)


def test_ambiguous_patches_take_no_part() -> None:
    features, inside = patches(200, 1)
    odd = np.full((20, DIMS), DIMS**-0.5, np.float32)
    plain = fitted(features, inside, 1 - inside)
    zeros = np.zeros(20, np.float32)
    more = fitted(np.concatenate([features, odd]), np.concatenate([inside, zeros]), np.concatenate([1 - inside, zeros]))
    assert np.allclose(plain.direction, more.direction, atol=1e-2)


@pytest.mark.parametrize("missing", ["foreground", "background"])
def test_without_both_classes_there_is_nothing_to_fit(missing: str) -> None:
    features, _ = patches(50, 1)
    masses = {
        "foreground": np.ones(50, np.float32),
        "background": np.ones(50, np.float32),
        missing: np.zeros(50, np.float32),
    }
    assert fit_patch_classifier(features, masses["foreground"], masses["background"], reference_images=9) is None


def test_the_blend_lies_between_both_log_odds() -> None:
    target, _ = patches(50, 3)
    posterior = np.random.default_rng(4).random(50, np.float32).clip(0.01, 0.99)
    direction, constant = np.random.default_rng(5).standard_normal(DIMS, np.float32), np.array(0.3, np.float32)
    expected = 0.75 * logit(posterior, 1e-6) + 0.25 * (target @ direction + 0.3)
    blended = PatchClassifier(direction, constant, 0.25).blend(posterior, target)
    assert np.allclose(logit(blended, 1e-6), expected, atol=1e-3)
    assert np.array_equal(PatchClassifier(direction, constant, 0.0).blend(posterior, target) > 0.5, posterior > 0.5)


def test_a_patch_that_is_surely_nothing_stays_finite() -> None:
    target, _ = patches(2, 3)
    classifier = PatchClassifier(np.zeros(DIMS, np.float32), np.array(0, np.float32), 0.5)
    blended = classifier.blend(np.array([0.0, 1.0], np.float32), target)
    assert bool(np.isfinite(blended).all())
    assert float(blended[0]) < 0.05 < 0.95 < float(blended[1])


def test_the_order_of_references_changes_no_classifier() -> None:
    references = [reference(seed) for seed in range(1, 6)]
    one, other = (
        _with_classifier(build_bank(order, SIGNATURE, most_patches=600), order).classifier
        for order in (references, references[::-1])
    )
    assert one is not None
    assert other is not None
    assert np.array_equal(one.direction, other.direction)


def test_several_labels_are_blended_each_with_its_own() -> None:
    target, _ = patches(50, 99)
    bank = bank_of(5)
    other = replace(bank, foreground=bank.background, background=bank.foreground, classifier=None)
    with_it, _ = match_posteriors([bank, other], target, temperature=0.1)
    without, _ = match_posteriors([replace(bank, classifier=None), other], target, temperature=0.1)
    assert bank.classifier is not None
    expected = bank.classifier.blend(without.posterior, target)
    assert np.allclose(with_it.posterior, expected, atol=1e-6)


def test_a_bank_moves_with_its_classifier() -> None:
    moved = bank_of(2).to(torch.device("meta"))
    assert moved.classifier is not None
    assert moved.classifier.direction.device.type == "meta"
