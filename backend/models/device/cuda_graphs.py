"""Forward passes recorded as CUDA graphs: launched as one, not kernel by kernel.

A pass of an encoder launches a thousand kernels from Python. Each releases Python's lock and takes it again, beside
threads that want it too, and a fast GPU waits for them.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from backend.core import cancellation

logger = logging.getLogger(__name__)

Pass = Callable[[Tensor], Tensor]
_AFTER = 2
"""Passes of one kind before it is recorded: a kind that comes once, such as an odd image size, is not worth it."""
_MOST = 8
"""Kinds of passes: each keeps memory of its own for its input and answer."""
_FREE_SHARE = 0.5
"""Of the device's memory that has to be free: a CUDA graph keeps what it works in."""


class CudaGraphCache:
    """Records and replays the passes of one network in one stream.

    Callers make sure that nothing else uses the stream meanwhile.

    Args:
        device: CUDA.
        stream: of the network.
    """

    def __init__(self, device: torch.device, stream: Any) -> None:
        self._device = device
        self._stream = stream
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, CudaGraph] = {}
        self._pool: Any = None
        self.is_off = False
        """Whether a pass could not be recorded: none is from then on."""

    def __len__(self) -> int:
        """Return the number of kinds of passes that are recorded."""
        return len(self._recorded)

    def of(self, kind: Hashable, batch: Tensor, forward: Pass) -> "CudaGraph | None":
        """Return the CUDA graph of a kind of pass; None if there is none yet.

        Args:
            kind: what the pass does, as far as shape and type of the batch do not tell.
            batch: on the device, like those that will come.
            forward: takes such a batch, and waits for nothing on the CPU.
        """
        key = (kind, batch.shape, batch.dtype)
        if key not in self._recorded and self._is_worth_it(key):
            self._record(key, batch, forward)
        return self._recorded.get(key)

    def _is_worth_it(self, key: Hashable) -> bool:
        if self.is_off or len(self._recorded) >= _MOST:
            return False
        self._seen[key] += 1
        if self._seen[key] <= _AFTER:
            return False
        free, total = torch.cuda.mem_get_info(self._device)
        return free >= _FREE_SHARE * total

    def _record(self, key: Hashable, batch: Tensor, forward: Pass) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        own = batch.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with cancellation.shield():
                forward(own)  # libraries choose their kernels in the first pass of a thread
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    answer = forward(own)
        except RuntimeError as error:
            # Memory, or something in the network that cannot be recorded: passes go on kernel by kernel.
            logger.info("%s: passes are not recorded as CUDA graphs (%s)", self._device, str(error).splitlines()[0])
            self.is_off = True
            return
        self._recorded[key] = CudaGraph(graph, own, answer)


class CudaGraph:
    """Replays one kind of pass.

    Args:
        graph: of CUDA.
        batch: what it reads.
        answer: what it writes.
    """

    def __init__(self, graph: Any, batch: Tensor, answer: Tensor) -> None:
        self._graph = graph
        self._batch = batch
        self._answer = answer

    def __call__(self, batch: Tensor) -> Tensor:
        """Queue the pass; the answer holds for what the stream does next, until the next pass of the kind."""
        self._batch.copy_(batch)
        self._graph.replay()
        return self._answer
