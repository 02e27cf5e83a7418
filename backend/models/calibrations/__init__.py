"""Calibrations that come with the profiles, and those that users wrote with `calibrate`."""

from importlib import resources
from pathlib import Path

from backend.core.calibration import Calibration
from backend.errors import ConfigurationError


def read_calibration(name: str, path: Path | None = None) -> Calibration:
    """Read a calibration.

    Args:
        name: of a file of this package, as a profile names it.
        path: of a file to take instead, or None.

    Raises:
        ConfigurationError: there is no such file, or it is no calibration.
    """
    if path is None:
        return Calibration.from_json(resources.files(__package__).joinpath(name).read_text("utf-8"), name=name)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"calibration {path} cannot be read ({error}); set SOFTMATCHER_CALIBRATION to a file that "
            "`python -m backend calibrate` wrote, or leave it empty"
        ) from None
    return Calibration.from_json(text, name=str(path))
