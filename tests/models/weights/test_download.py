"""Downloads go on where they stopped, and only the right file gets in."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend.errors import BadInputError, ModelUnavailableError
from backend.models.weights.catalogue import KnownWeights
from backend.models.weights.download import FetchOptions, fetch_weights
from backend.models.weights.store import WeightsStore
from tests.models.weights_server import WeightsServer, serve_weights

CONTENT = bytes(range(256)) * 4000
KNOWN = KnownWeights(
    "sam_vit_b", "sam_vit_b.pth", "https://nowhere.invalid/sam_vit_b.pth", len(CONTENT),
    hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()[:6], "Apache-2.0",
)  # fmt: skip
QUICK = FetchOptions(tries=3, timeout_s=5, wait_s=0.01)


@pytest.fixture
def server() -> Iterator[WeightsServer]:
    with serve_weights(CONTENT) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    return WeightsStore(tmp_path / "weights")


def test_download_ends_in_a_file_named_by_its_content(server: WeightsServer, store: WeightsStore) -> None:
    seen: list[tuple[int, int | None]] = []
    stored = fetch_weights(
        store, KNOWN, mirror=server.url, on_progress=lambda done, total: seen.append((done, total)), options=QUICK
    )
    assert stored.path == store.folder / "sha256" / str(KNOWN.sha256)
    assert stored.path.read_bytes() == CONTENT
    assert stored.checked == "catalogue"
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert not list((store.folder / "unfinished").glob("*.json"))
    fetch_weights(store, KNOWN, mirror=server.url, options=QUICK)
    assert len(server.requests) == 1  # it was there


def test_an_address_that_is_not_reached_says_so_shortly_and_what_else_there_is(store: WeightsStore) -> None:
    with serve_weights(CONTENT) as gone:
        url = gone.url
    with pytest.raises(ModelUnavailableError) as raised:
        fetch_weights(store, KNOWN, mirror=url, options=QUICK)
    said = str(raised.value)
    assert "Connection refused" in said
    assert "HTTPConnection" not in said
    assert "--mirror" in said
    assert "weights import FILE" in said


def test_broken_connections_are_gone_on_with(server: WeightsServer, store: WeightsStore) -> None:
    server.cut_after = [300_000, 200_000, 1]
    stored = fetch_weights(store, KNOWN, mirror=server.url, options=QUICK)
    assert stored.path.read_bytes() == CONTENT
    assert server.requests[0] is None
    starts = [int(str(header).removeprefix("bytes=").rstrip("-")) for header in server.requests[1:]]
    assert starts == sorted(starts)
    assert starts[0] >= 200_000


def test_a_later_run_goes_on_where_the_first_gave_up(server: WeightsServer, store: WeightsStore) -> None:
    server.cut_after = [400_000, 0, 0]
    with pytest.raises(ModelUnavailableError, match="run the same command again"):
        fetch_weights(store, KNOWN, mirror=server.url, options=QUICK)
    assert store.find(KNOWN.name) is None
    kept = store.unfinished_path(KNOWN.name).stat().st_size
    assert kept >= 300_000
    assert fetch_weights(store, KNOWN, mirror=server.url, options=QUICK).path.read_bytes() == CONTENT
    assert server.requests[-1] == f"bytes={kept}-"


def test_file_that_changed_meanwhile_is_taken_from_its_start(server: WeightsServer, store: WeightsStore) -> None:
    server.content, server.etag = bytes(len(CONTENT)), '"older"'
    server.cut_after = [100_000, 0, 0]
    with pytest.raises(ModelUnavailableError):
        fetch_weights(store, KNOWN, mirror=server.url, options=QUICK)
    server.content, server.etag = CONTENT, '"newer"'
    assert fetch_weights(store, KNOWN, mirror=server.url, options=QUICK).path.read_bytes() == CONTENT


@pytest.mark.parametrize("has_ranges", [True, False])
def test_servers_without_ranges_or_versions_work_too(
    server: WeightsServer, store: WeightsStore, has_ranges: bool
) -> None:
    server.has_ranges, server.etag = has_ranges, None
    server.cut_after = [100_000]
    assert fetch_weights(store, KNOWN, mirror=server.url, options=QUICK).path.read_bytes() == CONTENT


def test_busy_server_is_asked_again(server: WeightsServer, store: WeightsStore) -> None:
    server.statuses = [503, 429]
    assert fetch_weights(store, KNOWN, mirror=server.url, options=QUICK).path.read_bytes() == CONTENT


def test_too_much_of_an_old_file_starts_over(server: WeightsServer, store: WeightsStore) -> None:
    server.cut_after = [100_000, 0, 0]
    with pytest.raises(ModelUnavailableError):
        fetch_weights(store, KNOWN, mirror=server.url, options=QUICK)
    store.unfinished_path(KNOWN.name).write_bytes(bytes(len(CONTENT) + 5))
    assert fetch_weights(store, KNOWN, mirror=server.url, options=QUICK).path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "content_type", "reason"),
    [
        (CONTENT[:-7], "application/octet-stream", r"1023993 bytes, not 1024000"),
        (CONTENT + b"more", "application/octet-stream", r"1024004 bytes, not 1024000"),
        (b"\x07" + CONTENT[1:], "application/octet-stream", "damaged or another file: its sha256 is"),
        (b"<!DOCTYPE html> sign in", "text/html; charset=utf-8", "a web page"),
    ],
)
def test_wrong_files_are_refused_with_the_reason(
    server: WeightsServer, store: WeightsStore, content: bytes, content_type: str, reason: str
) -> None:
    server.content, server.content_type = content, content_type
    with pytest.raises(BadInputError, match=reason):
        fetch_weights(store, KNOWN, mirror=server.url, options=QUICK)
    assert store.find(KNOWN.name) is None
    server.content, server.content_type = CONTENT, "application/octet-stream"
    assert fetch_weights(store, KNOWN, mirror=server.url, options=QUICK).path.read_bytes() == CONTENT


def test_absent_file_is_not_tried_again(server: WeightsServer, store: WeightsStore) -> None:
    server.statuses = [404, 404]
    with pytest.raises(ModelUnavailableError, match="404; name a mirror"):
        fetch_weights(store, KNOWN, mirror=server.url, options=QUICK)
    assert len(server.requests) == 1


def test_file_addresses_and_mirrors(server: WeightsServer, store: WeightsStore, tmp_path: Path) -> None:
    (tmp_path / "my mirror").mkdir()
    (tmp_path / "my mirror" / KNOWN.file_name).write_bytes(CONTENT)
    mirror = (tmp_path / "my mirror").as_uri()
    stored = fetch_weights(store, KNOWN, mirror=mirror)
    assert stored.path.read_bytes() == CONTENT
    assert (tmp_path / "my mirror" / KNOWN.file_name).exists()
    with pytest.raises(BadInputError, match="https: or file:"):
        fetch_weights(WeightsStore(tmp_path / "other"), KNOWN, mirror="ftp://x/y")
    with pytest.raises(ModelUnavailableError, match="weights import PATH --as gated"):
        fetch_weights(store, replace(KNOWN, name="gated", url=None))


def test_two_downloads_at_once_fetch_once(server: WeightsServer, store: WeightsStore) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(fetch_weights(store, KNOWN, mirror=server.url, options=QUICK).path.read_bytes())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [CONTENT] * 4
    assert len(server.requests) == 1
