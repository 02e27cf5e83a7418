"""A network on its device: half precision and pinned transfers on CUDA, and what happens when its memory is full."""

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backend.core import interruption
from backend.errors import ConfigurationError

logger = logging.getLogger(__name__)

NetworkCall = Callable[[nn.Module, Tensor], Tensor]


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
    raise ConfigurationError(f"device must be auto, cpu or one of the {count} CUDA devices here, got {wanted}; set another")


def set_threads(count: int) -> None:
    """Threads of one model call; 0 keeps PyTorch's choice, which is the number of cores."""
    if count:
        torch.set_num_threads(count)


class OnDevice:
    """Runs a network's forward passes where it lies.

    A batch that does not fit into the device's memory is halved until it does; if a single item does not fit, it runs
    on the CPU, slowly, with a warning. `torch.inference_mode` is on, and on CUDA autocast (bfloat16 where it is fast,
    otherwise float16); the answer is float32 on the CPU.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        self._network = network.eval().requires_grad_(False).to(device)
        self._on_cpu: nn.Module | None = None
        self._lock = threading.Lock()
        self._amp_dtype = torch.float32
        if device.type == "cuda":
            self._amp_dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
            for part in self._network.modules():
                if isinstance(part, nn.Conv2d):
                    part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

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
        done: list[Tensor] = []
        size = len(items)
        while len(done) < len(items):
            interruption.check()
            part = items[len(done) : len(done) + size]
            try:
                done += self._forward(self._network, part, self.device, call)
            except torch.OutOfMemoryError:
                # The failed pass' tensors are gone with its frame: what the allocator kept of them can be given back.
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                if size > 1:
                    size = (size + 1) // 2
                    logger.warning("%s: out of memory, going on with batches of %d", self.device, size)
                    continue
                logger.warning(
                    "%s: not enough memory for one image, this one runs on the CPU; free the device, take a smaller "
                    "profile, or set SOFTMATCHER_DEVICE=cpu",
                    self.device,
                )
                done += self._forward(self._cpu_copy(), part, torch.device("cpu"), call)
        return done

    def _forward(self, network: nn.Module, items: Sequence[Tensor], device: torch.device, call: NetworkCall) -> list[Tensor]:
        batch = torch.stack(list(items))
        if device.type == "cuda":
            batch = batch.pin_memory().to(device, non_blocking=True)
        with torch.inference_mode(), torch.autocast(device.type, self._amp_dtype, enabled=device.type == "cuda"):
            answer = call(network, batch)
        return list(answer.float().cpu().unbind(0))

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
