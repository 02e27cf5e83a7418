"""How this program asks other servers: under its own name, and servers on this machine without a proxy.

Every session of `requests` is made here. Knows nothing of the rest of the project.
"""

import ipaddress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import requests
from requests.utils import should_bypass_proxies

from backend import __version__

USER_AGENT = f"softmatcher-label-studio/{__version__} {requests.utils.default_user_agent()}"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


class Session(requests.Session):
    """A session that no proxy of the environment comes between for servers on this machine.

    A proxy would ask its own loopback, or refuse.

    Args:
        is_own: all that it asks are our own servers, whatever their addresses: no proxy, and no password of ~/.netrc.
    """

    def __init__(self, *, is_own: bool = False) -> None:
        super().__init__()
        self.trust_env = not is_own
        self.headers["User-Agent"] = USER_AGENT

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send one request; redirects come here too."""
        if is_loopback_address(request.url or ""):
            kwargs["proxies"] = {}
        return super().send(request, **kwargs)


def is_loopback_address(url: str) -> bool:
    """Return whether an http address is one of this machine's own: 127.0.0.0/8, ::1, localhost."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_advice(url: str) -> str:
    """Return what to say of the proxy that a request to an address goes through; nothing without one."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return ""
    proxies = getproxies()
    if is_loopback_address(url) or not (proxies.get(parts.scheme) or proxies.get("all")):
        return ""
    if should_bypass_proxies(url, no_proxy=None):
        return ""
    variable = f"{parts.scheme.upper()}_PROXY" if proxies.get(parts.scheme) else "ALL_PROXY"
    return f"; it was asked through the proxy of {variable}: add {host} to NO_PROXY if it is reached without one"


def with_loopback_direct(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment whose programs ask servers on this machine without a proxy, if they heed NO_PROXY."""
    for name in ("NO_PROXY", "no_proxy"):
        named = [part.strip() for part in environment.get(name, "").split(",") if part.strip()]
        if named or name == "NO_PROXY":
            environment = {**environment, name: ",".join(dict.fromkeys([*named, *LOOPBACK_HOSTS]))}
    return environment
