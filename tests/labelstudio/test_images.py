"""Fetching task images: from where, with whose token, within which limits."""

import base64
import gzip
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest

from backend.errors import BadInputError, LabelStudioError, LabelStudioUnavailableError, NotFoundError
from backend.labelstudio import transport
from backend.labelstudio.images import ImageFetcher

from .web import Answer, Web, serve

SECRET = "Token of-label-studio"


class Auth:
    """Gives an old token first and a new one when renewed, like a personal access token."""

    def __init__(self) -> None:
        self.renewed = 0

    def __call__(self, *, renew: bool = False) -> Mapping[str, str]:
        self.renewed += renew
        return {"Authorization": SECRET if not self.renewed else f"{SECRET} {self.renewed}"}


@pytest.fixture
def label_studio() -> Iterator[Web]:
    with serve() as web:
        yield web


@pytest.fixture
def elsewhere() -> Iterator[Web]:
    with serve() as web:
        yield web


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


def fetcher(web: Web, **options: Any) -> ImageFetcher:
    return ImageFetcher(web.url, options.pop("auth", Auth()), **{"timeout_s": 5.0, **options})


@pytest.mark.parametrize("path", ["/data/upload/1/a.jpg", "data/upload/1/a.jpg"])
def test_a_path_is_fetched_from_label_studio_with_the_token(label_studio: Web, path: str) -> None:
    label_studio.always("/data/upload/1/a.jpg", Answer(b"image"))

    assert fetcher(label_studio).fetch(path) == b"image"
    assert [request.headers["authorization"] for request in label_studio.requests] == [SECRET]


def test_an_absolute_address_on_label_studio_is_fetched_with_the_token(label_studio: Web) -> None:
    label_studio.always("/data/local-files/", Answer(b"image"))

    assert fetcher(label_studio).fetch(f"{label_studio.url}/data/local-files/?d=sub/a%20b.jpg") == b"image"
    (request,) = label_studio.requests
    assert (request.headers["authorization"], request.query) == (SECRET, {"d": ["sub/a b.jpg"]})


def test_an_alias_of_label_studio_is_asked_at_its_address(label_studio: Web) -> None:
    label_studio.always("/data/local-files/", Answer(b"image"))
    known = fetcher(label_studio, label_studio_aliases=frozenset({"annotate.example.com"}))

    assert known.fetch("https://annotate.example.com/data/local-files/?d=a.jpg") == b"image"


def test_label_studio_below_a_path(label_studio: Web) -> None:
    label_studio.always("/ls/data/upload/1/a.jpg", Answer(b"image"))
    below = ImageFetcher(f"{label_studio.url}/ls/", Auth())

    assert below.fetch("/data/upload/1/a.jpg") == b"image"
    assert below.fetch("/ls/data/upload/1/a.jpg") == b"image"
    assert below.fetch(f"{label_studio.url}/ls/data/upload/1/a.jpg") == b"image"


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.1:{port}"])
def test_an_allowed_host_is_fetched_without_the_token(label_studio: Web, elsewhere: Web, entry: str) -> None:
    elsewhere.always("/data/upload/a.jpg", Answer(b"image"))
    allowed = frozenset({entry.format(port=elsewhere.port)})

    assert fetcher(label_studio, allowed_hosts=allowed).fetch(f"{elsewhere.url}/data/upload/a.jpg?sig=1") == b"image"
    assert label_studio.requests == []
    assert [sorted(request.headers) for request in elsewhere.requests] == [
        ["accept", "accept-encoding", "connection", "host", "user-agent"]
    ]


def test_a_password_in_netrc_is_sent_nowhere(
    label_studio: Web, elsewhere: Web, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    label_studio.always("/data/upload/a.jpg", Answer(b"image"))
    elsewhere.always("/data/upload/a.jpg", Answer(b"image"))
    both = fetcher(label_studio, allowed_hosts=frozenset({f"127.0.0.1:{elsewhere.port}"}))

    both.fetch("/data/upload/a.jpg")
    both.fetch(f"{elsewhere.url}/data/upload/a.jpg")
    assert label_studio.requests[0].headers["authorization"] == SECRET
    assert "authorization" not in elsewhere.requests[0].headers


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/a.jpg", "SOFTMATCHER_ALLOWED_IMAGE_HOSTS, got 127.0.0.1:1"),
        ("http://localhost/a.jpg", "SOFTMATCHER_ALLOWED_IMAGE_HOSTS, got localhost"),
        ("//example.com/a.jpg", "SOFTMATCHER_ALLOWED_IMAGE_HOSTS, got example.com"),
        ("HTTP://169.254.169.254/latest/meta-data", "SOFTMATCHER_ALLOWED_IMAGE_HOSTS, got 169.254.169.254"),
        ("http://example.com\\@127.0.0.1/", "must not hold a user|SOFTMATCHER_ALLOWED_IMAGE_HOSTS|cannot be parsed"),
        ("http://me:pass@example.com/a.jpg", "must not hold a user or password, got one for example.com"),
        ("http://[::1/a.jpg", "cannot be parsed"),
        ("http:///a.jpg", "http\\(s\\) with a host"),
        ("file:///etc/passwd", "got file://"),
        ("ftp://example.com/a.jpg", "got ftp://"),
        ("s3://bucket/a.jpg", "needs a task that Label Studio knows"),
        ("data:text/html,hello", "must begin with data:image/...;base64, got data:text/html"),
        ("data:image/svg+xml,%3Csvg/%3E", "must begin with data:image/...;base64"),
        ("data:image/png;base64,a", "must be valid base64"),
        ("data:image/png;base64,!!!!", "must be valid base64"),
    ],
)
def test_other_addresses_are_refused_unasked(label_studio: Web, url: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        fetcher(label_studio).fetch(url)

    assert "pass" not in str(caught.value).replace("password", "")
    assert label_studio.requests == []


def test_a_data_uri_is_decoded(label_studio: Web) -> None:
    text = base64.b64encode(b"\xff\xfbimage").decode().replace("+", "%2B")

    assert fetcher(label_studio).fetch(f"data:image/png;base64,{text[:4]}\n{text[4:]}") == b"\xff\xfbimage"
    with pytest.raises(BadInputError, match="at most 1e-06 MB"):
        fetcher(label_studio, max_bytes=1).fetch(f"data:image/png;base64,{text}")


def test_a_cloud_address_is_resolved_by_label_studio_and_the_redirect_gets_no_token(
    label_studio: Web, elsewhere: Web
) -> None:
    signed = f"{elsewhere.url}/bucket/a.jpg?X-Amz-Signature=s3cr3t"
    label_studio.always("/tasks/7/presign/", Answer(status=303, headers={"Location": signed}))
    elsewhere.always("/bucket/a.jpg", Answer(b"image"))
    allowed = fetcher(label_studio, allowed_hosts=frozenset({f"127.0.0.1:{elsewhere.port}"}))

    assert allowed.fetch("s3://bucket/a.jpg", 7) == b"image"
    (asked,) = label_studio.requests
    assert base64.urlsafe_b64decode(asked.query["fileuri"][0]) == b"s3://bucket/a.jpg"
    assert asked.headers["authorization"] == SECRET
    assert "authorization" not in elsewhere.requests[0].headers


def test_a_redirect_to_a_private_host_is_refused_before_it_is_asked(label_studio: Web, elsewhere: Web) -> None:
    signed = f"{elsewhere.url}/admin?X-Amz-Signature=s3cr3t"
    label_studio.always("/tasks/7/presign/", Answer(status=302, headers={"Location": signed}))

    with pytest.raises(BadInputError, match="must have a public address, got a private one") as caught:
        fetcher(label_studio).fetch("gs://bucket/a.jpg", 7)
    assert elsewhere.requests == []
    assert "s3cr3t" not in str(caught.value)


def test_a_name_is_looked_up_once_and_the_checked_address_is_connected_to(
    label_studio: Web, elsewhere: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that changes to a private address after the check (DNS rebinding) gains nothing: nobody looks again."""
    lookups: list[str] = []
    real = socket.getaddrinfo

    def lookup(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host == "bucket.example.com":
            lookups.append(host)
            host = "127.0.0.1"
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    target = f"http://bucket.example.com:{elsewhere.port}/data/upload/a.jpg"
    label_studio.always("/data/upload/a.jpg", Answer(status=302, headers={"Location": target}))
    elsewhere.always("/data/upload/a.jpg", Answer(b"image"))
    with pytest.raises(BadInputError, match=r"bucket\.example\.com must have a public address"):
        fetcher(label_studio).fetch("/data/upload/a.jpg")
    assert elsewhere.requests == []

    lookups.clear()
    monkeypatch.setattr(transport, "is_public", lambda _: True)
    assert fetcher(label_studio).fetch("/data/upload/a.jpg") == b"image"
    assert lookups == ["bucket.example.com"]
    assert elsewhere.requests[0].headers["host"] == f"bucket.example.com:{elsewhere.port}"
    assert "authorization" not in elsewhere.requests[0].headers


def test_a_proxy_of_the_environment_does_not_look_up_public_hosts_for_us(
    label_studio: Web, elsewhere: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, elsewhere.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    label_studio.always("/data/upload/a.jpg", Answer(status=302, headers={"Location": "http://localhost:9/a.jpg"}))

    with pytest.raises(BadInputError, match="must have a public address"):
        fetcher(label_studio).fetch("/data/upload/a.jpg")
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "fec0::1", "64:ff9b:1::7f00:1", "::127.0.0.1", "::8.8.8.8", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1",
    ],
)  # fmt: skip
def test_private_addresses_are_not_public(address: str) -> None:
    assert not transport.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "52.216.1.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert transport.is_public(address)


def test_an_allowed_host_may_not_send_us_elsewhere(label_studio: Web, elsewhere: Web) -> None:
    allowed = fetcher(label_studio, allowed_hosts=frozenset({f"127.0.0.1:{elsewhere.port}"}))
    for target in ("http://8.8.8.8/a.jpg", f"{label_studio.url}/api/token", "//localhost/a.jpg"):
        elsewhere.always("/data/upload/a.jpg", Answer(status=302, headers={"Location": target}))
        with pytest.raises(BadInputError, match=r"redirects to .*, which is not allowed"):
            allowed.fetch(f"{elsewhere.url}/data/upload/a.jpg")
    assert label_studio.requests == []


@pytest.mark.parametrize(
    "address",
    [
        "/api/current-user/token", "/api/users", "/user/account", "/", "", "/data", "/dataset/1", "//api/token",
        "/data/upload/../../api/current-user/token", "/data/upload/%2e%2e/%2E%2e/api/current-user/token",
        "/data/upload/%252e%252e/api/x", "/data/upload/..%2fapi/x", "/data/upload/..\\api", "/data/upload/a%00.jpg",
        "/data/upload/a%0d%0aX: y",
    ],
)  # fmt: skip
def test_the_token_reads_media_and_nothing_else(label_studio: Web, address: str) -> None:
    """A user of Label Studio writes the addresses; the operator's token may read far more than that user may."""
    for url in (address, f"{label_studio.url}{address}"):
        with pytest.raises((BadInputError, NotFoundError)):
            fetcher(label_studio).fetch(url)
    assert label_studio.requests == []


def test_a_redirect_of_label_studio_leads_to_media_only(label_studio: Web) -> None:
    label_studio.always("/data/upload/a.jpg", Answer(status=302, headers={"Location": "/api/current-user/token"}))
    with pytest.raises(BadInputError, match="must be a file's"):
        fetcher(label_studio).fetch("/data/upload/a.jpg")
    assert [request.path for request in label_studio.requests] == ["/data/upload/a.jpg"]


@pytest.mark.parametrize(
    "path",
    ["/data/upload/1/0a-ü%20%231.jpg", "/data/local-files/?d=a/../b.jpg", "/storage-data/uploaded/?filepath=x",
     "/data/upload/1/a..b.jpg", "/static/samples/sample.jpg"],
)  # fmt: skip
def test_media_are_read(label_studio: Web, path: str) -> None:
    label_studio.always(quote(path.partition("?")[0], safe="/%"), Answer(b"image"))
    assert fetcher(label_studio).fetch(path) == b"image"


def test_a_path_below_a_prefix_stays_there(label_studio: Web) -> None:
    below = ImageFetcher(f"{label_studio.url}/ls", Auth())
    for url in (f"{label_studio.url}/ls/../api/x", f"{label_studio.url}/ls/%2e%2e/x", "/ls/../data/upload/x"):
        with pytest.raises(BadInputError):
            below.fetch(url)
    assert label_studio.requests == []
    label_studio.always("/ls/data/upload/x.jpg", Answer(b"image"))
    assert below.fetch("/data/upload/x.jpg") == below.fetch("/ls/data/upload/x.jpg") == b"image"


def test_redirects_within_label_studio_are_followed_up_to_a_limit(label_studio: Web) -> None:
    label_studio.always("/data/upload/a.jpg", Answer(status=302, headers={"Location": "/data/upload/b.jpg"}))
    label_studio.always("/data/upload/b.jpg", Answer(b"image"))
    label_studio.always("/data/upload/loop.jpg", Answer(status=302, headers={"Location": "loop.jpg"}))

    assert fetcher(label_studio).fetch("/data/upload/a.jpg") == b"image"
    assert {request.headers["authorization"] for request in label_studio.requests} == {SECRET}
    with pytest.raises(BadInputError, match="got over 5 redirects"):
        fetcher(label_studio).fetch("/data/upload/loop.jpg")


@pytest.mark.parametrize(
    "target", ["/user/login/?next=/data/upload/a.jpg", "file:///etc/passwd", "ftp://example.com/a.jpg"]
)
def test_redirects_that_lead_to_no_image(label_studio: Web, target: str) -> None:
    label_studio.always("/data/upload/a.jpg", Answer(status=302, headers={"Location": target}))

    with pytest.raises((BadInputError, LabelStudioError), match=r"LABEL_STUDIO_API_KEY|http\(s\) with a host"):
        fetcher(label_studio).fetch("/data/upload/a.jpg")


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (404, NotFoundError, r"/a\.jpg does not exist \(404\): upload it again"),
        (410, NotFoundError, "does not exist"),
        (401, LabelStudioError, r"\(401\): set LABEL_STUDIO_API_KEY to a token"),
        (403, LabelStudioError, r"\(403\): set LABEL_STUDIO_API_KEY to a token"),
        (400, BadInputError, "must answer 200 with an image, got 400"),
        (206, BadInputError, "got 206"),
    ],
)
def test_final_answers_are_asked_for_no_second_time(
    label_studio: Web, status: int, error: type[Exception], message: str
) -> None:
    label_studio.always("/data/upload/a.jpg", Answer(status=status))

    with pytest.raises(error, match=message) as caught:
        fetcher(label_studio).fetch("/data/upload/a.jpg")
    assert type(caught.value) is error
    assert len(label_studio.requests) == (2 if status == 401 else 1)
    assert SECRET not in str(caught.value)


def test_a_missing_upload_that_label_studio_answers_with_a_500_is_not_found(label_studio: Web) -> None:
    recorded = b"""{"status_code":500,"detail":"'NoneType' object has no attribute 'has_permission'","exc_info":null}"""
    label_studio.always("/data/upload/1/gone.jpg", Answer(recorded, status=500))

    with pytest.raises(NotFoundError, match=r"gone\.jpg does not exist"):
        fetcher(label_studio).fetch("/data/upload/1/gone.jpg")


def test_an_uncovered_cloud_address_says_what_to_connect(label_studio: Web) -> None:
    with pytest.raises(NotFoundError, match="connect it in Settings > Cloud Storage"):
        fetcher(label_studio).fetch("azure-blob://container/a.jpg", 7)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_another_host_does_not_blame_label_studios_token(
    label_studio: Web, elsewhere: Web, status: int
) -> None:
    elsewhere.always("/data/upload/a.jpg", Answer(status=status))
    allowed = fetcher(label_studio, allowed_hosts=frozenset({"127.0.0.1"}))

    with pytest.raises(LabelStudioError, match="image host refused") as caught:
        allowed.fetch(f"{elsewhere.url}/data/upload/a.jpg?sig=s3cr3t")
    assert "s3cr3t" not in str(caught.value)
    assert len(elsewhere.requests) == 1


def test_an_expired_access_token_is_renewed_once(label_studio: Web) -> None:
    label_studio.always("/data/upload/a.jpg", Answer(status=401), Answer(b"image"))
    auth = Auth()

    assert fetcher(label_studio, auth=auth).fetch("/data/upload/a.jpg") == b"image"
    assert [request.headers["authorization"] for request in label_studio.requests] == [SECRET, f"{SECRET} 1"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_transient_failures_are_tried_again(label_studio: Web, status: int) -> None:
    label_studio.always("/data/upload/a.jpg", Answer(status=status), Answer(status=status), Answer(b"image"))
    label_studio.always("/data/upload/b.jpg", Answer(status=status))

    assert fetcher(label_studio).fetch("/data/upload/a.jpg") == b"image"
    with pytest.raises(LabelStudioUnavailableError, match=f"answered {status}: try again later"):
        fetcher(label_studio).fetch("/data/upload/b.jpg")
    assert len(label_studio.requests) == 6


def test_a_label_studio_that_is_down_is_unavailable() -> None:
    with serve() as web:
        gone = fetcher(web)
    with pytest.raises(LabelStudioUnavailableError, match=r"did not answer .*check that it runs"):
        gone.fetch("/data/upload/a.jpg")


def test_an_answer_cut_short_is_tried_again(label_studio: Web) -> None:
    cut = Answer(stream=lambda out: out.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"))
    label_studio.always("/data/upload/a.jpg", cut, Answer(b"image"))
    label_studio.always("/data/upload/b.jpg", cut)

    assert fetcher(label_studio).fetch("/data/upload/a.jpg") == b"image"
    with pytest.raises(LabelStudioUnavailableError, match="did not answer"):
        fetcher(label_studio).fetch("/data/upload/b.jpg")


@pytest.mark.parametrize("with_length", [True, False])
def test_a_file_over_the_limit_is_refused_and_not_read_to_its_end(label_studio: Web, with_length: bool) -> None:
    sent = 0

    def stream(out: Any) -> None:
        nonlocal sent
        head = b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 100000000\r\n" if with_length else b"")
        out.write(head + b"Connection: close\r\n\r\n")
        for _ in range(1000):
            out.write(bytes(100_000))
            sent += 100_000

    label_studio.always("/data/upload/a.jpg", Answer(stream=stream))
    with pytest.raises(BadInputError, match=r"must be at most 1 MB, got more: .*SOFTMATCHER_MAX_IMAGE_MB"):
        fetcher(label_studio, max_bytes=1_000_000).fetch("/data/upload/a.jpg")
    time.sleep(0.05)
    assert sent < 20_000_000


def test_a_file_of_just_the_limit_is_read(label_studio: Web) -> None:
    label_studio.always("/data/upload/a.jpg", Answer(bytes(1000)))

    assert len(fetcher(label_studio, max_bytes=1000).fetch("/data/upload/a.jpg")) == 1000
    with pytest.raises(BadInputError):
        fetcher(label_studio, max_bytes=999).fetch("/data/upload/a.jpg")


def test_a_server_that_drips_cannot_stretch_the_time_limit(label_studio: Web) -> None:
    def drip(out: Any) -> None:
        out.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            out.write(b"x")
            out.flush()
            time_left.wait(0.02)

    time_left = threading.Event()
    label_studio.always("/data/upload/a.jpg", Answer(stream=drip))
    begun = time.monotonic()
    with pytest.raises(LabelStudioUnavailableError, match=r"must come within 0\.4 s.*SOFTMATCHER_DOWNLOAD_TIMEOUT_S"):
        fetcher(label_studio, timeout_s=0.4).fetch("/data/upload/a.jpg")
    assert time.monotonic() - begun < 10


def test_a_server_that_is_silent_is_given_up(label_studio: Web) -> None:
    silence = threading.Event()
    label_studio.always("/data/upload/a.jpg", Answer(stream=lambda _: silence.wait(30)))
    begun = time.monotonic()
    with pytest.raises(LabelStudioUnavailableError):
        fetcher(label_studio, timeout_s=0.3).fetch("/data/upload/a.jpg")
    assert time.monotonic() - begun < 10
    silence.set()


def _drip(before: bytes, part: bytes, ended: threading.Event) -> Any:
    def drip(out: Any) -> None:
        out.write(before)
        while not ended.wait(0.02):
            out.write(part)
            out.flush()

    return drip


@pytest.mark.parametrize(
    ("before", "part"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X-Drip: drop\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    ],
)
def test_a_host_that_drips_any_part_of_its_answer_is_cut_off(
    label_studio: Web, elsewhere: Web, before: bytes, part: bytes
) -> None:
    """Sockets' timeouts count from the last byte: without the cutter this would hold a thread for hours."""
    ended = threading.Event()
    elsewhere.always("/data/upload/a.jpg", Answer(stream=_drip(before, part, ended)))
    allowed = fetcher(label_studio, allowed_hosts=frozenset({"127.0.0.1"}), timeout_s=0.4)
    try:
        with pytest.raises((LabelStudioUnavailableError, LabelStudioError, BadInputError)):
            allowed.fetch(f"{elsewhere.url}/data/upload/a.jpg")
        assert len(elsewhere.requests) == 1
    finally:
        ended.set()


def test_a_host_that_drips_its_tls_handshake_is_cut_off(label_studio: Web) -> None:
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 kB is to follow
            while not ended.wait(0.02):
                try:
                    connection.sendall(b"\x02")
                except OSError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    allowed = fetcher(label_studio, allowed_hosts=frozenset({"127.0.0.1"}), timeout_s=0.4)
    try:
        with pytest.raises(LabelStudioUnavailableError):
            allowed.fetch(f"https://127.0.0.1:{port}/data/upload/a.jpg")
    finally:
        ended.set()
        listener.close()
        thread.join(5)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip"])
def test_a_compressed_bomb_is_refused_in_little_memory(label_studio: Web, encoding: str) -> None:
    """100 MB of zeros, in 100 kB or less; they were asked for as they are."""
    packed = zlib.compressobj(9, zlib.DEFLATED, 15 if encoding == "deflate" else 31)
    bomb = b"".join(packed.compress(bytes(1 << 20)) for _ in range(100)) + packed.flush()
    if encoding == "gzip, gzip":
        bomb = gzip.compress(bomb)
    label_studio.always("/data/upload/a.jpg", Answer(bomb, headers={"Content-Encoding": encoding}))
    tracemalloc.start()
    try:
        with pytest.raises(BadInputError, match="must be at most 1 MB"):
            fetcher(label_studio, max_bytes=1_000_000).fetch("/data/upload/a.jpg")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_length_that_is_no_number_is_a_file_like_any_other(label_studio: Web) -> None:
    def stream(out: Any) -> None:
        out.write("HTTP/1.1 200 OK\r\nContent-Length: \u00b2\r\nConnection: close\r\n\r\n".encode("latin-1") + b"image")

    label_studio.always("/data/upload/a.jpg", Answer(stream=stream))
    assert fetcher(label_studio).fetch("/data/upload/a.jpg") == b"image"


@pytest.mark.parametrize(
    "hops",
    [
        ["{elsewhere}/b.jpg"],
        ["{label_studio}/b.jpg", "{elsewhere}/c.jpg"],
        ["{label_studio}/b.jpg", "http://localhost:{port}/c.jpg"],
        ["{label_studio}/b.jpg", "http://[::ffff:127.0.0.1]:{port}/c.jpg"],
        ["{label_studio}/b.jpg", "http://2130706433:{port}/c.jpg"],
        ["{label_studio}/b.jpg", "http://0x7f.1:{port}/c.jpg"],
        ["{label_studio}/b.jpg", "http://127.1:{port}/c.jpg"],
        ["{label_studio}/b.jpg", "http://0.0.0.0:{port}/c.jpg"],
    ],
)
def test_every_hop_of_a_redirect_is_checked(label_studio: Web, elsewhere: Web, hops: list[str]) -> None:
    """However the private address is spelt."""
    paths = ["/data/upload/a.jpg", "/data/upload/b.jpg"]
    for path, target in zip(paths, hops, strict=False):
        location = target.format(elsewhere=elsewhere.url, label_studio=label_studio.url, port=elsewhere.port)
        label_studio.always(path, Answer(status=302, headers={"Location": location}))
    for path in ("/data/upload/b.jpg", "/c.jpg"):
        elsewhere.always(path, Answer(b"secret"))
    with pytest.raises((BadInputError, LabelStudioUnavailableError)):
        fetcher(label_studio, timeout_s=1.0).fetch("/data/upload/a.jpg")
    assert elsewhere.requests == []
