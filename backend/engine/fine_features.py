"""Feature maps at twice the size, for labels whose references show things thinner than the encoder's patches."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from backend.core.arrays import to_numpy
from backend.core.masks import mean_width_px
from backend.core.matching import ReferenceBank
from backend.core.references import ReferenceView
from backend.core.types import EncodedImage, Image, Mask
from backend.engine.plans import LabelReferences
from backend.engine.stages import StageTimer
from backend.models.encoders.protocol import Encoder, FineEncoder, TextAligned

THIN_PATCHES = 4.0
"""A reference whose object is less wide than this, in patches, is also described at twice the size. From 3.5 to 7
little changes (docs/experiments.md)."""
_KEPT = 4
"""Feature maps of targets that are kept while their encoded image lives: a labeler works on one at a time. Some 5 MB
each."""


class FineFeatures:
    """Makes feature maps at twice the size; an encoder that cannot leaves every label at its own size.

    Args:
        encoder: the encoder.
        stage: times what is done.
    """

    def __init__(self, encoder: Encoder, stage: StageTimer) -> None:
        # Phrases score patches of the usual size alone.
        is_able = isinstance(encoder, FineEncoder) and not isinstance(encoder, TextAligned)
        self._encoder = encoder if is_able and isinstance(encoder, FineEncoder) else None
        self._stage = stage
        self._lock = threading.Lock()
        self._kept: list[tuple[ref[EncodedImage], NDArray[np.float16]]] = []

    def suits(self, encoded: EncodedImage, mask: Mask) -> bool:
        """Return whether a reference with this mask, (H, W) bool, is described at twice the size: its object is thin.

        The mean width over the objects of the mask is compared with `THIN_PATCHES`.
        """
        if self._encoder is None or not mask.any():
            return False
        patches = encoded.features.shape[0] * encoded.features.shape[1]
        return mean_width_px(mask) < THIN_PATCHES * math.sqrt(mask.size / patches)

    def of(self, encoded: EncodedImage, pixels: Image) -> NDArray[np.float16]:
        """Return the feature map of an encoded image at twice the size; only if something `suits`.

        Args:
            encoded: the image.
            pixels: (H, W, 3) uint8 RGB of it.
        """
        assert self._encoder is not None
        if encoded.fine_features is not None:
            return encoded.fine_features
        with self._lock:
            found = next((features for known, features in self._kept if known() is encoded), None)
        if found is None:
            with self._stage("encode fine"):
                found = to_numpy(self._encoder.encode_fine(pixels)).astype(np.float16)
            with self._lock:
                alive = [one for one in self._kept if one[0]() is not None]
                self._kept = [*alive, (ref(encoded), found)][-_KEPT:]
        return found

    def of_views(self, encoded: EncodedImage, views: Sequence[ReferenceView]) -> list[NDArray[np.float32]]:
        """Return the feature maps of a reference's views at twice the size; the first is the encoded image as it is."""
        assert self._encoder is not None
        first, *others = (one.image for one in views)
        return [
            self.of(encoded, first).astype(np.float32),
            *(to_numpy(self._encoder.encode_fine(one)) for one in others),
        ]

    def added_to(
        self, encoded: EncodedImage, references: Mapping[str, LabelReferences], pixels: Image | None
    ) -> EncodedImage:
        """Return a target with its feature map at twice the size, if a label needs it and there are pixels."""
        if self._encoder is None or pixels is None or encoded.fine_features is not None or not needs_fine(references):
            return encoded
        return replace(encoded, fine_features=self.of(encoded, pixels))


def needs_fine(references: Mapping[str, LabelReferences]) -> bool:
    """Return whether a label's references show thin things, so that targets are matched with the pixels at hand."""
    return any(
        known.fine is not None if isinstance(known, ReferenceBank) else any(one.fine is not None for one in known)
        for known in references.values()
    )
