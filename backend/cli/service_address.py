"""The address of the service: what it binds to, and how this machine reaches it."""

from backend.settings import Settings

_ANY_HOST = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Hosts that stand for every address, and one of this machine that they include."""


def bind_address(settings: Settings) -> str:
    """Return `host:port` to listen at; an IPv6 address is in brackets."""
    return f"{_in_brackets(settings.host)}:{settings.port}"


def service_address(settings: Settings, port: int | None = None) -> str:
    """Return the URL at which the service of these settings is reached from this machine.

    Args:
        settings: of the service.
        port: that it really has; None for the settings' own.
    """
    host = _ANY_HOST.get(settings.host, settings.host)
    return f"http://{_in_brackets(host)}:{settings.port if port is None else port}"


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
