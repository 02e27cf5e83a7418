"""Who gets in: passwords in both encodings, the webhook's secret, other sites' pages, foreign names, headers."""

import base64
from pathlib import Path
from typing import Any

import pytest

from backend.errors import ConfigurationError, StoreUnavailableError
from backend.settings import load_settings
from backend.web.access import (
    MOST_BODY_BYTES,
    PasswordAttempts,
    former_webhook_authorization,
    webhook_authorization,
)
from backend.web.json_body import MOST_CONTAINERS
from testing.fakes import Backend, FakeLabelStudio, make_backend

AUTH: dict[str, Any] = {"basic_auth_user": "ls", "basic_auth_pass": "secret"}


def _basic(user: str, password: str, encoding: str = "utf-8") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode(encoding)).decode()}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_a_password_with_umlauts_works_from_label_studio_and_from_browsers(tmp_path: Path, encoding: str) -> None:
    """Label Studio encodes it in Latin-1, browsers in UTF-8."""
    backend = make_backend(tmp_path, FakeLabelStudio(), basic_auth_user="jörg", basic_auth_pass="Schlüssel:ß")
    assert backend.client.get("/health", headers=_basic("jörg", "Schlüssel:ß", encoding)).status_code == 200
    answer = backend.client.get("/health", headers=_basic("jörg", "Schlussel:ß", encoding))
    assert answer.status_code == 401
    assert 'charset="UTF-8"' in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("user", "password", "words"),
    [
        ("ls", "пароль", "SOFTMATCHER_BASIC_AUTH_PASS must be of Latin-1"),
        ("ls", "euro €", "SOFTMATCHER_BASIC_AUTH_PASS must be of Latin-1"),
        ("ls", "from a file\n", "without line ends"),
        ("l:s", "secret", "SOFTMATCHER_BASIC_AUTH_USER must have no colon"),
    ],
)
def test_a_password_that_label_studio_cannot_send_is_refused_at_the_start(user: str, password: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        load_settings(basic_auth_user=user, basic_auth_pass=password)
    assert password not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        "", "Basic", "Basic ", "Basic !!!", "Basic bHM=", "Basic bHM6", "Basic bHM6c2VjcmV0IA==", "Bearer secret",
        "bHM6c2VjcmV0", "Digest bHM6c2VjcmV0", "Basic bHM6\u00ffc2VjcmV0", "Basic " + "A" * 60_000,
    ],
)  # fmt: skip
def test_anything_else_is_no_password(tmp_path: Path, header: str) -> None:
    backend = make_backend(tmp_path, FakeLabelStudio(), **AUTH)
    assert backend.client.get("/health", headers={"Authorization": header}).status_code == 401


def test_the_webhooks_secret_opens_the_webhook_only(tmp_path: Path) -> None:
    backend = make_backend(tmp_path, FakeLabelStudio(), **AUTH)
    key = backend.label_studio.key
    header = {"Authorization": webhook_authorization(backend.settings, key) or ""}
    body = {"action": "PROJECT_UPDATED", "project": backend.label_studio.project(1)}
    assert backend.client.post("/webhook", json=body, headers=header).status_code == 201
    assert backend.client.post("/webhook", json=body, headers=_basic("ls", "secret")).status_code == 201
    assert backend.client.post("/webhook", json=body).status_code == 401
    for path in ("/health", "/projects", "/metrics", "/webhook/", "//webhook"):
        assert backend.client.get(path, headers=header).status_code == 401, path


def test_the_webhooks_secret_may_be_chosen_but_not_stand_alone() -> None:
    settings = load_settings(**AUTH, webhook_secret="chosen")
    header = webhook_authorization(settings, "1.2") or ""
    assert header.startswith("Bearer 1.2:")
    assert "chosen" not in header
    assert header != webhook_authorization(load_settings(**AUTH), "1.2")
    assert former_webhook_authorization(settings) == "Bearer chosen"
    assert webhook_authorization(load_settings(), "1.2") is former_webhook_authorization(load_settings()) is None
    with pytest.raises(ConfigurationError, match="SOFTMATCHER_BASIC_AUTH_USER"):
        load_settings(webhook_secret="chosen")
    one, other = (load_settings(basic_auth_user="ls", basic_auth_pass=word) for word in ("secret", "Secret"))
    assert webhook_authorization(one, "1.2") != webhook_authorization(other, "1.2")


def test_a_projects_secret_opens_no_other_project(tmp_path: Path) -> None:
    """Each annotator of a project can read its webhook's header in Label Studio."""
    backend = make_backend(tmp_path, FakeLabelStudio(), **AUTH)
    header = webhook_authorization(backend.settings, "2.1795365300") or ""
    body = {"action": "PROJECT_UPDATED", "project": backend.label_studio.project(1)}
    answer = backend.client.post("/webhook", json=body, headers={"Authorization": header})
    assert answer.status_code == 403
    assert backend.queue.jobs == []
    own = webhook_authorization(backend.settings, backend.label_studio.key) or ""
    forged = [
        own.replace("1.", "2.", 1), own[:-1], own + "0", own.replace("Bearer ", ""), "Bearer 1.1795365244:", "Bearer :",
        f"Bearer {backend.label_studio.key}", former_webhook_authorization(backend.settings) or "",
    ]  # fmt: skip
    for each in forged:
        assert backend.client.post("/webhook", json=body, headers={"Authorization": each}).status_code == 401, each
    assert backend.client.post("/webhook", json=body, headers={"Authorization": own}).status_code == 201


@pytest.mark.parametrize("path", ["/predict", "/setup", "/webhook", "/projects/1/propagations"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Origin": "http://localhost.evil.example", "Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_can_send_nothing(backend: Backend, path: str, headers: dict[str, str]) -> None:
    """A form of any page can post JSON as text/plain to 127.0.0.1."""
    body = '{"action": "START_TRAINING", "project": {"id": 1, "created_at": "2026-11-22T16:34:04+00:00"}}'
    answer = backend.client.post(path, data=body, content_type="text/plain", headers=headers)
    assert answer.status_code == 403
    assert backend.queue.jobs == []
    assert backend.projects.store.projects() == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9090", 200), ("127.0.0.1:9090", 200), ("[::1]:9090", 200), ("192.168.1.7", 200),
        ("softmatcher.example", 200), ("SOFTMATCHER.example.:443", 200),
        ("evil.example:9090", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403),
    ],
)  # fmt: skip
def test_without_a_password_only_own_names_are_answered_on_loopback(tmp_path: Path, host: str, status: int) -> None:
    """Else a page could give its name our address, and read what we answer it (DNS rebinding)."""
    backend = make_backend(tmp_path, FakeLabelStudio(), public_url="https://softmatcher.example/ml")
    answer = backend.client.get("/health", headers={"Host": host})
    assert answer.status_code == status, answer.text


def test_with_a_password_or_on_other_addresses_any_name_is_answered(tmp_path: Path) -> None:
    guarded = make_backend(tmp_path / "guarded", FakeLabelStudio(), **AUTH)
    headers = {"Host": "backend:9090", **_basic("ls", "secret")}
    assert guarded.client.get("/health", headers=headers).status_code == 200
    in_docker = make_backend(tmp_path / "docker", FakeLabelStudio(), host="0.0.0.0")
    assert in_docker.client.get("/health", headers={"Host": "backend:9090"}).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/projects", "/projects/static/page.css", "/projects/9"])
def test_every_answer_carries_the_headers_and_no_cookie(backend: Backend, path: str) -> None:
    answer = backend.client.get(path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"]
    assert "Set-Cookie" not in answer.headers
    assert "Access-Control-Allow-Origin" not in answer.headers
    answer.close()


def test_what_went_wrong_inside_is_told_to_the_log_alone(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("/root/secret/path")

    monkeypatch.setattr(backend.projects, "versions", fail)
    answer = backend.client.get("/versions")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.get_json()["id"] in caplog.text
    assert answer.headers["X-Request-Id"] == answer.get_json()["id"]

    def no_store(*_: object) -> None:
        raise StoreUnavailableError("the store sqlite:////root/secret/path cannot be used (disk I/O error)")

    monkeypatch.setattr(backend.projects, "versions", no_store)
    answer = backend.client.get("/versions")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_bodies_are_bounded_by_route(backend: Backend) -> None:
    """What no route needs is not even read; Label Studio's webhooks carry whole annotations, its tasks even more."""
    large = b'{"action": "PROJECT_UPDATED", "filling": "' + b"x" * MOST_BODY_BYTES + b'"}'
    for path in ("/setup", "/projects/1/propagations", "/health", "/nowhere"):
        assert backend.client.post(path, data=large, content_type="application/json").status_code == 413, path
    assert backend.client.post("/webhook", data=large).status_code == 422
    assert backend.client.post("/predict", data=large).status_code == 422


@pytest.mark.parametrize("item", [b"[]", b"{}", b"[[[[]]]]"])
def test_a_body_of_millions_of_lists_is_refused_before_it_is_decoded(backend: Backend, item: bytes) -> None:
    body = b'{"tasks": [' + (item + b",") * (MOST_CONTAINERS + 1) + b"0]}"
    answer = backend.client.post("/predict", data=body)
    assert answer.status_code == 422
    assert "lists and objects" in answer.get_json()["error"]


def test_wrong_passwords_are_slowed_and_the_right_one_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("backend.web.access.time.monotonic", lambda: now[0])
    backend = make_backend(tmp_path, FakeLabelStudio(), **AUTH)
    statuses = [backend.client.get("/health", headers=_basic("ls", f"guess{n}")).status_code for n in range(30)]
    assert statuses == [401] * 10 + [429] * 20
    assert backend.client.get("/health").status_code == 401, "nobody guessed"
    refused = backend.client.get("/health", headers=_basic("ls", "secret"))
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    now[0] += 1.1
    assert backend.client.get("/health", headers=_basic("ls", "guess")).status_code == 401, "one try a second"
    assert backend.client.get("/health", headers=_basic("ls", "guess")).status_code == 429
    now[0] += 1.1
    assert backend.client.get("/health", headers=_basic("ls", "secret")).status_code == 200
    now[0] += 61.0
    assert backend.client.get("/health", headers=_basic("ls", "guess")).status_code == 401


def test_tries_are_counted_by_address_in_bounded_memory() -> None:
    tries = PasswordAttempts()
    for _ in range(20):
        tries.add_wrong("192.0.2.1")
    assert tries.wait_s("192.0.2.1") > 0
    assert tries.wait_s("192.0.2.2") == 0
    for number in range(5000):
        tries.add_wrong(f"address {number}")
    assert tries.wait_s("192.0.2.1") == 0, "the address that tried longest ago is forgotten"
