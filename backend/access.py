"""Who may ask for what: passwords, other sites' pages, foreign names; and the headers that every answer carries."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
from functools import cache
from urllib.parse import urlsplit

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from backend.errors import BadInputError, ForbiddenError
from backend.settings import Settings

WEBHOOK_PATH = "/webhook"

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


def webhook_authorization(settings: Settings) -> str | None:
    """What the header `Authorization` of Label Studio's webhooks has to be; None where no password is asked for.

    Not the password: everybody who may edit a project can read its webhooks' headers in Label Studio.
    """
    if settings.basic_auth_user is None or settings.basic_auth_pass is None:
        return None
    if settings.webhook_secret is not None:
        return f"Bearer {settings.webhook_secret.get_secret_value()}"
    return f"Bearer {_derived_secret(settings.basic_auth_user, settings.basic_auth_pass.get_secret_value())}"


def guard(app: Flask, settings: Settings) -> None:
    """Let every request pass these checks before its route, and every answer get the headers."""
    names = _own_names(settings)

    @app.before_request
    def refuse_foreign_names() -> None:
        """A page can give its own name our address (DNS rebinding), and then our answers are its own to read.

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
        if _is_password(given, settings.basic_auth_user, settings.basic_auth_pass.get_secret_value()):
            return None
        if request.path == WEBHOOK_PATH and _is_same(given, webhook_authorization(settings) or ""):
            return None
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
        try:
            request.get_data(parse_form_data=True)
        except HTTPException:
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
    """True if nobody but programs on this machine can reach what is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of(netloc: str) -> str:
    """The host of `host:port` or `[v6]:port`, lower case."""
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
