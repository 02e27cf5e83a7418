"""A bank of bounded size in place of all patches of many references: a target costs no more with 200 than with 10.

Which patches are drawn follows from a short summary of each reference, so only those drawn need to be read.
Symbols as in `matching`.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from backend.core.matching import MINIMUM_MASS, ReferenceBank
from backend.core.patch_classifier import fit_patch_classifier
from backend.core.patches import Indices, PatchesInMemory, PatchSource, PatchSummary, summarize_patches
from backend.core.types import Reference
from backend.errors import BadInputError

_WHOLE = 2**32
_GOLDEN = 2654435769
"""Golden ratio less 1, in units of 2^-32: no multiples lie more evenly."""


def build_bank(references: Sequence[Reference], signature: str, *, most_patches: int) -> ReferenceBank:
    """Return the patches of several references, thinned to `most_patches` or fewer; see `read_bank`."""
    return read_bank(PatchesInMemory(references), signature, most_patches=most_patches)


def read_bank(source: PatchSource, signature: str, *, most_patches: int) -> ReferenceBank:
    """Return the patches of several references, thinned to `most_patches` or fewer.

    Every sum over reference patches becomes a sum over some of them, each with the mass of those it stands for:

        sum_r mass[r] k(f_r, g)  ~=  sum_{r drawn} s[r] mass[r] k(f_r, g),     s = sum of w over the stratum / drawn

    The strata are foreground and background. Half of the bank is for each; what one leaves free the other takes. In a
    stratum patches are drawn evenly along rows, views and references, so that each reference and each part of its image
    is there in proportion: no worse here than greedy k-centres over the features, and a thousand times faster
    (docs/algorithm.md). One more reference replaces as many patches as it gives. Ambiguous patches are left out, they
    state nothing.

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
    # Columns by attrgetter: of thousands of references, a comprehension for each takes twice as long.
    digests = list(map(attrgetter("content_digest"), given))
    order = sorted(range(len(given)), key=digests.__getitem__)
    summaries = [given[index] for index in order]
    # Of thousands, np.stack takes twice as long.
    marked = [one.mean_object for one in summaries if one.mean_object is not None]
    objects = np.concatenate(marked).reshape(len(marked), -1)
    counts = list(map(attrgetter("count"), summaries))
    if sum(counts) <= most_patches:
        owners, rows = np.repeat(np.array(order, np.int64), counts), np.concatenate([np.arange(one) for one in counts])
        weights: NDArray[np.float32] | None = None
        read = source.read(owners, rows)
    else:
        strata = [list(map(attrgetter(name), summaries)) for name in ("foreground_rows", "background_rows")]
        sizes = _shares([sum(map(len, parts)) for parts in strata], most_patches)
        heads = b"".join([digests[index][:4] for index in order])
        phases = np.frombuffer(heads, ">u4").astype(np.int64)
        drawn = [_draw(parts, phases, size) for parts, size in zip(strata, sizes, strict=True)]
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


def thinned(reference: Reference, most_patches: int) -> Reference:
    """Return a reference with every n-th patch of foreground and background, each with the weight of those it is for.

    Args:
        reference: any.
        most_patches: bound, at least 2; a reference of fewer is returned as it is.
    """
    if len(reference.features) <= most_patches:
        return reference
    summary = summarize_patches(reference)
    strata = (summary.foreground_rows, summary.background_rows)
    sizes = _shares([len(rows) for rows in strata], most_patches)
    places = [
        ((np.arange(size) + 0.5) * len(rows) / max(size, 1)).astype(np.int64)
        for rows, size in zip(strata, sizes, strict=True)
    ]
    rows = np.concatenate([part[at] for part, at in zip(strata, places, strict=True)])
    weight = reference.ignore_weight[rows].astype(np.float32)
    weight = weight * _weights([summary], weight, sizes)
    return Reference(
        reference.features[rows], reference.foreground_coverage[rows], weight.astype(np.float16), reference.signature
    )


def is_mostly_fine(summaries: Sequence[PatchSummary]) -> bool:
    """Return whether at least half of a label's references, those that mark an object, show a thin one."""
    fine = [one.fine is not None for one in summaries if one.mean_object is not None]
    return 0 < len(fine) <= 2 * sum(fine)


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
    others = sorted(set(map(attrgetter("signature"), summaries)) - {signature})
    if others:
        raise BadInputError(
            f"references must come from the models {signature}, got {others[0]}; describe their images again"
        )
    if not all(map(attrgetter("is_finite"), summaries)):
        raise BadInputError("reference features must be finite, got NaN or infinity; encode the image again")
    if sum(map(attrgetter("mass"), summaries)) < MINIMUM_MASS:
        raise BadInputError("references must mark something, got masks that cover no patch; annotate the object again")


def _shares(available: Sequence[int], most: int) -> tuple[int, int]:
    foreground, background = available
    of_foreground = min(foreground, max(most // 2, most - background))
    return of_foreground, min(background, most - of_foreground)


def _draw(parts: Sequence[NDArray[np.uint16 | np.uint32]], phases: Indices, count: int) -> tuple[Indices, Indices]:
    """Draw `count` rows of the parts: number of the part and row of each, in this order.

    Row i of a part has the place x = phase + i / golden ratio (mod 1, here in units of 2^-32); the rows with the
    smallest places are drawn. Wherever the bound of x lies, such rows of a part are spread evenly over it, so each part
    gives its share, and a further part replaces only as many rows as it gives.
    """
    lengths = np.array(list(map(len, parts)), np.int64)
    longest = int(lengths.max())
    places = (np.arange(longest) * _GOLDEN) % _WHOLE
    in_order = np.argsort(places)
    ordered = places[in_order]
    lowest = -phases % _WHOLE
    starts = np.searchsorted(ordered, lowest)
    bound = int(1.2 * count / max(int(lengths.sum()), 1) * _WHOLE) + 1
    while True:
        # Rows of a part with x below the bound are neighbours in the order of the places: no others are looked at.
        bound = min(bound, _WHOLE)
        highest = lowest + bound
        looked_at = np.searchsorted(ordered, highest % _WHOLE) - starts + longest * (highest >= _WHOLE)
        owners = np.repeat(np.arange(len(parts)), looked_at)
        offsets = np.arange(len(owners)) - np.repeat(np.cumsum(looked_at) - looked_at, looked_at)
        positions = in_order[(starts[owners] + offsets) % longest] if longest else offsets
        is_there = positions < lengths[owners]
        owners, positions = owners[is_there], positions[is_there]
        if len(owners) >= count or bound == _WHOLE:
            break
        bound *= 2
    chosen = np.argsort((phases[owners] + places[positions]) % _WHOLE, kind="stable")[:count]
    chosen = chosen[np.argsort(owners[chosen] * longest + positions[chosen], kind="stable")]
    owners, positions = owners[chosen], positions[chosen]
    rows = [parts[owner][position] for owner, position in zip(owners.tolist(), positions.tolist(), strict=True)]
    return owners, np.array(rows, np.int64)


def _weights(
    summaries: Sequence[PatchSummary], drawn: NDArray[np.float32], sizes: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the factor of each drawn patch: the weight of its stratum over the weight of what was drawn of it."""
    factors = []
    # Sums of float16 values: exact in float64, in whatever order.
    weights = np.fromiter(chain.from_iterable(map(attrgetter("weights"), summaries)), np.float64).reshape(-1, 2)
    for stratum, some in enumerate((drawn[: sizes[0]], drawn[sizes[0] :])):
        whole = np.float32(weights[:, stratum].sum())
        factors.append(np.full(len(some), whole / max(some.sum(), np.float32(1e-6)), np.float32))
    return np.concatenate(factors)
