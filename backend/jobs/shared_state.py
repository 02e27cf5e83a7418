"""State that service and workers share through Redis beside jobs: settings, their differences, counters."""

import json
from collections.abc import Mapping
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Worker

from backend.jobs.connection import queue_unavailable, to_text

DIFFERENCES_FIELD = "softmatcher_differences"
"""Field of a worker's entry in Redis: the settings that differ from the service's."""

_COUNTERS_KEY, _SETTINGS_KEY = "softmatcher:figures", "softmatcher:settings"


class SharedState:
    """Settings of the service, and sums of what all workers counted; they last as long as the queue's data.

    Args:
        connection: to Redis.
    """

    def __init__(self, connection: Redis) -> None:
        self._connection = connection

    def publish_settings(self, shared: Mapping[str, Any]) -> None:
        """Leave the service's settings for workers.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        try:
            self._connection.set(_SETTINGS_KEY, json.dumps(dict(shared)))
        except RedisError as error:
            raise queue_unavailable(error) from error

    def published_settings(self) -> dict[str, Any]:
        """Return the service's settings; empty if none has published any.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        try:
            found = self._connection.get(_SETTINGS_KEY)
        except RedisError as error:
            raise queue_unavailable(error) from error
        return dict(json.loads(found)) if found else {}

    def differences(self) -> list[str]:
        """Return the settings in which workers found the service to differ; none if Redis does not answer."""
        try:
            keys = sorted(self._connection.smembers(Worker.redis_workers_keys))
            with self._connection.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hmget(key, "hostname", DIFFERENCES_FIELD)
                answers = pipeline.execute()
        except RedisError:
            return []
        return [
            f"{to_text(host or b'a worker')}: {one}" for host, found in answers if found for one in json.loads(found)
        ]

    def add_counters(self, counters: Mapping[str, float]) -> None:
        """Add to the sums of all workers.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        try:
            with self._connection.pipeline() as pipeline:
                for name, value in counters.items():
                    pipeline.hincrbyfloat(_COUNTERS_KEY, name, value)
                pipeline.execute()
        except RedisError as error:
            raise queue_unavailable(error) from error

    def counters(self) -> dict[str, float]:
        """Return the sums of what all workers counted; empty if Redis does not answer."""
        try:
            found = self._connection.hgetall(_COUNTERS_KEY)
        except RedisError:
            return {}
        return {to_text(name): float(value) for name, value in found.items()}
