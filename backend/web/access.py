"""Who may ask for what: passwords, other sites' pages, foreign names; and the headers that every answer carries."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import urlsplit

from flask import Flask, Response, g, jsonify, request
from pydantic import SecretStr
from werkzeug.exceptions import HTTPException

from backend.errors import BadInputError, ForbiddenError, ModelUnavailableError
from backend.settings import Settings
from backend.store.records import ProjectKey

WEBHOOK_PATH = "/webhook"
PREDICT_PATH = "/predict"

MOST_BODY_BYTES = 1 << 20
"""Largest body of a request, but for those of `BODY_BYTES_OF`."""
BODY_BYTES_OF = {
    # Batch tasks carry their annotations and predictions: bodies of some hundred MB are Label Studio's normal.
    PREDICT_PATH: 2 << 30,
    # The whole annotation comes along, and one that is refused would never be sent again.
    WEBHOOK_PATH: 64 << 20,
}
_RECEIVING_SHARE = 0.5
"""Share of the threads: as many bodies are received at a time, and half as many from one address."""
_RECEIVING_WAIT_S = 0.5
_FREE_TRIES = 10
"""Wrong passwords from one address within `_TRIES_S` seconds that cost nothing; then it gets one try a second."""
_TRIES_S = 60.0
_MOST_ADDRESSES = 1000

_SAME_SITE = ("same-origin", "none")
_HEADERS = {
    # No script, style, picture or frame of elsewhere; nobody may frame us; a page that names us learns nothing.
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@cache
def _derived_secret(user: str, password: str) -> str:
    # Slow on purpose: whoever may see a project's webhooks in Label Studio must not find the password by trying.
    salt = f"softmatcher webhook of {user}".encode()
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, dklen=24).hex()


def webhook_authorization(settings: Settings, project_key: ProjectKey) -> str | None:
    """Return the header `Authorization` of the webhooks of one project; None where no password is asked for.

    Not the password, and not one secret for all: every user of Label Studio's organisation can read it there. It names
    the project, so that it can be checked before a body is read.
    """
    if settings.basic_auth_user is None or settings.basic_auth_pass is None:
        return None
    key = _webhook_key(settings.basic_auth_user, settings.basic_auth_pass, settings.webhook_secret)
    proof = hmac.new(key.encode(), f"webhook of project {project_key}".encode(), hashlib.sha256).hexdigest()[:48]
    return f"Bearer {project_key}:{proof}"


def former_webhook_authorization(settings: Settings) -> str | None:
    """Return the header that the webhooks of all projects had up to version 0.1; it opens nothing any more."""
    if settings.basic_auth_user is None or settings.basic_auth_pass is None:
        return None
    return f"Bearer {_webhook_key(settings.basic_auth_user, settings.basic_auth_pass, settings.webhook_secret)}"


def _webhook_key(user: str, password: SecretStr, chosen: SecretStr | None) -> str:
    return chosen.get_secret_value() if chosen is not None else _derived_secret(user, password.get_secret_value())


def _project_of_secret(settings: Settings, header: str) -> str | None:
    """Return the project whose webhook secret a header shows; None if it is no project's."""
    project_key = header.removeprefix("Bearer ").partition(":")[0]
    if not re.fullmatch(r"[0-9]{1,18}\.[0-9]{1,18}", project_key):
        return None
    return project_key if _is_same(header, webhook_authorization(settings, project_key) or "") else None


def guard(app: Flask, settings: Settings) -> None:
    """Let every request pass these checks before its route, and every answer get the headers."""
    names = _own_names(settings)
    tries = PasswordAttempts()
    receiving = _Receiving(max(2, int(settings.service_threads * _RECEIVING_SHARE)))

    @app.before_request
    def reject_foreign_names() -> None:
        """Reject a page that gives its own name our address (DNS rebinding): our answers would be its own to read.

        It cannot know a password, so this matters where none is asked for.
        """
        host = _name_of(request.host)
        if names is not None and host not in names and not _is_address(host):
            raise ForbiddenError(
                f"this backend is not known as {host[:80]!r} and asks for no password: if a proxy gives it that name, "
                "set SOFTMATCHER_PUBLIC_URL to its address there, or set SOFTMATCHER_BASIC_AUTH_USER and _PASS"
            )

    @app.before_request
    def refuse_other_sites() -> None:
        """Browsers send passwords along with requests that another site's page makes, and reach what we cannot see."""
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        # A sandboxed frame's origin is "null", which has no host: nor may the empty one be among ours.
        hosts = {request.host, urlsplit(settings.public_url or "").netloc} - {""}
        is_foreign = site not in _SAME_SITE if site else bool(origin) and _netloc(origin or "") not in hosts
        if is_foreign:
            raise ForbiddenError("this request came from the page of another site: use the project's own page")

    @app.before_request
    def ask_for_password() -> Response | None:
        if settings.basic_auth_user is None or settings.basic_auth_pass is None:
            return None
        given = request.headers.get("Authorization", "")
        address = request.remote_addr or ""
        wait_s = tries.wait_s(address) if given.lower().startswith("basic ") else 0.0
        if wait_s > 0:
            refusal = jsonify(error="too many wrong passwords came from this address: wait a minute, then try again")
            refusal.status_code = 429
            refusal.headers["Retry-After"] = str(max(1, round(wait_s)))
            return refusal
        if _is_password(given, settings.basic_auth_user, settings.basic_auth_pass.get_secret_value()):
            return None
        if request.path == WEBHOOK_PATH:
            g.webhook_project = _project_of_secret(settings, given)
            if g.webhook_project is not None:
                return None
        if given.lower().startswith("basic "):
            tries.add_wrong(address)
        response = jsonify(
            error="user and password expected: set basic auth in the ML backend's form in Label Studio",
            id=g.get("request_id"),
        )
        response.status_code = 401
        response.headers["WWW-Authenticate"] = 'Basic realm="softmatcher", charset="UTF-8"'
        return response

    @app.before_request
    def read_body() -> None:
        """Only now: strangers' bodies are not read. All of it, so that what is wrong with its sending shows up here."""
        if not request.content_length and "Transfer-Encoding" not in request.headers:
            return  # /health needs no place among the bodies
        request.max_content_length = BODY_BYTES_OF.get(request.path, MOST_BODY_BYTES)
        try:
            with receiving.one(request.remote_addr or ""):
                request.get_data(parse_form_data=True)
        except (HTTPException, ModelUnavailableError):
            raise
        except Exception as error:  # a timeout, broken chunks, a connection that ended: the server's own classes
            raise BadInputError(
                f"the body did not come whole or in time ({type(error).__name__}): send it again"
            ) from error

    @app.after_request
    def secure(response: Response) -> Response:
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response


class PasswordAttempts:
    """Counts wrong passwords by address, in bounded memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tries: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Return the seconds until the next password of an address is looked at; 0: now, and the next one later."""
        now = time.monotonic()
        with self._lock:
            times = self._tries.get(address)
            if times is None:
                return 0.0
            while times and times[0] < now - _TRIES_S:
                times.popleft()
            if len(times) < _FREE_TRIES:
                return 0.0
            return max(0.0, times[-1] + 1.0 - now)

    def add_wrong(self, address: str) -> None:
        """Count a wrong password."""
        with self._lock:
            times = self._tries.setdefault(address, deque(maxlen=_FREE_TRIES))
            times.append(time.monotonic())
            self._tries.move_to_end(address)
            while len(self._tries) > _MOST_ADDRESSES:
                self._tries.popitem(last=False)


class _Receiving:
    """Bounds how many bodies are received at a time, so that slow senders leave threads for others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_address: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def one(self, address: str) -> Iterator[None]:
        """Hold a place inside.

        Raises:
            ModelUnavailableError: all places, or those of the address, stay taken.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(address), timeout=_RECEIVING_WAIT_S):
                raise ModelUnavailableError("too many request bodies are on their way: try again in some seconds")
            self._by_address[address] += 1
        try:
            yield
        finally:
            with self._changed:
                self._by_address[address] -= 1
                if not self._by_address[address]:
                    del self._by_address[address]
                self._changed.notify_all()

    def _has_room(self, address: str) -> bool:
        return self._by_address.total() < self._most and self._by_address[address] < max(1, self._most // 2)


def _is_password(header: str, user: str, password: str) -> bool:
    """Label Studio sends Latin-1, browsers and we ourselves send UTF-8."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        given = base64.b64decode(encoded.strip(" \t"), validate=True)
    except (binascii.Error, ValueError):
        return False
    expected = f"{user}:{password}"
    # All comparisons are made, so that their time tells nothing.
    matches = [hmac.compare_digest(given, expected.encode(encoding)) for encoding in ("utf-8", "latin-1")]
    return any(matches)


def _is_same(given: str, wanted: str) -> bool:
    return bool(wanted) and hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


def _own_names(settings: Settings) -> frozenset[str] | None:
    """Names under which we answer without a password; None: all, since a password is asked for or others may reach us.

    Bound to another address than loopback this backend is known by whatever name a network gives it.
    """
    if settings.basic_auth_user is not None or not is_loopback(settings.host):
        return None
    return frozenset({"localhost", _name_of(urlsplit(settings.public_url or "").netloc)} - {""})


def is_loopback(host: str) -> bool:
    """Return whether nobody but programs on this machine can reach what is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of(netloc: str) -> str:
    """Return the host of `host:port` or `[v6]:port`, lower case."""
    host = netloc.rpartition("@")[2]
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # of what no browser sends
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
