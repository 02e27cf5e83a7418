"""The patches of references: summaries that say which are worth reading, and where they are read from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backend.core import cancellation
from backend.core.types import Reference
from backend.errors import BadInputError

Indices = NDArray[np.int64]
_SAMPLED_PATCHES = slice(0, 512, 16)
_ROW_BITS = 32


@dataclass(frozen=True, eq=False, slots=True)
class PatchSummary:
    """Summary of a reference's patches: all that a bank needs before it reads any of them.

    Attributes:
        signature: of the models that made the features.
        content_digest: sha256 of all arrays of the reference.
        image_sample: sha256 of some features of the image as it is, which all regions on the image share.
        count: R, number of patches.
        foreground_rows: (F,) uint16 or uint32: patches that the mask touches and that have an ignore weight above 0.
        background_rows: (B,) likewise: the others with an ignore weight above 0.
        weights: sums of the ignore weights of both, exact.
        mass: sum of coverage times ignore weight.
        mean_object: (D,) float32: mean feature of the object; None if the reference marks none.
        is_finite: whether the features hold neither NaN nor infinity.
        fine: of the reference at twice the size; None if its object is not thin.
    """

    signature: str
    content_digest: bytes
    image_sample: bytes
    count: int
    foreground_rows: NDArray[np.uint16 | np.uint32]
    background_rows: NDArray[np.uint16 | np.uint32]
    weights: tuple[float, float]
    mass: float
    mean_object: NDArray[np.float32] | None
    is_finite: bool
    fine: "PatchSummary | None" = None

    @property
    def nbytes(self) -> int:
        """Return about how many bytes it occupies."""
        own = 0 if self.mean_object is None else self.mean_object.nbytes
        fine = 0 if self.fine is None else self.fine.nbytes
        return 1024 + self.foreground_rows.nbytes + self.background_rows.nbytes + own + fine


@dataclass(frozen=True, eq=False)
class PatchRows:
    """Some patches: (N, D) features, (N,) foreground coverage and ignore weight; see `Reference`.

    All hold values of float16; features may be float32.
    """

    features: NDArray[np.float16 | np.float32]
    foreground_coverage: NDArray[np.float16]
    ignore_weight: NDArray[np.float16]

    def take(self, places: Indices) -> "PatchRows":
        """Return the patches at these places; at a place below 0 any of them."""
        return PatchRows(
            np.take(self.features, places, axis=0, mode="clip"),
            np.take(self.foreground_coverage, places, mode="clip"),
            np.take(self.ignore_weight, places, mode="clip"),
        )


class PatchSource(Protocol):
    """The references of a label: their summaries at hand, their patches to be read."""

    @property
    def summaries(self) -> Sequence[PatchSummary]:
        """Return one summary per reference, in any order."""
        ...

    def read(self, owners: Indices, rows: Indices) -> PatchRows:
        """Return patch `rows[n]` of reference `owners[n]` for each n, in this order."""
        ...

    def fine(self) -> "PatchSource | None":
        """Return the source of these references at twice the size, of those that have it; None if none has."""
        ...


class DrawnPatches:
    """Patches that were read once, to be found again.

    Args:
        digests: content digests of some references.
        owners: (N,) which of them each patch is of.
        rows: (N,) its row in that one.
        patches: (N,) the patches.
    """

    def __init__(self, digests: Sequence[bytes], owners: Indices, rows: Indices, patches: PatchRows) -> None:
        self._numbers = dict(zip(digests, range(len(digests)), strict=True))
        keys = (owners << _ROW_BITS) | rows
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        self.patches = patches

    @property
    def nbytes(self) -> int:
        """Return about how many bytes it occupies."""
        return self.patches.features.nbytes + self._keys.nbytes + self._order.nbytes

    def find(self, digests: Sequence[bytes], owners: Indices, rows: Indices) -> Indices:
        """Return where in `patches` each of some patches is, (M,); -1 if it is not there."""
        numbers = np.array(list(map(self._numbers.get, digests, repeat(-1))), np.int64)
        keys = (numbers[owners] << _ROW_BITS) | rows
        places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._order[places], -1)


class PatchesDrawnBefore:
    """References of whose patches only those are read that were not drawn before.

    Args:
        source: of the references.
        last: what was drawn of these or other references of the same models; None: nothing.

    Attributes:
        drawn: what the last call of `read` returned.
    """

    def __init__(self, source: PatchSource, last: DrawnPatches | None) -> None:
        self._source = source
        self._last = last
        self.summaries = source.summaries
        self.drawn = last

    def read(self, owners: Indices, rows: Indices) -> PatchRows:
        """Return patches, see `PatchSource`; the features as float32."""
        digests = list(map(attrgetter("content_digest"), self.summaries))
        if self._last is None:
            read = self._source.read(owners, rows)
            found = replace(read, features=np.ascontiguousarray(read.features, np.float32))
        else:
            places = self._last.find(digests, owners, rows)
            is_new = places < 0
            found = self._last.patches.take(places)
            if is_new.any():
                new = self._source.read(owners[is_new], rows[is_new])
                found.features[is_new] = new.features
                found.foreground_coverage[is_new] = new.foreground_coverage
                found.ignore_weight[is_new] = new.ignore_weight
        self.drawn = DrawnPatches(digests, owners, rows, found)
        return found

    def fine(self) -> PatchSource | None:
        """Return the references at twice the size, see `PatchSource`; these are read each time."""
        return self._source.fine()


class PatchesInMemory:
    """References that are in memory as a whole.

    Args:
        references: of one label.
        summaries: of them, if they are known.

    Raises:
        BadInputError: shapes that don't agree.
        CancelledWorkError: see `cancellation.check`; asked before each reference.
    """

    def __init__(self, references: Sequence[Reference], summaries: Sequence[PatchSummary] | None = None) -> None:
        self._references = references
        self.summaries = _summaries(references) if summaries is None else summaries

    def without(self, number: int) -> "PatchesInMemory":
        """Return the same references but for one."""
        others = [other for other in range(len(self._references)) if other != number]
        return PatchesInMemory([self._references[one] for one in others], [self.summaries[one] for one in others])

    def read(self, owners: Indices, rows: Indices) -> PatchRows:
        """Return patches, see `PatchSource`."""
        first = self._references[0].features
        features = np.empty((len(rows), first.shape[1]), first.dtype)
        coverage, weight = np.empty(len(rows), np.float16), np.empty(len(rows), np.float16)
        for owner in np.unique(owners):
            own, reference = owners == owner, self._references[owner]
            features[own] = reference.features[rows[own]]
            coverage[own] = reference.foreground_coverage[rows[own]]
            weight[own] = reference.ignore_weight[rows[own]]
        return PatchRows(features, coverage, weight)

    def fine(self) -> "PatchesInMemory | None":
        """Return the references at twice the size, see `PatchSource`."""
        fine = [one.fine for one in self._references if one.fine is not None]
        summaries = [one.fine for one in self.summaries if one.fine is not None]
        return PatchesInMemory(fine, summaries) if fine else None


def _summaries(references: Sequence[Reference]) -> list[PatchSummary]:
    found = []
    for reference in references:
        cancellation.check()
        found.append(summarize_patches(reference))
    return found


def summarize_patches(reference: Reference) -> PatchSummary:
    """Return the summary of a reference.

    Raises:
        BadInputError: shapes that don't agree.
    """
    check_shapes(reference)
    coverage, weight = reference.foreground_coverage, reference.ignore_weight
    # Any part of the mask counts: an object smaller than a patch must not be drawn with the background.
    is_foreground, has_weight = coverage > 0, weight > 0
    rows = [np.flatnonzero(has_weight & is_foreground), np.flatnonzero(has_weight & ~is_foreground)]
    small = np.uint16 if len(coverage) <= np.iinfo(np.uint16).max else np.uint32
    # float16 values add up in float64 without rounding, in whatever order.
    sums = [float(weight[some].sum(dtype=np.float64)) for some in rows]
    return PatchSummary(
        reference.signature,
        _content_digest(reference),
        hashlib.sha256(reference.features[_SAMPLED_PATCHES].tobytes()).digest(),
        len(coverage),
        rows[0].astype(small),
        rows[1].astype(small),
        (sums[0], sums[1]),
        float(coverage.astype(np.float32) @ weight),
        mean_object(reference),
        bool(np.isfinite(reference.features).all()),
        None if reference.fine is None else summarize_patches(reference.fine),
    )


def check_shapes(reference: Reference) -> None:
    """Check that the arrays of a reference have one row per patch.

    Raises:
        BadInputError: they don't.
    """
    count = len(reference.features)
    if (
        reference.features.ndim != 2
        or reference.foreground_coverage.shape != (count,)
        or reference.ignore_weight.shape != (count,)
    ):
        raise BadInputError(
            "reference must have features (R, D), foreground_coverage (R,) and ignore_weight (R,), got "
            f"{reference.features.shape}, {reference.foreground_coverage.shape} and "
            f"{reference.ignore_weight.shape}; describe its image again"
        )


def mean_object(reference: Reference) -> NDArray[np.float32] | None:
    """Return the mean feature of the object on a reference, (D,) float32; None if it marks none."""
    marked = np.flatnonzero(reference.foreground_coverage > 0)
    if not len(marked):
        return None
    coverage = reference.foreground_coverage[marked].astype(np.float32)
    return np.asarray(coverage @ reference.features[marked].astype(np.float32) / coverage.sum(), np.float32)


def _content_digest(reference: Reference) -> bytes:
    digest = hashlib.sha256()
    for array in (reference.features, reference.foreground_coverage, reference.ignore_weight):
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
