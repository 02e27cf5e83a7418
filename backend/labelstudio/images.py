"""Downloads the images of tasks, within bounds of size and time; `image_hosts` decides whom to ask."""

import base64
import binascii
import logging
import re
import time
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import unquote_to_bytes

import requests

from backend.errors import BadInputError, LabelStudioError, LabelStudioUnavailableError, NotFoundError
from backend.labelstudio.image_hosts import Hop, ImageHosts
from backend.labelstudio.transport import (
    NO_PROXY,
    AuthHeaders,
    Cutter,
    WatchedAdapter,
    is_transient,
    keep_headers,
    network_errors,
    retry_after_s,
    retry_transient,
)
from backend.own_http import Session, proxy_advice

logger = logging.getLogger(__name__)

_MAX_REDIRECTS = 5
_CHUNK_BYTES = 1 << 16

_CLOCK_TICK_S = 2.0
"""A file that changed so shortly before its answer may change again within the second that HTTP's times count."""
_USER_TAG = re.compile(r'"\d{1,15}"')
"""Label Studio's storage proxy names the user and no content where the storage itself gives no ETag (1.23.2)."""


@dataclass(frozen=True)
class Validators:
    """The validators that a server sent for a file: as long as they are the same, so is the file.

    Attributes:
        etag: its ETag, weak or strong; None if it gives none.
        last_modified: its Last-Modified, as written; None if it gives none.
        size: its Content-Length in bytes; None if it gives none.
    """

    etag: str | None = None
    last_modified: str | None = None
    size: int | None = None


@dataclass(frozen=True, eq=False)
class FetchedFile:
    """A file, or that it has not changed.

    Attributes:
        content: None if the file is still the one that was asked about.
        validators: for the next time; None if the server gives none to go by.
    """

    content: bytes | None
    validators: Validators | None


class ImageFetcher:
    """Fetches the files of task images; threads share one."""

    def __init__(
        self,
        label_studio_url: str,
        auth_headers: AuthHeaders,
        *,
        allowed_hosts: frozenset[str] = frozenset(),
        label_studio_aliases: frozenset[str] = frozenset(),
        max_bytes: int = 100_000_000,
        timeout_s: float = 20.0,
    ) -> None:
        """Connect to nothing yet.

        Args:
            label_studio_url: Label Studio's address as it is reached from here, with its path if it has one.
            auth_headers: gives the Authorization header for it.
            allowed_hosts: other hosts that images may come from, "host" (any port) or "host:port"; private ones too.
            label_studio_aliases: hosts ("host" or "host:port") under which others know this Label Studio; images
                there are fetched from `label_studio_url` instead.
            max_bytes: largest file.
            timeout_s: for one image with all its redirects and retries; only looking a name up may take longer.
        """
        self._hosts = ImageHosts(label_studio_url, allowed=allowed_hosts, label_studio_aliases=label_studio_aliases)
        self._auth_headers = auth_headers
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    def fetch(self, url: str, task_id: int | None = None) -> bytes:
        """Return the file behind an address of task data, undecoded.

        Args:
            url: a path on Label Studio ("/data/upload/..."), an http(s) address, a cloud storage's (s3://, gs://,
                azure-blob://: Label Studio resolves it) or a data: URI with base64.
            task_id: needed for cloud storage addresses.

        Raises:
            NotFoundError: there is no such file (any more).
            LabelStudioError: Label Studio or the image host refused (401, 403).
            LabelStudioUnavailableError: no answer in time, 429 or 5xx, after retries.
            BadInputError: any other address, a host that is not allowed, a file over the limit.
        """
        content = self.fetch_if_changed(url, task_id, None).content
        assert content is not None  # nothing is known that it could be the same as
        return content

    def fetch_if_changed(self, url: str, task_id: int | None, known: Validators | None) -> FetchedFile:
        """Return the file behind an address, without its content if it is still the one with the validators `known`.

        Args:
            url: as for `fetch`.
            task_id: as for `fetch`.
            known: of the file as it was fetched before; None: it is downloaded whatever it is.

        Raises:
            NotFoundError, LabelStudioError, LabelStudioUnavailableError, BadInputError: as `fetch`.
        """
        return self._fetch(url, task_id, known, None)

    def fetch_if_sized(self, url: str, task_id: int | None, sizes: frozenset[int]) -> bytes | None:
        """Return the file behind an address, None if its server says that it has another size, without its content.

        Args:
            url: as for `fetch`.
            task_id: as for `fetch`.
            sizes: that the file may have, in bytes.

        Raises:
            NotFoundError, LabelStudioError, LabelStudioUnavailableError, BadInputError: as `fetch`.
        """
        return self._fetch(url, task_id, None, sizes).content

    def _fetch(
        self, url: str, task_id: int | None, known: Validators | None, sizes: frozenset[int] | None
    ) -> FetchedFile:
        if url[:5].lower() == "data:":
            return FetchedFile(self._read_data_uri(url), None)
        deadline = time.monotonic() + self._timeout_s
        first = self._hosts.first_hop(url, task_id)
        return retry_transient(lambda: self._download(first, deadline, known, sizes), timeout_s=self._timeout_s)

    def _download(
        self, hop: Hop, deadline: float, known: Validators | None, sizes: frozenset[int] | None
    ) -> FetchedFile:
        with closing(Cutter(deadline)) as cutter:
            try:
                return self._follow(hop, deadline, cutter, known, sizes)
            except LabelStudioUnavailableError:
                self._left(hop, deadline)  # says so where the time was over
                raise

    def _follow(
        self, hop: Hop, deadline: float, cutter: Cutter, known: Validators | None, sizes: frozenset[int] | None
    ) -> FetchedFile:
        for _ in range(_MAX_REDIRECTS + 1):
            # A session for each hop: no cookie, connection or header of one host is ever there for another.
            with Session() as session, closing(self._ask(session, hop, deadline, cutter, known)) as response:
                location = response.headers.get("Location")
                if response.is_redirect and location:
                    hop = self._hosts.next_hop(hop, location)
                    continue
                if response.status_code == 304 and known is not None and known.etag:
                    return FetchedFile(None, known)
                with network_errors(hop.shown):
                    _check_status(hop, response)
                    validators = _validators_of(hop, response)
                    if known is not None and validators == known:
                        return FetchedFile(None, known)  # the body is left unread
                    if sizes is not None and _is_of_another_size(response, sizes):
                        return FetchedFile(None, validators)
                    return FetchedFile(self._read_body(hop, response, deadline), validators)
        raise BadInputError(
            f"{hop.shown} must lead to an image, got over {_MAX_REDIRECTS} redirects: correct the address"
        )

    def _ask(
        self, session: requests.Session, hop: Hop, deadline: float, cutter: Cutter, known: Validators | None
    ) -> requests.Response:
        for scheme in ("http://", "https://"):
            session.mount(scheme, WatchedAdapter(cutter, is_public=hop.trust == "public"))
        for renew in (False, True):
            headers = {"Accept-Encoding": "identity"}
            if known is not None and known.etag:
                # Never If-Modified-Since: a file that an older one was moved over is older, and is another.
                headers["If-None-Match"] = known.etag
            if hop.trust == "label_studio":
                headers.update(self._auth_headers(renew=renew))
            with network_errors(hop.shown, _proxied(hop)):
                response = session.get(
                    hop.url,
                    headers=headers,
                    auth=keep_headers,
                    stream=True,
                    allow_redirects=False,
                    timeout=self._left(hop, deadline),
                    proxies=NO_PROXY if hop.trust == "public" else None,
                )
            if response.status_code != 401 or hop.trust != "label_studio":
                break
            response.close()
        return response

    def _read_body(self, hop: Hop, response: requests.Response, deadline: float) -> bytes:
        declared = response.headers.get("Content-Length", "")
        content = bytearray()
        if not (re.fullmatch("[0-9]{1,18}", declared) and int(declared) > self._max_bytes):
            # read1 gives what has come: a server that drips bytes cannot stretch the time limit.
            while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=True):
                content += chunk
                self._left(hop, deadline)
                if len(content) > self._max_bytes:
                    break
            else:
                self._left(hop, deadline)  # a connection that was cut looks like the end of a file of unknown length
                return bytes(content)
        raise self._too_large(hop.shown)

    def _left(self, hop: Hop, deadline: float) -> float:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise LabelStudioUnavailableError(
                f"{hop.shown} must come within {self._timeout_s:g} s, got no end by then: try again, or raise "
                "SOFTMATCHER_DOWNLOAD_TIMEOUT_S"
            )
        return left_s

    def _read_data_uri(self, uri: str) -> bytes:
        head, comma, text = uri[5:].partition(",")
        if not comma or not head.lower().startswith("image/") or not head.lower().endswith(";base64"):
            raise BadInputError(
                f"data URI must begin with data:image/...;base64, got data:{head[:40]}: import it like that"
            )
        if len(text) > self._max_bytes * 4:
            raise self._too_large("data URI")
        try:
            content = base64.b64decode(b"".join(unquote_to_bytes(text).split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadInputError(f"data URI must be valid base64, got {error}: import the task again") from error
        if len(content) > self._max_bytes:
            raise self._too_large("data URI")
        return content

    def _too_large(self, what: str) -> BadInputError:
        return BadInputError(
            f"{what} must be at most {self._max_bytes / 1e6:g} MB, got more: use a smaller file or raise "
            "SOFTMATCHER_MAX_IMAGE_MB"
        )


def _is_of_another_size(response: requests.Response, sizes: frozenset[int]) -> bool:
    declared = response.headers.get("Content-Length", "")
    is_plain = response.headers.get("Content-Encoding", "identity").lower() == "identity"
    return is_plain and re.fullmatch("[0-9]{1,18}", declared) is not None and int(declared) not in sizes


def _proxied(hop: Hop) -> str:
    """Return the address if a proxy of the environment may be asked for it."""
    return "" if hop.trust == "public" else hop.url


def _check_status(hop: Hop, response: requests.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in (404, 410) or (status == 500 and hop.trust == "label_studio" and _is_upload_gone(response)):
        if "/presign/" in hop.url and hop.trust == "label_studio":
            raise NotFoundError(
                f"{hop.shown} answered {status}: the task is gone, or no storage of the project covers the image's "
                "address; connect it in Settings > Cloud Storage"
            )
        raise NotFoundError(f"image {hop.shown} does not exist ({status}): upload it again or delete the task")
    if status in (401, 403):
        if hop.trust == "label_studio":
            raise LabelStudioError(
                f"Label Studio refused {hop.shown} ({status}): set LABEL_STUDIO_API_KEY to a token of a user who may "
                "see the project (Account & Settings > Personal Access Token or Legacy Token)"
            )
        raise LabelStudioError(
            f"image host refused {hop.shown} ({status}): its images must be readable without a password, or through a "
            "storage connected to Label Studio whose key may read them"
        )
    if is_transient(status):
        raise LabelStudioUnavailableError(
            f"{hop.shown} answered {status}: try again later{proxy_advice(_proxied(hop))}",
            retry_after_s=retry_after_s(response.headers),
        )
    raise BadInputError(f"{hop.shown} must answer 200 with an image, got {status}: correct the task's address")


def _validators_of(hop: Hop, response: requests.Response) -> Validators | None:
    """Return what to ask with the next time; None if nothing that came would show every change."""
    etag, last_modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    if etag and hop.trust == "label_studio" and _USER_TAG.fullmatch(etag):
        etag = None
    if last_modified and not _is_settled(last_modified, response.headers.get("Date")):
        return None
    length = response.headers.get("Content-Length", "")
    size = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    if etag or (last_modified and size is not None):
        return Validators(etag, last_modified, size)
    return None


def _is_settled(last_modified: str, answered: str | None) -> bool:
    try:
        age = parsedate_to_datetime(answered or "") - parsedate_to_datetime(last_modified)
    except (TypeError, ValueError):
        return False
    return age.total_seconds() >= _CLOCK_TICK_S


def _is_upload_gone(response: requests.Response) -> bool:
    """Return whether a 500 means a 404: Label Studio 1.23.2 answers so for an upload that is gone."""
    return b"'NoneType' object has no attribute 'has_permission'" in response.raw.read(
        _CHUNK_BYTES, decode_content=True
    )
