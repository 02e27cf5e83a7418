"""Encoders through timm: DINOv2, DINOv3 and any other model with patch tokens or a feature grid."""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.types import Image
from backend.models.device.on_device import Constants, DeviceRunner, make_cancellable
from backend.models.encoders.timm_networks import (
    FeatureGrid,
    config_of,
    create_network,
    forward_both,
    forward_features,
    load_weights,
)
from backend.models.images import require_rgb, resize_rgb
from backend.models.options_digest import options_digest
from backend.models.text.spaces import TextSpace
from backend.models.weights.digest import weights_sha256

_KEPT_BASES = 16


@dataclass(frozen=True)
class VitOptions:
    """Sizes of a timm encoder.

    Attributes:
        side_px: the image is resized to about side_px ** 2 pixels, its aspect ratio kept.
        longest_px: bound of the longer side, for very long images.
        temperature: softmax scale of the matching; None: by photographs, see `engine.encoder_scale`.
        similarity_floor: patches less alike than this show different things; None likewise.
        positional_rank: leading directions of a blank image's features that are taken out of every image's; 0: none.
        batch_size: images of one size encoded together; 0: what suits the device.
    """

    side_px: int = 448
    longest_px: int = 1344
    temperature: float | None = None
    similarity_floor: float | None = None
    positional_rank: int = 0
    batch_size: int = 0


class TimmEncoder:
    """Encodes with the last feature map of a timm model, each patch of unit length.

    Its values are the model's own `forward_features` (after its last norm): class and register tokens are dropped, and
    what the model gives as tokens, channels first or channels last comes out as one grid.

    Positional bias: vision transformers mark where a patch is as well as what it shows. The features of a blank image
    of the same size show nothing but position; the space of their `positional_rank` leading right singular vectors is
    projected out, `f' = (f - V V^T f) / |f - V V^T f|`.
    Source: INSID3 (CVPR 2026), training-free in-context segmentation; own implementation.

    Args:
        name: of the model in timm, `vit_small_patch14_dinov2` for example.
        weights: a file in timm's or Facebook's own layout; None: random ones, for tests and benchmarks.
        options: sizes.
        device: where it runs.
        seed: of random weights.
        network_options: for `timm.create_model`: sizes of small models in tests.
        text: of networks that share a space with a text encoder.

    Raises:
        ConfigurationError: timm has no such model, or it has no grid of features.
        ModelUnavailableError: the weights do not fit.
    """

    def __init__(
        self,
        name: str,
        weights: Path | None,
        options: VitOptions = VitOptions(),
        *,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a value)
        seed: int = 0,
        network_options: Mapping[str, Any] | None = None,
        text: TextSpace | None = None,
    ) -> None:
        projection = {} if text is None or text.width is None else {"num_classes": text.width}
        network = create_network(name, {**projection, **(network_options or {})}, seed=None if weights else seed)
        if weights is not None:
            load_weights(network, weights, name)
        self._grid = FeatureGrid.of(network, name)
        self._text = text
        make_cancellable(network)
        self.runner = DeviceRunner(network, device)
        self.device_runners = (self.runner,)
        self._options = options
        config = config_of(network)
        self._mean = torch.tensor(config.get("mean", (0.485, 0.456, 0.406)), dtype=torch.float32) * 255
        std = torch.tensor(config.get("std", (0.229, 0.224, 0.225)), dtype=torch.float32) * 255
        self._colours = Constants(self._mean, std)
        content = weights_sha256(weights)[:12] if weights else f"random{seed}"
        if network_options:
            content += "-" + hashlib.sha256(repr(sorted(network_options.items())).encode()).hexdigest()[:6]
        positional = f":p{options.positional_rank}" if options.positional_rank else ""
        # How many images share a pass changes no feature.
        digest = options_digest(options, without=("batch_size",))
        self.signature = f"{name}:{content}:{options.side_px}px{positional}:{digest}"
        self.temperature = options.temperature
        self.similarity_floor = options.similarity_floor
        # What is typical of its features is not known: nothing is taken off.
        self.object_feature_space = ObjectFeatureSpace()
        self._bases: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Return the device that it runs on."""
        return self.runner.device

    @property
    def batch_size(self) -> int:
        """Return the number of images that `encode_batch` takes to the device at a time."""
        return self._options.batch_size or self.runner.preferred_batch_size

    def encode(self, image: Image) -> Tensor:
        """Encode an image.

        Args:
            image: (H, W, 3) uint8 RGB of any size.

        Returns:
            (H_p, W_p, D) float32 on the CPU, each patch of unit length.

        Raises:
            BadInputError: not such an image.
        """
        return self.encode_batch([image])[0]

    def encode_batch(self, images: Sequence[Image]) -> list[Tensor]:
        """Encode several images; those of one input size share a forward pass.

        Raises:
            BadInputError: one of them is no such image.
        """
        return self.encode_async([self.prepare(image) for image in images])()

    def prepare(self, image: Image) -> Tensor:
        """Return an image as `encode_async` takes it: (h, w, 3) uint8 at the network's size. Needs no device.

        Raises:
            BadInputError: no such image.
        """
        require_rgb(image)
        size_hw = self._grid.fixed_hw or self.input_hw(image.shape[0], image.shape[1])
        return torch.from_numpy(resize_rgb(image, size_hw))

    def encode_async(self, prepared: Sequence[Tensor], *, is_half: bool = False) -> Callable[[], list[Tensor]]:
        """Start to encode what `prepare` made.

        Args:
            prepared: images of any sizes.
            is_half: give float16 in place of float32, to copy less from the device.

        Returns:
            what waits for the features.
        """
        return self._encode_async(prepared, _dtype(is_half), with_text=False)

    def _encode_async(
        self, prepared: Sequence[Tensor], dtype: torch.dtype, *, with_text: bool
    ) -> Callable[[], list[Tensor]]:
        by_size: OrderedDict[tuple[int, int], list[int]] = OrderedDict()
        for position, pixels in enumerate(prepared):
            by_size.setdefault((pixels.shape[0], pixels.shape[1]), []).append(position)
        begun = []
        for hw, positions in by_size.items():
            basis = self._positional_basis(hw) if self._options.positional_rank else None
            begun.append(
                (positions, self._features_async([prepared[one] for one in positions], basis, dtype, with_text))
            )

        def wait() -> list[Tensor]:
            features: list[Tensor] = [torch.empty(0)] * len(prepared)
            for positions, features_later in begun:
                for position, one in zip(positions, features_later(), strict=True):
                    features[position] = one
            return features

        return wait

    @property
    def text_space(self) -> str | None:
        """Return the space of the text features; None if the network has none."""
        return None if self._text is None else self._text.name

    def encode_both_async(
        self, prepared: Sequence[Tensor], *, is_half: bool = False
    ) -> Callable[[], list[tuple[Tensor, Tensor]]]:
        """Start to encode images in one pass each, with text features: see `TextAligned`."""
        joined = self._encode_async(prepared, _dtype(is_half), with_text=True)
        # Of the classes that timm makes, it has the width of the features.
        width = int(getattr(self.runner.network, "num_features", 0))
        return lambda: [(one[..., :width].contiguous(), one[..., width:].contiguous()) for one in joined()]

    def input_hw(self, height: int, width: int) -> tuple[int, int]:
        """Return the size at which an image of (height, width) px is encoded: whole patches, near its aspect ratio."""
        patch = self._grid.patch_px
        scale = min(self._options.side_px / math.sqrt(height * width), self._options.longest_px / max(height, width))
        return max(round(height * scale / patch[0]), 1) * patch[0], max(round(width * scale / patch[1]), 1) * patch[1]

    def blank_features(self, input_hw: tuple[int, int]) -> Tensor:
        """Return the features of an image of the mean colour, as they are before positional directions are taken off.

        Args:
            input_hw: whole patches, px.

        Returns:
            (H_p, W_p, D) float32.
        """
        # The mean colour of the model's training images: normalised, it is zero.
        return self._features_async([self._mean.expand(*input_hw, 3).contiguous()], None, torch.float32)()[0]

    def _features_async(
        self, inputs: Sequence[Tensor], basis: Tensor | None, dtype: torch.dtype, with_text: bool = False
    ) -> Callable[[], list[Tensor]]:
        hw = inputs[0].shape[0], inputs[0].shape[1]

        def forward(network: nn.Module, batch: Tensor) -> Tensor:
            text: Tensor | None = None
            if with_text and self._text is not None:
                raw, text = forward_both(network, self.normalised(batch), is_plain=self._text.is_plain)
            else:
                raw = forward_features(network, self.normalised(batch))
            # Unit length to float32's precision, whatever the network ran in.
            with torch.autocast(raw.device.type, enabled=False):
                features = F.normalize(self._grid.read(raw, hw).float(), dim=-1)
                if basis is not None:
                    directions = basis.to(features.device, non_blocking=True)
                    features = F.normalize(features - (features @ directions) @ directions.T, dim=-1)
                if text is not None:
                    # One tensor, so that both come from the device together.
                    grid_text = F.normalize(text.float(), dim=-1).reshape(*features.shape[:3], -1)
                    features = torch.cat([features, grid_text], dim=-1)
            return features.to(dtype)

        kind = (dtype, with_text) if basis is None else None
        return self.runner.run_async(inputs, forward, at_once=self.batch_size, kind=kind)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return (B, h, w, 3) uint8 as (B, 3, h, w) float32, normalised as timm expects it."""
        mean, std = self._colours.on(pixels.device)
        return ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()

    def _positional_basis(self, input_hw: tuple[int, int]) -> Tensor:
        """Return (D, rank) float32, a constant of the model at one size: computed once per size."""
        with self._lock:
            known = self._bases.get(input_hw)
        if known is not None:
            return known
        basis = positional_basis(self.blank_features(input_hw), self._options.positional_rank)
        with self._lock:
            self._bases[input_hw] = basis
            while len(self._bases) > _KEPT_BASES:
                self._bases.popitem(last=False)
        return basis


def _dtype(is_half: bool) -> torch.dtype:
    return torch.float16 if is_half else torch.float32


def positional_basis(blank: Tensor, rank: int) -> Tensor:
    """Return the leading directions of a blank image's patches.

    Args:
        blank: (H_p, W_p, D) float32, its features.
        rank: directions wanted; up to min(H_p W_p, D) are returned.

    Returns:
        (D, rank) float32, orthonormal columns: the leading right singular vectors of the patches of unit length.
    """
    patches = F.normalize(blank.flatten(0, 1), dim=-1)
    right: Tensor = torch.linalg.svd(patches, full_matrices=False)[2]
    return right[:rank].T.contiguous()
