"""Servers on this machine are asked without a proxy, whatever the environment says, and under our own name."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from backend import __version__
from backend.cli.demo.label_studio_server import LabelStudio
from backend.cli.demo.scenario import count_references
from backend.cli.health import HealthError, ask_service
from backend.cli.process.supervisor import ProcessGroup
from backend.cli.propagate import Service, ServiceAwayError
from backend.cli.up import wait_for_models
from backend.errors import BadInputError, LabelStudioError, LabelStudioUnavailableError
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.images import ImageFetcher
from backend.own_http import Session, is_loopback_address, proxy_advice, with_loopback_direct
from backend.settings import load_settings
from tests.labelstudio.web import Answer, Route, Web, serve

BACKEND = Path(__file__).parents[1] / "backend"
AWAY = "http://label-studio.invalid"


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as web:
        yield web


class _BadGateway(dict[str, Route]):
    def get(self, *_: object) -> Route:
        return lambda _: Answer(b"<html>bad gateway</html>", 502)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A proxy that every variable names; it answers 502, with its own page, to all that it is asked."""
    with serve() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.upper(), proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        proxy.routes = _BadGateway()
        yield proxy


def fetcher(url: str, *, hosts: tuple[str, ...] = ()) -> ImageFetcher:
    return ImageFetcher(
        url, lambda renew=False: {"Authorization": "Token t"}, allowed_hosts=frozenset(hosts), timeout_s=0.5
    )


def wait_for_http(web: Web, tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as processes:
        processes.start("sleep", ["sleep", "60"], {"PATH": "/bin:/usr/bin"})
        processes.wait_for_http("sleep", f"{web.url}/health", timeout_s=5)
        assert wait_for_models(_Always(), {}, web.url) == "ready"  # type: ignore[arg-type]


class _Always:
    def wait_until(self, _: str, condition: Callable[[], bool], **__: object) -> None:
        assert condition()


ASKERS: dict[str, Callable[[Web, Path], object]] = {
    "client": lambda web, _: LabelStudioClient(web.url, "key").version(),
    "images": lambda web, _: fetcher(web.url).fetch("/data/upload/1/a.png"),
    "health": lambda web, _: ask_service(load_settings(port=web.port)),
    "up": wait_for_http,
    "demo's references": lambda web, _: count_references(web.url, 1),
    "demo's Label Studio": lambda web, _: LabelStudio(web.url, "token").call("GET", "/version"),
    "propagate": lambda web, _: Service(web.url, load_settings()).call("GET", "/version"),
}


@pytest.mark.parametrize("asker", ASKERS)
def test_own_servers_are_asked_directly_under_our_name(asker: str, web: Web, proxy: Web, tmp_path: Path) -> None:
    web.always("/version", Answer(b'{"release": "1.23.2"}'))
    web.always("/api/version", Answer(b'{"release": "1.23.2"}'))
    web.always("/data/upload/1/a.png", Answer(b"picture"))
    web.always("/metrics", Answer(b""))
    web.always("/health", Answer(b'{"model_class": "Softmatcher", "model": "ready", "version": "1"}'))
    ASKERS[asker](web, tmp_path)
    assert web.requests
    assert proxy.requests == []
    agents = {request.headers["user-agent"] for request in web.requests}
    assert all(agent.startswith(f"softmatcher-label-studio/{__version__} ") for agent in agents), agents


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_redirects_among_own_servers_are_followed_directly(host: str, web: Web, proxy: Web) -> None:
    url = web.url.replace("127.0.0.1", host)
    web.always("/from", Answer(status=302, headers={"Location": f"{url}/to"}))
    web.always("/to", Answer(b"there"))
    with Session() as session:
        assert session.get(f"{url}/from", timeout=5).content == b"there"
    assert proxy.requests == []


def test_other_servers_are_asked_through_the_proxy_and_failures_name_it(proxy: Web) -> None:
    with pytest.raises(LabelStudioUnavailableError, match=r"HTTP_PROXY: add label-studio\.invalid to NO_PROXY"):
        LabelStudioClient(AWAY, "key", timeout_s=0.3).version()
    with pytest.raises(LabelStudioError, match=r"add label-studio\.invalid to NO_PROXY"):
        fetcher(AWAY).fetch("/data/upload/1/a.png")
    with pytest.raises(ServiceAwayError, match=r"add label-studio\.invalid to NO_PROXY"):
        Service(AWAY, load_settings()).call("GET", "/version")
    assert proxy.requests


def test_a_proxy_that_is_not_there_is_named_too(proxy: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with pytest.raises(LabelStudioUnavailableError, match=r"ProxyError.* add label-studio\.invalid to NO_PROXY"):
        LabelStudioClient(AWAY, "key", timeout_s=0.3).version()


def test_no_proxy_is_named_where_none_was_asked(proxy: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_advice("http://127.0.0.1:8080") == ""
    monkeypatch.setenv("no_proxy", "label-studio.invalid")
    monkeypatch.setenv("NO_PROXY", "label-studio.invalid")
    assert proxy_advice(AWAY) == ""
    with pytest.raises(LabelStudioUnavailableError, match=r"can be reached from here$"):
        LabelStudioClient(AWAY, "key", timeout_s=0.3).version()


def test_own_servers_at_other_addresses_are_asked_directly_too(proxy: Web) -> None:
    with Session(is_own=True) as session, pytest.raises(requests.ConnectionError):
        session.get(AWAY, timeout=0.3)
    assert proxy.requests == []


def test_a_service_that_is_no_service_is_a_finding(web: Web, proxy: Web) -> None:
    with pytest.raises(HealthError, match="must answer 200 as Softmatcher"):
        ask_service(load_settings(port=web.port))


@pytest.mark.parametrize(
    ("url", "is_own"),
    [
        ("http://127.0.0.1:9090/health", True), ("http://localhost", True), ("http://LOCALHOST.:80", True),
        ("http://[::1]:8080/x", True), ("http://a.localhost/", True), ("http://127.0.0.1.example.com", False),
        ("http://10.0.0.1", False), ("http://localhost.example.com", False), ("http://[::1", False), ("", False),
    ],
)  # fmt: skip
def test_own_addresses_are_told_from_others(url: str, is_own: bool) -> None:
    assert is_loopback_address(url) is is_own


def test_programs_that_are_started_ask_own_servers_directly() -> None:
    assert with_loopback_direct({"A": "1"}) == {"A": "1", "NO_PROXY": "127.0.0.1,localhost,::1"}
    kept = with_loopback_direct({"no_proxy": "intranet, localhost", "NO_PROXY": "other"})
    assert kept == {"no_proxy": "intranet,localhost,127.0.0.1,::1", "NO_PROXY": "other,127.0.0.1,localhost,::1"}


def test_every_session_is_made_in_one_place() -> None:
    for path in BACKEND.rglob("*.py"):
        if path.name != "own_http.py":
            found = re.findall(
                r"requests\.(?:get|post|put|patch|delete|head|request|Session|session)\(", path.read_text()
            )
            assert not found, f"{path}: {found}: use backend.own_http.Session"


def test_an_image_that_label_studio_redirects_to_https_names_the_cure(web: Web) -> None:
    for port in ("", ":8443"):
        cure = f"https://127.0.0.1{port}"
        web.always("/data/upload/1/a.png", Answer(status=301, headers={"Location": f"{cure}/data/upload/1/a.png"}))
        with pytest.raises(LabelStudioError, match=rf"redirects .* to https: set LABEL_STUDIO_URL to {cure}$"):
            fetcher(web.url).fetch("/data/upload/1/a.png")


def test_an_image_host_that_redirects_to_https_names_the_cure(web: Web) -> None:
    web.always("/a.png", Answer(status=301, headers={"Location": "https://127.0.0.1/a.png"}))
    with pytest.raises(
        BadInputError, match=r"import the task with the https address, and add 127\.0\.0\.1 to SOFTMATCHER"
    ):
        fetcher(AWAY, hosts=(f"127.0.0.1:{web.port}",)).fetch(f"{web.url}/a.png")
