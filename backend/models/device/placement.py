"""Where models run: the device, and how many threads."""

import os
import sys
from pathlib import Path

from threadpoolctl import threadpool_limits

from backend.core.arrays import CPU, Device
from backend.errors import ConfigurationError

_DRIVERS = tuple(Path(path) for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd"))
"""Files of the drivers of GPUs, one of which is there if PyTorch may use any."""


def choose_device(wanted: str) -> Device:
    """Return the device of `auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:<number>`.

    PyTorch is imported, which takes seconds and hundreds of megabytes, only if there may be a GPU or one is named.

    Raises:
        ConfigurationError: no such device here.
    """
    if wanted == "cpu" or (wanted == "auto" and not may_have_gpu()):
        return CPU
    import torch

    if wanted == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is not None and device.type == "cpu":
        return CPU
    if device is not None and device.type == "cuda" and (device.index or 0) < count:
        # With its number, as tensors that are there say it.
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    raise ConfigurationError(
        f"device must be auto, cpu or one of the {count} CUDA devices here, got {wanted}; set another"
    )


def may_have_gpu() -> bool:
    """Return whether a GPU's driver is here."""
    return any(path.exists() for path in _DRIVERS)


def set_threads(count: int) -> None:
    """Set the threads of one model call or matrix product; 0 keeps the number of cores."""
    if not count:
        return
    threadpool_limits(count, "blas")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def good_threads(device: Device, calls_at_a_time: int = 1) -> int:
    """Return the number of threads that is best for `set_threads`.

    With a GPU one: what is left for the processor is too small to be shared, threads wait longer for one another than
    they work. On a CPU all cores for a single call, its share of them for one of several.
    """
    if device.type == "cuda":
        return 1
    return 0 if calls_at_a_time == 1 else max(1, len(os.sched_getaffinity(0)) // calls_at_a_time)
