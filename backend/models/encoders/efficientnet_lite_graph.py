"""EfficientNet-Lite2 as a graph of OpenVINO, made from its weights by code."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from backend.models.openvino_runtime import import_openvino
from backend.models.weights.lite_weights import Convolution, LiteWeights


class _Stage(NamedTuple):
    kernel_px: int
    stride: int


STAGE_SIZES = (_Stage(3, 1), _Stage(3, 2), _Stage(5, 2), _Stage(3, 2), _Stage(5, 1), _Stage(5, 2), _Stage(3, 1))
"""Of each stage; the stride is that of its first block."""
EPSILON = 1e-3
"""Of the batch normalisations: TensorFlow's."""
_SHORTEST = 1e-12
"""A vector shorter than this is not brought to unit length."""


def build_graph(weights: LiteWeights, *, stages: Sequence[int], level_weights: Sequence[float], grid_level: int) -> Any:
    """Return an `openvino.Model` from pixels, (1, h, w, 3) uint8, to fused features, (h / 16, w / 16, D) float32.

    Batch normalisations are folded into the convolutions. The sides h and w are open, multiples of 32.

    Args:
        weights: of the network.
        stages: whose outputs are fused, each twice as fine as the grid, as fine, or half as fine.
        level_weights: share of each in a patch's similarity.
        grid_level: index into `stages`: the level whose grid the others are brought to.
    """
    ov = import_openvino()
    ops = ov.opset13
    pixels = ops.parameter(ov.PartialShape([1, -1, -1, 3]), np.uint8, name="pixels")
    colours = ops.subtract(ops.divide(ops.convert(pixels, np.float32), np.float32(127.5)), np.float32(1.0))
    found = _clipped(ops, _convolution(ops, ops.transpose(colours, np.array([0, 3, 1, 2])), weights.stem, stride=2))
    levels, strides, stride = [], [], 2
    for index, (size, blocks) in enumerate(zip(STAGE_SIZES, weights.stages, strict=True)):
        stride *= size.stride
        for number, (*expansion, depthwise, projection) in enumerate(blocks):
            inside = found
            for one in expansion:
                inside = _clipped(ops, _convolution(ops, inside, one))
            inside = _clipped(ops, _convolution(ops, inside, depthwise, stride=size.stride if number == 0 else 1))
            inside = _convolution(ops, inside, projection)
            found = inside if number == 0 else ops.add(inside, found)
        if index in stages:
            levels.append(found)
            strides.append(stride)
    parts = []
    for level, own, share in zip(levels, strides, level_weights, strict=True):
        on_grid = _on_grid(ops, level, own / strides[grid_level])
        parts.append(ops.multiply(_unit(ops, on_grid), np.float32(math.sqrt(share))))
    fused = ops.transpose(_unit(ops, ops.concat(parts, 1)), np.array([0, 2, 3, 1]))
    return ov.Model([ops.squeeze(fused, np.array([0]))], [pixels], "efficientnet_lite2")


def _convolution(ops: Any, found: Any, one: Convolution, *, stride: int = 1) -> Any:
    scale = one.weight / np.sqrt(one.variance + np.float32(EPSILON))
    kernel = one.kernel * scale[:, None, None, None]
    shift = ops.constant((one.bias - one.mean * scale)[None, :, None, None])
    # Padded as TensorFlow does, on the side where PyTorch does not at stride 2.
    where = ([stride, stride], [0, 0], [0, 0], [1, 1], "same_upper")
    if kernel.shape[1] == 1:
        return ops.add(ops.group_convolution(found, ops.constant(kernel[:, :, None]), *where), shift)
    return ops.add(ops.convolution(found, ops.constant(kernel), *where), shift)


def _clipped(ops: Any, found: Any) -> Any:
    return ops.clamp(found, 0.0, 6.0)


def _on_grid(ops: Any, level: Any, scale: float) -> Any:
    if scale == 1:
        return level
    if scale < 1:
        side = round(1 / scale)
        return ops.avg_pool(level, [side, side], [0, 0], [0, 0], [side, side], exclude_pad=False)
    return ops.interpolate(
        level, np.array([scale, scale], np.float32), "linear_onnx", "scales", axes=np.array([2, 3]),
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip


def _unit(ops: Any, found: Any) -> Any:
    return ops.normalize_l2(found, np.array([1]), _SHORTEST**2, "max")
