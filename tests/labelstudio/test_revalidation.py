"""Whether a file is still the one that was fetched: by what its server says of it, never by the time that went by."""

import time
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from typing import Any

import pytest

from backend.labelstudio.images import ImageFetcher, Validators

from .web import Answer, Request, Web, serve

NOW = "now"
OLD, NEWER = (formatdate(time.time() - age_s, usegmt=True) for age_s in (7200, 3600))
PATH = "/data/upload/1/a.png"


@pytest.fixture
def label_studio() -> Iterator[Web]:
    with serve() as web:
        yield web


def no_token(*, renew: bool = False) -> Mapping[str, str]:
    return {}


def fetcher(web: Web) -> ImageFetcher:
    return ImageFetcher(web.url, no_token, timeout_s=5.0)


class File:
    """A file on a server that answers conditional requests, or ignores them."""

    def __init__(self, content: bytes, *, heeds: bool, **headers: str) -> None:
        self.content, self.heeds, self.headers = content, heeds, headers
        self.sent = 0

    def __call__(self, request: Request) -> Answer:
        headers = {name.replace("_", "-"): value for name, value in self.headers.items()}
        if headers.get("Last-Modified") == NOW:
            headers["Last-Modified"] = formatdate(time.time(), usegmt=True)
        if self.heeds and request.headers.get("if-none-match") == headers.get("ETag"):
            return Answer(status=304, headers=headers)
        self.sent += 1
        return Answer(self.content, headers=headers)


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("etag", ['"abc"', 'W/"1854a3-1f"'])
def test_an_etag_tells_that_a_file_is_the_same_and_that_it_is_not(label_studio: Web, etag: str, heeds: bool) -> None:
    file = label_studio.routes[PATH] = File(b"one", heeds=heeds, ETag=etag)
    first = fetcher(label_studio).fetch_if_changed(PATH, 1, None)
    assert first.content == b"one"
    again = fetcher(label_studio).fetch_if_changed(PATH, 1, first.validators)
    assert (again.content, again.validators) == (None, first.validators)

    file.content, file.headers = b"two", {"ETag": '"other"'}
    changed = fetcher(label_studio).fetch_if_changed(PATH, 1, first.validators)
    assert (changed.content, changed.validators) == (b"two", Validators('"other"', None, 3))


def test_time_and_size_tell_where_there_is_no_etag(label_studio: Web) -> None:
    file = label_studio.routes[PATH] = File(b"one", heeds=False, Last_Modified=NEWER)
    known = fetcher(label_studio).fetch_if_changed(PATH, 1, None).validators
    assert fetcher(label_studio).fetch_if_changed(PATH, 1, known).content is None
    assert all("if-modified-since" not in request.headers for request in label_studio.requests)

    file.content, file.headers["Last_Modified"] = b"two", OLD
    assert fetcher(label_studio).fetch_if_changed(PATH, 1, known).content == b"two", "an older file was moved there"
    file.content, file.headers["Last_Modified"] = b"three", NEWER
    assert fetcher(label_studio).fetch_if_changed(PATH, 1, known).content == b"three", "of another size"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Last_Modified": NOW},
        {"ETag": '"5-3"', "Last_Modified": NOW},
        {"Last_Modified": "yesterday"},
        {"ETag": '"11"'},
    ],
    ids=["nothing", "changed this second", "etag of a time of this second", "no date", "Label Studio's tag of a user"],
)
def test_what_does_not_tell_of_every_change_is_not_relied_on(label_studio: Web, headers: dict[str, Any]) -> None:
    file = label_studio.routes[PATH] = File(b"one", heeds=False, **headers)
    known = fetcher(label_studio).fetch_if_changed(PATH, 1, None).validators
    file.content = b"two"
    assert fetcher(label_studio).fetch_if_changed(PATH, 1, known).content == b"two"


def test_a_redirect_is_followed_to_the_file_that_may_be_the_same(label_studio: Web) -> None:
    label_studio.always("/tasks/7/presign/", Answer(status=303, headers={"Location": f"{label_studio.url}{PATH}"}))
    file = label_studio.routes[PATH] = File(b"one", heeds=True, ETag='"abc"')
    known = fetcher(label_studio).fetch_if_changed("s3://bucket/a.png", 7, None).validators
    assert fetcher(label_studio).fetch_if_changed("s3://bucket/a.png", 7, known).content is None
    assert file.sent == 1


def test_a_file_that_is_gone_is_not_unchanged(label_studio: Web) -> None:
    label_studio.routes[PATH] = File(b"one", heeds=True, ETag='"abc"')
    known = fetcher(label_studio).fetch_if_changed(PATH, 1, None).validators
    del label_studio.routes[PATH]
    with pytest.raises(Exception, match="does not exist"):
        fetcher(label_studio).fetch_if_changed(PATH, 1, known)


def test_a_file_of_another_size_is_not_downloaded(label_studio: Web) -> None:
    label_studio.routes[PATH] = File(b"four", heeds=False)
    fetch = fetcher(label_studio).fetch_if_sized
    assert fetch(PATH, 1, frozenset({4, 9})) == b"four"
    assert fetch(PATH, 1, frozenset({9})) is None
    assert fetch("data:image/png;base64,AAAA", 1, frozenset({9})) == b"\0\0\0"
