"""Decides which addresses of images are asked, and with whose authority.

Label Studio's token goes to Label Studio's own address and nowhere else; other hosts are asked only if the operator
named them, or if Label Studio itself redirects there (a presigned address of a cloud storage) and they are public.
"""

import base64
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote, urljoin

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from backend.errors import BadInputError, LabelStudioError

_CLOUD_SCHEMES = ("s3", "s3s", "gs", "azure-blob", "azure-spi")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MEDIA_PATHS = ("/data/upload/", "/data/local-files/", "/storage-data/", "/tasks/", "/static/")
"""Paths of files on Label Studio 1.23.2: uploads, local files, storages behind nginx, presigned ones, its samples."""

_Trust = Literal["label_studio", "allowed", "public"]


@dataclass(frozen=True)
class Hop:
    """One address to ask. `label_studio`: with our token; `allowed`: the operator named it; `public`: public IPs."""

    url: str
    trust: _Trust

    @property
    def shown(self) -> str:
        """Return the address for messages: without the query, which may be a key, unless it is Label Studio's own."""
        return self.url if self.trust == "label_studio" else self.url.partition("?")[0]


class ImageHosts:
    """Decides which address is asked for an image, and which its redirects may lead to."""

    def __init__(self, label_studio_url: str, *, allowed: frozenset[str], label_studio_aliases: frozenset[str]) -> None:
        """Keep what may be asked.

        Args:
            label_studio_url: Label Studio's address as it is reached from here, with its path if it has one.
            allowed: other hosts that images may come from, "host" (any port) or "host:port"; private ones too.
            label_studio_aliases: hosts ("host" or "host:port") under which others know this Label Studio.
        """
        self._base = parse_url(label_studio_url.rstrip("/"))
        self._allowed = frozenset(host.lower() for host in allowed)
        self._aliases = frozenset(host.lower() for host in label_studio_aliases)

    def first_hop(self, url: str, task_id: int | None) -> Hop:
        """Return which address is asked for the image at an address of task data.

        Raises:
            BadInputError: no kind of address that can be asked, or a host that is not allowed.
        """
        if url.startswith("//"):
            url = f"{self._base.scheme}:{url}"
        scheme, separator, _ = url.partition("://")
        if not separator:
            return self._on_label_studio("/" + url.lstrip("/"))
        if scheme.lower() in _CLOUD_SCHEMES:
            if task_id is None:
                raise BadInputError(
                    f"image address {scheme}://... needs a task that Label Studio knows, got one without id"
                )
            # Label Studio takes the URI in base64 or quoted; plain text can decode as base64 by accident.
            fileuri = base64.urlsafe_b64encode(url.encode()).decode()
            return self._on_label_studio(f"/tasks/{int(task_id)}/presign/?fileuri={quote(fileuri)}")
        if scheme.lower() not in _DEFAULT_PORTS:
            raise BadInputError(
                "image address must be a path on Label Studio, http(s)://, s3://, gs://, azure-blob:// or a data: URI, "
                f"got {scheme[:20]}://: import the task with an address that Label Studio can show"
            )
        parsed = _parse(url)
        if self._is_label_studio(parsed):
            return self._on_label_studio(parsed.request_uri)
        if self._is_allowed(parsed):
            return Hop(parsed.url, "allowed")
        raise BadInputError(
            f"image host must be Label Studio's ({self._base.netloc}) or one of SOFTMATCHER_ALLOWED_IMAGE_HOSTS, got "
            f"{parsed.netloc}: add it to that setting if its images may be fetched"
        )

    def next_hop(self, hop: Hop, location: str) -> Hop:
        """Return the address that a redirect leads to.

        Raises:
            BadInputError: it leads to a host that is not allowed.
            LabelStudioError: Label Studio redirects to a login, or to https.
        """
        parsed = _parse(urljoin(hop.url, location))
        if hop.trust == "label_studio" and _is_https_of(parsed, _parse(hop.url)):
            raise LabelStudioError(
                f"Label Studio redirects {hop.shown} to https: set LABEL_STUDIO_URL to "
                f"https://{parsed.netloc}{self._base.path or ''}"
            )
        if self._is_label_studio(parsed):
            if (parsed.path or "").rstrip("/").endswith("/user/login"):
                raise LabelStudioError(f"{hop.shown} asks for a login: set LABEL_STUDIO_API_KEY to a valid token")
            if hop.trust == "label_studio":
                return self._on_label_studio(parsed.request_uri)
        elif self._is_allowed(parsed):
            return Hop(parsed.url, "allowed")
        elif hop.trust != "allowed":
            return Hop(parsed.url, "public")
        if _is_https_of(parsed, _parse(hop.url)):
            raise BadInputError(
                f"{hop.shown} redirects to https, whose port is not allowed: import the task with the https address, "
                f"and add {parsed.netloc} to SOFTMATCHER_ALLOWED_IMAGE_HOSTS"
            )
        raise BadInputError(
            f"{hop.shown} redirects to {parsed.netloc}, which is not allowed: if images may come from there, add that "
            "host to SOFTMATCHER_ALLOWED_IMAGE_HOSTS"
        )

    def _on_label_studio(self, request_uri: str) -> Hop:
        prefix = self._base.path or ""
        path = request_uri.partition("?")[0].partition("#")[0]
        _check_media_path(path.removeprefix(prefix) if prefix and path.startswith(f"{prefix}/") else path)
        if prefix and not request_uri.startswith(f"{prefix}/"):
            request_uri = prefix + request_uri
        return Hop(f"{self._base.scheme}://{self._base.netloc}{request_uri}", "label_studio")

    def _is_label_studio(self, url: Url) -> bool:
        # Without the scheme: http to a Label Studio that is reached by https is asked by https, token and all.
        return _host_port(url) == _host_port(self._base) or _is_named(url, self._aliases)

    def _is_allowed(self, url: Url) -> bool:
        return _is_named(url, self._allowed)


def _parse(url: str) -> Url:
    try:
        parsed = parse_url(url)
    except LocationParseError as error:
        raise BadInputError("image address must be a valid http(s) address, got one that cannot be parsed") from error
    if parsed.scheme not in _DEFAULT_PORTS or not parsed.host:
        raise BadInputError(f"image address must be http(s) with a host, got scheme {parsed.scheme!r}: correct it")
    if parsed.auth:
        raise BadInputError(f"image address must not hold a user or password, got one for {parsed.host}")
    return parsed


def _check_media_path(path: str) -> None:
    """Refuse what our token could read beside images, and paths that a server may take for others.

    Args:
        path: on Label Studio, below the path of its address.

    Raises:
        BadInputError: no path of Label Studio's media, or one with dots, back-slashes or control characters.
    """
    decoded = path
    for _ in range(3):  # a proxy may decode once more than the server behind it
        decoded = unquote(decoded)
    is_plain = not any(part in (".", "..") for part in decoded.split("/")) and "\\" not in decoded
    if not (is_plain and decoded.isprintable() and decoded.startswith(_MEDIA_PATHS)):
        raise BadInputError(
            f"image address on Label Studio must be a file's ({', '.join(_MEDIA_PATHS)}...), got {path[:60]!r}: "
            "upload the image, or connect the storage that has it"
        )


def _host_port(url: Url) -> tuple[str, int | None]:
    port = None if url.port in (None, _DEFAULT_PORTS.get(url.scheme or "")) else url.port
    return (url.host or "").lower(), port


def _is_https_of(url: Url, plain: Url) -> bool:
    """Return whether an address is the same as a plain http one but for https and its port."""
    is_same = (url.host, url.path) == (plain.host, plain.path)
    return is_same and (url.scheme, plain.scheme) == ("https", "http")


def _is_named(url: Url, names: frozenset[str]) -> bool:
    host = (url.host or "").lower()
    return host in names or f"{host}:{url.port or _DEFAULT_PORTS.get(url.scheme or '')}" in names
