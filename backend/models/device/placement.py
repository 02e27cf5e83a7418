"""Where models run: the device, and how many threads."""

import os

import torch

from backend.errors import ConfigurationError


def choose_device(wanted: str) -> torch.device:
    """Return the device of `auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:<number>`.

    Raises:
        ConfigurationError: no such device here.
    """
    if wanted == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is not None and device.type == "cpu":
        return device
    if device is not None and device.type == "cuda" and (device.index or 0) < count:
        # With its number, as tensors that are there say it.
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    raise ConfigurationError(
        f"device must be auto, cpu or one of the {count} CUDA devices here, got {wanted}; set another"
    )


def set_threads(count: int) -> None:
    """Set the threads of one model call; 0 keeps PyTorch's choice, the number of cores."""
    if count:
        torch.set_num_threads(count)


def good_threads(device: torch.device, calls_at_a_time: int = 1) -> int:
    """Return the number of threads that is best for `set_threads`.

    With a GPU one: what is left for the processor is too small to be shared, threads wait longer for one another than
    they work. On a CPU all cores for a single call, its share of them for one of several.
    """
    if device.type == "cuda":
        return 1
    return 0 if calls_at_a_time == 1 else max(1, len(os.sched_getaffinity(0)) // calls_at_a_time)
