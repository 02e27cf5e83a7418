"""The protocol of text encoders, without any implementation."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TextEncoder(Protocol):
    """Turns phrases into vectors."""

    @property
    def text_space(self) -> str:
        """Return name and weights: vectors and text features of one space may be compared."""
        ...

    def encode(self, phrases: Sequence[str]) -> NDArray[np.float32]:
        """Encode P phrases as (P, D) float32 of unit length; (0, D) for none."""
        ...
