"""Weights files: PyTorch's (.pth, .pt) and safetensors, recognised by their content, never unpickled freely."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from backend.errors import ModelUnavailableError

_ZIP = b"PK\x03\x04"
_WRAPPERS = ("state_dict", "model", "teacher", "module")


def read_state_dict(path: Path, *, is_mapped: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name, without the wrappers of training scripts (`{"model": ...}`).

    Args:
        path: of the file.
        is_mapped: leave the values in the file until they are asked for, where its format allows it.

    Raises:
        ModelUnavailableError: cannot be read, or holds anything but tensors.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
        content: Any
        if _is_safetensors(head, path.stat().st_size):
            content = safetensors.torch.load_file(path, device="cpu")
        else:
            content = _load_pytorch(path, is_mapped=is_mapped and head.startswith(_ZIP))
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelUnavailableError(
            f"{path} must be PyTorch weights or safetensors, got {_why(error)}; import it again"
        ) from error
    except (
        Exception
    ) as error:  # weights_only names the forbidden class in an UnpicklingError; anything else is damage too
        raise ModelUnavailableError(
            f"{path} must hold tensors only (read with weights_only=True), got {_why(error)}; get the official file"
        ) from error
    while isinstance(content, Mapping) and not _is_state_dict(content):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not _is_state_dict(content):
        raise ModelUnavailableError(
            f"{path} must hold tensors by name, got {type(content).__name__}; get the official file"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _load_pytorch(path: Path, *, is_mapped: bool) -> Any:
    # By its path, PyTorch takes a file for safetensors if its name says so; and only by its path does it map one.
    if is_mapped and path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _is_safetensors(head: bytes, size_bytes: int) -> bool:
    # Eight bytes of header length, then JSON.
    return len(head) == 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size_bytes - 8


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no details'}"
