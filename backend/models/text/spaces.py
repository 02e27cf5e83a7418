"""Names of the spaces that encoders and text encoders share; nothing of either is imported."""

from dataclasses import dataclass
from pathlib import Path

from backend.models.weights.digest import weights_sha256

TIPS_MODEL = "vit_base_patch14_reg1_tipsv2"
"""Name of the file in the catalogue: it has the weights of both encoders."""
CLIP_MODEL = "vit_base_patch16_clip_quickgelu_224"
"""Likewise."""
CLIP_WIDTH = 512
"""Channels of the space of CLIP ViT-B."""


@dataclass(frozen=True)
class TextSpace:
    """The text encoder whose space an encoder shares.

    Attributes:
        name: of the space, see `TextAligned`.
        is_plain: how text features are taken, see `forward_both`.
        width: channels of the network's projection into the space; None: it has none, its features are in the space.
    """

    name: str
    is_plain: bool = False
    width: int | None = None


def tips_text_space(weights: Path | None) -> str:
    """Return the name of the space that both encoders of a file share; None: of random weights."""
    return _named("tipsv2", weights)


def clip_text_space(weights: Path | None) -> str:
    """Return the name of the space that both encoders of a file share; None: of random weights."""
    return _named("clip", weights)


def _named(name: str, weights: Path | None) -> str:
    return f"{name}:{weights_sha256(weights)[:12] if weights else 'random0'}"
