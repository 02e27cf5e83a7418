"""What the workers do: plain functions of ids and JSON, and the queue that the service puts them on.

A job may run twice or late: each looks at the state of Label Studio when it runs, so the result is the same.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Worker
from rq.serializers import JSONSerializer

from backend.errors import ConfigurationError, LabelStudioUnavailableError, QueueUnavailableError
from backend.projects import Projects

logger = logging.getLogger(__name__)

REFERENCES, PREDICTIONS = "softmatcher-references", "softmatcher-predictions"
QUEUES = (REFERENCES, PREDICTIONS)
"""In the order in which workers serve them."""

_RESULT_TTL_S = 3600
_FAILURE_TTL_S = 7 * 24 * 3600
_TASKS_A_JOB = 50

_projects: Projects | None = None


def use_projects(projects: Projects | None) -> None:
    """Name what this process' jobs work on; the worker calls it once, before its first job."""
    global _projects
    _projects = projects


def _current() -> Projects:
    if _projects is None:
        raise ConfigurationError("jobs run in a worker: start one with `python -m backend work`")
    return _projects


def _run(name: str, project_key: str, work: Callable[[Projects], dict[str, Any]]) -> dict[str, Any]:
    started = time.perf_counter()
    projects = _current()
    try:
        outcome = work(projects)
    except LabelStudioUnavailableError as error:
        # Nothing is lost: the project is looked through again as soon as Label Studio is back.
        projects.store.save_project(project_key, needs_reconcile=True)
        logger.warning("job=%s project=%s waits for Label Studio: %s", name, project_key, error)
        return {"waits_for_label_studio": str(error)}
    figures = " ".join(f"{key}={value}" for key, value in outcome.items())
    logger.info("job=%s project=%s %s ms=%.0f", name, project_key, figures, 1000 * (time.perf_counter() - started))
    return outcome


def take_in_annotation(project_key: str, annotation_id: int) -> dict[str, Any]:
    """Make the references of one annotation what Label Studio says now; removes them if it is gone."""
    return _run(
        "take_in_annotation", project_key,
        lambda projects: {
            "annotation": annotation_id, "outcome": projects.references.take_in(project_key, annotation_id)
        },
    )  # fmt: skip


def reconcile(project_key: str) -> dict[str, Any]:
    """Take in all that Label Studio has and did not announce, and forget what it has no more."""
    return _run("reconcile", project_key, lambda projects: projects.references.reconcile(project_key))


def predict_tasks(project_key: str, task_ids: list[int]) -> dict[str, Any]:
    """Predict tasks and write the predictions through Label Studio's API, none twice for one model_version."""
    return _run(
        "predict_tasks", project_key, lambda projects: projects.predictions.write_to_label_studio(project_key, task_ids)
    )


class JobQueue:
    """Puts jobs on Redis or Valkey.

    Every method raises `QueueUnavailableError` if Redis does not answer.
    """

    def __init__(self, redis_url: str) -> None:
        self.connection = Redis.from_url(redis_url, socket_connect_timeout=1.0, socket_timeout=2.0)
        self._queues = {name: Queue(name, connection=self.connection, serializer=JSONSerializer) for name in QUEUES}

    def take_in_annotation(self, project_key: str, annotation_id: int) -> str:
        """Returns the job's id."""
        return self._enqueue(REFERENCES, take_in_annotation, (project_key, annotation_id), timeout_s=300)

    def reconcile(self, project_key: str) -> str:
        """Returns the job's id."""
        return self._enqueue(REFERENCES, reconcile, (project_key,), timeout_s=3600)

    def predict_tasks(self, project_key: str, task_ids: Sequence[int]) -> list[str]:
        """Returns the ids of the jobs, one for each 50 tasks."""
        return [
            self._enqueue(
                PREDICTIONS, predict_tasks, (project_key, list(task_ids[start : start + _TASKS_A_JOB])), timeout_s=1800
            )
            for start in range(0, len(task_ids), _TASKS_A_JOB)
        ]

    def waiting(self) -> dict[str, int]:
        """Jobs waiting in each queue; empty if Redis does not answer."""
        try:
            return {name: queue.count for name, queue in self._queues.items()}
        except RedisError:
            return {}

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

    def _enqueue(self, name: str, function: Callable[..., object], args: tuple[object, ...], *, timeout_s: int) -> str:
        try:
            job = self._queues[name].enqueue_call(
                function, args=args, timeout=timeout_s, result_ttl=_RESULT_TTL_S, failure_ttl=_FAILURE_TTL_S
            )
        except RedisError as error:
            raise _unavailable(error) from error
        return str(job.id)


def _unavailable(error: RedisError) -> QueueUnavailableError:
    return QueueUnavailableError(f"Redis does not answer ({type(error).__name__}): check REDIS_URL and that it runs")
