"""A classifier of pixels: a small network on filter responses, trained on a sample of the references' pixels."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

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
_NOISE = 0.1
"""Standard deviation of what is added to the standardised responses in training: the next image's light differs."""
_CLIP = 5.0
"""Standardised responses stay within this: an edge brighter than any in the references is still an edge."""
_CHUNK_PX = 65536


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

    mean: Tensor
    deviation: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]

    def log_odds(self, responses: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-odds that each pixel shows the object: (F, H, W) float32 to (H, W) float32.

        Raises:
            BadInputError: another number of filters than it was trained with.
        """
        if len(responses) != len(self.mean):
            raise BadInputError(f"responses must be of {len(self.mean)} filters, got {len(responses)}; train it again")
        flat = responses.reshape(len(responses), -1)
        found = np.empty(flat.shape[1], np.float32)
        with torch.inference_mode():
            for start in range(0, flat.shape[1], _CHUNK_PX):
                part = torch.from_numpy(np.ascontiguousarray(flat[:, start : start + _CHUNK_PX].T))
                found[start : start + _CHUNK_PX] = _forward(self.layers, self.standardised(part)).numpy()
        return found.reshape(responses.shape[1:])

    def standardised(self, responses: Tensor) -> Tensor:
        """Return responses (N, F) on the scale that the network was trained on."""
        return ((responses - self.mean) / self.deviation).clamp_(-_CLIP, _CLIP)

    def to_arrays(self) -> Arrays:
        """Return the fields as named arrays, for safetensors."""
        arrays: Arrays = {"mean": self.mean.numpy(), "deviation": self.deviation.numpy()}
        for index, (weight, bias) in enumerate(self.layers):
            arrays[f"weight.{index}"], arrays[f"bias.{index}"] = weight.numpy(), bias.numpy()
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "PixelClassifier":
        """Make one of the arrays that `to_arrays` returns.

        Raises:
            KeyError: an array is missing.
            ValueError: shapes that don't fit each other.
        """
        found = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
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
    (`matching.match_posterior`).

    Raises:
        BadInputError: no pixels of the object, or none of the rest.
    """
    # Its steps are so small that several threads would only wait for one another: ten times slower on busy cores.
    with ThreadPoolExecutor(1, "train", partial(torch.set_num_threads, 1)) as thread:
        return thread.submit(_train, samples, seed).result()


def _train(samples: Sequence[PixelSample], seed: int) -> PixelClassifier:
    responses = torch.from_numpy(np.concatenate([one.responses for one in samples]))
    is_object = torch.from_numpy(np.concatenate([one.is_object for one in samples]))
    masses = torch.from_numpy(np.concatenate([one.weights for one in samples]))
    if not bool(is_object.any()) or bool(is_object.all()):
        raise BadInputError("references must show pixels of the object and of the rest, got one of both only")
    balance = torch.where(is_object, masses[is_object].sum(), masses[~is_object].sum()).sqrt()
    weights = (masses / balance).float()
    weights /= weights.mean()
    untrained = PixelClassifier(responses.mean(dim=0), responses.std(dim=0) + 1e-6, ())
    inputs, wanted = untrained.standardised(responses), is_object.float()
    generator = torch.Generator().manual_seed(seed)
    layers = _new_layers((inputs.shape[1], *HIDDEN, 1), generator)
    parameters = [one for layer in layers for one in layer]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_STEPS)
    for drawn in torch.randint(len(inputs), (_STEPS, _BATCH), generator=generator):
        noise = _NOISE * torch.randn((_BATCH, inputs.shape[1]), generator=generator)
        found = _forward(layers, inputs[drawn] + noise)
        loss = F.binary_cross_entropy_with_logits(found, wanted[drawn], weights[drawn])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    trained = tuple((weight.detach(), bias.detach()) for weight, bias in layers)
    return PixelClassifier(untrained.mean, untrained.deviation, trained)


def _new_layers(widths: Sequence[int], generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], ...]:
    layers = []
    for inputs, outputs in pairwise(widths):
        bound = inputs**-0.5
        weight, bias = torch.empty(outputs, inputs), torch.empty(outputs)
        for one in (weight, bias):
            one.uniform_(-bound, bound, generator=generator).requires_grad_()
        layers.append((weight, bias))
    return tuple(layers)


def _forward(layers: Sequence[tuple[Tensor, Tensor]], inputs: Tensor) -> Tensor:
    found = inputs
    for index, (weight, bias) in enumerate(layers):
        found = F.linear(found, weight, bias)
        if index < len(layers) - 1:
            found = F.relu(found)
    return found[:, 0]
