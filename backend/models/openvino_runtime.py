"""OpenVINO's runtime: imported without its telemetry, and graphs that threads share.

OpenVINO's package reports every import to its vendor: its conversion tools do, which `import openvino` takes along.
Nothing here needs them, so they are kept out, and the package that sends is never loaded.
"""

import importlib
import importlib.util
import os
import sys
import threading
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.core.types import CpuPrecision
from backend.errors import ConfigurationError

_SENDING = "openvino_telemetry"
_IMPORTS_IT = "openvino.tools"
_LOCK = threading.Lock()


def has_openvino() -> bool:
    """Return whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    """Return the module `openvino`, without its tools and its telemetry.

    Raises:
        ConfigurationError: it is not installed, or does not run here.
    """
    with _LOCK:
        # None in place of a module makes Python say that there is none; `openvino` goes on without.
        sys.modules.setdefault(_SENDING, None)  # type: ignore[arg-type]
        is_ours = _IMPORTS_IT not in sys.modules
        if is_ours:
            sys.modules[_IMPORTS_IT] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        except (ImportError, OSError) as error:
            raise ConfigurationError(
                f"OpenVINO cannot be imported ({error}): install it, or set SOFTMATCHER_CPU_ENGINE=torch"
            ) from error
        finally:
            if is_ours:
                del sys.modules[_IMPORTS_IT]


class CompiledGraph:
    """A graph of OpenVINO, compiled for this processor. Threads may share it: each call has buffers of its own.

    Args:
        graph: an `openvino.Model`; of any size where its shapes are open, so that it is compiled once.
        threads: of one call; 0: the processor's cores.
        calls_at_a_time: calls that run side by side; further ones wait.
        precision: of the products.

    Raises:
        ConfigurationError: the processor does not compute in this precision.
    """

    def __init__(
        self, graph: Any, *, threads: int = 0, calls_at_a_time: int = 1, precision: CpuPrecision = "fp32"
    ) -> None:
        core = _core()
        require_precision(precision)
        self._compiled = core.compile_model(
            graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
                "INFERENCE_NUM_THREADS": (threads or len(os.sched_getaffinity(0))) * calls_at_a_time,
                "NUM_STREAMS": calls_at_a_time,
                # Several processes that pin their threads would all take the same cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._free: list[Any] = []
        self._lock = threading.Lock()

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Return the graph's outputs for one input array each."""
        with self._lock:
            request = self._free.pop() if self._free else self._compiled.create_infer_request()
        try:
            found = request.infer([np.ascontiguousarray(one) for one in inputs], share_inputs=True)
            # What the request gives lies in its own buffers, which the next call overwrites.
            return [np.array(one, np.float32) for one in found.values()]
        finally:
            with self._lock:
                self._free.append(request)


def require_precision(precision: CpuPrecision) -> None:
    """Let a precision pass that this processor computes in.

    Raises:
        ConfigurationError: it does not.
    """
    if precision == "bf16" and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ConfigurationError(
            "SOFTMATCHER_CPU_PRECISION=bf16 needs a processor that computes in bfloat16 (AVX512_BF16 or AMX), which "
            "this one does not: set fp32, for service and workers alike"
        )


@cache
def _core() -> Any:
    core = import_openvino().Core()
    # Nothing is written to disk but what the caller asks for.
    core.set_property({"CACHE_DIR": ""})
    return core
