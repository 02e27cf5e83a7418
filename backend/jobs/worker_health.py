"""The state of this host's workers; imports little, since a container's health check runs it twice a minute."""

import socket
from dataclasses import dataclass
from datetime import UTC, datetime

from redis import Redis
from redis.exceptions import RedisError
from rq import Worker

from backend.jobs.connection import queue_unavailable

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Heartbeat:
    """The newest heartbeat of a host's workers.

    Attributes:
        host: its name.
        state: of the worker, as RQ calls it: `idle`, `busy`, ...
        silent_s: seconds since then.
    """

    host: str
    state: str
    silent_s: float


def newest_heartbeat(redis_url: str, host: str | None = None) -> Heartbeat | None:
    """Return the newest heartbeat of the workers on a host; None if none is registered.

    Args:
        redis_url: of the queue.
        host: its name; None for this one.

    Raises:
        QueueUnavailableError: Redis does not answer.
    """
    host = host or socket.gethostname()
    connection = Redis.from_url(redis_url, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S)
    try:
        with connection:
            workers = [worker for worker in Worker.all(connection=connection) if worker.hostname == host]
            beats = [(one.last_heartbeat, one.get_state()) for one in workers if one.last_heartbeat is not None]
    except RedisError as error:
        raise queue_unavailable(error) from error
    if not beats:
        return None
    beat, state = max(beats, key=lambda one: one[0])
    return Heartbeat(host, str(state), (datetime.now(UTC) - beat).total_seconds())
