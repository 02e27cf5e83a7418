"""Connections to Redis or Valkey: clear errors, text, the server's uptime."""

from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from backend.errors import QueueUnavailableError


def queue_unavailable(error: RedisError) -> QueueUnavailableError:
    """Return the error that says what an operator can do about one of Redis."""
    if isinstance(error, OutOfMemoryError):
        return QueueUnavailableError(
            "Redis is at its memory limit and takes no more jobs: raise its maxmemory, or give it room; what was "
            "announced meanwhile is ingested then"
        )
    if isinstance(error, ResponseError):
        return QueueUnavailableError(f"Redis refuses ({error}): check that it has room on disk and is no replica")
    return QueueUnavailableError(f"Redis does not answer ({type(error).__name__}): check REDIS_URL and that it runs")


def to_text(value: bytes | str) -> str:
    """Return what Redis answered as text."""
    return value if isinstance(value, str) else value.decode()


def uptime_s(connection: Redis) -> int:
    """Return for how many seconds the server has been running."""
    return int(connection.info("server")["uptime_in_seconds"])
