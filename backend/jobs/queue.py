"""The queue: puts jobs on Redis or Valkey by name, and tells which of them wait or run."""

import time
from collections.abc import Sequence
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Retry, Worker
from rq.serializers import JSONSerializer

from backend.errors import QueueUnavailableError
from backend.jobs.connection import queue_unavailable, to_text
from backend.jobs.leases import is_lease_alive, list_running
from backend.jobs.shared_state import SharedState
from backend.store.records import ProjectKey

REFERENCES, TILES, PLANS, PROPAGATIONS = (
    "softmatcher-references", "softmatcher-tiles", "softmatcher-plans", "softmatcher-propagations",
)  # fmt: skip
QUEUES = (REFERENCES, TILES, PLANS, PROPAGATIONS)
"""In the order in which workers serve them: a labeler waits for references, then somebody who looks at the project's
page for its tiles; nobody for a propagation's end."""
VISIBLE_S = 45.0
"""Seconds for which a task counts as visible after a page said so; pages say it again every 20 s."""
MOST_VISIBLE = 120
"""Tasks that count as visible at a time, the last ones named."""
MOST_JOBS_A_PROPAGATION = 64
"""Most jobs of one propagation that wait or run at a time."""
TASKS_WORTH_A_JOB = 10
"""Number of waiting tasks for which another worker is called; it then takes as many as it can get."""

_TASKS = "backend.jobs.tasks"
"""Module of the functions that workers run: a queue knows them by name, so that enqueuing loads none of them."""
_RESULT_TTL_S = 3600
_FAILURE_TTL_S = 7 * 24 * 3600
_PROPAGATION_JOB_TIMEOUT_S = 900
_ABANDONED_RETRIES = 3


class JobQueue:
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

    def ingest_annotation(self, project_key: ProjectKey, annotation_id: int) -> str:
        """Have one annotation's references made anew; return the job's id.

        If such a job still waits, its id is returned: it will see what is there by then.
        """
        return self._enqueue_once(REFERENCES, "ingest_annotation", (project_key, annotation_id), timeout_s=300)

    def reconcile(self, project_key: ProjectKey) -> str:
        """Have a project compared with Label Studio; return the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(REFERENCES, "reconcile", (project_key,), timeout_s=3600)

    def refresh_project(self, project_key: ProjectKey) -> str:
        """Have a project's label config and title read again; return the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(REFERENCES, "refresh_project", (project_key,), timeout_s=3600)

    def plan_propagation(self, project_key: ProjectKey, propagation_id: int) -> str:
        """Have a propagation's tasks listed; return the job's id."""
        return self._enqueue(
            PLANS, "plan_propagation", (project_key, propagation_id), timeout_s=3600, name=_plan_job(propagation_id)
        )

    def propagate(self, project_key: ProjectKey, propagation_id: int) -> str:
        """Have tasks of a propagation predicted by one more worker; return the job's id."""
        return self._enqueue(
            PROPAGATIONS, "propagate", (project_key, propagation_id), timeout_s=_PROPAGATION_JOB_TIMEOUT_S,
            name=_propagation_job(propagation_id),
        )  # fmt: skip

    def tidy_propagation(self, project_key: ProjectKey, propagation_id: int) -> str:
        """Have surplus predictions of a propagation removed; return the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(PLANS, "tidy_propagation", (project_key, propagation_id), timeout_s=3600)

    def refresh_tiles(self, project_key: ProjectKey) -> str:
        """Have the tiles predicted that somebody looks at; return the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(TILES, "refresh_tiles", (project_key,), timeout_s=300)

    def accept_predictions(self, project_key: ProjectKey, score: float, batch: str) -> str:
        """Have annotations made of predictions; return the job's id."""
        return self._enqueue(PLANS, "accept_predictions", (project_key, score, batch), timeout_s=3600)

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

    def estimate_quality(self, project_key: ProjectKey, compare: Sequence[str] = (), attempt: int = 1) -> str:
        """Have a project's quality measured on its annotated images; return the job's id.

        If such a job still waits, its id is returned.

        Args:
            project_key: of the project.
            compare: ways to match that are compared, see `EvaluationPlan`.
            attempt: how often it was begun, this time included.
        """
        args = (project_key, list(compare), attempt)
        return self._enqueue_once(PLANS, "estimate_quality", args, timeout_s=1800)

    def train_refiners(self, project_key: ProjectKey) -> str:
        """Have the refiners trained that are due; return the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(PLANS, "train_refiners", (project_key,), timeout_s=1800)

    def order_tasks(self, project_key: ProjectKey) -> str:
        """Have clusters set in Label Studio, or removed; return the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(PLANS, "order_tasks", (project_key,), timeout_s=1800)

    def scale_phrases(self, project_key: ProjectKey) -> str:
        """Have the scales of a project's phrases measured; return the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(REFERENCES, "scale_phrases", (project_key,), timeout_s=1800)

    def ensure_planned(self, project_key: ProjectKey, propagation_id: int) -> bool:
        """Queue the planning unless that job waits or runs; return whether it was queued."""
        if self._live_jobs(PLANS, _plan_job(propagation_id)):
            return False
        self.plan_propagation(project_key, propagation_id)
        return True

    def ensure_propagation_jobs(self, project_key: ProjectKey, propagation_id: int, tasks: int) -> int:
        """Queue the jobs that are missing for `tasks` waiting tasks and the present workers; return how many."""
        wanted = min(-(-tasks // TASKS_WORTH_A_JOB), max(1, self.count_workers()), MOST_JOBS_A_PROPAGATION)
        # One job at least: when all tasks are finished somebody has to tidy up.
        missing = max(1, wanted) - len(self._live_jobs(PROPAGATIONS, _propagation_job(propagation_id)))
        for _ in range(missing):
            self.propagate(project_key, propagation_id)
        return max(0, missing)

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

    def workers_now(self) -> int | None:
        """Return the number of workers that serve the queues; None if Redis does not answer."""
        try:
            return self.count_workers()
        except QueueUnavailableError:
            return None

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


def _plan_job(propagation_id: int) -> str:
    return f"plan-{propagation_id}-"


def _propagation_job(propagation_id: int) -> str:
    return f"propagation-{propagation_id}-"
