"""The classifier of patches: fitted to the optimum, from enough images only, blended with the posterior."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.core.matching import ReferenceBank, match_posterior, match_posteriors
from backend.core.memory_bank import build_bank, with_classifier
from backend.core.patch_classifier import RIDGE, PatchClassifier, classifier_share, fit_patch_classifier
from backend.core.patches import summarize_patches
from backend.core.score_metrics import area_under_roc
from backend.core.types import Reference

DIMS, SIGNATURE = 24, "unit-vectors"


def _with_classifier(bank: ReferenceBank, references: Sequence[Reference]) -> ReferenceBank:
    return with_classifier(bank, [summarize_patches(reference) for reference in references])


def patches(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of which the first channel alone tells the object, and the coverage of each patch."""
    generator = torch.Generator().manual_seed(seed)
    inside = (torch.rand(count, generator=generator) < 0.3).float()
    features = torch.randn(count, DIMS, generator=generator)
    features[:, 0] += 1.5 * inside - 0.75
    features[:, 1:6] *= 3.0
    return F.normalize(features, dim=1), inside


def reference(seed: int, count: int = 200) -> Reference:
    features, inside = patches(count, seed)
    arrays = [one.numpy().astype(np.float16) for one in (features, inside, torch.ones(count))]
    return Reference(arrays[0], arrays[1], arrays[2], SIGNATURE)


def bank_of(count: int, *, most_patches: int = 4000) -> ReferenceBank:
    references = [reference(seed) for seed in range(1, count + 1)]
    return _with_classifier(build_bank(references, SIGNATURE, most_patches=most_patches), references)


def fitted(features: Tensor, foreground: Tensor, background: Tensor) -> PatchClassifier:
    found = fit_patch_classifier(features, foreground, background, reference_images=5)
    assert found is not None
    return found


def test_the_fit_is_the_optimum_of_its_definition() -> None:
    features, inside = patches(300, 1)
    weight = torch.rand(300, generator=torch.Generator().manual_seed(2))
    found = fitted(features, inside * weight, (1 - inside) * weight)
    direction = found.direction.double().requires_grad_()
    constant = found.constant.double().requires_grad_()
    odds = features.double() @ direction + constant
    a = (inside * weight / (inside * weight).sum().sqrt()).double()
    b = ((1 - inside) * weight / ((1 - inside) * weight).sum().sqrt()).double()
    loss = (
        a * torch.log1p(torch.exp(-odds)) + b * torch.log1p(torch.exp(odds))
    ).sum() + RIDGE / 2 * direction.square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert direction.grad is not None
    assert constant.grad is not None
    assert float(direction.grad.abs().max()) < 5e-3
    assert float(constant.grad.abs()) < 5e-3


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
    assert not torch.allclose(with_negative.direction, without.direction, atol=1e-3)


def test_ambiguous_patches_take_no_part() -> None:
    features, inside = patches(200, 1)
    odd = torch.full((20, DIMS), DIMS**-0.5)
    plain = fitted(features, inside, 1 - inside)
    zeros = torch.zeros(20)
    more = fitted(torch.cat([features, odd]), torch.cat([inside, zeros]), torch.cat([1 - inside, zeros]))
    assert torch.allclose(plain.direction, more.direction, atol=1e-2)


@pytest.mark.parametrize("missing", ["foreground", "background"])
def test_without_both_classes_there_is_nothing_to_fit(missing: str) -> None:
    features, _ = patches(50, 1)
    masses = {"foreground": torch.ones(50), "background": torch.ones(50), missing: torch.zeros(50)}
    assert fit_patch_classifier(features, masses["foreground"], masses["background"], reference_images=9) is None


def test_the_blend_lies_between_both_log_odds() -> None:
    target, _ = patches(50, 3)
    posterior = torch.rand(50, generator=torch.Generator().manual_seed(4)).clamp(0.01, 0.99)
    direction, constant = torch.randn(DIMS, generator=torch.Generator().manual_seed(5)), torch.tensor(0.3)
    expected = 0.75 * torch.logit(posterior) + 0.25 * (target @ direction + 0.3)
    blended = PatchClassifier(direction, constant, 0.25).blend(posterior, target)
    assert torch.allclose(torch.logit(blended), expected, atol=1e-3)
    assert torch.equal(PatchClassifier(direction, constant, 0.0).blend(posterior, target) > 0.5, posterior > 0.5)


def test_a_patch_that_is_surely_nothing_stays_finite() -> None:
    target, _ = patches(2, 3)
    classifier = PatchClassifier(torch.zeros(DIMS), torch.tensor(0.0), 0.5)
    blended = classifier.blend(torch.tensor([0.0, 1.0]), target)
    assert bool(torch.isfinite(blended).all())
    assert float(blended[0]) < 0.05 < 0.95 < float(blended[1])


def test_the_order_of_references_changes_no_classifier() -> None:
    references = [reference(seed) for seed in range(1, 6)]
    one, other = (
        _with_classifier(build_bank(order, SIGNATURE, most_patches=600), order).classifier
        for order in (references, references[::-1])
    )
    assert one is not None
    assert other is not None
    assert torch.equal(one.direction, other.direction)


def test_several_labels_are_blended_each_with_its_own() -> None:
    target, _ = patches(50, 99)
    bank = bank_of(5)
    other = replace(bank, foreground=bank.background, background=bank.foreground, classifier=None)
    with_it, _ = match_posteriors([bank, other], target, temperature=0.1)
    without, _ = match_posteriors([replace(bank, classifier=None), other], target, temperature=0.1)
    assert bank.classifier is not None
    expected = bank.classifier.blend(without.posterior, target)
    assert torch.allclose(with_it.posterior, expected, atol=1e-6)


def test_a_bank_moves_with_its_classifier() -> None:
    moved = bank_of(2).to(torch.device("meta"))
    assert moved.classifier is not None
    assert moved.classifier.direction.device.type == "meta"
