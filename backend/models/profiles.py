"""Which encoder and segmenter a profile has, and how they are loaded."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from backend.errors import BadInputError, ConfigurationError, ModelUnavailableError
from backend.models.encoders.efficientnet_lite import EfficientNetLiteEncoder
from backend.models.encoders.protocol import Encoder
from backend.models.encoders.timm_encoder import TimmEncoder, VitOptions
from backend.models.graph_cut.segmenter import LiteSegmenter
from backend.models.sam.networks import SAM_MODELS, build_sam
from backend.models.sam.sam2_networks import SAM2_MODELS, build_sam2, require_sam2
from backend.models.sam.sam2_segmenter import Sam2Segmenter
from backend.models.sam.segmenter import SamOptions, SamSegmenter
from backend.models.sam.selection import KEEP_EVERYTHING, SelectionOptions
from backend.models.segmenters import Segmenter
from backend.models.weights.catalogue import PROFILE_WEIGHTS, known_weights
from backend.models.weights.digest import weights_sha256
from backend.models.weights.store import StoredWeights, WeightsStore

PROFILES = ("lite", *PROFILE_WEIGHTS)

_SIDE_PX = {"mobile": 448, "base": 518, "large": 518, "sam2": 518}
"""Side of the encoder's input; 518 is what DINOv2's position table was made for."""


@dataclass(frozen=True)
class ModelSource:
    """Where models come from.

    Attributes:
        weights_folder: of `WeightsStore`; None for `lite`, which needs none.
        device: a device that exists.
        encoder: timm's name of an encoder in place of the profile's, or None.
        segmenter: name of a segmenter in place of the profile's, or None.
        is_random: random weights where real ones are missing: for benchmarks and tests, never for users.
        positional_rank: directions of a blank image that are taken out of every image's features; 0: none.
    """

    weights_folder: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    encoder: str | None = None
    segmenter: str | None = None
    is_random: bool = False
    positional_rank: int = 0


def load_profile(profile: str, source: ModelSource = ModelSource()) -> tuple[Encoder, Segmenter]:
    """The models of a profile.

    Raises:
        ConfigurationError: no such profile, encoder or segmenter.
        ModelUnavailableError: weights are missing or wrong; says which command helps.
    """
    if profile == "lite":
        if source.encoder is not None:
            raise ConfigurationError(
                f"profile lite has its own encoder, got {source.encoder}; choose mobile, base, large or sam2"
            )
        if source.segmenter is not None:
            raise ConfigurationError(
                f"profile lite has its own segmenter, got {source.segmenter}; choose mobile, base, large or sam2"
            )
        if source.positional_rank:
            raise ConfigurationError(
                f"profile lite has no table of positions, got a positional rank of {source.positional_rank}; "
                "set it to 0, or choose mobile, base or large"
            )
        return EfficientNetLiteEncoder(), LiteSegmenter()
    if profile not in PROFILE_WEIGHTS:
        raise ConfigurationError(
            f"profile must be one of {', '.join(PROFILES)}, got {profile}; set SOFTMATCHER_PROFILE"
        )
    encoder_name, segmenter_name = PROFILE_WEIGHTS[profile]
    encoder_name = source.encoder or encoder_name
    segmenter_name = source.segmenter or segmenter_name
    segmenter_layout = _layout(source, segmenter_name)
    if segmenter_layout not in (*SAM_MODELS, *SAM2_MODELS):
        raise ConfigurationError(
            f"segmenter must be one of {', '.join([*SAM_MODELS, *SAM2_MODELS])}, or an imported checkpoint of their "
            f"layout, got {segmenter_name}; set SOFTMATCHER_SEGMENTER to one of them"
        )
    is_sam2 = segmenter_layout in SAM2_MODELS
    if is_sam2:
        require_sam2(segmenter_name)
    encoder_weights, segmenter_weights = _paths(source, (encoder_name, segmenter_name), profile)
    options = VitOptions(side_px=_SIDE_PX[profile], positional_rank=source.positional_rank)
    encoder = TimmEncoder(_layout(source, encoder_name), encoder_weights, options, device=source.device)
    content = weights_sha256(segmenter_weights)[:12] if segmenter_weights else "random0"
    selection = SelectionOptions() if segmenter_weights else KEEP_EVERYTHING
    sam = (build_sam2 if is_sam2 else build_sam)(segmenter_layout, segmenter_weights)
    signature = f"{segmenter_name}:{content}"
    kind = Sam2Segmenter if is_sam2 else SamSegmenter
    return encoder, kind(sam, signature, SamOptions(selection=selection), device=source.device)


def _layout(source: ModelSource, name: str) -> str:
    """Return the model whose network a name means: of a checkpoint imported under its own name, the one it fills."""
    if source.weights_folder is None or known_weights(name) is not None:
        return name
    try:
        stored = WeightsStore(source.weights_folder).find(name)
    except BadInputError:  # no name that anything can be imported under
        return name
    return stored.layout if stored is not None and stored.layout is not None else name


def missing_weights(profile: str, folder: Path) -> list[str]:
    """Models of a profile whose weights are not stored."""
    store = WeightsStore(folder)
    return [name for name in PROFILE_WEIGHTS.get(profile, ()) if store.find(name) is None]


def _paths(source: ModelSource, names: tuple[str, str], profile: str) -> list[Path | None]:
    """Both files, found before either is read: one message names all that is to be done."""
    if source.is_random:
        store = None if source.weights_folder is None else WeightsStore(source.weights_folder)
        return [None if store is None else _intact(store.find(name)) for name in names]
    if source.weights_folder is None:
        raise ConfigurationError(f"{names[0]} needs a folder of weights; set SOFTMATCHER_WEIGHTS_DIR")
    own = profile if names == PROFILE_WEIGHTS[profile] else None
    return [_intact(stored) for stored in WeightsStore(source.weights_folder).require(names, profile=own)]


def _intact(stored: StoredWeights | None) -> Path | None:
    if stored is None:
        return None
    if weights_sha256(stored.path) != stored.sha256:
        raise ModelUnavailableError(
            f"weights of {stored.name} are damaged (their sha256 changed): run `python -m backend weights fetch "
            f"{stored.name}`, or import the file again"
        )
    return stored.path
