"""What every command does first: `.env` is read, variables that are no settings are named."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.cli import app
from backend.cli.environment import read_env_file
from backend.errors import ConfigurationError
from backend.settings import unknown_variables


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start commands in; what they take into the environment is gone afterwards."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    del os.environ["SOFTMATCHER_ENV_FILE"]
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_read_the_file_and_the_environment_takes_precedence(folder: Path) -> None:
    (folder / ".env").write_text(
        "\ufeff# of docker compose too\nSOFTMATCHER_PORT=9191\nexport SOFTMATCHER_PROFILE='base'\n"
        'LABEL_STUDIO_API_KEY="a b"\nLABEL_STUDIO_PASSWORD=secret\nsoftmatcher_host=0.0.0.0\nSOFTMATCHER_MATCHER=\n'
    )
    os.environ["softmatcher_profile"] = "large"  # noqa: SIM112
    read_env_file()
    assert os.environ["SOFTMATCHER_PORT"] == "9191"
    assert os.environ["SOFTMATCHER_HOST"] == "0.0.0.0"
    assert os.environ["LABEL_STUDIO_API_KEY"] == "a b"
    assert "SOFTMATCHER_PROFILE" not in os.environ
    assert "SOFTMATCHER_MATCHER" not in os.environ
    assert "LABEL_STUDIO_PASSWORD" not in os.environ, "it is Label Studio's own"


def test_no_file_is_fine_but_one_that_is_named_has_to_be_there(folder: Path) -> None:
    read_env_file()
    os.environ["SOFTMATCHER_ENV_FILE"] = str(folder / "elsewhere")
    with pytest.raises(ConfigurationError, match=r"elsewhere.*SOFTMATCHER_ENV_FILE"):
        read_env_file()
    (folder / "elsewhere").write_text("SOFTMATCHER_PORT=9292")
    read_env_file()
    assert os.environ["SOFTMATCHER_PORT"] == "9292"


def test_a_file_that_is_no_text_is_one_line_and_no_traceback(folder: Path) -> None:
    (folder / ".env").write_bytes(b"SOFTMATCHER_PORT=\xff\xfe9191")
    result = CliRunner().invoke(app, ["label-studio-env"])
    assert result.exit_code == 2
    assert "error: .env must be a text file" in result.output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SOFTMATCHER_MIN_SCOR", "did you mean SOFTMATCHER_MIN_SCORE?"),
        ("SOFTMATCHER_BACKGROUND_LABEL", "did you mean SOFTMATCHER_BACKGROUND_LABELS?"),
        ("SOFTMATCHER_REDIS_URL", "did you mean REDIS_URL?"),
        ("SOFTMATCHER_LABEL_STUDIO_URL", "did you mean LABEL_STUDIO_URL?"),
        ("SOFTMATCHER_XYZ", "docs/settings.md lists all settings"),
    ],
)
def test_a_variable_that_is_no_setting_is_named_with_the_nearest(name: str, said: str) -> None:
    (line,) = unknown_variables(["PATH", "SOFTMATCHER_PORT", "softmatcher_port", "SOFTMATCHER_TEST_DATASETS", name])
    assert line.startswith(f"{name} is set")
    assert line.endswith(said)


def test_commands_warn_of_it_once_and_never_show_its_value(folder: Path) -> None:
    (folder / ".env").write_text("SOFTMATCHER_BASIC_AUTH_PASSWORD=open-sesame\n")
    result = CliRunner().invoke(app, ["label-studio-env"])
    assert result.exit_code == 0
    assert result.stderr.count("SOFTMATCHER_BASIC_AUTH_PASSWORD") == 1
    assert "did you mean SOFTMATCHER_BASIC_AUTH_PASS?" in result.stderr
    assert "open-sesame" not in result.output
    assert "warning" not in result.stdout, "the output is for `env`"


@pytest.fixture
def _own_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_own_logging")
@pytest.mark.parametrize("command", ["serve", "work"])
def test_service_and_worker_log_it(folder: Path, command: str) -> None:
    (folder / ".env").write_text("SOFTMATCHER_LOG_FORMAT=json\nSOFTMATCHER_PROFIL=base\n")
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 2, "no REDIS_URL"
    (line,) = [line for line in result.output.splitlines() if "SOFTMATCHER_PROFIL is" in line]
    assert json.loads(line)["level"] == "WARNING"
