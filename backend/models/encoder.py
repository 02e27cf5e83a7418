"""From an image to its feature map. The only place that knows timm."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.core.types import Image
from backend.errors import BadInputError, ModelUnavailableError
from backend.models.weights import efficientnet_lite2_weights, weights_sha256


class Encoder(Protocol):
    """Turns images into feature maps; keeps nothing of an image, so threads may share it."""

    @property
    def signature(self) -> str:
        """Name, weights and sizes: two encoders of one signature give one feature map."""
        ...

    @property
    def temperature(self) -> float:
        """The softmax scale at which this encoder's similarities are sharp enough, and no sharper."""
        ...

    def encode(self, image: Image) -> Tensor:
        """(H, W, 3) uint8 RGB to (H_p, W_p, D) float32, each patch of unit length."""
        ...


@dataclass(frozen=True)
class EncoderOptions:
    """Sizes of the `lite` encoder.

    Attributes:
        side_px: the image is resized to about side_px ** 2 pixels, its aspect ratio kept.
        level_weights: share of the levels at stride 8, 16 and 32 in a patch's similarity.
        temperature: softmax scale of the matching, measured on these features.
    """

    side_px: int = 448
    level_weights: tuple[float, float, float] = (0.25, 1.0, 1.0)
    temperature: float = 0.05


class EfficientNetLiteEncoder:
    """EfficientNet-Lite2, three levels fused on the grid of stride 16.

    Each level is of unit length by itself before it is joined to the others, so that its weight is its share of the
    cosine similarity, whatever the size of its activations.

    Raises:
        ModelUnavailableError: the weights are missing or do not fit.
    """

    STRIDE_PX = 32
    LONGEST_PX = 1344

    def __init__(self, weights: Path | None = None, options: EncoderOptions = EncoderOptions()) -> None:  # noqa: B008
        path = weights or efficientnet_lite2_weights()
        self._net = _load_network(path)
        self._options = options
        levels = "-".join(f"{weight:g}" for weight in options.level_weights)
        self.signature = f"tf_efficientnet_lite2:{weights_sha256(path)[:12]}:{options.side_px}px:{levels}"
        self.temperature = options.temperature

    def encode(self, image: Image) -> Tensor:
        """The feature map of an image.

        Args:
            image: (H, W, 3) uint8 RGB of any size.

        Returns:
            (H_p, W_p, 520) float32, each patch of unit length.

        Raises:
            BadInputError: not such an image.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise BadInputError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}; decode it as RGB")
        height, width = self._input_hw(image.shape[0], image.shape[1])
        shrinks = image.shape[0] > height and image.shape[1] > width
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        batch = torch.from_numpy(resized).permute(2, 0, 1)[None].float().div_(127.5).sub_(1.0)
        with torch.inference_mode():
            # Half the time of the default layout on a CPU.
            levels = self._net(batch.contiguous(memory_format=torch.channels_last))
            return _fuse(levels, self._options.level_weights)

    def _input_hw(self, height: int, width: int) -> tuple[int, int]:
        scale = self._options.side_px / math.sqrt(height * width)
        sides = [round(side * scale / self.STRIDE_PX) * self.STRIDE_PX for side in (height, width)]
        bounded = [min(max(side, self.STRIDE_PX), self.LONGEST_PX) for side in sides]
        return bounded[0], bounded[1]


def _fuse(levels: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    grid_hw = levels[1].shape[-2:]
    parts = []
    for level, weight in zip(levels, weights, strict=True):
        if level.shape[-1] > grid_hw[1]:
            level = F.adaptive_avg_pool2d(level, grid_hw)
        elif level.shape[-2:] != grid_hw:
            level = F.interpolate(level, size=grid_hw, mode="bilinear", align_corners=False)
        parts.append(F.normalize(level, dim=1) * math.sqrt(weight))
    return F.normalize(torch.cat(parts, dim=1), dim=1)[0].permute(1, 2, 0).contiguous()


def _load_network(path: Path) -> nn.Module:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelUnavailableError(
            f"weights must be a PyTorch state dict, got {path} ({error}); install them again"
        ) from error
    # The file names the layers in its own way, but in timm's order.
    names = timm.create_model("tf_efficientnet_lite2", pretrained=False).state_dict().keys()
    network: nn.Module = timm.create_model("tf_efficientnet_lite2", features_only=True, out_indices=(2, 3, 4))
    wanted = network.state_dict()
    try:
        renamed = {name: tensor for name, tensor in zip(names, state.values(), strict=True) if name in wanted}
        network.load_state_dict(renamed)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ModelUnavailableError(
            f"weights must be EfficientNet-Lite2's, got {path} ({error}); install them again"
        ) from error
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
