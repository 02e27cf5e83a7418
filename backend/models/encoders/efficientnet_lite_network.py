"""EfficientNet-Lite2 as timm's network in PyTorch."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backend.errors import ModelUnavailableError
from backend.models.weights.lite_weights import read_tensors


def build_network(
    path: Path, *, stages: Sequence[int], level_weights: Sequence[float], grid_level: int
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return what `efficientnet_lite_graph.build_graph` does, run by PyTorch.

    Raises:
        ModelUnavailableError: the weights do not fit.
    """
    network = _load_network(path)

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        with torch.inference_mode():
            # Half the time of the default layout on a CPU.
            levels = _levels(network, batch.contiguous(memory_format=torch.channels_last), stages)
            return _fuse(levels, level_weights, grid_level).numpy()

    return forward


def _levels(network: Any, batch: Tensor, stages: Sequence[int]) -> list[Tensor]:
    features = network.bn1(network.conv_stem(batch))
    levels = []
    for stage, block in enumerate(network.blocks):
        features = block(features)
        if stage in stages:
            levels.append(features)
    return levels


def _fuse(levels: list[Tensor], weights: Sequence[float], grid_level: int) -> Tensor:
    rows, columns = levels[grid_level].shape[-2:]
    parts = []
    for level, weight in zip(levels, weights, strict=True):
        if level.shape[-1] > columns:
            level = F.adaptive_avg_pool2d(level, (rows, columns))
        elif level.shape[-1] < columns:
            level = F.interpolate(level, size=(rows, columns), mode="bilinear", align_corners=False)
        parts.append(F.normalize(level, dim=1) * math.sqrt(weight))
    return F.normalize(torch.cat(parts, dim=1), dim=1)[0].permute(1, 2, 0).contiguous()


def _load_network(path: Path) -> Any:
    state = read_tensors(path)
    network = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    tensors = [torch.from_numpy(one.copy()) for one in state]
    try:
        # The file names the layers in its own way, but in timm's order.
        network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    except (RuntimeError, ValueError) as error:
        raise ModelUnavailableError(
            f"weights must be EfficientNet-Lite2's, got {path} ({error}); install them again"
        ) from error
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
