"""A bank of bounded size in place of all patches of many references: a target costs no more with 200 than with 10.

Which patches are drawn follows from a short summary of each reference, so only those drawn need to be read.
Symbols as in `matching`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from backend.core.matching import MINIMUM_MASS, ReferenceBank
from backend.core.patch_classifier import fit_patch_classifier
from backend.core.patches import Indices, PatchesInMemory, PatchSource, PatchSummary
from backend.core.types import Reference
from backend.errors import BadInputError


def build_bank(references: Sequence[Reference], signature: str, *, most_patches: int) -> ReferenceBank:
    """Return the patches of several references, thinned to `most_patches` or fewer; see `read_bank`."""
    return read_bank(PatchesInMemory(references), signature, most_patches=most_patches)


def read_bank(source: PatchSource, signature: str, *, most_patches: int) -> ReferenceBank:
    """Return the patches of several references, thinned to `most_patches` or fewer.

    Every sum over reference patches becomes a sum over some of them, each with the mass of those it stands for:

        sum_r mass[r] k(f_r, g)  ~=  sum_{r drawn} s[r] mass[r] k(f_r, g),     s = sum of w over the stratum / drawn

    The strata are foreground and background. Half of the bank is for each; what one leaves free the other takes. In a
    stratum every n-th patch is drawn along rows, views and references, so that each reference and each part of its
    image is there in proportion: no worse here than greedy k-centres over the features, and a thousand times faster
    (docs/algorithm.md). Ambiguous patches are left out, they state nothing.

    References are put in the order of their content first, so the order given changes nothing, and no seed is needed.

    Args:
        source: of the references of one label.
        signature: of the models in use.
        most_patches: bound of the bank, at least 2.

    Returns:
        All patches with a weight, as they are, if they fit.

    Raises:
        BadInputError: no reference, another model's features, NaN in them, nothing marked; most_patches below 2.
    """
    if most_patches < 2:
        raise BadInputError(f"most_patches must be at least 2, one per stratum, got {most_patches}; raise it")
    given = source.summaries
    _check_summaries(given, signature)
    order = sorted(range(len(given)), key=lambda index: given[index].content_digest)
    summaries = [given[index] for index in order]
    objects = np.stack([one.mean_object for one in summaries if one.mean_object is not None])
    counts = [one.count for one in summaries]
    if sum(counts) <= most_patches:
        owners, rows = np.repeat(np.array(order, np.int64), counts), np.concatenate([np.arange(one) for one in counts])
        weights: NDArray[np.float32] | None = None
        read = source.read(owners, rows)
    else:
        strata = [[one.foreground_rows for one in summaries], [one.background_rows for one in summaries]]
        sizes = _shares([sum(map(len, parts)) for parts in strata], most_patches)
        drawn = [_every_nth(parts, size) for parts, size in zip(strata, sizes, strict=True)]
        owners = np.array(order, np.int64)[np.concatenate([positions for positions, _ in drawn])]
        read = source.read(owners, np.concatenate([rows for _, rows in drawn]))
        weights = _weights(summaries, read.ignore_weight.astype(np.float32), sizes)
    coverage, mass = read.foreground_coverage.astype(np.float32), read.ignore_weight.astype(np.float32)
    if weights is not None:
        mass = mass * weights
    return ReferenceBank(
        np.ascontiguousarray(read.features, np.float32),
        coverage * mass,
        (1 - coverage) * mass,
        objects,
    )


def with_classifier(bank: ReferenceBank, summaries: Sequence[PatchSummary]) -> ReferenceBank:
    """Return the bank of these references with a classifier of its patches, if they are of enough images.

    Thinned patches carry the mass of those they represent, so the fit costs no more with 200 references than with ten.
    """
    images = {one.image_sample for one in summaries if one.mean_object is not None}
    classifier = fit_patch_classifier(bank.features, bank.foreground, bank.background, reference_images=len(images))
    return bank if classifier is None else replace(bank, classifier=classifier)


def _check_summaries(summaries: Sequence[PatchSummary], signature: str) -> None:
    if not summaries:
        raise BadInputError("matching needs at least one reference, got none; annotate an image first")
    for summary in summaries:
        if summary.signature != signature:
            raise BadInputError(
                f"references must come from the models {signature}, got {summary.signature}; "
                "describe their images again"
            )
        if not summary.is_finite:
            raise BadInputError("reference features must be finite, got NaN or infinity; encode the image again")
    if sum(summary.mass for summary in summaries) < MINIMUM_MASS:
        raise BadInputError("references must mark something, got masks that cover no patch; annotate the object again")


def _shares(available: Sequence[int], most: int) -> tuple[int, int]:
    foreground, background = available
    of_foreground = min(foreground, max(most // 2, most - background))
    return of_foreground, min(background, most - of_foreground)


def _every_nth(parts: Sequence[NDArray[np.uint16 | np.uint32]], count: int) -> tuple[Indices, Indices]:
    """Draw `count` rows evenly from the parts put one after the other: number of the part and row of each."""
    stratum = np.concatenate(parts)
    drawn = ((np.arange(count) + 0.5) * len(stratum) / max(count, 1)).astype(np.int64)
    ends = np.cumsum([len(part) for part in parts])
    return np.searchsorted(ends, drawn, side="right"), stratum[drawn].astype(np.int64)


def _weights(
    summaries: Sequence[PatchSummary], drawn: NDArray[np.float32], sizes: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the factor of each drawn patch: the weight of its stratum over the weight of what was drawn of it."""
    factors = []
    for stratum, some in enumerate((drawn[: sizes[0]], drawn[sizes[0] :])):
        whole = np.float32(sum(summary.weights[stratum] for summary in summaries))
        factors.append(np.full(len(some), whole / max(some.sum(), np.float32(1e-6)), np.float32))
    return np.concatenate(factors)
