"""Engines that run networks on the processor: OpenVINO or PyTorch, in which precision, on how many threads."""

from dataclasses import dataclass
from typing import Any

from backend.core.types import CpuEngineName, CpuPrecision
from backend.errors import ConfigurationError
from backend.models.openvino_runtime import CompiledGraph, has_openvino


@dataclass(frozen=True)
class CpuEngine:
    """An engine for networks on the processor.

    Attributes:
        name: `openvino`, or `torch`.
        precision: of the products; `bf16` by OpenVINO alone, on processors that compute in it.
        threads: of one call; 0: the processor's cores. PyTorch has a setting of its own for the process.
        calls_at_a_time: calls that share the cores.
    """

    name: CpuEngineName = "torch"
    precision: CpuPrecision = "fp32"
    threads: int = 0
    calls_at_a_time: int = 1

    def __post_init__(self) -> None:
        if self.precision != "fp32" and self.name != "openvino":
            raise ConfigurationError(
                f"SOFTMATCHER_CPU_PRECISION={self.precision} needs OpenVINO, got the engine {self.name}: set "
                "SOFTMATCHER_CPU_ENGINE=openvino, or SOFTMATCHER_CPU_PRECISION=fp32"
            )

    @classmethod
    def installed(cls, *, threads: int = 0, calls_at_a_time: int = 1) -> "CpuEngine":
        """Return OpenVINO where it is installed, PyTorch where it is not; in fp32."""
        return cls("openvino" if has_openvino() else "torch", threads=threads, calls_at_a_time=calls_at_a_time)

    @property
    def is_openvino(self) -> bool:
        """Return whether OpenVINO runs networks."""
        return self.name == "openvino"

    @property
    def signature_part(self) -> str:
        """Return what a signature says of the engine: nothing of fp32, which is the same by both but for rounding."""
        return "" if self.precision == "fp32" else f":{self.precision}"

    def compile(self, graph: Any) -> CompiledGraph:
        """Compile a graph of OpenVINO.

        Raises:
            ConfigurationError: the processor does not compute in this precision.
        """
        return CompiledGraph(
            graph, threads=self.threads, calls_at_a_time=self.calls_at_a_time, precision=self.precision
        )
