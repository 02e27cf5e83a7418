"""Adapters that give models which take one image at a time the protocols of those that take batches."""

from collections.abc import Callable, Sequence

import numpy as np

from backend.core.arrays import CPU, Array, Device, to_numpy
from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.types import Arrays, Image
from backend.models.encoders.protocol import BatchEncoder, Encoder, SideBySide, TextAligned
from backend.models.images import require_rgb
from backend.models.segmenters import (
    BatchSegmenter,
    DecodePlan,
    Embedding,
    MaskCandidate,
    Prompt,
    Segmenter,
    SegmenterInput,
)


def batch_encoder(encoder: Encoder) -> BatchEncoder:
    """Return an encoder that takes batches as it is, any other one adapted."""
    if isinstance(encoder, BatchEncoder):
        return encoder
    return OneByOneTextAligned(encoder, encoder) if isinstance(encoder, TextAligned) else OneByOneEncoder(encoder)


def batch_segmenter(segmenter: Segmenter) -> BatchSegmenter:
    """Return a segmenter that takes batches as it is, any other one adapted."""
    return segmenter if isinstance(segmenter, BatchSegmenter) else OneByOne(segmenter)


class OneByOneEncoder:
    """Adapts an encoder that takes one image at a time to `BatchEncoder`: it encodes when the features are awaited.

    Args:
        encoder: the encoder, which runs on the CPU.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def signature(self) -> str:
        """Return the encoder's own signature."""
        return self._encoder.signature

    @property
    def temperature(self) -> float | None:
        """Return the encoder's own temperature."""
        return self._encoder.temperature

    @property
    def similarity_floor(self) -> float | None:
        """Return the encoder's own similarity floor."""
        return self._encoder.similarity_floor

    @property
    def object_feature_space(self) -> ObjectFeatureSpace:
        """Return the encoder's own object feature space."""
        return self._encoder.object_feature_space

    @property
    def calls_at_a_time(self) -> int:
        """Return the encoder's own number; 1 if it has none."""
        return self._encoder.calls_at_a_time if isinstance(self._encoder, SideBySide) else 1

    @property
    def device(self) -> Device:
        """Return the CPU."""
        return CPU

    @property
    def batch_size(self) -> int:
        """Return 1: a batch gains nothing."""
        return 1

    def encode(self, image: Image) -> Array:
        """Encode as the encoder itself does."""
        return self._encoder.encode(image)

    def prepare(self, image: Image) -> Array:
        """Return the image's pixels, (H, W, 3) uint8, unchanged.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        return _pixels(image)

    def encode_async(self, prepared: Sequence[Array], *, is_half: bool = False) -> Callable[[], list[Array]]:
        """Return what encodes the images, one after the other, when it is called."""
        dtype = np.float16 if is_half else np.float32
        return lambda: [to_numpy(self._encoder.encode(pixels)).astype(dtype, copy=False) for pixels in prepared]


class OneByOneTextAligned(OneByOneEncoder):
    """Adapts an encoder whose patches also have features in the space of a text encoder.

    Args:
        encoder: the encoder, which runs on the CPU.
        text: the same: its `encode_both_async` takes images (H, W, 3) uint8.
    """

    def __init__(self, encoder: Encoder, text: TextAligned) -> None:
        super().__init__(encoder)
        self._text = text

    @property
    def text_space(self) -> str | None:
        """Return the encoder's own space."""
        return self._text.text_space

    def encode_both_async(
        self, prepared: Sequence[Array], *, is_half: bool = False
    ) -> Callable[[], list[tuple[Array, Array]]]:
        """Encode as the encoder itself does."""
        return self._text.encode_both_async(prepared, is_half=is_half)


class OneByOne:
    """Adapts a segmenter that takes one image at a time to `BatchSegmenter`: it embeds when embeddings are awaited.

    Args:
        segmenter: the segmenter.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter

    @property
    def signature(self) -> str:
        """Return the segmenter's own signature."""
        return self._segmenter.signature

    @property
    def points_add_up(self) -> bool:
        """Return what the segmenter itself says."""
        return self._segmenter.points_add_up

    @property
    def reads_similarity(self) -> bool:
        """Return what the segmenter itself says."""
        return self._segmenter.reads_similarity

    def embed(self, image: Image) -> Embedding:
        """Embed as the segmenter itself does."""
        return self._segmenter.embed(image)

    def working_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Return the size of the segmenter's own frame."""
        return self._segmenter.working_hw(embedding)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[MaskCandidate]:
        """Decode as the segmenter itself does."""
        return self._segmenter.decode(embedding, prompts)

    def prepare(self, image: Image) -> SegmenterInput:
        """Return the image's pixels, (H, W, 3) uint8, unchanged.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        return SegmenterInput(_pixels(image), (image.shape[0], image.shape[1]))

    def embed_async(self, prepared: Sequence[SegmenterInput]) -> Callable[[], list[Arrays]]:
        """Return what embeds the images, one after the other, when it is called."""
        return lambda: [dict(self._segmenter.embed(one.pixels)) for one in prepared]

    def plan(self, embedding: Embedding, prompts: Sequence[Prompt]) -> DecodePlan:
        """Return embedding and prompts: nothing can be done ahead."""
        return DecodePlan(embedding, prompts)

    def decode_planned(self, plans: Sequence[DecodePlan]) -> list[list[MaskCandidate]]:
        """Decode what was planned, one image after the other."""
        return [self._segmenter.decode(plan.embedding, plan.prompts) for plan in plans]


def _pixels(image: Image) -> Image:
    require_rgb(image)
    return np.ascontiguousarray(image)
