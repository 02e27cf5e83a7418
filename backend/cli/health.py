"""`health`: whether the service, or this host's worker, is alive. For containers, so it starts quickly."""

import socket
from dataclasses import dataclass

import requests

from backend.cli.service_address import service_address
from backend.errors import ConfigurationError, SoftmatcherError
from backend.own_http import Session
from backend.settings import Settings

_TIMEOUT_S = 5.0
_SILENT_S = 60.0
"""Seconds without a heartbeat after which a worker is not well. It sends one every 5 s during a job, and at least every
10 s between jobs."""


class HealthError(SoftmatcherError):
    """Raised for an unhealthy process; the message says why."""


@dataclass(frozen=True)
class ServiceHealth:
    """The answer of /health."""

    model: str
    version: str


def ask_service(settings: Settings) -> ServiceHealth:
    """Ask the service of these settings for its /health.

    Raises:
        HealthError: it answers, but not as it should.
        requests.ConnectionError: nobody answers.
    """
    password = settings.basic_auth_pass
    auth = (settings.basic_auth_user or "", password.get_secret_value()) if password is not None else None
    with Session(is_own=True) as session:
        try:
            response = session.get(f"{service_address(settings)}/health", auth=auth, timeout=_TIMEOUT_S)
        except requests.Timeout as error:
            raise HealthError(
                f"{service_address(settings)}/health must answer within {_TIMEOUT_S:g} s, got none"
            ) from error
    try:
        answer = response.json() if response.status_code in (200, 503) else {}
    except ValueError:
        answer = {}
    if not isinstance(answer, dict):
        answer = {}
    if answer.get("status") == "DOWN":
        raise HealthError(f"{service_address(settings)}: {answer.get('store')}")
    if answer.get("model_class") != "Softmatcher":
        raise HealthError(
            f"{service_address(settings)}/health must answer 200 as Softmatcher, got {response.status_code}: is it "
            "another program, or another password?"
        )
    return ServiceHealth(str(answer["model"]), str(answer["version"]))


def check_service(settings: Settings) -> str:
    """Return the models' state.

    Raises:
        HealthError: nobody answers, or not as expected, or the models cannot be loaded.
    """
    try:
        health = ask_service(settings)
    except requests.ConnectionError as error:
        raise HealthError(f"nobody answers at {service_address(settings)}") from error
    if health.model.startswith("failed"):
        raise HealthError(f"models {health.model}")
    return f"models {health.model}"


def check_worker(settings: Settings) -> str:
    """Return the state of the worker on this host, by the heartbeats that it leaves in Redis.

    Raises:
        ConfigurationError: no REDIS_URL.
        HealthError: there is none, or it was not heard of for a minute.
        QueueUnavailableError: Redis does not answer.
    """
    # Only now: the service's check, twice a minute, needs none of it.
    from backend.jobs.worker_health import newest_heartbeat

    if settings.redis_url is None:
        raise ConfigurationError("a worker needs REDIS_URL")
    found = newest_heartbeat(settings.redis_url)
    if found is None:
        raise HealthError(f"no worker of {socket.gethostname()} has registered in Redis")
    if found.silent_s > _SILENT_S:
        raise HealthError(f"the worker of {found.host} was last heard of {found.silent_s:.0f} s ago")
    return f"worker {found.state}, heard of {found.silent_s:.0f} s ago"
