"""Text encoders built of a profile's row, their weights read from disk."""

from collections.abc import Callable, Mapping
from pathlib import Path

from backend.errors import ConfigurationError, ModelUnavailableError
from backend.models.loading import ModelSource
from backend.models.profiles import PROFILES, find_profile
from backend.models.text.protocol import TextEncoder
from backend.models.weights.store import WeightsStore


def _tipsv2(files: Mapping[str, Path]) -> TextEncoder:
    from backend.models.text.tipsv2 import Tipsv2TextEncoder  # PyTorch

    return Tipsv2TextEncoder(files)


def _clip(files: Mapping[str, Path]) -> TextEncoder:
    from backend.models.text.clip import ClipTextEncoder  # PyTorch

    return ClipTextEncoder(files)


TEXT_ENCODERS: dict[str, Callable[[Mapping[str, Path]], TextEncoder]] = {
    "tipsv2": _tipsv2,
    "clip": _clip,
}
"""All text encoders by name: each is built of the files of its row's `text_weights`, by the model's name."""


def load_text_encoder(profile_name: str, source: ModelSource) -> TextEncoder:
    """Build the text encoder of a profile, on the CPU.

    Raises:
        ConfigurationError: no such profile, it has none, or its package is not installed.
        ModelUnavailableError: weights or tokenizer are missing or wrong; says which command helps.
    """
    profile = find_profile(profile_name)
    if profile.text_encoder is None or source.encoder is not None:
        offered = ", ".join(one.name for one in PROFILES.values() if one.text_encoder is not None)
        raise ConfigurationError(f"phrases need a profile with a text encoder ({offered}), got {profile_name}")
    build = TEXT_ENCODERS[profile.text_encoder]
    if not profile.text_weights:
        return build({})
    if source.weights_folder is None:
        raise ModelUnavailableError(f"{profile.text_encoder} needs a folder of weights; set SOFTMATCHER_WEIGHTS_DIR")
    stored = WeightsStore(source.weights_folder).require(profile.text_weights, profile=profile.name)
    return build({one.name: one.path for one in stored})
