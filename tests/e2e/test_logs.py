"""The logs of the whole run, of every service, worker and queue that any test here started: no secret, no image."""

import base64
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.e2e.scene import TARGETS, Project

LOOKS_SECRET = {
    "a legacy token": r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])",
    "a personal or access token": r"eyJ[\w-]{8,}\.[\w-]{8,}",
    "credentials": r"(?i:basic|bearer|token) (?=[\w+/=.-]*[0-9A-Z=])[\w+/=.-]{12,}",  # not «token authentication»
    "a password in an address": r"://[^/\s:@]*:[^/\s@*]+@",
    "a presigned address": r"(?i)(x-amz-signature|sig)=\w",
    "an image": r"\x89PNG|\xff\xd8\xff|iVBORw0KGgo|/9j/4AAQ",
    "a mask": r"(\d+, ){50}",
}


def test_no_secret_and_no_image_is_in_any_log(
    small_project: Project, secrets: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    small_project.mark_one_coin()
    small_project.retrieve(TARGETS[0])
    logs = [path for path in tmp_path_factory.getbasetemp().rglob("*.log") if not _is_label_studios(path)]
    names = " ".join(path.name for path in logs)
    assert "main-service" in names
    assert "main-worker" in names
    for path in logs:
        text = path.read_bytes().decode("latin-1")
        for secret in secrets:
            forms = {secret, quote(secret), base64.b64encode(secret.encode()).decode().rstrip("=")}
            assert not any(form in text for form in forms), f"a secret is in {path.name}"
        for what, pattern in LOOKS_SECRET.items():
            found = re.search(pattern, text)
            assert found is None, (
                f"{what} is in {path.name}: {found and text[max(0, found.start() - 200) : found.start()]}"
            )


def _is_label_studios(path: Path) -> bool:
    return path.name.startswith("label-studio") or "postgres" in path.name


@pytest.mark.parametrize(
    "text",
    [
        "0123456789abcdef0123456789abcdef01234567",
        "Authorization: Token 0123456789abcdef",
        "Basic c3R1ZGlvOnBhc3M6IHdvcmQh",
        "redis://:word@127.0.0.1",
        "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.x",
        "[" + "255, " * 60 + "]",
    ],
)
def test_the_patterns_find_what_they_look_for(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in LOOKS_SECRET.values())
