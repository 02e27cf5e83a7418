"""Weights from the network: downloads resume where they stopped, and reject what was not asked for."""

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests

from backend.errors import BadInputError, ModelUnavailableError
from backend.models.weights.catalogue import KnownWeights
from backend.models.weights.store import StoredWeights, WeightsStore
from backend.own_http import Session, proxy_advice

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int | None], None]
"""Gets the bytes that are there and the bytes that there will be, or None if that is unknown."""

_CHUNK_BYTES = 2**16
"""Also what is lost of a connection that breaks."""


@dataclass(frozen=True)
class FetchOptions:
    """The patience of a download.

    Attributes:
        tries: connections that may break without a single byte in between; one that brought some starts the count anew.
        timeout_s: without a byte.
        wait_s: before the second try, doubled before each further one.
    """

    tries: int = 5
    timeout_s: float = 30.0
    wait_s: float = 1.0


class _TransientError(Exception):
    """A failure that is worth another try."""


def fetch_weights(
    store: WeightsStore,
    known: KnownWeights,
    *,
    mirror: str | None = None,
    on_progress: OnProgress | None = None,
    options: FetchOptions = FetchOptions(),
) -> StoredWeights:
    """Get a known file into the store: at once if it is there, otherwise from its publisher or a mirror.

    Args:
        store: where it goes.
        known: which file.
        mirror: folder in place of the publisher's, `https:`, `http:` or `file:`; the official file name is appended
            unless the address ends with it.
        on_progress: is called after every piece.
        options: how long to try.

    Raises:
        ModelUnavailableError: it cannot be had; what is there already stays for the next time.
        BadInputError: what came is not the file.
    """
    stored = store.find(known.name)
    if stored is not None and stored.path.stat().st_size == stored.size_bytes:
        return stored
    url = _address(known, mirror)
    parts = urlsplit(url)
    if parts.scheme == "file":
        return store.add(Path(unquote(parts.path)), name=known.name, source=url, known=known)
    unfinished = store.unfinished_path(known.name)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with _sole_download(unfinished):
        stored = store.find(known.name)  # another process may have finished it meanwhile
        if stored is not None and stored.path.stat().st_size == stored.size_bytes:
            return stored
        _download(url, known, unfinished, on_progress or (lambda done, total: None), options)
        try:
            stored = store.add(unfinished, name=known.name, source=url, keep=False, known=known)
        except BadInputError:
            # A second try with these bytes would end the same way.
            unfinished.unlink(missing_ok=True)
            _validator_path(unfinished).unlink(missing_ok=True)
            raise
        _validator_path(unfinished).unlink(missing_ok=True)
        return stored


def _address(known: KnownWeights, mirror: str | None) -> str:
    if mirror is None:
        if known.url is None:
            raise ModelUnavailableError(
                f"{known.file_name} is given out on request only: ask its publisher for it, then run "
                f"`python -m backend weights import PATH --as {known.name}`"
            )
        return known.url
    if urlsplit(mirror).scheme not in ("http", "https", "file"):
        raise BadInputError(f"a mirror must be an http:, https: or file: address, got {mirror!r}")
    return mirror if mirror.endswith(known.file_name) else f"{mirror.rstrip('/')}/{known.file_name}"


def _download(url: str, known: KnownWeights, unfinished: Path, on_progress: OnProgress, options: FetchOptions) -> None:
    failures = 0
    while True:
        before = unfinished.stat().st_size if unfinished.exists() else 0
        try:
            _download_once(url, known, unfinished, on_progress, options)
            return
        except (_TransientError, requests.RequestException) as error:
            after = unfinished.stat().st_size if unfinished.exists() else 0
            failures = 1 if after > before else failures + 1
            if failures >= options.tries:
                raise ModelUnavailableError(
                    f"{url} could not be downloaded ({_reason(error)}); {after} bytes are kept: run the same command "
                    "again to go on. Where that address cannot be reached, --mirror names another, and "
                    f"`python -m backend weights import FILE` takes a file that was brought here{proxy_advice(url)}"
                ) from error
            logger.warning("%s broke off at %d bytes (%s), going on", known.file_name, after, _reason(error))
            time.sleep(options.wait_s * 2 ** (failures - 1))


def _reason(error: Exception) -> str:
    """Return the reason of an error without the names of requests' own parts."""
    cause = error.args[0] if error.args else error
    # "HTTPSConnection(host='example.com', port=443): Failed to resolve ..."
    return re.sub(r"^\w+\(.*?\): ", "", str(getattr(cause, "reason", cause)))


def _download_once(
    url: str, known: KnownWeights, unfinished: Path, on_progress: OnProgress, options: FetchOptions
) -> None:
    start = unfinished.stat().st_size if unfinished.exists() else 0
    noted_url, validator = _read_validator(unfinished)
    headers = {"Accept-Encoding": "identity"}
    if start and noted_url == url and (validator or known.sha256):
        headers["Range"] = f"bytes={start}-"
        if validator:
            # If the file changed meanwhile, the server sends all of the new one instead of the rest of it.
            headers["If-Range"] = validator
    with Session() as session, session.get(url, headers=headers, stream=True, timeout=options.timeout_s) as response:
        if response.status_code == 416:
            # More is there than the server has (an old file, or all of it was there): start over.
            unfinished.unlink(missing_ok=True)
            raise _TransientError("the server has less than is here already, starting over")
        if response.status_code in (408, 425, 429) or response.status_code >= 500:
            raise _TransientError(f"the server answered {response.status_code}")
        if response.status_code not in (200, 206):
            raise ModelUnavailableError(f"{url} was answered with {response.status_code}; name a mirror with --mirror")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise BadInputError(f"{url} gave a web page, not weights: a proxy or a login answered in its place")
        is_rest = response.status_code == 206
        if is_rest and _range_start(response) != start:
            raise _TransientError("the server sent another part than was asked for")
        start = start if is_rest else 0
        total = _total_bytes(response, start)
        if known.size_bytes is not None and total is not None and total != known.size_bytes:
            raise BadInputError(
                f"{url} is not {known.file_name}: it has {total} bytes, not {known.size_bytes}; name another mirror"
            )
        _write_validator(unfinished, url, response)
        with unfinished.open("r+b" if is_rest else "wb") as file:
            file.seek(start)
            file.truncate()
            done = start
            on_progress(done, total)
            for chunk in response.iter_content(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                on_progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    expected = total if total is not None else known.size_bytes
    if expected is not None and done < expected:
        raise _TransientError(f"the connection ended after {done} of {expected} bytes")


def _range_start(response: requests.Response) -> int | None:
    # "bytes 100-199/200"
    value = response.headers.get("Content-Range", "")
    first = value.removeprefix("bytes ").split("-")[0]
    return int(first) if first.isdigit() else None


def _total_bytes(response: requests.Response, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _validator_path(unfinished: Path) -> Path:
    return unfinished.with_name(f"{unfinished.name}.json")


def _write_validator(unfinished: Path, url: str, response: requests.Response) -> None:
    # Only a strong ETag promises the same bytes; a date does so for files that do not change twice a second.
    etag = response.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    _validator_path(unfinished).write_text(json.dumps({"url": url, "validator": validator}))


def _read_validator(unfinished: Path) -> tuple[str | None, str | None]:
    """Return the address that the bytes so far came from, and what it called that version."""
    try:
        noted = json.loads(_validator_path(unfinished).read_text())
        return noted["url"], noted["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


@contextmanager
def _sole_download(unfinished: Path) -> Iterator[None]:
    """Let one process at a time download a file: a second one waits and finds it done."""
    with unfinished.with_name(f"{unfinished.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
