"""Networks on a device: half precision and pinned memory on CUDA, smaller batches when its memory is full."""

import copy
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from backend.core import cancellation
from backend.models.device.cuda_graphs import CudaGraphCache, Pass
from backend.models.device.pinned_memory import Answer, Transfers, copy_into

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

NetworkCall = Callable[[nn.Module, Tensor], Tensor]
Assemble = Callable[[list[Tensor]], Tensor]
PartCall = Callable[[nn.Module, torch.device, slice], R]


class DeviceRunner:
    """Runs a network's forward passes where it lies.

    A batch that does not fit into the device's memory is halved until it does; if a single item does not fit, it runs
    on the CPU, slowly, with a warning. `torch.inference_mode` is on, and on CUDA autocast (bfloat16 where it is fast,
    otherwise float16) unless `uses_half` is false.

    On CUDA every instance has a stream of its own, so that no thread waits behind the batch of another.

    Args:
        network: its parameters are frozen.
        device: where it goes.
        uses_half: see above.
        is_urgent: its kernels take precedence over those of other networks.
        transfers: how items reach the device; None: by pinned memory on CUDA, not at all on a CPU.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        *,
        uses_half: bool = True,
        is_urgent: bool = False,
        transfers: Transfers | None = None,
    ) -> None:
        self.device = device
        self.on_forward: Callable[[float], None] | None = None
        """Gets the seconds that the device took for each call in `timed`; for benchmarks."""
        self.uses_half = uses_half
        """Whether passes run under autocast; may be set between passes."""
        self.half_dtype = torch.float32
        """The type of autocast; may be set between passes."""
        self._network = network.eval().requires_grad_(False).to(device)
        self._on_cpu: nn.Module | None = None
        self._lock = threading.Lock()
        self._launching = threading.Lock()
        self._unreported: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._stream: torch.cuda.Stream | None = None
        self._transfers = transfers
        self.recordings: CudaGraphCache | None = None
        """Recorded passes; None on a CPU."""
        if device.type == "cuda":
            self.half_dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
            for part in self._network.modules():
                if isinstance(part, nn.Conv2d):
                    part.to(memory_format=torch.channels_last)
            self._stream = torch.cuda.Stream(device, priority=-1 if is_urgent else 0)  # type: ignore[no-untyped-call]
            self._transfers = transfers or Transfers(self._stream)
            self.recordings = CudaGraphCache(device, self._stream)
            # The weights were copied in another stream.
            torch.cuda.synchronize(device)

    @property
    def network(self) -> nn.Module:
        """Return the network on its device, for parts that are called by themselves."""
        return self._network

    @property
    def preferred_batch_size(self) -> int:
        """Return the number of images worth encoding together; 1 on a CPU, where a batch gains nothing."""
        return 8 if self.device.type == "cuda" else 1

    @property
    def memory_mb(self) -> float | None:
        """Return the total memory of the GPU, in 2**20 bytes; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return float(torch.cuda.get_device_properties(self.device).total_memory) / 2**20

    def run(self, items: Sequence[Tensor], call: NetworkCall, *, at_once: int = 0) -> list[Tensor]:
        """Run forward passes over items, on the device as far as its memory goes.

        Args:
            items: tensors on the CPU; the smaller their type, the quicker they are there.
            call: gets the network and a batch on the network's device, gives (B, ...).
            at_once: items of a pass; 0: all.

        Returns:
            For each item its part of the answer, on the CPU.
        """
        return self.run_async(items, call, at_once=at_once)()

    def run_async(
        self,
        items: Sequence[Tensor],
        call: NetworkCall,
        *,
        at_once: int = 0,
        assemble: Assemble = torch.stack,
        kind: Hashable = None,
    ) -> Callable[[], list[Tensor]]:
        """Start `run`; return what waits for the answers. On CUDA all passes are queued by then, on a CPU none is.

        Args:
            items: tensors on the CPU.
            call: gets the network and a batch on its device, gives (B, ...).
            at_once: items of a pass; 0: all.
            assemble: makes a batch of B items that are on a device.
            kind: calls of one kind do the same with batches of one shape, and wait for nothing on the CPU: on CUDA
                they are recorded (`CudaGraphCache`). None: this one is not.
        """
        at_once = at_once or max(1, len(items))
        if self._transfers is None:

            def on_cpu(network: nn.Module, device: torch.device, part: slice) -> Tensor:
                batch = assemble(list(items[part]))
                return self.timed(device, lambda: call(network, batch))

            return lambda: self.run_parts(len(items), at_once, on_cpu, lambda answer, part: list(answer))
        transfers = self._transfers
        pinned_inputs: list[Tensor] = []

        def run_part(network: nn.Module, device: torch.device, part: slice) -> Answer:
            if device != self.device:
                batch = assemble(list(items[part]))
                return Answer(self.timed(device, lambda: call(network, batch)), lambda: None)
            pinned = [transfers.pin(item) for item in items[part]]
            pinned_inputs.extend(pinned)
            # A thread's launches must not get into another's recording, nor its batch into what that one launches.
            with self._launching:
                batch = assemble([transfers.to_device(one, device) for one in pinned])
                forward: Pass = partial(call, network)
                if kind is not None and self.recordings is not None:
                    forward = self.recordings.of(kind, batch, forward) or forward
                return transfers.to_host(self.timed(device, lambda: forward(batch)))

        # Nothing is waited for between two passes: the device has the next one when it is done with this one.
        passes = self._queue_parts(len(items), at_once, run_part, lambda answer, part: [answer])

        def wait() -> list[Tensor]:
            answers: list[Tensor] = []
            with torch.inference_mode():
                for answer in passes:
                    answer.wait()
                    # One by one: each gets memory of its own, so that it does not keep the rest of its batch alive.
                    answers += [copy_into(one, torch.empty_like(one)) for one in answer.values]
            # The inputs were read by then.
            transfers.give_back([*pinned_inputs, *(answer.values for answer in passes if answer.is_pinned)])
            self._report()
            return answers

        return wait

    def run_parts(
        self, count: int, at_once: int, forward: PartCall[R], finish: Callable[[R, slice], list[T]]
    ) -> list[T]:
        """Run forward passes over parts of `count` things, halved if the device's memory does not hold a part.

        Args:
            count: how many things there are.
            at_once: how many of them a pass takes, 1 or more.
            forward: gets the network, the device that it lies on, and which things.
            finish: gets what `forward` gave, on that device, and which things; gives one answer for each.
        """
        done = self._queue_parts(count, at_once, forward, finish)
        self._report()
        return done

    def _queue_parts(
        self, count: int, at_once: int, forward: PartCall[R], finish: Callable[[R, slice], list[T]]
    ) -> list[T]:
        done: list[T] = []
        begun = 0
        size = at_once
        while begun < count:
            cancellation.check()
            part = slice(begun, min(begun + size, count))
            try:
                done += self._pass(self._network, self.device, part, forward, finish)
            except torch.OutOfMemoryError:
                # The failed pass' tensors are gone with its frame: the memory that the allocator kept can be freed.
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
                done += self._pass(self._cpu_copy(), torch.device("cpu"), part, forward, finish)
            begun = part.stop
        return done

    def _pass(
        self,
        network: nn.Module,
        device: torch.device,
        part: slice,
        forward: PartCall[R],
        finish: Callable[[R, slice], list[T]],
    ) -> list[T]:
        uses_half = self.uses_half and device.type == "cuda"
        stream = torch.cuda.stream(self._stream if device.type == "cuda" else None)
        with torch.inference_mode(), stream:
            with torch.autocast(device.type, self.half_dtype, enabled=uses_half):
                answer = forward(network, device, part)
            return finish(answer, part)

    def timed(self, device: torch.device, call: Callable[[], R]) -> R:
        """Call, and report to `on_forward` how long the device took.

        On CUDA that is the time between two events in the stream, reported once they are over: copies that were queued
        before do not count, nor what a thread waits for afterwards.
        """
        if self.on_forward is None:
            return call()
        if self._stream is None or device.type != "cuda":
            started = time.perf_counter()
            answer = call()
            self.on_forward(time.perf_counter() - started)
            return answer
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(self._stream)
        answer = call()
        end.record(self._stream)
        with self._lock:
            self._unreported.append((begin, end))
        return answer

    def _report(self) -> None:
        """Report the passes on CUDA, which are over, to `on_forward`."""
        if self.on_forward is None:
            return
        with self._lock:
            unreported, self._unreported = self._unreported, []
        for begin, end in unreported:
            end.synchronize()
            self.on_forward(begin.elapsed_time(end) / 1000)

    def _cpu_copy(self) -> nn.Module:
        with self._lock:
            if self._on_cpu is None:
                self._on_cpu = copy.deepcopy(self._network).to("cpu")
            return self._on_cpu


class Constants:
    """Copies tensors that forward passes need to each device, once.

    Args:
        tensors: on the CPU.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._on = {torch.device("cpu"): tensors}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tensors on a device."""
        if device not in self._on:
            self._on[device] = tuple(one.to(device) for one in self._on[torch.device("cpu")])
        return self._on[device]


def make_cancellable(network: nn.Module) -> None:
    """Let forward passes of a network end between two of its blocks when they are cancelled (`core.cancellation`).

    Blocks are the items of its module lists and sequences of modules: ViT blocks, stages of a convolutional network.
    """

    def ask(_module: nn.Module, _inputs: Any) -> None:
        cancellation.check()

    for part in network.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                block.register_forward_pre_hook(ask)
