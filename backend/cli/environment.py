"""Prepare the environment of a command: read `.env`, find variables that look like settings and are none."""

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from backend.errors import ConfigurationError
from backend.settings import PREFIX, Settings, environment_name, unknown_variables

_FILE_VARIABLE = environment_name("env_file")


def read_env_file() -> None:
    """Take what `.env` says of the backend's settings into the environment; what is set there takes precedence.

    Other variables of the file are left alone: docker-compose.yml reads the same file, and Label Studio's first
    password is no business of ours.

    Raises:
        ConfigurationError: the file cannot be read, or SOFTMATCHER_ENV_FILE names one that is not there.
    """
    named = os.environ.get(_FILE_VARIABLE)
    path = Path(named or Settings.model_fields["env_file"].default)
    if not named and not path.is_file():
        return
    settings = {environment_name(field) for field in Settings.model_fields}
    present = {name.upper() for name in os.environ}
    for name, value in _values(path).items():
        variable = name.upper()
        if value and variable not in present and (variable in settings or variable.startswith(PREFIX)):
            os.environ[variable] = value


def environment_warnings() -> list[str]:
    """Return a line for each variable of the environment that begins like a setting and is none."""
    return unknown_variables(os.environ)


def _values(path: Path) -> Mapping[str, str | None]:
    try:
        with path.open(encoding="utf-8-sig") as file:  # editors of Windows begin files with a mark
            return dotenv_values(stream=file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} must be a text file of lines NAME=value in UTF-8, got {error}: correct it, or name another file "
            f"in {_FILE_VARIABLE}"
        ) from error
