"""Encoding: all that later steps need of an image, made by encoder and segmenter."""

from collections.abc import Sequence

import numpy as np

from backend.core.arrays import to_numpy
from backend.core.types import EncodedImage, Image
from backend.engine.plans import PreparedImage
from backend.engine.stages import StageTimer
from backend.models.encoders.protocol import BatchEncoder, TextAligned
from backend.models.segmenters import BatchSegmenter


class ImageEncoding:
    """Encodes images, several in one pass if that is quicker.

    Args:
        encoder: makes feature maps.
        segmenter: makes image embeddings.
        signature: of both, kept in each encoded image.
        stage: times what is done.
    """

    def __init__(self, encoder: BatchEncoder, segmenter: BatchSegmenter, signature: str, stage: StageTimer) -> None:
        self._encoder = encoder
        self._text = encoder if isinstance(encoder, TextAligned) and encoder.text_space is not None else None
        self._segmenter = segmenter
        self._signature = signature
        self._stage = stage

    @property
    def text_space(self) -> str | None:
        """Return the text encoder whose space the encoder shares, None if it shares none."""
        return None if self._text is None else self._text.text_space

    def encode(self, image: Image, *, size_hw: tuple[int, int] | None = None, with_text: bool = False) -> EncodedImage:
        """Encode one image at once, see `Softmatcher.encode`."""
        if with_text and self._text is not None:
            return self._encode_both(self._text, [self.prepare(image, size_hw)])[0]
        with self._stage("encode"):
            features = self._encoder.encode(image)
        with self._stage("embed"):
            embedding = self._segmenter.embed(image)
        natural_hw = size_hw or (image.shape[0], image.shape[1])
        return EncodedImage(natural_hw, to_numpy(features).astype(np.float16), embedding, self._signature)

    def prepare(self, image: Image, size_hw: tuple[int, int] | None = None) -> PreparedImage:
        """Prepare an image for `encode_prepared`, see `Softmatcher.prepare`."""
        with self._stage("prepare"):
            natural_hw = size_hw or (image.shape[0], image.shape[1])
            return PreparedImage(natural_hw, self._encoder.prepare(image), self._segmenter.prepare(image))

    def encode_prepared(self, prepared: Sequence[PreparedImage], *, with_text: bool = False) -> list[EncodedImage]:
        """Encode what `prepare` made, with text features if they are wanted and the encoder has any."""
        if with_text and self._text is not None:
            return self._encode_both(self._text, prepared)
        with self._stage("encode", images=len(prepared)):
            # Both are on their way before one is waited for: the device has always something to do.
            encoding = self._encoder.encode_async([one.for_encoder for one in prepared], is_half=True)
            embedding = self._segmenter.embed_async([one.for_segmenter for one in prepared])
            features = encoding()
        with self._stage("embed", images=len(prepared)):
            embeddings = embedding()
        return [
            EncodedImage(image.size_hw, to_numpy(one), embedded, self._signature)
            for image, one, embedded in zip(prepared, features, embeddings, strict=True)
        ]

    def _encode_both(self, encoder: TextAligned, prepared: Sequence[PreparedImage]) -> list[EncodedImage]:
        with self._stage("encode", images=len(prepared)):
            encoding = encoder.encode_both_async([one.for_encoder for one in prepared], is_half=True)
            embedding = self._segmenter.embed_async([one.for_segmenter for one in prepared])
            features = encoding()
        with self._stage("embed", images=len(prepared)):
            embeddings = embedding()
        return [
            EncodedImage(image.size_hw, to_numpy(visual), embedded, self._signature, to_numpy(text))
            for image, (visual, text), embedded in zip(prepared, features, embeddings, strict=True)
        ]
