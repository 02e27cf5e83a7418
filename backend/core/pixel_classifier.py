"""A classifier of pixels: a small network on filter responses, trained on a sample of the references' pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from backend.core import cancellation
from backend.core.arrays import sigmoid
from backend.core.pixel_filters import tiled_responses
from backend.core.types import Arrays, Image, Mask
from backend.errors import BadInputError

HIDDEN = (32, 16)
"""Widths of the hidden layers."""
SAMPLED_PX = 2000
"""Pixels of the object, and as many of the rest, that are drawn of each reference."""
_STEPS = 400
_BATCH = 512
_LEARNING_RATE = 0.01
_WEIGHT_DECAY = 0.01
_WARM_UP = 0.3
"""Share of the steps in which the learning rate rises, from a 25th of its peak; then it falls to nearly nothing."""
_MOMENTS = (0.95, 0.85, 0.999)
"""Decay of Adam's first moment at the lowest and at the highest learning rate, and of the second."""
_NOISE = 0.1
"""Standard deviation of what is added to the standardised responses in training: the next image's light differs."""
_CLIP = 5.0
"""Standardised responses stay within this: an edge brighter than any in the references is still an edge."""
_CHUNK_PX = 65536


Layer = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weight (outputs, inputs) and bias (outputs,)."""


@dataclass(frozen=True, eq=False)
class PixelSample:
    """Pixels drawn from one reference.

    Attributes:
        responses: (N, F) float32.
        is_object: (N,) bool.
        weights: (N,) float32: how many pixels of the image each stands for.
    """

    responses: NDArray[np.float32]
    is_object: NDArray[np.bool_]
    weights: NDArray[np.float32]


def sample_pixels(image: Image, mask: Mask, known: Mask, *, seed: int) -> PixelSample:
    """Draw pixels of the object and of the rest.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool: the object.
        known: (H, W) bool: pixels that may be drawn; others may show the object without being marked.
        seed: of the draw.
    """
    draw = np.random.default_rng(seed)
    mass = np.zeros(mask.shape, np.float32)
    for wanted in (mask & known, ~mask & known):
        pixels = np.flatnonzero(wanted)
        own = draw.choice(pixels, min(SAMPLED_PX, len(pixels)), replace=False)
        mass.ravel()[own] = len(pixels) / max(1, len(own))
    responses, is_object, weights = [], [], []
    for tile, found in tiled_responses(image):
        drawn = mass[tile] > 0
        responses.append(found[:, drawn].T)
        is_object.append(mask[tile][drawn])
        weights.append(mass[tile][drawn])
    return PixelSample(np.concatenate(responses), np.concatenate(is_object), np.concatenate(weights))


@dataclass(frozen=True, eq=False)
class PixelClassifier:
    """A trained network.

    Attributes:
        mean: (F,) float32 of the responses it was trained on.
        deviation: (F,) float32, likewise.
        layers: weight (outputs, inputs) and bias (outputs,) of each layer, float32.
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    layers: tuple[Layer, ...]

    def log_odds(self, responses: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-odds that each pixel shows the object: (F, H, W) float32 to (H, W) float32.

        Raises:
            BadInputError: another number of filters than it was trained with.
        """
        if len(responses) != len(self.mean):
            raise BadInputError(f"responses must be of {len(self.mean)} filters, got {len(responses)}; train it again")
        flat = responses.reshape(len(responses), -1)
        found = np.empty(flat.shape[1], np.float32)
        for start in range(0, flat.shape[1], _CHUNK_PX):
            cancellation.check()
            part = np.ascontiguousarray(flat[:, start : start + _CHUNK_PX].T)
            found[start : start + _CHUNK_PX] = _forward(self.layers, self.standardised(part))[-1][:, 0]
        return found.reshape(responses.shape[1:])

    def standardised(self, responses: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return responses (N, F) on the scale that the network was trained on."""
        return np.clip((responses - self.mean) / self.deviation, -_CLIP, _CLIP)

    def to_arrays(self) -> Arrays:
        """Return the fields as named arrays, for safetensors."""
        arrays: Arrays = {"mean": self.mean, "deviation": self.deviation}
        for index, (weight, bias) in enumerate(self.layers):
            arrays[f"weight.{index}"], arrays[f"bias.{index}"] = weight, bias
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "PixelClassifier":
        """Make one of the arrays that `to_arrays` returns.

        Raises:
            KeyError: an array is missing.
            ValueError: shapes that don't fit each other.
        """
        found = {name: array.astype(np.float32) for name, array in arrays.items()}
        count = sum(name.startswith("weight.") for name in found)
        layers = tuple((found[f"weight.{index}"], found[f"bias.{index}"]) for index in range(count))
        inputs = len(found["mean"])
        for weight, bias in layers:
            if weight.ndim != 2 or weight.shape != (len(bias), inputs):
                raise ValueError(f"weight must be ({len(bias)}, {inputs}), got {tuple(weight.shape)}")
            inputs = len(bias)
        if not layers or inputs != 1 or found["deviation"].shape != found["mean"].shape:
            raise ValueError(f"layers must end in one output and fit the filters, got {inputs} outputs")
        return cls(found["mean"], found["deviation"], layers)


def train_pixel_classifier(samples: Sequence[PixelSample], *, seed: int = 0) -> PixelClassifier:
    """Train a classifier on the pixels of several references; the same samples and seed give the same one.

    The masses of object and rest are balanced by their square roots, as the posterior's are
    (`matching.match_posterior`). Cross-entropy is minimised by AdamW, with one cycle of the learning rate.

    Raises:
        BadInputError: no pixels of the object, or none of the rest.
        CancelledWorkError: see `cancellation.check`.
    """
    responses = np.concatenate([one.responses for one in samples])
    is_object = np.concatenate([one.is_object for one in samples])
    masses = np.concatenate([one.weights for one in samples])
    if not is_object.any() or is_object.all():
        raise BadInputError("references must show pixels of the object and of the rest, got one of both only")
    balance = np.sqrt(np.where(is_object, masses[is_object].sum(), masses[~is_object].sum()))
    weights = (masses / balance).astype(np.float32)
    weights /= weights.mean()
    untrained = PixelClassifier(responses.mean(axis=0), responses.std(axis=0) + np.float32(1e-6), ())
    inputs, wanted = untrained.standardised(responses), is_object.astype(np.float32)
    draw = np.random.default_rng(seed)
    layers = _new_layers((inputs.shape[1], *HIDDEN, 1), draw)
    parameters = [one for layer in layers for one in layer]
    moments = [(np.zeros_like(one), np.zeros_like(one)) for one in parameters]
    for step in range(_STEPS):
        cancellation.check()
        drawn = draw.integers(len(inputs), size=_BATCH)
        noise = np.float32(_NOISE) * draw.standard_normal((_BATCH, inputs.shape[1]), np.float32)
        found = _forward(layers, inputs[drawn] + noise)
        slopes = _backward(layers, found, (sigmoid(found[-1][:, 0]) - wanted[drawn]) * weights[drawn] / _BATCH)
        for parameter, slope, own in zip(parameters, slopes, moments, strict=True):
            _adam_step(parameter, slope, own, step)
    return PixelClassifier(untrained.mean, untrained.deviation, tuple(layers))


def _new_layers(widths: Sequence[int], draw: np.random.Generator) -> list[Layer]:
    layers = []
    for inputs, outputs in pairwise(widths):
        bound = inputs**-0.5
        weight = draw.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)
        layers.append((weight, draw.uniform(-bound, bound, outputs).astype(np.float32)))
    return layers


def _forward(layers: Sequence[Layer], inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return the inputs and what each layer makes of them; the last one has no rectifier."""
    found = [inputs]
    for index, (weight, bias) in enumerate(layers):
        outputs = found[-1] @ weight.T + bias
        found.append(np.maximum(outputs, 0, out=outputs) if index < len(layers) - 1 else outputs)
    return found


def _backward(
    layers: Sequence[Layer], found: Sequence[NDArray[np.float32]], slope: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """Return the slopes of weight and bias of each layer, from that of the outputs (N,)."""
    slopes: list[NDArray[np.float32]] = []
    own = slope[:, None]
    for index in range(len(layers) - 1, -1, -1):
        slopes = [own.T @ found[index], own.sum(axis=0), *slopes]
        own = (own @ layers[index][0]) * (found[index] > 0)
    return slopes


def _adam_step(
    parameter: NDArray[np.float32],
    slope: NDArray[np.float32],
    moments: tuple[NDArray[np.float32], NDArray[np.float32]],
    step: int,
) -> None:
    """Change a parameter and its moments in place."""
    peak = _WARM_UP * _STEPS - 1
    if step <= peak:
        height, first = _cosine(step / peak, 1 / 25, 1.0), _cosine(step / peak, _MOMENTS[0], _MOMENTS[1])
    else:
        share = (step - peak) / (_STEPS - 1 - peak)
        height, first = _cosine(share, 1.0, 4e-6), _cosine(share, _MOMENTS[1], _MOMENTS[0])
    rate, second = _LEARNING_RATE * height, _MOMENTS[2]
    mean, square = moments
    mean += (1 - first) * (slope - mean)
    square += (1 - second) * (slope * slope - square)
    parameter *= 1 - rate * _WEIGHT_DECAY
    deviation = np.sqrt(square / (1 - second ** (step + 1))) + np.float32(1e-8)
    parameter -= rate / (1 - first ** (step + 1)) * mean / deviation


def _cosine(share: float, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
