"""EfficientNet-Lite2, the encoder of profile `lite`, through timm."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.types import Image
from backend.errors import ModelUnavailableError
from backend.models.images import require_rgb, resize_rgb
from backend.models.options_digest import options_digest
from backend.models.weights.digest import efficientnet_lite2_weights, weights_sha256


@dataclass(frozen=True)
class EncoderOptions:
    """Sizes of the `lite` encoder.

    Attributes:
        side_px: the image is resized to about side_px ** 2 pixels, its aspect ratio kept.
        level_weights: share of the network's stages 2, 4, 5 and 6 (strides 8, 16, 32, 32) in a patch's similarity.
        temperature: softmax scale of the matching, measured on these features.
        similarity_floor: patches less alike than this show different things, measured likewise.
    """

    side_px: int = 448
    level_weights: tuple[float, float, float, float] = (0.25, 1.0, 0.75, 0.25)
    temperature: float = 0.05
    similarity_floor: float = 0.3


_MEASURED_SCALES = (0.05, 0.3)
"""Temperature and similarity floor of the first releases: a signature that names no others means these."""
STAGES = (2, 4, 5, 6)
"""Stage 5 separates objects better than the last one, which is made for naming the whole image; docs/experiments.md."""
GRID_LEVEL = 1
"""Index into STAGES: the level whose grid, at stride 16, the others are brought to."""
OBJECT_STAGES = (5, 6)
"""The last of STAGES: those that tell kinds of objects apart."""
INPUT_MULTIPLE_PX = 32
LONGEST_INPUT_PX = 1344
"""Of a very long and thin image, so that it can't ask for more memory than others."""


class EfficientNetLiteEncoder:
    """Encodes with EfficientNet-Lite2, four of its stages fused on the grid of stride 16.

    Each level is of unit length by itself before it is joined to the others, so that its weight is its share of the
    cosine similarity, whatever the size of its activations.

    Raises:
        ModelUnavailableError: the weights are missing or do not fit.
    """

    def __init__(self, weights: Path | None = None, options: EncoderOptions = EncoderOptions()) -> None:
        path = weights or efficientnet_lite2_weights()
        self._net = _load_network(path)
        self._options = options
        levels = "-".join(f"{weight:g}" for weight in options.level_weights)
        signature = f"tf_efficientnet_lite2:{weights_sha256(path)[:12]}:{options.side_px}px:{levels}"
        # The measured scales are left out, so that references made by earlier releases stay valid.
        is_measured = (options.temperature, options.similarity_floor) == _MEASURED_SCALES
        self.signature = signature if is_measured else f"{signature}:{options_digest(options)}"
        self.temperature = options.temperature
        self.similarity_floor = options.similarity_floor
        self.object_feature_space = _object_feature_space(self._net, options.level_weights)

    def encode(self, image: Image) -> Tensor:
        """Encode an image.

        Args:
            image: (H, W, 3) uint8 RGB of any size.

        Returns:
            (H_p, W_p, 728) float32, each patch of unit length.

        Raises:
            BadInputError: not such an image.
        """
        require_rgb(image)
        resized = resize_rgb(image, self._input_hw(image.shape[0], image.shape[1]))
        batch = torch.from_numpy(resized).permute(2, 0, 1)[None].float().div_(127.5).sub_(1.0)
        with torch.inference_mode():
            # Half the time of the default layout on a CPU.
            levels = self._levels(batch.contiguous(memory_format=torch.channels_last))
            return _fuse(levels, self._options.level_weights)

    def _levels(self, batch: Tensor) -> list[Tensor]:
        features = self._net.bn1(self._net.conv_stem(batch))
        levels = []
        for stage, block in enumerate(self._net.blocks):
            features = block(features)
            if stage in STAGES:
                levels.append(features)
        return levels

    def _input_hw(self, height: int, width: int) -> tuple[int, int]:
        scale = self._options.side_px / math.sqrt(height * width)
        sides = [round(side * scale / INPUT_MULTIPLE_PX) * INPUT_MULTIPLE_PX for side in (height, width)]
        bounded = [min(max(side, INPUT_MULTIPLE_PX), LONGEST_INPUT_PX) for side in sides]
        return bounded[0], bounded[1]


def _fuse(levels: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    rows, columns = levels[GRID_LEVEL].shape[-2:]
    parts = []
    for level, weight in zip(levels, weights, strict=True):
        if level.shape[-1] > columns:
            level = F.adaptive_avg_pool2d(level, (rows, columns))
        elif level.shape[-1] < columns:
            level = F.interpolate(level, size=(rows, columns), mode="bilinear", align_corners=False)
        parts.append(F.normalize(level, dim=1) * math.sqrt(weight))
    return F.normalize(torch.cat(parts, dim=1), dim=1)[0].permute(1, 2, 0).contiguous()


def _object_feature_space(network: Any, weights: tuple[float, ...]) -> ObjectFeatureSpace:
    """Return the two deepest stages, and their mean over the images that the network was trained on.

    Each block of a stage ends in a batch normalisation, whose outputs have its bias as their mean and its weight as
    their spread, and is added to the block before where it has a skip: the network itself holds what is typical.
    """
    parts = []
    for stage, weight in zip(STAGES, weights, strict=True):
        if stage not in OBJECT_STAGES:
            continue
        mean = variance = torch.zeros(1)
        for block in network.blocks[stage]:
            mean = block.bn3.bias + (mean if block.has_skip else 0)
            variance = block.bn3.weight.square() + (variance if block.has_skip else 0)
        # As `_fuse`: every level is of unit length by itself, then weighted.
        parts.append(mean / (mean.square() + variance).sum().sqrt() * math.sqrt(weight / sum(weights)))
    typical = torch.cat(parts)
    return ObjectFeatureSpace(slice(-len(typical), None), typical)


def _load_network(path: Path) -> Any:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelUnavailableError(
            f"weights must be a PyTorch state dict, got {path} ({error}); install them again"
        ) from error
    network = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    try:
        # The file names the layers in its own way, but in timm's order.
        network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ModelUnavailableError(
            f"weights must be EfficientNet-Lite2's, got {path} ({error}); install them again"
        ) from error
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
