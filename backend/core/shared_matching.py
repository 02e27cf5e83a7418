"""Several labels matched with one product: each reference patch is compared with a target once, whoever has it.

Labels that are marked on the same images have most of their patches in common. And whatever is asked of a target's
patches, of each label alone or beside the others, comes from the same two sums of each label. Symbols as in `matching`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.core.matching import MINIMUM_MASS

_LARGEST_EXPONENT = 80.0
"""exp(-80) is still a float32 with all its digits."""
_ROWS_AT_ONCE = 512
"""Rows of the product that are in a processor's cache at a time."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LabelPatches:
    """The patches of one label: (R, D) features of unit length, (R,) foreground and background masses, all float32."""

    features: Floats
    foreground: Floats
    background: Floats


@dataclass(frozen=True, eq=False)
class SharedPatches:
    """The patches of several labels, each different one named once.

    Attributes:
        features: of each label, as given.
        new_rows: of each label: the rows that no label before has; (N,) int64.
        masses: of each label: (2 L, N) float32: foreground of all labels, then background of all, of its new rows.
        totals: (2, L) float32: sums of the foreground and background of each label.
    """

    features: tuple[Floats, ...]
    new_rows: tuple[NDArray[np.int64], ...]
    masses: tuple[Floats, ...]
    totals: Floats

    @property
    def count(self) -> int:
        """Return the number of different patches."""
        return sum(map(len, self.new_rows))


@dataclass(frozen=True, eq=False)
class LabelSums:
    """The sums of a target's patches over the reference patches of several labels, and of nothing known.

    Attributes:
        foreground: (L, T) float32: A_l[t] = sum_r foreground_l[r] exp((S[r, t] - 1) / tau).
        background: (L, T) float32: B_l[t], likewise with background_l[r].
        totals: (2, L) float32: m_l and n_l, the sums of both masses.
        rest: exp((s0 - 1) / tau).
    """

    foreground: Floats
    background: Floats
    totals: Floats
    rest: float

    def alone(self, label: int) -> Floats:
        """Return a label's posterior, (T,) float32, as if there were no other label; see `matching.match_posterior`.

        q_l[t] = a_l[t] / (a_l[t] + b_l[t] + rest),     a_l[t] = A_l[t] / sqrt(m_l),     b_l[t] = B_l[t] / sqrt(n_l)
        """
        inside, outside = (
            sums[label] / _root(total[label])
            for sums, total in zip((self.foreground, self.background), self.totals, strict=True)
        )
        return self._posterior(inside, outside)

    def beside(self, label: int) -> Floats:
        """Return a label's posterior with the other labels' objects as background; see `matching.match_posteriors`.

        b_l[t] = (B_l[t] + sum_{k != l} A_k[t]) / sqrt(n_l + sum_{k != l} m_k)
        """
        others = np.arange(len(self.foreground)) != label
        outside = self.background[label] + self.foreground[others].sum(axis=0)
        total = self.totals[1, label] + self.totals[0, others].sum()
        return self._posterior(self.foreground[label] / _root(self.totals[0, label]), outside / _root(total))

    def _posterior(self, inside: Floats, outside: Floats) -> Floats:
        total = np.maximum(inside + outside + np.float32(self.rest), np.finfo(np.float32).tiny)
        posterior: Floats = np.clip(inside / total, 0.0, 1.0).astype(np.float32)
        return posterior


def share_patches(labels: Sequence[LabelPatches]) -> SharedPatches:
    """Find the patches that labels have in common: those with the same features, bit for bit."""
    counts = [len(one.features) for one in labels]
    starts = np.concatenate([[0], np.cumsum(counts)])
    # Of all rows in a row: the number of the first one that is the same.
    digests = np.concatenate([row_digests(one.features) for one in labels])
    _, first, number = np.unique(digests, return_index=True, return_inverse=True)
    owner = first[number]
    for index, one in enumerate(labels):
        mine = owner[starts[index] : starts[index + 1]]
        for other in range(index + 1):
            same = np.flatnonzero((mine >= starts[other]) & (mine < starts[other + 1]))
            theirs = labels[other].features[mine[same] - starts[other]]
            differs = same[(one.features[same] != theirs).any(axis=1)]
            mine[differs] = starts[index] + differs  # two digests that met by chance
    is_new = owner == np.arange(len(owner))
    place = np.cumsum(is_new) - 1
    masses = np.zeros((2 * len(labels), int(is_new.sum())), np.float32)
    for index, one in enumerate(labels):
        columns = place[owner[starts[index] : starts[index + 1]]]
        np.add.at(masses[index], columns, one.foreground.astype(np.float32, copy=False))
        np.add.at(masses[len(labels) + index], columns, one.background.astype(np.float32, copy=False))
    new_rows = [np.flatnonzero(is_new[starts[index] : starts[index + 1]]) for index in range(len(labels))]
    ends = np.cumsum([len(rows) for rows in new_rows])
    return SharedPatches(
        tuple(one.features for one in labels),
        tuple(new_rows),
        tuple(np.ascontiguousarray(part) for part in np.split(masses, ends[:-1], axis=1)),
        np.array([[one.foreground.sum() for one in labels], [one.background.sum() for one in labels]], np.float32),
    )


def can_share(temperature: float) -> bool:
    """Return whether all terms of a sum are float32 at this temperature, whatever the similarity."""
    return temperature > 0 and 2.0 / temperature <= _LARGEST_EXPONENT


def sum_labels(shared: SharedPatches, target: Floats, *, temperature: float, similarity_floor: float) -> LabelSums:
    """Compare all reference patches with a target's, and sum up for each label.

    Args:
        shared: of the labels.
        target: (T, D) float32 of unit length.
        temperature: tau, one that `can_share`.
        similarity_floor: s0 in [-1, 1].
    """
    count = shared.totals.shape[1]
    scaled = np.ascontiguousarray((target / np.float32(temperature)).T)
    sums = np.zeros((2 * count, len(target)), np.float32)
    shift = np.float32(1.0 / temperature)
    for features, rows, masses in zip(shared.features, shared.new_rows, shared.masses, strict=True):
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            logits = features[rows[some]] @ scaled
            # Similarities are 1 at most: no term overflows, and none needs another scale.
            np.subtract(logits, shift, out=logits)
            np.exp(logits, out=logits)
            sums += masses[:, some] @ logits
    rest = float(np.exp((similarity_floor - 1.0) / temperature))
    return LabelSums(sums[:count], sums[count:], shared.totals, rest)


def row_digests(features: Floats) -> NDArray[np.uint64]:
    """Return a digest of each row, (R,) for (R, D): rows of the same bits have the same, others hardly ever."""
    words = np.ascontiguousarray(features, np.float32).view(np.uint32)
    factors = np.random.default_rng(0).integers(1, 1 << 63, words.shape[1], np.uint64) | np.uint64(1)
    digests = np.empty(len(words), np.uint64)
    for start in range(0, len(words), _ROWS_AT_ONCE):
        some = words[start : start + _ROWS_AT_ONCE].astype(np.uint64)
        digests[start : start + _ROWS_AT_ONCE] = (some * factors).sum(axis=1, dtype=np.uint64)
    return digests


def _root(total: np.float32) -> np.float32:
    return np.float32(np.sqrt(max(float(total), MINIMUM_MASS)))
