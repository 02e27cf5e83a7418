"""The service under gunicorn: one process, so that the models are in memory once; many threads."""

import ctypes
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger as GunicornLogger

from backend.cli.process.gunicorn_worker import PatientThreadWorker
from backend.cli.process.logs import start_logging
from backend.cli.service_address import bind_address
from backend.errors import ConfigurationError, QueueUnavailableError
from backend.settings import Settings, shared_settings
from backend.web.access import is_loopback

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger(__name__)

_M_ARENA_MAX = -8
"""Number of the option in malloc.h."""


class Service(BaseApplication):  # type: ignore[misc]
    """gunicorn with one process and these settings.

    Args:
        settings: of the process.
        make_app: makes the application, in the process that serves it.
        more: options of gunicorn beside those that are always the same.
    """

    def __init__(self, settings: Settings, make_app: Callable[[], "Flask"], **more: Any) -> None:
        self._settings = settings
        self._make_app = make_app
        self._more = more
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options."""
        settings = self._settings
        options: dict[str, Any] = {
            "bind": bind_address(settings),
            "workers": 1,
            "worker_class": PatientThreadWorker,
            "logger_class": _logger_class(settings),
            "threads": settings.service_threads,
            "timeout": 120,
            "graceful_timeout": 30,
            "keepalive": 5,
            # Headers of this kind (SCRIPT_NAME) would let a client on loopback choose where the application lies.
            "forwarder_headers": "",
            "proc_name": "softmatcher",
            "loglevel": "warning",
            # A health check or a scrape must not be logged twice: the app logs its own line.
            "accesslog": None,
        }
        for name, value in {**options, **self._more}.items():
            self.cfg.set(name, value)

    def load(self) -> "Flask":
        """Return the application."""
        # In gunicorn's worker process: its parent needs no PyTorch, and threads would not survive the fork.
        _share_memory()
        return self._make_app()


def _make_app(settings: Settings) -> "Flask":
    from backend.jobs.redis_queue import RedisQueue
    from backend.projects.composition import open_projects
    from backend.web.app import create_app
    from backend.web.maintenance import Maintenance

    assert settings.redis_url is not None
    projects = open_projects(settings)
    projects.models.start()
    queue = RedisQueue(settings.redis_url)
    projects.metrics.read_from(
        references=projects.count_references,
        cache=projects.models.cache_counters,
        queue=queue.waiting,
        workers=queue.workers_now,
        shared=queue.shared_state.counters,
        propagations=projects.propagations.counters,
    )
    try:
        queue.shared_state.publish_settings(shared_settings(settings))
    except QueueUnavailableError as error:
        logger.warning("workers elsewhere are not told of these settings: %s", error)
    Maintenance(projects, queue).start()
    return create_app(projects, queue)


def _share_memory() -> None:
    """Let all threads take memory from the same two arenas.

    glibc gives each thread one of its own, up to eight a core, and each keeps what its largest request needed.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _logger_class(settings: Settings) -> type[GunicornLogger]:
    class Logger(GunicornLogger):  # type: ignore[misc]
        """gunicorn's lines, as ours."""

        def setup(self, cfg: Any) -> None:
            super().setup(cfg)
            start_logging(settings)

    return Logger


def run_service(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: no REDIS_URL.
    """
    if settings.redis_url is None:
        raise ConfigurationError(
            "the service needs REDIS_URL for its jobs; `python -m backend up` starts a queue of its own"
        )
    if settings.basic_auth_user is None and not is_loopback(settings.host):
        logger.warning(
            "listening on %s without a password: whoever reaches this address can read and change every project; set "
            "SOFTMATCHER_BASIC_AUTH_USER and SOFTMATCHER_BASIC_AUTH_PASS, or keep the port to Label Studio alone",
            settings.host,
        )
    if os.environ.pop("SCRIPT_NAME", None) is not None:
        # gunicorn would answer 500 to every path outside it.
        logger.warning("SCRIPT_NAME of the environment is not used: a proxy's address goes into SOFTMATCHER_PUBLIC_URL")
    Service(settings, partial(_make_app, settings)).run()
