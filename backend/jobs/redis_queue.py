"""The queue on Redis or Valkey: puts jobs there by name, and tells which of them wait or run."""

import time
from collections.abc import Mapping, Sequence
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Retry, Worker
from rq.serializers import JSONSerializer

from backend.jobs.connection import queue_unavailable, to_text
from backend.jobs.leases import is_lease_alive, list_running
from backend.jobs.queue import MOST_VISIBLE, PROPAGATIONS, QUEUES, REFERENCES, TILES, VISIBLE_S, JobQueue
from backend.jobs.shared_state import SharedState
from backend.store.records import ProjectKey

_TASKS = "backend.jobs.tasks"
"""Module of the functions that workers run: a queue knows them by name, so that enqueuing loads none of them."""
_RESULT_TTL_S = 3600
_FAILURE_TTL_S = 7 * 24 * 3600
_ABANDONED_RETRIES = 3


class RedisQueue(JobQueue):
    """Puts jobs on Redis or Valkey.

    What enqueues raises `QueueUnavailableError` if Redis does not answer; what only asks answers as its docstring says.

    Attributes:
        connection: to Redis.
        shared_state: settings and counters of service and workers.
    """

    def __init__(self, redis_url: str) -> None:
        self.connection = Redis.from_url(redis_url, socket_connect_timeout=1.0, socket_timeout=2.0)
        self.shared_state = SharedState(self.connection)
        self._queues = {name: Queue(name, connection=self.connection, serializer=JSONSerializer) for name in QUEUES}

    def note_visible(self, project_key: ProjectKey, task_ids: Sequence[int]) -> None:
        """Note that somebody looks at these tasks on the project's page."""
        if not task_ids:
            return
        now, key = time.time(), _visible_key(project_key)
        try:
            with self.connection.pipeline(transaction=False) as pipeline:
                pipeline.zadd(key, {str(task_id): now - place * 1e-6 for place, task_id in enumerate(task_ids)})
                pipeline.zremrangebyrank(key, 0, -MOST_VISIBLE - 1)
                pipeline.expire(key, int(VISIBLE_S))
                pipeline.execute()
        except RedisError as error:
            raise queue_unavailable(error) from error

    def visible(self, project_key: ProjectKey) -> list[int]:
        """Return the tasks that somebody looks at, in the order of their tiles; [] if Redis does not answer."""
        try:
            found = self.connection.zrevrangebyscore(_visible_key(project_key), "+inf", time.time() - VISIBLE_S)
        except RedisError:
            return []
        return [int(to_text(task_id)) for task_id in found if isinstance(task_id, bytes | str)]

    def is_lease_alive(self, lease: str) -> bool:
        """Return whether the worker that a lease names still lives and has that job; True if Redis cannot tell.

        Args:
            lease: `<worker>:<job id>` of a propagation's job.
        """
        return is_lease_alive(self._queues[PROPAGATIONS], lease)

    def has_references_waiting(self) -> bool:
        """Return whether annotations wait to be ingested; False if Redis cannot tell."""
        try:
            return bool(self._queues[REFERENCES].count)
        except RedisError:
            return False

    def has_labelers_waiting(self) -> bool:
        """Return whether annotations wait to be ingested, or tiles to be predicted; False if Redis cannot tell."""
        try:
            return bool(self._queues[REFERENCES].count or self._queues[TILES].count)
        except RedisError:
            return False

    def waiting(self) -> dict[str, int]:
        """Return the number of waiting jobs by queue; empty if Redis does not answer."""
        try:
            return {name: queue.count for name, queue in self._queues.items()}
        except RedisError:
            return {}

    def share_counters(self, counters: Mapping[str, float]) -> None:
        """Add to the sums of all workers.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        self.shared_state.add_counters(counters)

    def count_workers(self) -> int:
        """Return the number of workers that serve the queues.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        try:
            return int(max(Worker.count(queue=queue) for queue in self._queues.values()))
        except RedisError as error:
            raise queue_unavailable(error) from error

    def ping(self) -> None:
        """Raise `QueueUnavailableError` unless Redis answers."""
        try:
            self.connection.ping()
        except RedisError as error:
            raise queue_unavailable(error) from error

    def _waiting_jobs(self, queues: Sequence[str]) -> list[str]:
        """Return the ids of the jobs that wait in some queues; [] if Redis does not answer."""
        try:
            return [str(job) for name in queues for job in self._queues[name].get_job_ids()]
        except RedisError:
            return []

    def _live_jobs(self, queue: str, name: str) -> list[str]:
        """Return the ids of the jobs of a name that wait or run."""
        try:
            waiting = map(str, self._queues[queue].get_job_ids())
            # Those whose heartbeats ended stay listed until some worker cleans up: they run no more all the same.
            running = (job.job_id for job in list_running(self._queues[queue]) if job.rest_ms > 0)
            job_ids = {*waiting, *running}
        except RedisError as error:
            raise queue_unavailable(error) from error
        return [job_id for job_id in job_ids if job_id.startswith(name)]

    def _enqueue_once(self, queue: str, function: str, args: tuple[object, ...], *, timeout_s: int) -> str:
        # The queue is bounded by what there is to do, however often it is announced.
        noted = f"softmatcher:waiting:{function}:{':'.join(map(str, args))}"
        try:
            found = self.connection.get(noted)
            waiting = found.decode() if isinstance(found, bytes) else found
            if waiting is not None and self.connection.lpos(self._queues[queue].key, waiting) is not None:
                return waiting
            job_id = self._enqueue(queue, function, args, timeout_s=timeout_s)
            self.connection.set(noted, job_id, ex=_RESULT_TTL_S)
        except RedisError as error:
            raise queue_unavailable(error) from error
        return job_id

    def _enqueue(
        self,
        queue: str,
        function: str,
        args: tuple[object, ...],
        *,
        timeout_s: int,
        name: str | None = None,
    ) -> str:
        try:
            job = self._queues[queue].enqueue_call(
                f"{_TASKS}.{function}",
                args=args,
                timeout=timeout_s,
                result_ttl=_RESULT_TTL_S,
                failure_ttl=_FAILURE_TTL_S,
                job_id=None if name is None else f"{name}{uuid4().hex}",
                # For jobs whose worker vanished; what fails in a propagation is noted there, and is no failed job.
                retry=None if name is None else Retry(max=_ABANDONED_RETRIES),
            )
        except RedisError as error:
            raise queue_unavailable(error) from error
        return str(job.id)


def _visible_key(project_key: ProjectKey) -> str:
    return f"softmatcher:visible:{project_key}"
