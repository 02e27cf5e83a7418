"""One reader of the environment, and a page that lists all of it."""

import json
import re
from pathlib import Path

import pytest

from backend.errors import ConfigurationError
from backend.settings import (
    SHARED,
    Settings,
    differing,
    environment_name,
    load_settings,
    shared_settings,
    with_shared,
)

ROOT = Path(__file__).parent.parent


def test_every_setting_is_in_the_documentation_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    table = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]*) \|", page, re.MULTILINE))
    assert set(table) == {environment_name(field) for field in Settings.model_fields}
    defaults = load_settings()
    for field in Settings.model_fields:
        value = getattr(defaults, field)
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            assert table[environment_name(field)].strip() == (f"`{shown}`" if shown else ""), field


def test_environment_is_read_by_settings_alone() -> None:
    readers = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "backend").rglob("*.py")
        if re.search(r"os\.environ|getenv", path.read_text()) and "cli" not in path.parts
    ]
    # Its children get a part of the environment passed on; it reads none of it.
    assert readers == ["backend/labelstudio/decoding_pool.py"]


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


def test_worker_takes_from_the_service_what_it_is_not_told_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    service = load_settings(
        label_studio_url="https://labels.example/ls", matcher="softmatcher", mask_tags="brush", max_image_mb=5,
        label_studio_api_key="secret-of-the-service", data_dir="elsewhere", torch_threads=3,
    )  # fmt: skip
    told = json.loads(json.dumps(shared_settings(service)))
    assert "secret-of-the-service" not in str(told)
    monkeypatch.setenv("SOFTMATCHER_MATCHER", "prototype")
    worker = with_shared(load_settings(redis_url="redis://queue/0"), told)
    assert (worker.label_studio_url, worker.mask_tags, worker.max_image_mb) == (
        "https://labels.example/ls",
        frozenset({"brush"}),
        5.0,
    )
    assert worker.matcher == "prototype", "its own environment goes before"
    assert (worker.redis_url, worker.torch_threads, worker.label_studio_api_key) == ("redis://queue/0", 0, None)
    assert with_shared(load_settings(), {}) == load_settings()


def test_every_setting_is_declared_shared_or_local() -> None:
    for name, field in Settings.model_fields.items():
        declared = field.json_schema_extra
        assert isinstance(declared, dict), f"{name} must be declared: json_schema_extra=_SHARED or _LOCAL"
        assert isinstance(declared.get("is_shared"), bool), f"{name} must be declared _SHARED or _LOCAL"
    assert {"profile", "encoder", "segmenter", "positional_rank", "sam_path", "matcher", "mask_tags"} <= set(SHARED)
    assert not {name for name in SHARED if "Secret" in str(Settings.model_fields[name].annotation)}


def test_settings_that_differ_are_named() -> None:
    told = shared_settings(load_settings(segmenter="sam_vit_b", label_studio_url="http://inside:8080"))
    assert differing(load_settings(), told) == ("SOFTMATCHER_SEGMENTER is None here and 'sam_vit_b' in the service",), (
        "and the address of Label Studio may be another from each machine"
    )
    assert differing(load_settings(segmenter="sam_vit_b"), json.loads(json.dumps(told))) == ()
    assert differing(load_settings(), {}) == ()


def test_service_of_another_release_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="matcher"):
        with_shared(load_settings(), {"matcher": "of-tomorrow", "unheard_of": 1})
