"""The protocols of encoders, without any implementation."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from backend.core.arrays import Array, Device
from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.types import Image


class Encoder(Protocol):
    """Turns images into feature maps; keeps nothing of an image, so threads may share it."""

    @property
    def signature(self) -> str:
        """Return name, weights and sizes: two encoders of one signature give the same feature maps."""
        ...

    @property
    def temperature(self) -> float | None:
        """Return the softmax scale of the matching for this encoder's similarities; None: nobody measured it."""
        ...

    @property
    def similarity_floor(self) -> float | None:
        """Return the cosine below which two of this encoder's patches have nothing in common; None: not measured."""
        ...

    @property
    def object_feature_space(self) -> ObjectFeatureSpace:
        """Return the space in which this encoder's features tell one kind of object from another."""
        ...

    def encode(self, image: Image) -> Array:
        """Encode (H, W, 3) uint8 RGB as (H_p, W_p, D) float32, each patch of unit length."""
        ...


@runtime_checkable
class SideBySide(Protocol):
    """An encoder of which several threads may each encode an image at a time, every one on its share of the cores."""

    @property
    def calls_at_a_time(self) -> int:
        """Return how many gain by it; 1 if none does."""
        ...


@runtime_checkable
class TextAligned(Protocol):
    """An encoder whose patches also have features in the space of a text encoder."""

    @property
    def text_space(self) -> str | None:
        """Return name and weights of the text encoder that shares the space; None if there is none."""
        ...

    def encode_both_async(
        self, prepared: Sequence[Array], *, is_half: bool = False
    ) -> Callable[[], list[tuple[Array, Array]]]:
        """Start to encode several images in one forward pass each, as `BatchEncoder.encode_async` does.

        Returns:
            what waits for feature maps (H_p, W_p, D), and text features (H_p, W_p, E) of the same patches, both of unit
            length.
        """
        ...


@runtime_checkable
class FineEncoder(Protocol):
    """An encoder that also makes feature maps of twice the size, for things thinner than its patches."""

    def encode_fine(self, image: Image) -> Array:
        """Encode (H, W, 3) uint8 RGB as about (2 H_p, 2 W_p, D) float32, each patch of unit length."""
        ...


@runtime_checkable
class BatchEncoder(Encoder, Protocol):
    """Encodes several images in shared forward passes."""

    @property
    def device(self) -> Device:
        """Return the device that it runs on."""
        ...

    @property
    def batch_size(self) -> int:
        """Return the number of images worth encoding together; 1 if a batch gains nothing."""
        ...

    def prepare(self, image: Image) -> Array:
        """Return (H, W, 3) uint8 RGB as `encode_async` takes it. Needs no device."""
        ...

    def encode_async(self, prepared: Sequence[Array], *, is_half: bool = False) -> Callable[[], list[Array]]:
        """Start to encode several images; return what waits for their feature maps, on the CPU.

        They are float32, with `is_half` float16, which copies less from a device.
        """
        ...
