"""A network on its device: half precision and pinned transfers on CUDA, and what happens when its memory is full."""

import copy
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from backend.core import interruption
from backend.errors import ConfigurationError

logger = logging.getLogger(__name__)

T = TypeVar("T")
NetworkCall = Callable[[nn.Module, Tensor], Tensor]
PartCall = Callable[[nn.Module, torch.device, slice], list[T]]


def choose_device(wanted: str) -> torch.device:
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:<number>` as a device that exists.

    Raises:
        ConfigurationError: no such device here.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is not None and device.type == "cpu":
        return device
    if device is not None and device.type == "cuda" and (device.index or 0) < count:
        return device
    raise ConfigurationError(
        f"device must be auto, cpu or one of the {count} CUDA devices here, got {wanted}; set another"
    )


def set_threads(count: int) -> None:
    """Threads of one model call; 0 keeps PyTorch's choice, which is the number of cores."""
    if count:
        torch.set_num_threads(count)


def share_of_cores(count: int) -> int:
    """Threads for each of `count` model calls that run together; at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // count)


class OnDevice:
    """Runs a network's forward passes where it lies.

    A batch that does not fit into the device's memory is halved until it does; if a single item does not fit, it runs
    on the CPU, slowly, with a warning. `torch.inference_mode` is on, and on CUDA autocast (bfloat16 where it is fast,
    otherwise float16) unless `uses_half` is false.
    """

    def __init__(self, network: nn.Module, device: torch.device, *, uses_half: bool = True) -> None:
        self.device = device
        self.on_forward: Callable[[float], None] | None = None
        """Gets the seconds of every pass, transfers included: for benchmarks."""
        self._uses_half = uses_half
        self._network = network.eval().requires_grad_(False).to(device)
        self._on_cpu: nn.Module | None = None
        self._lock = threading.Lock()
        self._amp_dtype = torch.float32
        if device.type == "cuda":
            self._amp_dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
            for part in self._network.modules():
                if isinstance(part, nn.Conv2d):
                    part.to(memory_format=torch.channels_last)

    @property
    def network(self) -> nn.Module:
        """The network on its device: for parts that are called by themselves."""
        return self._network

    @property
    def good_batch(self) -> int:
        """Images that are worth encoding together: one on a CPU, where a batch gains nothing and holds others up."""
        return 8 if self.device.type == "cuda" else 1

    def run(self, items: Sequence[Tensor], call: NetworkCall) -> list[Tensor]:
        """One forward pass over items of one shape, on the device as far as its memory goes.

        Args:
            items: (C, H, W) float32 on the CPU, each.
            call: gets the network and a (B, C, H, W) batch on the network's device, gives (B, ...).

        Returns:
            For each item its part of the answer, float32 on the CPU.
        """

        def forward(network: nn.Module, device: torch.device, part: slice) -> list[Tensor]:
            batch = torch.stack(list(items[part]))
            if device.type == "cuda":
                batch = batch.pin_memory().to(device, non_blocking=True)
            return list(call(network, batch).float().cpu().unbind(0))

        return self.run_parts(len(items), len(items), forward)

    def run_parts(self, count: int, at_once: int, forward: PartCall[T]) -> list[T]:
        """Forward passes over parts of `count` things, halved where the device's memory does not hold a part.

        Args:
            count: how many things there are.
            at_once: how many of them a pass takes, 1 or more.
            forward: gets the network, the device that it lies on, and which things; gives one answer for each.
        """
        done: list[T] = []
        size = at_once
        while len(done) < count:
            interruption.check()
            part = slice(len(done), min(len(done) + size, count))
            try:
                done += self._pass(self._network, self.device, part, forward)
            except torch.OutOfMemoryError:
                # The failed pass' tensors are gone with its frame: what the allocator kept of them can be given back.
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                taken = part.stop - part.start
                if taken > 1:
                    size = (taken + 1) // 2
                    logger.warning("%s: out of memory, going on with batches of %d", self.device, size)
                    continue
                logger.warning(
                    "%s: not enough memory for a single one, it runs on the CPU; free the device, take a smaller "
                    "profile, or set SOFTMATCHER_DEVICE=cpu",
                    self.device,
                )
                done += self._pass(self._cpu_copy(), torch.device("cpu"), part, forward)
        return done

    def _pass(self, network: nn.Module, device: torch.device, part: slice, forward: PartCall[T]) -> list[T]:
        uses_half = self._uses_half and device.type == "cuda"
        with torch.inference_mode(), torch.autocast(device.type, self._amp_dtype, enabled=uses_half):
            started = time.perf_counter()
            answers = forward(network, device, part)
        if self.on_forward is not None:
            self.on_forward(time.perf_counter() - started)
        return answers

    def _cpu_copy(self) -> nn.Module:
        with self._lock:
            if self._on_cpu is None:
                self._on_cpu = copy.deepcopy(self._network).to("cpu")
            return self._on_cpu


def make_interruptible(network: nn.Module) -> None:
    """Let forward passes of a network end between two of its blocks once nobody waits for them (`core.interruption`).

    Blocks are the items of its module lists and sequences of modules: ViT blocks, stages of a convolutional network.
    """

    def ask(_module: nn.Module, _inputs: Any) -> None:
        interruption.check()

    for part in network.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                block.register_forward_pre_hook(ask)
