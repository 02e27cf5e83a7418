"""What an encoder is: the protocols that the engine knows, without any implementation."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.types import Image


class Encoder(Protocol):
    """Turns images into feature maps; keeps nothing of an image, so threads may share it."""

    @property
    def signature(self) -> str:
        """Name, weights and sizes: two encoders of one signature give one feature map."""
        ...

    @property
    def temperature(self) -> float:
        """The softmax scale at which this encoder's similarities are sharp enough, and no sharper."""
        ...

    @property
    def similarity_floor(self) -> float:
        """The cosine below which two of this encoder's patches have nothing in common."""
        ...

    @property
    def object_feature_space(self) -> ObjectFeatureSpace:
        """Where this encoder's features tell the kind of an object."""
        ...

    def encode(self, image: Image) -> Tensor:
        """(H, W, 3) uint8 RGB to (H_p, W_p, D) float32, each patch of unit length."""
        ...


@runtime_checkable
class BatchEncoder(Encoder, Protocol):
    """An encoder whose images share forward passes."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def batch_size(self) -> int:
        """Images that are worth encoding together; 1 where a batch gains nothing."""
        ...

    def prepare(self, image: Image) -> Tensor:
        """(H, W, 3) uint8 RGB as `encode_async` takes it; needs no device."""
        ...

    def encode_async(
        self, prepared: Sequence[Tensor], *, dtype: torch.dtype = torch.float32
    ) -> Callable[[], list[Tensor]]:
        """Begin to `encode` several images; gives what waits for them, on the CPU in the wanted type."""
        ...
