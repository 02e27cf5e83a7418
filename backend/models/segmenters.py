"""The protocols of segmenters, their prompts and mask candidates, without any implementation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from backend.core.arrays import Array
from backend.core.types import Arrays, Image, Mask, Scribble

Embedding = Mapping[str, NDArray[np.generic]]
"""What decoding needs of an image, by the segmenter's own names."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt for one object, in the segmenter's working frame of (h, w) px.

    Attributes:
        scribble: its points, boxes and strokes; `size_hw` is the working size.
        prior: (h, w) float32 in [0, 1] or None: a score map that the mask should follow. With a prior the positive
            points say which pieces of it are meant; without one they are all there is.
        affinity: (h, w) float32 in [0, 1] or None: how much each pixel looks like what the scribble marks.
        posterior: (h, w) float32 in [0, 1] or None: how likely each pixel is what the scribble's strokes run through.
    """

    scribble: Scribble
    prior: NDArray[np.float32] | None = None
    affinity: NDArray[np.float32] | None = None
    posterior: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class MaskCandidate:
    """A mask before selection.

    Attributes:
        mask: (h, w) bool in the working frame.
        score: the segmenter's own rating, in [0, 1].
        prompt_index: of the prompt that it answers.
        rejection_reason: why the mask is empty; "" if it is not.
    """

    mask: Mask
    score: float
    prompt_index: int
    rejection_reason: str = ""


@dataclass(frozen=True, eq=False)
class SegmenterInput:
    """An image on its way to a segmenter's network.

    Attributes:
        pixels: as the network's own preparation leaves them, on the CPU.
        image_hw: natural size.
    """

    pixels: Array
    image_hw: tuple[int, int]


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """The prompts for one image: made by a segmenter's `plan`, for its `decode_planned`.

    A segmenter may add to it what can be worked out without a device.

    Attributes:
        embedding: of the image.
        prompts: in the working frame.
    """

    embedding: Embedding
    prompts: Sequence[Prompt]


class Segmenter(Protocol):
    """Turns prompts into masks; keeps nothing of an image, so threads may share it."""

    @property
    def signature(self) -> str:
        """Return name, weights and sizes: two segmenters of one signature give the same masks."""
        ...

    @property
    def points_add_up(self) -> bool:
        """Return whether several points on an object are better cut one by one, and joined, than all at once."""
        ...

    @property
    def reads_similarity(self) -> bool:
        """Return whether `decode` reads affinity and posterior of a scribble's prompt; if not, none is computed."""
        ...

    def embed(self, image: Image) -> Embedding:
        """Compute what decoding needs of an image, (H, W, 3) uint8 RGB. It can be cached."""
        ...

    def working_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Return the size of the frame that prompts and candidates are in; its aspect ratio is the image's."""
        ...

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[MaskCandidate]:
        """Return the candidates of all prompts of one image: for a prompt without a mask none, or a rejected one."""
        ...


@runtime_checkable
class BatchSegmenter(Segmenter, Protocol):
    """Segments several images in shared forward passes."""

    def prepare(self, image: Image) -> SegmenterInput:
        """Return (H, W, 3) uint8 RGB as `embed_async` takes it. Needs no device."""
        ...

    def embed_async(self, prepared: Sequence[SegmenterInput]) -> Callable[[], list[Arrays]]:
        """Start to embed several images; return what waits for the embeddings."""
        ...

    def plan(self, embedding: Embedding, prompts: Sequence[Prompt]) -> DecodePlan:
        """Work out what `decode_planned` asks. Needs no device."""
        ...

    def decode_planned(self, plans: Sequence[DecodePlan]) -> list[list[MaskCandidate]]:
        """Decode what was planned, of any images, in as few passes as possible."""
        ...
