"""Pinned memory: what a network's stream copies to a CUDA device and back without anybody waiting."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PINNED_BYTES = 512 * 2**20
"""Bound of the pinned memory that a network keeps for inputs and answers to come: some MB each."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer of a pass, on its way to the CPU.

    Attributes:
        values: (B, ...), there once `wait` returns.
        wait: for them.
        is_pinned: the values lie in memory that goes back to `Transfers`.
    """

    values: Tensor
    wait: Callable[[], None]
    is_pinned: bool = False


class Transfers:
    """Copies to a CUDA device and back in a network's stream, beside the kernels of others.

    That needs pinned memory, and pinning takes longer than a copy: it is used again.
    """

    def __init__(self, stream: Any, *, most_bytes: int = _PINNED_BYTES) -> None:
        self._stream = stream
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    @property
    def kept_bytes(self) -> int:
        """Return the size of the pinned memory that waits for its next use."""
        return sum(one.nbytes for free in self._free.values() for one in free)

    def pin(self, item: Tensor) -> Tensor:
        """Return a copy in pinned memory."""
        return copy_into(item, self._pinned(item))

    def to_device(self, pinned: Tensor, device: torch.device) -> Tensor:
        """Return a copy on the device, complete when the stream comes to what is queued next."""
        return pinned.to(device, non_blocking=True)

    def to_host(self, answer: Tensor) -> Answer:
        """Start to copy an answer to pinned memory."""
        pinned = self._pinned(answer)
        pinned.copy_(answer, non_blocking=True)
        there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        there.record(self._stream)
        return Answer(pinned, there.synchronize, is_pinned=True)

    def give_back(self, pinned: Sequence[Tensor]) -> None:
        """Take back pinned memory that nothing reads or writes any more."""
        with self._lock:
            for one in pinned:
                # Shapes of late come last: those of images that are not seen any more are let go first.
                free = self._free.pop((one.shape, one.dtype), [])
                self._free[one.shape, one.dtype] = [*free, one]
            while self.kept_bytes > self._most_bytes:
                self._free.pop(next(iter(self._free)))

    def _pinned(self, like: Tensor) -> Tensor:
        with self._lock:
            free = self._free.get((like.shape, like.dtype), [])
            if free:
                return free.pop()
        return self._new(like)

    def _new(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def copy_into(source: Tensor, into: Tensor) -> Tensor:
    """Copy by NumPy, in this thread: torch would ask all cores for it, which decode images meanwhile."""
    np.copyto(into.numpy(), source.numpy())
    return into
