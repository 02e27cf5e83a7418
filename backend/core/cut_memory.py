"""Masks of marks that were cut already: with each further click Label Studio sends all former marks again."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from backend.core.types import EncodedImage, ScoredMask, Scribble

MOST_BYTES_AN_IMAGE = 8 << 20
"""A mask of 1 megapixel takes 130 kB."""


@dataclass(frozen=True, eq=False)
class _Kept:
    bits: NDArray[np.uint8]
    score: float


class CutMemory:
    """Keeps the masks of an image's scribbles for as long as the encoded image is in memory. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: WeakKeyDictionary[EncodedImage, OrderedDict[bytes, _Kept | None]] = WeakKeyDictionary()

    def __len__(self) -> int:
        """Return the number of images that masks are kept of."""
        return len(self._kept)

    def get_or_cut(
        self, encoded: EncodedImage, scribble: Scribble, cut: Callable[[], ScoredMask | None]
    ) -> ScoredMask | None:
        """Return what the scribble gave on this image before, or else what `cut` gives."""
        key = _digest(scribble)
        with self._lock:
            of_image = self._kept.setdefault(encoded, OrderedDict())
            if key in of_image:
                of_image.move_to_end(key)
                return _unpacked(of_image[key], scribble)
        found = cut()
        kept = None if found is None else _Kept(np.packbits(found.mask), found.score)
        with self._lock:
            of_image[key] = kept
            while len(of_image) > 1 and _bytes(of_image) > MOST_BYTES_AN_IMAGE:
                of_image.popitem(last=False)
        return found


def _unpacked(kept: _Kept | None, scribble: Scribble) -> ScoredMask | None:
    if kept is None:
        return None
    height, width = scribble.size_hw
    bits = np.unpackbits(kept.bits, count=height * width)
    return ScoredMask(bits.view(np.bool_).reshape(height, width), kept.score)


def _bytes(of_image: OrderedDict[bytes, _Kept | None]) -> int:
    return sum(256 + (0 if kept is None else kept.bits.nbytes) for kept in of_image.values())


def _digest(scribble: Scribble) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for array in (scribble.positive_xy, scribble.negative_xy, scribble.boxes_xyxy):
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    for strokes in (scribble.positive_strokes, scribble.negative_strokes):
        digest.update(b"none" if strokes is None else b"strokes" + np.packbits(strokes).tobytes())
    return digest.digest()
