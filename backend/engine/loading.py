"""The engine of a profile, read from disk."""

from pathlib import Path

from backend.engine.softmatcher import Softmatcher
from backend.engine.stages import OnStage
from backend.models.calibrations import read_calibration
from backend.models.loading import ModelSource, load_profile
from backend.models.profiles import find_profile


def load_softmatcher(
    profile: str,
    on_stage: OnStage | None = None,
    source: ModelSource = ModelSource(),  # noqa: B008 (frozen)
    *,
    calibration: Path | None = None,
) -> Softmatcher:
    """Return the engine of a profile, its weights and calibration read from disk.

    Args:
        profile: its name.
        on_stage: see `StageTimer`.
        source: where its models come from.
        calibration: a file in place of the profile's own.

    Raises:
        ConfigurationError: no such profile, encoder, device or calibration.
        ModelUnavailableError: its weights are missing or wrong; says which command helps.
    """
    encoder, segmenter = load_profile(profile, source)
    row = find_profile(profile)
    return Softmatcher(
        encoder, segmenter, read_calibration(row.calibration, calibration), on_stage=on_stage,
        decode_side_px=row.decode_side_px,
    )  # fmt: skip
