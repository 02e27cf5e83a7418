"""A bank of bounded size in place of all patches of many references: a target costs no more with 200 than with 10.

Symbols as in `matching`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from backend.core.matching import ReferenceBank, check_references, gather_references, mean_objects
from backend.core.patch_classifier import fit_patch_classifier
from backend.core.types import Reference
from backend.errors import BadInputError

Indices = NDArray[np.int64]
_SAMPLED_PATCHES = slice(0, 512, 16)


def build_bank(references: Sequence[Reference], signature: str, *, most_patches: int) -> ReferenceBank:
    """Return the patches of several references, thinned to `most_patches` or fewer.

    Every sum over reference patches becomes a sum over some of them, each with the mass of those it stands for:

        sum_r mass[r] k(f_r, g)  ~=  sum_{r drawn} s[r] mass[r] k(f_r, g),     s = sum of w over the stratum / drawn

    The strata are foreground and background. Half of the bank is for each; what one leaves free the other takes. In a
    stratum every n-th patch is drawn along rows, views and references, so that each reference and each part of its
    image is there in proportion: no worse here than greedy k-centres over the features, and a thousand times faster
    (docs/algorithm.md). Ambiguous patches are left out, they state nothing.

    References are put in the order of their content first, so the order given changes nothing, and no seed is needed.

    Args:
        references: of one label.
        signature: of the models in use.
        most_patches: bound of the bank, at least 2.

    Returns:
        All patches with a weight, as they are, if they fit.

    Raises:
        BadInputError: as `gather_references`; most_patches below 2.
    """
    if most_patches < 2:
        raise BadInputError(f"most_patches must be at least 2, one per stratum, got {most_patches}; raise it")
    check_references(references, signature)
    ordered = sorted(references, key=_content_digest)
    if sum(len(reference.features) for reference in ordered) <= most_patches:
        return gather_references(ordered, signature)
    coverage, ignore_weight = (
        np.concatenate([getattr(reference, name) for reference in ordered]).astype(np.float32)
        for name in ("foreground_coverage", "ignore_weight")
    )
    # Any part of the mask counts: an object smaller than a patch must not be drawn with the background.
    is_foreground = coverage > 0
    strata = [np.flatnonzero(is_foreground & (ignore_weight > 0)), np.flatnonzero(~is_foreground & (ignore_weight > 0))]
    sizes = _shares([len(stratum) for stratum in strata], most_patches)
    drawn = [_every_nth(stratum, size) for stratum, size in zip(strata, sizes, strict=True)]
    weights = np.concatenate(
        [
            np.full(len(some), ignore_weight[stratum].sum() / max(ignore_weight[some].sum(), 1e-6), np.float32)
            for stratum, some in zip(strata, drawn, strict=True)
        ]
    )
    chosen = np.concatenate(drawn)
    features = _rows([reference.features for reference in ordered], chosen)
    mass = ignore_weight[chosen] * weights
    return ReferenceBank(
        torch.from_numpy(features),
        torch.from_numpy((coverage[chosen] * mass).astype(np.float32)),
        torch.from_numpy(((1 - coverage[chosen]) * mass).astype(np.float32)),
        mean_objects(ordered),
    )


def with_classifier(bank: ReferenceBank, references: Sequence[Reference]) -> ReferenceBank:
    """Return the bank of these references with a classifier of its patches, if they are of enough images.

    Thinned patches carry the mass of those they represent, so the fit costs no more with 200 references than with ten.
    """
    # Regions on one image share its features, whoever marked them: a sample of its first view tells images apart.
    images = {
        reference.features[_SAMPLED_PATCHES].tobytes()
        for reference in references
        if bool((reference.foreground_coverage > 0).any())
    }
    classifier = fit_patch_classifier(bank.features, bank.foreground, bank.background, reference_images=len(images))
    return bank if classifier is None else replace(bank, classifier=classifier)


def _shares(available: Sequence[int], most: int) -> tuple[int, int]:
    foreground, background = available
    of_foreground = min(foreground, max(most // 2, most - background))
    return of_foreground, min(background, most - of_foreground)


def _every_nth(stratum: Indices, count: int) -> Indices:
    return stratum[((np.arange(count) + 0.5) * len(stratum) / max(count, 1)).astype(np.int64)]


def _rows(parts: Sequence[NDArray[np.float16]], rows: Indices) -> NDArray[np.float32]:
    """Rows of the parts put one after the other, without putting them together: they may be gigabytes."""
    ends = np.cumsum([len(part) for part in parts])
    chosen = np.empty((len(rows), parts[0].shape[1]), np.float32)
    owner = np.searchsorted(ends, rows, side="right")
    for index in np.unique(owner):
        own = owner == index
        chosen[own] = parts[index][rows[own] - (ends[index] - len(parts[index]))]
    return chosen


def _content_digest(reference: Reference) -> bytes:
    digest = hashlib.sha256()
    for array in (reference.features, reference.foreground_coverage, reference.ignore_weight):
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
