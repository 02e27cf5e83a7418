"""The queue: puts jobs on Redis or Valkey by name, and tells who works on them."""

import json
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from rq import Queue, Retry, Worker
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from backend.errors import (
    QueueUnavailableError,
)
from backend.jobs.worker_identity import has_ended
from backend.projects.propagation.work import BATCH_SEPARATOR

REFERENCES, PLANS, PROPAGATIONS = "softmatcher-references", "softmatcher-plans", "softmatcher-propagations"


QUEUES = (REFERENCES, PLANS, PROPAGATIONS)
"""In the order in which workers serve them: a labeler waits for references, nobody for a propagation's end."""


_TASKS = "backend.jobs.tasks"
"""Where the functions are that workers run: a queue knows them by name, so that enqueuing loads none of them."""
_RESULT_TTL_S = 3600


_FAILURE_TTL_S = 7 * 24 * 3600


_PROPAGATION_JOB_TIMEOUT_S = 900


_ABANDONED_RETRIES = 3


MOST_JOBS_A_PROPAGATION = 64


TASKS_WORTH_A_JOB = 10
"""Another worker is called in for so many tasks; it then takes as many as it can get."""


DIFFERENCES_FIELD = "softmatcher_differences"
"""Of a worker's entry in Redis: the settings that it has otherwise than the service."""


_EXECUTION_KEYS = "rq:execution:"


_LEASE_KEYS = "softmatcher:claim:"


_FIGURES_KEY, _SETTINGS_KEY = "softmatcher:figures", "softmatcher:settings"


LEASE_S = 25
"""A worker that was not heard of for so long counts as gone, and its tasks go to others. Heartbeats come every
`BEAT_S`, so four have to be missed."""


BEAT_S = 5.0


class JobQueue:
    """Puts jobs on Redis or Valkey.

    Every method raises `QueueUnavailableError` if Redis does not answer.
    """

    def __init__(self, redis_url: str) -> None:
        self.connection = Redis.from_url(redis_url, socket_connect_timeout=1.0, socket_timeout=2.0)
        self._queues = {name: Queue(name, connection=self.connection, serializer=JSONSerializer) for name in QUEUES}

    def ingest_annotation(self, project_key: str, annotation_id: int) -> str:
        """Returns the job's id: of one that still waits, if there is one, since it will see what is there by then."""
        return self._enqueue_once(REFERENCES, "ingest_annotation", (project_key, annotation_id), timeout_s=300)

    def reconcile(self, project_key: str) -> str:
        """Returns the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(REFERENCES, "reconcile", (project_key,), timeout_s=3600)

    def refresh_project(self, project_key: str) -> str:
        """Returns the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(REFERENCES, "refresh_project", (project_key,), timeout_s=3600)

    def plan_propagation(self, project_key: str, propagation_id: int) -> str:
        """Returns the job's id."""
        return self._enqueue(
            PLANS, "plan_propagation", (project_key, propagation_id), timeout_s=3600, name=_plan_job(propagation_id)
        )

    def propagate(self, project_key: str, propagation_id: int) -> str:
        """Returns the job's id."""
        return self._enqueue(
            PROPAGATIONS, "propagate", (project_key, propagation_id), timeout_s=_PROPAGATION_JOB_TIMEOUT_S,
            name=_propagation_job(propagation_id),
        )  # fmt: skip

    def tidy_propagation(self, project_key: str, propagation_id: int) -> str:
        """Returns the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(PLANS, "tidy_propagation", (project_key, propagation_id), timeout_s=3600)

    def estimate_quality(self, project_key: str) -> str:
        """Returns the job's id."""
        return self._enqueue(PLANS, "estimate_quality", (project_key,), timeout_s=1800)

    def ensure_planned(self, project_key: str, propagation_id: int) -> bool:
        """Queue the planning unless that job waits or runs; whether it was queued."""
        if self._live_jobs(PLANS, _plan_job(propagation_id)):
            return False
        self.plan_propagation(project_key, propagation_id)
        return True

    def ensure_propagation_jobs(self, project_key: str, propagation_id: int, tasks: int) -> int:
        """Queue as many jobs as are missing for `tasks` waiting tasks and the workers there are; how many."""
        wanted = min(-(-tasks // TASKS_WORTH_A_JOB), max(1, self.count_workers()), MOST_JOBS_A_PROPAGATION)
        # One job at least: when all tasks are finished somebody has to tidy up.
        missing = max(1, wanted) - len(self._live_jobs(PROPAGATIONS, _propagation_job(propagation_id)))
        for _ in range(missing):
            self.propagate(project_key, propagation_id)
        return max(0, missing)

    def is_lease_alive(self, claim: str) -> bool:
        """Whether the worker that a claim names still lives and has that job; yes if Redis cannot tell.

        A process of this host that has ended is seen at once. Else heartbeats decide: a worker's key, a job's entry
        among the started ones and `lease_key` expire without them. The last one alone comes back with the next
        heartbeat after the queue was emptied.
        """
        worker, _, job = claim.partition(":")
        if has_ended(worker):
            return False
        try:
            if self.connection.exists(lease_key(worker, job.partition(BATCH_SEPARATOR)[0])):
                return True
            has_key = self.connection.exists(f"{Worker.redis_worker_namespace_prefix}{worker}")
            if has_key and job.partition(BATCH_SEPARATOR)[0] in self._started(PROPAGATIONS):
                return True
            # While Redis was away nobody could send heartbeats: those who live get the time to.
            return _uptime_s(self.connection) < LEASE_S
        except RedisError:
            return True

    def has_references_waiting(self) -> bool:
        """Whether annotations wait to be taken in; no if Redis cannot tell."""
        try:
            return bool(self._queues[REFERENCES].count)
        except RedisError:
            return False

    def waiting(self) -> dict[str, int]:
        """Jobs waiting in each queue; empty if Redis does not answer."""
        try:
            return {name: queue.count for name, queue in self._queues.items()}
        except RedisError:
            return {}

    def publish_settings(self, told: Mapping[str, Any]) -> None:
        """Leave the service's settings for workers.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        try:
            self.connection.set(_SETTINGS_KEY, json.dumps(dict(told)))
        except RedisError as error:
            raise _unavailable(error) from error

    def published_settings(self) -> dict[str, Any]:
        """The service's settings; empty if none has told any.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        return published_settings(self.connection)

    def differences(self) -> list[str]:
        """Return the settings that workers found to be others in the service than with them; none if Redis is away."""
        try:
            keys = sorted(self.connection.smembers(Worker.redis_workers_keys))
            with self.connection.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hmget(key, "hostname", DIFFERENCES_FIELD)
                told = pipeline.execute()
        except RedisError:
            return []
        return [f"{_text(host or b'a worker')}: {one}" for host, found in told if found for one in json.loads(found)]

    def add_counters(self, figures: Mapping[str, float]) -> None:
        """Add to the sums of all workers; they last as long as the queue's data.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        try:
            with self.connection.pipeline() as pipeline:
                for name, value in figures.items():
                    pipeline.hincrbyfloat(_FIGURES_KEY, name, value)
                pipeline.execute()
        except RedisError as error:
            raise _unavailable(error) from error

    def figures(self) -> dict[str, float]:
        """The sums of what all workers counted; empty if Redis does not answer."""
        try:
            return {_text(name): float(value) for name, value in self.connection.hgetall(_FIGURES_KEY).items()}
        except RedisError:
            return {}

    def workers_now(self) -> int | None:
        """Workers that serve the queues; None if Redis does not answer."""
        try:
            return self.count_workers()
        except QueueUnavailableError:
            return None

    def count_workers(self) -> int:
        """Workers that serve the queues now.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        try:
            return int(max(Worker.count(queue=queue) for queue in self._queues.values()))
        except RedisError as error:
            raise _unavailable(error) from error

    def ping(self) -> None:
        """Raise `QueueUnavailableError` unless Redis answers."""
        try:
            self.connection.ping()
        except RedisError as error:
            raise _unavailable(error) from error

    def _started(self, queue: str) -> list[str]:
        # Those whose heartbeats ended stay listed until some worker cleans up: they run no more all the same.
        return [job_id for job_id, rest_ms in executions_left(self._queues[queue]).values() if rest_ms > 0]

    def _live_jobs(self, queue: str, name: str) -> list[str]:
        """Jobs of a name that wait or run."""
        try:
            job_ids = {*map(str, self._queues[queue].get_job_ids()), *self._started(queue)}
        except RedisError as error:
            raise _unavailable(error) from error
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
            raise _unavailable(error) from error
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
            raise _unavailable(error) from error
        return str(job.id)


def lease_key(worker: str, job_id: str) -> str:
    """Return the key that is there as long as a worker runs a job."""
    return f"{_LEASE_KEYS}{worker}:{job_id}"


def published_settings(connection: Redis) -> dict[str, Any]:
    """Return the service's settings; empty if none has told any.

    Raises:
        QueueUnavailableError: Redis does not answer.
    """
    try:
        told = connection.get(_SETTINGS_KEY)
    except RedisError as error:
        raise _unavailable(error) from error
    return dict(json.loads(told)) if told else {}


def executions_left(queue: Queue) -> dict[str, tuple[str, int]]:
    """Return what is listed as running, by entry: the job's id and how long it lives without a heartbeat, ms.

    RQ scores the entries by the clock of the machine that works, and judges them by another's: clocks 25 s apart make
    a working job look dead. The keys of the executions end by Redis' own clock.
    """
    registry = StartedJobRegistry(queue=queue)
    entries = [_text(entry) for entry in queue.connection.zrange(registry.key, 0, -1)]
    with queue.connection.pipeline(transaction=False) as pipeline:
        for entry in entries:
            pipeline.pttl(f"{_EXECUTION_KEYS}{entry}")
        left = pipeline.execute()
    return {
        entry: (str(registry.parse_job_id(entry)), int(rest_ms)) for entry, rest_ms in zip(entries, left, strict=True)
    }


def score_by_own_clock(queue: Queue) -> None:
    """Give each running job the score that RQ's cleaning up on this machine expects, whatever clock wrote it."""
    registry = StartedJobRegistry(queue=queue)
    # While Redis was away nobody could send heartbeats: those who live get the time to.
    least_s = LEASE_S if _uptime_s(queue.connection) < LEASE_S else 0
    now = time.time()
    scores = {}
    for entry, (_, rest_ms) in executions_left(queue).items():
        rest_s = max(least_s, rest_ms / 1000)
        scores[entry] = now + rest_s if rest_s > 0 else 0.0
    if scores:
        queue.connection.zadd(registry.key, scores, xx=True)


def _uptime_s(connection: Redis) -> int:
    return int(connection.info("server")["uptime_in_seconds"])


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode()


def _plan_job(propagation_id: int) -> str:
    return f"plan-{propagation_id}-"


def _propagation_job(propagation_id: int) -> str:
    return f"propagation-{propagation_id}-"


def _unavailable(error: RedisError) -> QueueUnavailableError:
    if isinstance(error, OutOfMemoryError):
        return QueueUnavailableError(
            "Redis is at its memory limit and takes no more jobs: raise its maxmemory, or give it room; what was "
            "announced is taken in then"
        )
    if isinstance(error, ResponseError):
        return QueueUnavailableError(f"Redis refuses ({error}): see that it has room on disk and is no replica")
    return QueueUnavailableError(f"Redis does not answer ({type(error).__name__}): check REDIS_URL and that it runs")
