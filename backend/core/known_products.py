"""Products of reference patches with a target's patches, kept for the next bank of the same label.

One more reference replaces only as many patches of a bank as it gives (`memory_bank.read_bank`). A target that is
matched after each annotation needs the products with the new ones; the others are those of its last match, bit for bit.
"""

import threading
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from backend.core.shared_matching import row_digests
from backend.core.types import EncodedImage

MOST_BYTES = 200_000_000
"""What is kept of all targets: 24 of profile `lite`, a page of the gallery, take 190 MB."""
KEPT_S = 120.0
"""Seconds without any match after which products are to be forgotten."""
_LEAST_ROWS = 16
"""Rows of a product, at least: for fewer, libraries have other kernels."""
_WORTH_SHARE = 0.75
"""Share of new patches up to which the others are worth looking up."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Kept:
    """The last products of a target: (R, D) features, the divisor of the target's, and (R, T) products."""

    features: Floats
    temperature: float
    products: Floats


class KnownProducts:
    """Keeps the products of banks with targets for as long as the encoded image is in memory. Threads may share it.

    Args:
        most_bytes: of all products; the targets asked for least recently are forgotten.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: WeakKeyDictionary[EncodedImage, _Kept] = WeakKeyDictionary()
        self._places: tuple[Floats, Floats, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Return the number of targets that products are kept of."""
        return len(self._kept)

    def multiply(self, encoded: EncodedImage, features: Floats, target: Floats, temperature: float) -> Floats:
        """Return `features @ (target / temperature).T`, the same bits as computed anew.

        Args:
            encoded: the target.
            features: (R, D) float32 of a bank.
            target: (T, D) float32: its patches.
            temperature: of the matching.

        Returns:
            (R, T) float32, not to be written to.
        """
        with self._lock:
            known = self._kept.pop(encoded, None)
        scaled = (target / temperature).T
        if known is None or known.temperature != temperature:
            products = _product(features, scaled)
        else:
            products = self._joined(known, features, scaled)
        with self._lock:
            self._kept[encoded] = _Kept(features, temperature, products)
            used = sum(one.products.nbytes for one in self._kept.values())
            while used > self._most_bytes and len(self._kept) > 1:
                used -= self._kept.pop(next(iter(self._kept))).products.nbytes
        return products

    def forget(self) -> None:
        """Forget all products."""
        with self._lock:
            self._kept.clear()
            self._places = None

    def _joined(self, known: _Kept, features: Floats, scaled: Floats) -> Floats:
        places = self._places_of(features, known.features)
        new = np.flatnonzero(places < 0)
        is_worth = len(new) <= _WORTH_SHARE * len(features) and len(features) >= _LEAST_ROWS
        if not is_worth or not rows_are_independent(*features.shape, scaled.shape[1]):
            return _product(features, scaled)
        if 0 < len(new) < _LEAST_ROWS:
            new = np.union1d(new, np.arange(_LEAST_ROWS))
        products: Floats = np.take(known.products, places, axis=0, mode="clip")
        if len(new):
            products[new] = _product(features[new], scaled)
        return products

    def _places_of(self, features: Floats, known: Floats) -> NDArray[np.int64]:
        """Return in which row of the known features each row is, -1 for those that are in none."""
        last = self._places  # the same for all targets of a page
        if last is not None and last[0] is features and last[1] is known:
            return last[2]
        if features.shape[1] != known.shape[1]:
            return np.full(len(features), -1, np.int64)
        digests, theirs = row_digests(features), row_digests(known)
        order = np.argsort(theirs)
        found = order[np.searchsorted(theirs[order], digests).clip(max=len(theirs) - 1)]
        # Two digests that met by chance must not count, nor two zeros of different signs.
        is_same = (features.view(np.uint32) == known[found].view(np.uint32)).all(axis=1)
        places = np.where(is_same, found, -1)
        self._places = (features, known, places)
        return places


@lru_cache(maxsize=64)
def rows_are_independent(count: int, channels: int, width: int) -> bool:
    """Return whether each row of a product has the same bits, whatever other rows are multiplied with it.

    So it is with the kernels of some processors (those with AVX-512), and not with those of others: this one is tried.

    Args:
        count: R, rows of the left factor.
        channels: D, its columns.
        width: T, columns of the product.
    """
    draw = np.random.default_rng(0)
    left = draw.standard_normal((count, channels), np.float32)
    right = draw.standard_normal((width, channels), np.float32).T
    whole = _product(left, right)
    sizes = (size for size in (_LEAST_ROWS, 17, 31, 64, 101, 258, 515, count // 2 + 1) if size <= count)
    tried = (np.sort(draw.choice(count, size, replace=False)) for size in sizes)
    return all(np.array_equal(_product(left[rows], right), whole[rows]) for rows in tried)


def _product(left: Floats, right: Floats) -> Floats:
    return left @ right
