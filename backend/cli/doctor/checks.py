"""Checks of `doctor` without a project or Label Studio: password, disk, service, image hosts."""

import logging
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import requests

from backend.cli.health import HealthError, ask_service
from backend.cli.service_address import service_address
from backend.errors import SoftmatcherError
from backend.labelstudio.transport import is_public
from backend.settings import Settings
from backend.web.access import is_loopback

logger = logging.getLogger(__name__)

_LITTLE_ROOM_MB = 1000


class FindingError(SoftmatcherError):
    """Something is wrong; the message says what to do."""


@dataclass(frozen=True)
class Check:
    """One line of the report: `is_ok` None means that it could not be looked at, or does not matter here."""

    name: str
    is_ok: bool | None
    finding: str


def look(name: str, examine: Callable[[], str]) -> Check:
    """Return the line of one examination: fine if it returns a finding, wrong if it raises one."""
    try:
        return Check(name, True, examine())
    except SoftmatcherError as error:
        return Check(name, False, str(error))
    except Exception as error:  # a check that breaks is a finding too, and the others go on
        logger.debug("doctor: %s", name, exc_info=True)
        return Check(name, False, f"{type(error).__name__}: {error}")


def surroundings(settings: Settings) -> Iterator[Check]:
    """Check what needs the settings alone."""
    yield look("disk", lambda: _room(settings))
    yield _password(settings)
    yield _service(settings)
    if settings.allowed_image_hosts:
        yield look("image hosts", lambda: _hosts(settings.allowed_image_hosts))
    else:
        yield Check("image hosts", True, "Label Studio's own only (SOFTMATCHER_ALLOWED_IMAGE_HOSTS is unset)")


def _room(settings: Settings) -> str:
    usage = shutil.disk_usage(settings.data_dir)
    cached_mb = sum(path.stat().st_size for path in settings.cache_dir.rglob("*") if path.is_file()) / 1e6
    free_mb, wanted_mb = usage.free / 1e6, max(0.0, settings.cache_mb - cached_mb)
    if free_mb < wanted_mb + _LITTLE_ROOM_MB:
        raise FindingError(
            f"{free_mb:.0f} MB are free where {settings.data_dir} lies, but the feature cache may grow by "
            f"{wanted_mb:.0f} MB and the store needs some too: make room, or lower SOFTMATCHER_CACHE_MB"
        )
    return (
        f"{free_mb / 1e3:.1f} GB free in {settings.data_dir}, feature cache {cached_mb:.0f} of {settings.cache_mb:g} MB"
    )


def _password(settings: Settings) -> Check:
    if settings.basic_auth_user is not None:
        return Check("password", True, "every route asks for it")
    if is_loopback(settings.host):
        return Check("password", True, f"none, and only this machine reaches {settings.host}")
    return Check(
        "password",
        False,
        f"none, though the service binds to {settings.host}: whoever reaches it can read and change predictions. Set "
        "SOFTMATCHER_BASIC_AUTH_USER and SOFTMATCHER_BASIC_AUTH_PASS, and enter them under Settings > Model",
    )


def _service(settings: Settings) -> Check:
    address = service_address(settings)
    try:
        answer = ask_service(settings)
    except requests.ConnectionError:
        return Check(
            "service", None, f"none answers at {address} here: start it with `python -m backend serve`, or `make up`"
        )
    except HealthError as error:
        return Check("service", False, str(error))
    return Check("service", not answer.model.startswith("failed"), f"{address} answers, models {answer.model}")


def _hosts(names: frozenset[str]) -> str:
    findings = []
    for name in sorted(names):
        host, _, port = name.partition(":")
        try:
            found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, int(port or 443), type=socket.SOCK_STREAM)}
        except (OSError, ValueError) as error:
            raise FindingError(
                f"{name} cannot be looked up ({error}): correct SOFTMATCHER_ALLOWED_IMAGE_HOSTS, `host` or `host:port`"
            ) from error
        findings.append(f"{name} ({'public' if all(map(is_public, found)) else 'private'})")
    return ", ".join(findings)
