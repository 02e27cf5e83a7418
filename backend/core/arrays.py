"""Arrays of NumPy or tensors of PyTorch: what both have, under names that differ.

Matching is written once for both. On a processor it gets arrays, on a GPU the tensors that lie there; what comes back
is what came in. PyTorch is imported by whoever makes tensors, never here for arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = Any
"""`NDArray` or `torch.Tensor`; the docstring of whoever takes it gives shape and type."""
TINY = float(np.finfo(np.float32).tiny)


class Device(Protocol):
    """A device as `torch.device` names it."""

    @property
    def type(self) -> str:
        """Return its kind: `cpu`, `cuda`."""
        ...


@dataclass(frozen=True)
class Processor:
    """The processor as a device, without PyTorch."""

    type: str = "cpu"

    def __str__(self) -> str:
        return self.type


CPU = Processor()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether PyTorch reports that a device's memory is full."""
    return type(error).__name__ == "OutOfMemoryError"


def as_float32(values: Array) -> Array:
    """Return the values as float32; themselves if they are."""
    return values.float() if is_tensor(values) else values.astype(np.float32, copy=False)


def is_tensor(values: Array) -> bool:
    """Return whether this is a tensor of PyTorch."""
    return not isinstance(values, np.ndarray | np.generic)


def to_numpy(values: Array) -> NDArray[Any]:
    """Return values as an array on the processor, without a copy if they are there."""
    return np.asarray(values.cpu() if is_tensor(values) else values)


def to_device(values: Array, device: Device) -> Array:
    """Return values where a device computes: as an array on a processor, as a tensor elsewhere."""
    if device.type == "cpu":
        return to_numpy(values)
    if is_tensor(values):
        return values.to(device)
    import torch

    return torch.from_numpy(np.array(values)).to(str(device))  # of a copy: PyTorch warns of what cannot be written


def like(values: Array, other: Array) -> Array:
    """Return values as an array if `other` is one, else as a tensor on its device."""
    if not is_tensor(other):
        return to_numpy(values)
    import torch

    own = values if is_tensor(values) else np.ascontiguousarray(values)
    return torch.as_tensor(own, device=other.device)


def exp(values: Array) -> Array:
    """Return e to the power of each value."""
    return values.exp() if is_tensor(values) else np.exp(values)


def exp_in_place(values: Array) -> Array:
    """Return the same with the result in place of the values."""
    return values.exp_() if is_tensor(values) else np.exp(values, out=values)


def amax(values: Array, axis: int, *, keepdims: bool = False) -> Array:
    """Return the largest values along an axis."""
    return values.amax(dim=axis, keepdim=keepdims) if is_tensor(values) else values.max(axis=axis, keepdims=keepdims)


def stack(values: Sequence[Array]) -> Array:
    """Return values of one shape along a new first axis."""
    if is_tensor(values[0]):
        import torch

        return torch.stack(list(values))
    return np.stack(values)


def concat(values: Sequence[Array]) -> Array:
    """Return values one after the other along the first axis."""
    if is_tensor(values[0]):
        import torch

        return torch.cat(list(values))
    return np.concatenate(values)


def zeros_like(values: Array) -> Array:
    """Return zeros of the same shape and type."""
    return values * 0


def sigmoid(values: Array) -> Array:
    """Return 1 / (1 + exp(-x)) of each value."""
    if is_tensor(values):
        return values.sigmoid()
    # Of the exponential that cannot overflow.
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1, small) / (1 + small)


def logit(values: Array, epsilon: float) -> Array:
    """Return log(x / (1 - x)) of each value, brought into [epsilon, 1 - epsilon] first."""
    if is_tensor(values):
        return values.logit(epsilon)
    inside = np.clip(values, epsilon, 1 - epsilon)
    return np.log(inside / (1 - inside))


def softmax(values: Array) -> Array:
    """Return exp(x) over its sum, for (N,)."""
    weights = exp_in_place(values - values.max())
    return weights / weights.sum()


def unit(values: Array) -> Array:
    """Return vectors along the last axis at unit length; those of no length as they are."""
    if is_tensor(values):
        return values / values.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return values / np.maximum(np.sqrt(np.square(values).sum(axis=-1, keepdims=True)), 1e-12)


def highest(values: Array, count: int) -> Array:
    """Return the `count` highest of (N,) values, in any order."""
    if is_tensor(values):
        return values.topk(count, sorted=False).values
    return values if count >= len(values) else np.partition(values, len(values) - count)[len(values) - count :]
