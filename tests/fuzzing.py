"""What fuzzing sends, and what no answer may be: recorded requests with parts of them changed, and raw bytes."""

import copy
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from backend.web.access import WEBHOOK_PATH
from testing.fakes import Backend, FakeLabelStudio, draw, png

Json = Any
CASES = int(os.environ.get("SOFTMATCHER_TEST_FUZZ_CASES", "1000"))
"""Requests that are sent; of files a tenth for each kind."""
FILES: dict[str, Any] = {
    "max_examples": max(1, CASES // 10),
    "deadline": None,
    "database": None,
    "derandomize": CASES <= 1000,
    "suppress_health_check": list(HealthCheck),
}
"""Hypothesis's settings for files."""
HANG_S = 30
MOST_BYTES = 300_000_000
"""That reading a file may take."""
PAYLOADS = sorted((Path(__file__).parent / "payloads").glob("*.json"))
RECORDED = [json.loads(path.read_text()) for path in PAYLOADS]
BASE = "/projects/1/propagations"

_FORM = "application/x-www-form-urlencoded"
_NASTY: list[Json] = [
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308,
    -1e308, 1e-320,
    "", " ", "\0", "a\0b", "\ud800", "\u202e", "²", "\uff11", "1.1", "0.0", "9" * 5000, "x" * 70_000,
    "../../etc/passwd",
    "<script>alert(1)</script>", "{{7*7}}", "%00", "'; DROP TABLE projects; --", "file:///etc/passwd", "s3://bucket/a",
    "http://127.0.0.1:1/", "//[::1", "data:image/png;base64,AAAA", "NaN", "2026-11-22T16:34:04+00:00",
    "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+23:59", [], {}, [[]], [None], {"id": None}, {"": ""},
]  # fmt: skip
_RAW = [
    b"", b"{", b"null", b"[]", b'"', b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b'{"a": NaN}', b'{"a": Infinity}',
    b"\x00" * 50,
    b'{"action": "\xff"}', b"[" * 100_000, b'{"a":' * 100_000, b'{"tasks":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"id": ' + b"9" * 100_000 + b"}", '{"action": "START_TRAINING"}'.encode("utf-16"), b"labels=%00&limit=%c3%28",
    b'{"project": 1, "project": {}}', b"--x\r\nContent-Disposition: form-data; name=limit\r\n\r\n1\r\n--x--",
]  # fmt: skip
_TYPES = [
    "application/json", _FORM, "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "",
    "x/y; charset=z",
    "application/json; charset=utf-7", "application/octet-stream",
]  # fmt: skip
_PATHS = [
    "/", "/health", "/metrics", "/versions", "/openapi.json", "/setup", "/predict", WEBHOOK_PATH, "/projects",
    "/projects/1", "/projects/0", "/projects/-1", "/projects/1.5", f"/projects/{2**63}", f"/projects/{10**400}",
    "/projects/²", BASE, f"{BASE}/1", f"{BASE}/{2**64}", f"{BASE}/1/cancel", f"{BASE}/1/retry", "/projects/1/quality",
    "/projects/1/references/1.jpg", f"/projects/1/references/{2**65}.jpg", "/projects/1/tasks/1.jpg",
    f"/projects/1/tasks/{2**63}.jpg", "/projects/1/tasks/1/explain.png", f"/projects/1/tasks/{2**64}/explain.png",
    "/projects/static/page.css", "/projects/static/../__init__.py", "/projects/static/..%2f..%2fservice.py",
    "/projects/static/%00", "/projects/static//etc/passwd", "/%ff", "//", "/projects/1/", "/nowhere",
]  # fmt: skip
_FORMS: list[Json] = [
    {"only_unlabeled": True, "labels": ["Cat"], "limit": 2, "supersede": True, "started_by": "somebody"},
    {"dry_run": True}, {"what": "failed"}, {"what": "outdated"}, {},
]  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """One request."""

    method: str
    path: str
    body: bytes
    content_type: str


def places(body: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be changed; of long lists the first and last few items."""
    yield path
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for number, (key, value) in enumerate(items):
        if number < 6 or isinstance(body, dict):
            yield from places(value, (*path, key))


_SEEDS = [(one["method"], one["path"].rstrip("?"), one["body"]) for one in RECORDED if one["body"]] + [
    ("POST", path, form)
    for path in (BASE, f"{BASE}/1/retry", f"{BASE}/1/cancel", "/projects/1/quality")
    for form in _FORMS
]
_PLACES = [list(places(body)) for _, _, body in _SEEDS]
_PIECES = [body[key] for _, _, body in _SEEDS for key in body]

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
replacements = st.one_of(
    st.sampled_from(_NASTY), any_json, st.integers(1, 900).map(lambda depth: _nest(depth)),
    st.sampled_from(_PIECES),
).map(copy.deepcopy)  # fmt: skip


def _nest(depth: int) -> Json:
    value: Json = 0
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, str, Json]:
    """A recorded request whose body is another in one to three places."""
    number = draw(st.integers(0, len(_SEEDS) - 1))
    method, path, body = _SEEDS[number]
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(_PLACES[number]))
        if not place:
            if draw(st.integers(0, 9)) == 0:
                body = draw(replacements)
            continue
        holder = body
        try:
            for key in place[:-1]:
                holder = holder[key]
            if isinstance(holder, dict) and not isinstance(place[-1], str):
                continue
            if draw(st.booleans()) and draw(st.booleans()):
                del holder[place[-1]]
            else:
                holder[place[-1]] = draw(replacements)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took that place away
    return method, path, body


@st.composite
def sent(draw: st.DrawFn) -> Sent:
    """Mostly changed recorded requests; some with broken bytes, other types, paths and methods."""
    method, path, body = draw(changed())
    kind = draw(st.sampled_from(["json"] * 7 + ["form", "bytes", "path"]))
    if kind == "form" and isinstance(body, dict):
        pairs = "&".join(f"{key}={value}" for key, value in body.items())
        return Sent(method, path, pairs.encode(errors="replace")[:10_000], draw(st.sampled_from(_TYPES)))
    if kind == "bytes":
        whole = json.dumps(body).encode()
        cut = draw(st.integers(0, len(whole)))
        raw = draw(st.sampled_from([*_RAW, whole[:cut], whole[:cut] + b"\xff" + whole[cut:]]) | st.binary(max_size=200))
        return Sent(method, path, raw, draw(st.sampled_from(_TYPES)))
    if kind == "path":
        method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "QUERY"]))
        path = draw(st.sampled_from(_PATHS) | st.text(max_size=30).map(lambda text: "/" + text))
    return Sent(method, path, json.dumps(body).encode(), "application/json")


def scene(make: Callable[[FakeLabelStudio], Backend]) -> Backend:
    """A backend that knows the recorded projects, their images and a propagation."""
    label_studio = FakeLabelStudio()
    for one in RECORDED:
        for task in (one["body"] or {}).get("tasks") or []:
            if "data" in task:
                label_studio.add_task(task["id"], None, data=task["data"])
                label_studio.images[task["data"]["image"]] = png(draw((480, 640), red=(100, 100, 300, 300)))
    label_studio.add_task(1, png(draw(red=(10, 10, 30, 30))))
    backend = make(label_studio)
    backend.projects.note_project(label_studio.project(1))
    backend.client.post(BASE, json={})
    return backend


@contextmanager
def no_hang() -> Iterator[None]:
    """Raises TimeoutError inside after 30 s."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {HANG_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """No more address space than there is now and `MOST_BYTES`."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check(response: TestResponse, method: str) -> None:
    """Raise AssertionError if a client may not get this answer."""
    assert response.status_code < 500, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
    assert "Set-Cookie" not in response.headers
    if method == "HEAD" or response.content_type.startswith(("text/css", "text/javascript", "image/")):
        response.close()  # a file of the pages is open until it is read
        return
    assert "Traceback" not in response.text
    if response.content_type == "application/json":
        answer = json.loads(response.text, parse_constant=_no_json)
        assert response.status_code < 400 or (answer["error"] and answer["id"]), answer


def _no_json(name: str) -> None:
    raise AssertionError(f"the answer holds {name}, which is no JSON")
