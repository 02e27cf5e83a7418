"""What a segmenter is: its protocols, its prompts and its mask candidates, without any implementation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from backend.core.types import Arrays, Image, Mask, Scribble

Embedding = Mapping[str, NDArray[np.generic]]
"""What decoding needs of an image, by the segmenter's own names."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What points at one object, in the segmenter's working frame of (h, w) px.

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
        score: what the segmenter itself makes of it, in [0, 1].
        prompt_index: of the prompt that it answers.
        rejection_reason: why there is no mask: it is empty then, and says so to who asks.
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

    pixels: Tensor
    image_hw: tuple[int, int]


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """What a segmenter is to decode of one image: made by its `plan`, for its `decode_planned`.

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
        """Name, weights and sizes."""
        ...

    @property
    def points_add_up(self) -> bool:
        """Return whether several points on an object are better cut one by one, and joined, than all at once."""
        ...

    @property
    def reads_similarity(self) -> bool:
        """Return whether `decode` reads affinity and posterior of a scribble's prompt: else nobody computes them."""
        ...

    def embed(self, image: Image) -> Embedding:
        """What decoding needs of an image, (H, W, 3) uint8 RGB: computed once, cached."""
        ...

    def working_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Size of the frame that prompts and candidates are in; its aspect ratio is the image's."""
        ...

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[MaskCandidate]:
        """Candidates of all prompts of one image in one call; a prompt without any mask has none, or a refusal."""
        ...


@runtime_checkable
class BatchSegmenter(Segmenter, Protocol):
    """A segmenter whose images share forward passes."""

    def prepare(self, image: Image) -> SegmenterInput:
        """(H, W, 3) uint8 RGB as `embed_async` takes it; needs no device."""
        ...

    def embed_async(self, prepared: Sequence[SegmenterInput]) -> Callable[[], list[Arrays]]:
        """Begin to `embed` several images; gives what waits for them."""
        ...

    def plan(self, embedding: Embedding, prompts: Sequence[Prompt]) -> DecodePlan:
        """What `decode_planned` needs for `decode` of this; needs no device."""
        ...

    def decode_planned(self, plans: Sequence[DecodePlan]) -> list[list[MaskCandidate]]:
        """`decode` of what was planned, of any images, in as few passes as will do."""
        ...
