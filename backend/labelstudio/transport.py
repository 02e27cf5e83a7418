"""HTTP for the API client and the image fetcher: errors by whose problem they are, retries, public hosts only.

Nothing here puts a token, a password or the query of a foreign address (a presigned one is a key) into a message.
"""

import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar

import requests
from requests.adapters import HTTPAdapter
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
    wait_random,
)
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError as Urllib3Error

from backend.errors import BadInputError, LabelStudioUnavailableError
from backend.own_http import proxy_advice

_ATTEMPTS = 3
_TRANSIENT = frozenset({408, 425, 429})
_LONGEST_WAIT_S = 10.0
"""A `Retry-After` beyond this is not waited for: the caller gets the error and waits."""
_back_off = wait_exponential(multiplier=0.2, max=3.0) + wait_random(0, 0.2)

_Result = TypeVar("_Result")


class AuthHeaders(Protocol):
    """Gives the Authorization header for Label Studio; `renew` after a 401: a cached token may be revoked."""

    def __call__(self, *, renew: bool = False) -> Mapping[str, str]:
        """Return the header."""
        ...


def is_transient(status: int) -> bool:
    """Return whether an answer is worth another try: 408, 425, 429 and 5xx."""
    return status in _TRANSIENT or status >= 500


def retry_transient(call: Callable[[], _Result], *, timeout_s: float) -> _Result:
    """Return what `call` returns, after up to three tries while Label Studio is unavailable, none after `timeout_s`.

    Between tries is what the server asked for, or a little more each time. A server that asks for more than some
    seconds is not asked again.

    Raises:
        LabelStudioUnavailableError: the last one.
    """
    retrying = Retrying(
        stop=stop_after_attempt(_ATTEMPTS) | stop_before_delay(timeout_s),
        wait=_wait_s,
        retry=retry_if_exception(_is_soon_over),
        reraise=True,
    )
    return retrying(call)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return what `Retry-After` says, seconds or a date; None without it, or if it cannot be read."""
    received = headers.get("Retry-After", "").strip()
    if received.isdigit():
        return float(received)
    try:
        return max(0.0, parsedate_to_datetime(received).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _is_soon_over(error: BaseException) -> bool:
    return isinstance(error, LabelStudioUnavailableError) and (error.retry_after_s or 0.0) <= _LONGEST_WAIT_S


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked_for = error.retry_after_s if isinstance(error, LabelStudioUnavailableError) else None
    return max(_back_off(state), asked_for or 0.0)


def keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Change nothing, as an `auth`: without one, requests takes a password of ~/.netrc and overwrites our header."""
    return request


@contextmanager
def network_errors(where: str, url: str = "") -> Iterator[None]:
    """Turn what requests and urllib3 raise into our errors.

    Args:
        where: what was asked, as the message shall say.
        url: of it, if a proxy of the environment may have been asked; not shown.

    Raises:
        LabelStudioUnavailableError: no connection, a timeout, an answer cut short.
        BadInputError: an address that is none.
    """
    try:
        yield
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.exceptions.MissingSchema,
    ) as error:
        raise BadInputError(f"{where} must be an http(s) address, got {type(error).__name__}: correct it") from error
    except requests.exceptions.SSLError as error:
        raise LabelStudioUnavailableError(
            f"{where}: the TLS certificate cannot be verified; for a certificate authority of your own set "
            "REQUESTS_CA_BUNDLE"
        ) from error
    except (requests.exceptions.RequestException, Urllib3Error, OSError) as error:
        # The text of these errors can hold a whole address with its query: only the class is shown.
        raise LabelStudioUnavailableError(
            f"{where} did not answer ({type(error).__name__}): check that it runs and can be reached from here"
            f"{proxy_advice(url)}"
        ) from error


_NEVER_PUBLIC = [
    ipaddress.ip_network(text)
    # Site-local; a network's own NAT64; addresses that hold an IPv4 one: compatible ones, and Teredo's.
    for text in ("fec0::/10", "64:ff9b:1::/48", "::/96", "2001::/32")
]
"""Networks that `ipaddress` calls global, or that hold another address."""


def is_public(address: str) -> bool:
    """Return whether an IP address is public: not private, loopback, link-local, shared, reserved or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _NEVER_PUBLIC):
            return False
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in ipaddress.ip_network("64:ff9b::/96") else None
        embedded = ip.ipv4_mapped or ip.sixtofour or nat64
        if embedded is not None:
            return is_public(str(embedded))
    return ip.is_global and not ip.is_multicast


def connect_public(host: str, port: int, timeout_s: float | None) -> socket.socket:
    """Open a TCP connection to a public address of `host`.

    The address is looked up once and that one is connected to, so a name cannot change to a private address in between.

    Raises:
        BadInputError: the name has an address that is not public.
        OSError: no such name, or no connection.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(sockaddr[0]) for *_, sockaddr in found]
    if not all(is_public(address) for address in addresses):
        raise BadInputError(
            f"image host {host} must have a public address, got a private one: if it is yours, add it to "
            "SOFTMATCHER_ALLOWED_IMAGE_HOSTS"
        )
    failure: OSError = OSError(f"{host} has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=timeout_s)
        except OSError as error:
            failure = error
    raise failure


class Cutter:
    """Ends the connections of one download when its time is over, whatever they are waiting for.

    Timeouts of sockets count from the last byte: a host that drips a byte every second, of its headers or of the TLS
    handshake, would hold a thread for as long as it likes.
    """

    def __init__(self, deadline: float) -> None:
        """Start the clock.

        Args:
            deadline: of time.monotonic().
        """
        self._connections: list[int] = []
        self._lock = threading.Lock()
        self._is_over = False
        self._timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._cut)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connection: socket.socket) -> socket.socket:
        """End this one too; returns it."""
        with self._lock:
            # A copy of the handle: TLS takes the socket over, and then this object is one no more.
            self._connections.append(os.dup(connection.fileno()))
            is_over = self._is_over
        if is_over:
            self._cut()
        return connection

    def _cut(self) -> None:
        with self._lock:
            self._is_over = True
            for handle in self._connections:
                with suppress(OSError), socket.socket(fileno=os.dup(handle)) as connection:
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Note that the download is done, or has failed."""
        self._timer.cancel()
        with self._lock:
            for handle in self._connections:
                os.close(handle)
            self._connections.clear()


class WatchedAdapter(HTTPAdapter):
    """Connections that a cutter ends; with `is_public` to public addresses only.

    Give requests of a public one no proxy: a proxy would look the name up by itself.
    """

    def __init__(self, cutter: Cutter, *, is_public: bool) -> None:
        self._cutter = cutter
        self._is_public = is_public
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make pools whose connections are watched."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pools(self._cutter, self._is_public)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Make pools whose connections through a proxy are watched."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = _pools(self._cutter, self._is_public)
        return manager


def _pools(cutter: Cutter, is_public_only: bool) -> dict[str, type[HTTPConnectionPool]]:
    class PlainConnection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            if is_public_only:
                return cutter.watch(connect_public(self._dns_host, self.port, _seconds(self.timeout)))
            return cutter.watch(super()._new_conn())

    class TlsConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            if is_public_only:
                return cutter.watch(connect_public(self._dns_host, self.port or 443, _seconds(self.timeout)))
            return cutter.watch(super()._new_conn())

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = TlsConnection

    return {"http": PlainPool, "https": TlsPool}


NO_PROXY: dict[str, Any] = {"http": None, "https": None, "all": None}
"""Keeps requests from taking proxies of the environment."""


def _seconds(timeout: object) -> float | None:
    return float(timeout) if isinstance(timeout, int | float) else None
