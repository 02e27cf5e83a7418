"""A PyTorch network that OpenVINO runs: the same answers but for rounding, in less of a processor's time."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backend.models.cpu_engine import CpuEngine
from backend.models.device.converted_graph import read_or_convert
from backend.models.openvino_runtime import import_openvino


class OpenVinoNetwork(nn.Module):
    """Stands in for a network on the processor. Threads may share it.

    Args:
        network: in its evaluation mode; its weights are copied.
        example: (1, ...) float32: any input; all inputs have its shape but for the first dimension.
        engine: that compiles it.
        kept: file of the converted network, see `read_or_convert`; None: it is converted.

    Raises:
        ConfigurationError: OpenVINO does not run here, or the processor does not compute in the engine's precision.
    """

    def __init__(self, network: nn.Module, example: Tensor, engine: CpuEngine, kept: Path | None = None) -> None:
        super().__init__()
        convert = partial(_convert, network, example)
        self._run = engine.compile(convert() if kept is None else read_or_convert(kept, convert))

    def forward(self, batch: Tensor) -> Tensor:
        """Return the network's answers to (B, ...) inputs, one after the other: together they are no faster."""
        answers = [self._run(one[None].numpy())[0] for one in batch]
        return torch.from_numpy(np.concatenate(answers))


def _convert(network: nn.Module, example: Tensor) -> Any:
    # The steps of `openvino.convert_model`, whose package would import telemetry.
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes become constants: that is meant
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)  # has to outlive the conversion, which calls it
    model = frontend.convert(frontend.load(decoder))
    model.reshape(list(example.shape))
    return model
