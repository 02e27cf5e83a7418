"""Networks of timm: created, filled with weights, and how their features lie."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.errors import ConfigurationError, ModelUnavailableError
from backend.models.encoders.clip_layout import clip_image_state, is_transformers_clip
from backend.models.weights.state_dict import read_state_dict


@dataclass(frozen=True)
class FeatureGrid:
    """The layout of a network's features, found out once with a small input of unequal sides.

    Attributes:
        patch_px: input pixels a patch covers, down and across.
        prefix: class and register tokens before the patches; None for feature maps.
        is_channels_last: of feature maps.
        fixed_hw: input size of networks that take no other.
    """

    patch_px: tuple[int, int]
    prefix: int | None
    is_channels_last: bool
    fixed_hw: tuple[int, int] | None

    def read(self, features: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """Return (B, N, D) tokens, or (B, D, h, w), or (B, h, w, D) as (B, h, w, D)."""
        if self.prefix is None:
            return features if self.is_channels_last else features.permute(0, 2, 3, 1)
        height, width = (side // patch for side, patch in zip(input_hw, self.patch_px, strict=True))
        return features[:, self.prefix :].reshape(len(features), height, width, -1)

    @classmethod
    def of(cls, network: nn.Module, name: str) -> "FeatureGrid":
        """Find out the layout of a network's features.

        Raises:
            ConfigurationError: it has neither patch tokens nor a feature map.
        """
        unfit = ConfigurationError(
            f"encoder must be a timm model with patch tokens or a feature map, got {name}; "
            "name another, vit_small_patch14_dinov2 for example"
        )
        reduction = _patch_px(network)
        if reduction is None:
            raise unfit
        config = config_of(network)
        for fixed in (False, True):
            hw = (2 * reduction[0], 3 * reduction[1])
            if fixed:
                hw = (int(config["input_size"][1]), int(config["input_size"][2]))
            try:
                with torch.inference_mode():
                    features = forward_features(network.eval(), torch.zeros(1, 3, *hw))
            except (RuntimeError, AssertionError, ValueError):
                continue
            rows, columns = hw[0] // reduction[0], hw[1] // reduction[1]
            kept_hw = hw if fixed else None
            if features.ndim == 3 and features.shape[1] >= rows * columns:
                return cls(reduction, features.shape[1] - rows * columns, False, kept_hw)
            if features.ndim == 4 and tuple(features.shape[2:]) == (rows, columns):
                return cls(reduction, None, False, kept_hw)
            if features.ndim == 4 and tuple(features.shape[1:3]) == (rows, columns):
                return cls(reduction, None, True, kept_hw)
        raise unfit


def config_of(network: nn.Module) -> Mapping[str, Any]:
    """Return what timm says of a network: mean, std and size of its input."""
    config: Any = network.pretrained_cfg
    return dict(config)


def _patch_px(network: nn.Module) -> tuple[int, int] | None:
    if hasattr(network, "num_prefix_tokens"):
        size = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        if isinstance(size, tuple):
            return int(size[0]), int(size[1])
        return None if size is None else (int(size), int(size))
    information = getattr(network, "feature_info", None)
    if not information:
        return None
    stride = int(list(information)[-1]["reduction"])
    return stride, stride


def forward_features(network: nn.Module, batch: Tensor) -> Tensor:
    """Run a network up to its last features."""
    features: Tensor = network.forward_features(batch)  # type: ignore[operator]
    return features


def forward_both(network: nn.Module, batch: Tensor, *, is_plain: bool) -> tuple[Tensor, Tensor]:
    """Run a vision transformer up to its last features, and take its text features on the way.

    Text features are those of the last block with the values in the place of what its attention makes of them, so that
    each patch speaks for itself.

    Args:
        network: a vision transformer of two blocks or more.
        batch: (B, 3, h, w) float32.
        is_plain: the values go straight to the last norm and the projection (CLIP, as MaskCLIP does); otherwise through
            the rest of the block, too (TIPSv2, as its authors do).

    Returns:
        what `forward_features` gives, and the text features of the patches (B, N, E).

    Source: Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022; TIPSv2's notebook of zero-shot segmentation.
    """
    model: Any = network
    features, (tokens,) = model.forward_intermediates(batch, indices=[len(model.blocks) - 2], output_fmt="NLC")
    block = model.blocks[-1]
    attention = block.attn
    width = attention.qkv.weight.shape[0] // 3
    bias = attention.qkv.bias
    values = F.linear(block.norm1(tokens), attention.qkv.weight[-width:], None if bias is None else bias[-width:])
    values = attention.proj(values)
    if is_plain:
        return features, model.head(model.norm(values))
    tokens = tokens + block.ls1(values)
    return features, model.norm(tokens + block.ls2(block.mlp(block.norm2(tokens))))


def create_network(name: str, options: Mapping[str, Any], *, seed: int | None) -> nn.Module:
    """Return timm's network with random weights.

    Args:
        name: of the model in timm.
        options: for `timm.create_model`.
        seed: of the weights; None: 0.

    Raises:
        ConfigurationError: timm has no such model.
    """
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[-1]}*")[:5])
        raise ConfigurationError(
            f"encoder must be a model that timm {timm.__version__} knows, got {name}; near it: {close}"
        )
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0, **options}
    takes_any_size = "dynamic_img_size" in _parameters_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        try:
            network: nn.Module = timm.create_model(
                name, **arguments, **({"dynamic_img_size": True} if takes_any_size else {})
            )
        except TypeError:
            network = timm.create_model(name, **arguments)
    return network.eval()


def _parameters_of(name: str) -> set[str]:
    """Return the names of the arguments of the transformers in the timm module that defines a model."""
    module = sys.modules[timm.model_entrypoint(name).__module__]
    classes = (getattr(module, found) for found in ("VisionTransformer", "Eva") if hasattr(module, found))
    return {parameter for one in classes for parameter in inspect.signature(one.__init__).parameters}


def load_weights(network: nn.Module, path: Path, name: str) -> None:
    """Put a weights file into a network, its names turned from the publisher's layout into timm's.

    Raises:
        ModelUnavailableError: a tensor is missing or has another shape.
    """
    state = read_state_dict(path)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    wanted = network.state_dict()
    try:
        if is_transformers_clip(state):
            state = clip_image_state(state)
        if convert is not None:
            state = convert(dict(state), network)
        kept = {key: tensor for key, tensor in state.items() if key in wanted}
        missing = sorted(set(wanted) - set(kept))
        if missing:
            raise ModelUnavailableError(
                f"{path} must hold {name}, but {len(missing)} of its {len(wanted)} tensors are missing "
                f"({', '.join(missing[:3])}); import the file of this model"
            )
        network.load_state_dict(kept)
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelUnavailableError(
            f"{path} must hold {name}, got other tensors ({str(error).splitlines()[0][:160]}); import the file of this "
            "model"
        ) from error
