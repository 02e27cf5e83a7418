"""Score maps: which patches of a target show what the references mark.

Symbols, throughout: `f_r` (R, D) reference patches and `g_t` (T, D) target patches, all of unit length;
`S[r, t] = <f_r, g_t>` their similarity; `c[r]` in [0, 1] the foreground coverage of patch r; `w[r]` in [0, 1] its
ignore weight; `tau` the temperature. A patch with a weight and without coverage is background, from whichever
reference it comes: negatives are nothing else.

Source: Frick et al., "Probabilistic feature matching for fast scalable visual prompting", IJCAI 2024, Section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from backend.core.arrays import (
    TINY,
    Array,
    Device,
    amax,
    concat,
    exp,
    exp_in_place,
    sigmoid,
    softmax,
    stack,
    to_device,
    unit,
    zeros_like,
)
from backend.core.patch_classifier import PatchClassifier
from backend.core.patches import check_shapes, mean_object
from backend.core.types import Reference
from backend.errors import BadInputError

MINIMUM_MASS = 1e-3
"""Patches: a mask that covers less of the grid than this marks nothing."""


@dataclass(frozen=True, eq=False)
class ReferenceBank:
    """The patches of all references of one label.

    Attributes:
        features: (R, D) float32, of unit length.
        foreground: (R,) float32 >= 0: c * w, in [0, 1] for a patch, the sum of it for one that stands for
        others.
        background: (R,) float32 >= 0: (1 - c) * w, likewise.
        objects: (N, D) float32: mean feature of each reference's object; without any of its own, that of all of them.
        classifier: fitted on these patches, which the foreground posterior is blended with; None with too few
            references.
        fine: of the same label at twice the size, if its references show thin things.
    """

    features: Array
    foreground: Array
    background: Array
    objects: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    classifier: PatchClassifier | None = None
    fine: "ReferenceBank | None" = None

    def __post_init__(self) -> None:
        if not len(self.objects):
            mean = self.foreground @ self.features / self.foreground.sum().clip(min=MINIMUM_MASS)
            object.__setattr__(self, "objects", mean[None])

    @property
    def nbytes(self) -> int:
        """Return how many bytes its tensors occupy."""
        own: int = sum(part.nbytes for part in (self.features, self.foreground, self.background, self.objects))
        return own if self.fine is None else own + self.fine.nbytes

    def to(self, device: Device) -> "ReferenceBank":
        """Return the bank where a device computes; itself if it is there."""
        parts = self.features, self.foreground, self.background, self.objects
        features, foreground, background, objects = (to_device(part, device) for part in parts)
        if features is self.features:
            return self
        classifier = None if self.classifier is None else self.classifier.to(device)
        fine = None if self.fine is None else self.fine.to(device)
        return ReferenceBank(features, foreground, background, objects, classifier, fine)

    def to_tensors(self) -> "ReferenceBank":
        """Return the bank as PyTorch's tensors, where it is."""
        import torch

        parts = self.features, self.foreground, self.background, self.objects
        features, foreground, background, objects = (torch.as_tensor(part) for part in parts)
        return ReferenceBank(features, foreground, background, objects)


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """The scores of a target's patches for one label.

    Attributes:
        posterior: (T,) float32 in [0, 1]: how likely a patch shows the object; low everywhere where it is absent.
        matching: (T,) float32, sums to 1 (0 where nothing was found): the probability map that points are sampled from.
        error: mean standard error of the posterior where it is estimated by a draw; 0 where it is not.
    """

    posterior: Array
    matching: Array
    error: float = 0.0


class Matcher(Protocol):
    """Turns a label's references and a target's patches into a score map. Has no state but what made it."""

    def __call__(self, bank: ReferenceBank, target: Array, /) -> ScoreMap:
        """Match `bank` to `target`, (T, D) float32 of unit length."""
        ...


def check_references(references: Sequence[Reference], signature: str) -> None:
    """Check the references of a label before matching.

    Raises:
        BadInputError: no reference, another model's features, NaN in them, shapes that don't agree, or nothing marked.
    """
    if not references:
        raise BadInputError("matching needs at least one reference, got none; annotate an image first")
    for reference in references:
        if reference.signature != signature:
            raise BadInputError(
                f"references must come from the models {signature}, got {reference.signature}; "
                "describe their images again"
            )
        check_shapes(reference)
        if not np.isfinite(reference.features).all():
            raise BadInputError("reference features must be finite, got NaN or infinity; encode the image again")
    if (
        sum(
            float(reference.foreground_coverage.astype(np.float32) @ reference.ignore_weight)
            for reference in references
        )
        < MINIMUM_MASS
    ):
        raise BadInputError("references must mark something, got masks that cover no patch; annotate the object again")


def gather_references(references: Sequence[Reference], signature: str) -> ReferenceBank:
    """Join the patches of several references; their order changes nothing but rounding.

    Raises:
        BadInputError: as `check_references`.
    """
    check_references(references, signature)
    features, coverage, weight = (
        np.concatenate([array.astype(np.float32) for array in arrays])
        for arrays in zip(
            *((one.features, one.foreground_coverage, one.ignore_weight) for one in references), strict=True
        )
    )
    return ReferenceBank(features, coverage * weight, (1 - coverage) * weight, mean_objects(references))


def mean_objects(references: Sequence[Reference]) -> Array:
    """Return the mean feature of the object on each reference that marks one, (N, D) float32 for N of them."""
    means = [mean_object(reference) for reference in references]
    return np.stack([mean for mean in means if mean is not None])


def match_posterior(
    bank: ReferenceBank, target: Array, /, *, temperature: float, similarity_floor: float = -1.0
) -> ScoreMap:
    """Return the balanced foreground posterior.

        q[t] = a[t] / (a[t] + b[t] + exp(s0 / tau))
        a[t] = sum_r foreground[r] exp(S[r, t] / tau) / sqrt(sum_r foreground[r]),     b[t] likewise with background[r]

    Balancing by the square root of the masses lies between no balance (a small object drowns) and full balance
    (every patch counts for its class alone, a large background is as loud as a small one).
    The last term stands for everything that no reference shows: a patch that is less similar than s0 to all of them is
    not taken for the object just because it is even less like the background. Without background in the bank it is all
    that the object is told from.

    The log-odds of the bank's classifier are blended in, if it has one (`PatchClassifier.blend`).

    Args:
        bank: R patches of the references.
        target: (T, D) float32 of unit length.
        temperature: tau > 0.
        similarity_floor: s0 in [-1, 1].

    Raises:
        BadInputError: temperature not above 0, shapes that don't agree, NaN features.
    """
    require_matchable(bank, target, temperature)
    # One matrix of this size, passed over as seldom as possible: it is what a match takes its time for.
    logits = bank.features @ (target / temperature).T
    # The largest term of each patch becomes 1: nothing overflows, and not all sums vanish.
    floor = similarity_floor / temperature
    highest = amax(logits, 0, keepdims=True).clip(min=floor)
    logits -= highest
    return _map_of_terms(bank, target, exp_in_place(logits), exp(floor - highest[0]))


def match_products(
    bank: ReferenceBank,
    target: Array,
    products: Array,
    /,
    *,
    temperature: float,
    similarity_floor: float = -1.0,
) -> ScoreMap:
    """Return what `match_posterior` does, bit for bit, if S / tau is known.

    Args:
        bank: as `match_posterior`; it and the target are matchable.
        target: likewise.
        products: (R, T) float32: S / tau; not written to.
        temperature: as `match_posterior`.
        similarity_floor: likewise.
    """
    floor = similarity_floor / temperature
    highest = amax(products, 0, keepdims=True).clip(min=floor)
    return _map_of_terms(bank, target, exp_in_place(products - highest), exp(floor - highest[0]))


def _map_of_terms(bank: ReferenceBank, target: Array, weights: Array, rest: Array) -> ScoreMap:
    sums = stack([balanced_mass(bank.foreground), balanced_mass(bank.background)]) @ weights
    posterior = (sums[0] / (sums.sum(axis=0) + rest)).clip(0.0, 1.0)
    return blended(bank, posterior, target)


def match_posteriors(
    banks: Sequence[ReferenceBank], target: Array, /, *, temperature: float, similarity_floor: float = -1.0
) -> list[ScoreMap]:
    """Return the foreground posteriors of several labels, each with the others' objects as its background.

        q_l[t] = a_l[t] / (a_l[t] + b_l[t] + exp(s0 / tau))
        A_l[t] = sum_r foreground_l[r] exp(S_l[r, t] / tau),     B_l[t] likewise with background_l[r]
        a_l[t] = A_l[t] / sqrt(m_l),     b_l[t] = (B_l[t] + sum_{k != l} A_k[t]) / sqrt(n_l + sum_{k != l} m_k)

    with m_l, n_l the masses of foreground and background. Of one label this is `match_posterior`. A label costs one
    product, however many others there are.

    Args:
        banks: of the labels, at least one.
        target: as `match_posterior`.
        temperature: likewise.
        similarity_floor: likewise.

    Raises:
        BadInputError: as `match_posterior`.
    """
    if len(banks) == 1:
        return [match_posterior(banks[0], target, temperature=temperature, similarity_floor=similarity_floor)]
    floor = similarity_floor / temperature
    sums, highest = [], []
    for bank in banks:
        require_matchable(bank, target, temperature)
        logits = bank.features @ (target / temperature).T
        own = amax(logits, 0, keepdims=True)
        logits -= own
        sums.append(stack([bank.foreground, bank.background]) @ exp_in_place(logits))
        highest.append(own[0])
    # All sums on one scale, whose largest term is 1.
    top = amax(stack(highest), 0).clip(min=floor)
    scaled = [own * exp(peak - top) for own, peak in zip(sums, highest, strict=True)]
    foregrounds = stack([own[0] for own in scaled])
    masses = stack([bank.foreground.sum() for bank in banks])
    rest = exp(floor - top)
    maps = []
    for index, (bank, own) in enumerate(zip(banks, scaled, strict=True)):
        others, others_mass = foregrounds.sum(axis=0) - own[0], masses.sum() - masses[index]
        inside = own[0] / masses[index].clip(min=MINIMUM_MASS) ** 0.5
        outside_mass = (bank.background.sum() + others_mass).clip(min=MINIMUM_MASS)
        outside = (own[1] + others.clip(min=0.0)) / outside_mass**0.5
        # On another label's scale all terms may vanish: that patch is nothing of this label's.
        total = (inside + outside + rest).clip(min=TINY)
        posterior = (inside / total).clip(0.0, 1.0)
        maps.append(blended(bank, posterior, target))
    return maps


def blended(bank: ReferenceBank, posterior: Array, target: Array) -> ScoreMap:
    """Return the score map of a posterior (T,) of this bank on a target (T, D), its classifier blended in."""
    if bank.classifier is not None:
        posterior = bank.classifier.blend(posterior, target)
    return ScoreMap(posterior, to_matching(posterior))


def with_others_as_background(banks: Sequence[ReferenceBank]) -> list[ReferenceBank]:
    """Return each label's bank with the objects of the other labels added to its background.

    For matchers that take one bank at a time; `match_posteriors` has the same without the copies.
    """
    joined = []
    for index, bank in enumerate(banks):
        others = [other for number, other in enumerate(banks) if number != index]
        if not others:
            return [bank]
        masses = [other.foreground for other in others]
        joined.append(
            ReferenceBank(
                concat([bank.features, *(other.features for other in others)]),
                concat([bank.foreground, *(zeros_like(mass) for mass in masses)]),
                concat([bank.background, *masses]),
                bank.objects,
            )
        )
    return joined


def match_softmatcher(bank: ReferenceBank, target: Array, /, *, temperature: float) -> ScoreMap:
    """Return the paper's exact score in closed form.

        p[t] = softmax_t(<m, g_t> / tau),     m = sum_r foreground[r] f_r / sum_r foreground[r]

    equal to the geometric mean over reference patches of the softmax over target patches. It sums to 1 whether or not
    the object is there, so the posterior comes from where the references' own patches lie on the same scale:

        posterior[t] = sigmoid(2 (<m, g_t> - theta) / min(tau, 1)),     theta halfway between the means of <m, f_r>
                                                                        over foreground and over background patches

    Negatives enter through theta alone: the paper's score has none.

    Args, Raises: as `match_posterior`.
    """
    require_matchable(bank, target, temperature)
    mean, mean_outside = _mean_features(bank)
    similarity = target @ mean
    # The mean over foreground patches of <m, f_r> is <m, m>: the bank need not be read again.
    theta = (mean @ mean + mean @ mean_outside) / 2
    scale = min(temperature, 1.0) * 0.5
    posterior = sigmoid((similarity - theta) / scale)
    return ScoreMap(posterior, softmax(similarity / temperature))


def match_prototype(bank: ReferenceBank, target: Array, /, *, temperature: float) -> ScoreMap:
    """Match PerSAM's mean feature, and one of the background beside it.

        posterior[t] = sigmoid((<p, g_t> - <p-, g_t>) / tau),     matching = softmax_t(<p, g_t> / tau)

    p, p-: the means of the foreground and of the background patches over all references and negatives, brought to unit
    length. Ambiguous patches are in neither. Without background the posterior is 1 everywhere.

    Args, Raises: as `match_posterior`.

    Source: Zhang et al., "Personalize Segment Anything with one shot", ICLR 2024, Section 3.1 (which has no p-).
    """
    require_matchable(bank, target, temperature)
    mean, mean_outside = _mean_features(bank)
    similarity = target @ unit(mean)
    matching = softmax(similarity / temperature)
    if float(bank.background.sum()) <= 0:
        return ScoreMap(zeros_like(similarity) + 1, matching)
    similarity_outside = target @ unit(mean_outside)
    return ScoreMap(sigmoid((similarity - similarity_outside) / temperature), matching)


def _mean_features(bank: ReferenceBank) -> tuple[Array, Array]:
    """Means (D,) over foreground and over background patches, not of unit length; 0 without any background."""
    masses = stack([bank.foreground, bank.background])
    means = (masses @ bank.features) / masses.sum(axis=1, keepdims=True).clip(min=MINIMUM_MASS)
    return means[0], means[1]


def to_matching(posterior: Array) -> Array:
    """Scores (T,) >= 0 as a probability map: they sum to 1, or are 0 everywhere."""
    return posterior / posterior.sum().clip(min=TINY)


def require_matchable(bank: ReferenceBank, target: Array, temperature: float) -> None:
    """Check the arguments that every matcher takes.

    Raises:
        BadInputError: temperature not above 0, shapes that don't agree, NaN features.
    """
    if not temperature > 0:
        raise BadInputError(f"temperature must be above 0, got {temperature}; 0.05 suits the lite encoder")
    if target.ndim != 2 or target.shape[1] != bank.features.shape[1]:
        raise BadInputError(
            f"target must be (T, {bank.features.shape[1]}) as its references, got {tuple(target.shape)}; "
            "encode both with one model"
        )
    # One NaN or infinity makes the sum one, and summing costs no second array.
    if not math.isfinite(float(target.sum())):
        raise BadInputError("target features must be finite, got NaN or infinity; encode the image again")


def balanced_mass(mass: Array) -> Array:
    """Return masses (R,) of one class, divided by the square root of their sum."""
    return mass / mass.sum().clip(min=MINIMUM_MASS) ** 0.5
