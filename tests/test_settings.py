"""One reader of the environment, and a README that lists all of it."""

import re
from pathlib import Path

import pytest

from backend.errors import ConfigurationError
from backend.settings import Settings, environment_name, load_settings

ROOT = Path(__file__).parent.parent


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    table = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]*) \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert set(table) == {environment_name(field) for field in Settings.model_fields}
    defaults = load_settings()
    for field in Settings.model_fields:
        value = getattr(defaults, field)
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            assert (
                table[environment_name(field)].strip() == f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
            )


def test_environment_is_read_by_settings_alone() -> None:
    readers = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "backend").rglob("*.py")
        if re.search(r"os\.environ|getenv", path.read_text()) and "cli" not in path.parts
    ]
    assert readers == []


def test_lists_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMATCHER_ALLOWED_IMAGE_HOSTS", "a.example, b.example:8443,")
    assert load_settings().allowed_image_hosts == {"a.example", "b.example:8443"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("SOFTMATCHER_PORT", "70000"), ("LABEL_STUDIO_URL", "localhost:8080"), ("SOFTMATCHER_PREDICT_BUDGET_S", "0")],
)
def test_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        load_settings()


def test_secret_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMATCHER_BASIC_AUTH_PASS", "open-sesame")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "open-sesame" not in str(caught.value)
    assert "SOFTMATCHER_BASIC_AUTH_USER" in str(caught.value)
    assert "open-sesame" not in repr(load_settings(basic_auth_user="x", basic_auth_pass="open-sesame"))
