"""What the workers do: plain functions of ids and JSON, and the queue that the service puts them on.

A job may run twice or late: each looks at the state of the store and of Label Studio when it runs, so the result is the
same.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from rq import Queue, Retry, Worker, get_current_job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from backend.errors import (
    ConfigurationError,
    LabelStudioUnavailableError,
    NotFoundError,
    QueueUnavailableError,
    SoftmatcherError,
)
from backend.jobs.worker_identity import has_ended
from backend.labelstudio.image_decoding import DECODING_ENDS_AFTER_S, allow_decoding, stop_decoding
from backend.projects.composition import Projects
from backend.projects.propagation.work import LANE
from backend.settings import LANES

logger = logging.getLogger(__name__)

REFERENCES, PLANS, PROPAGATIONS = "softmatcher-references", "softmatcher-plans", "softmatcher-propagations"
QUEUES = (REFERENCES, PLANS, PROPAGATIONS)
"""In the order in which workers serve them: a labeler waits for references, nobody for a propagation's end."""

_RESULT_TTL_S = 3600
_FAILURE_TTL_S = 7 * 24 * 3600
_PROPAGATION_JOB_TIMEOUT_S = 900
_ABANDONED_RETRIES = 3
_MOST_JOBS_A_PROPAGATION = 64
_TASKS_WORTH_A_JOB = 10
"""Another worker is called in for so many tasks; it then takes as many as it can get."""
_QUEUE_ASKED_S = 0.5
DIFFERENCES_FIELD = "softmatcher_differences"
"""Of a worker's entry in Redis: the settings that it has otherwise than the service."""
_EXECUTION_KEYS = "rq:execution:"
_CLAIM_KEYS = "softmatcher:claim:"
_FIGURES_KEY, _SETTINGS_KEY = "softmatcher:figures", "softmatcher:settings"

LEASE_S = 25
"""A worker that was not heard of for so long counts as gone, and its tasks go to others. Heartbeats come every
`BEAT_S`, so four have to be missed."""
BEAT_S = 5.0

_projects: Projects | None = None
_queue: "JobQueue | None" = None
_stopping = threading.Event()
_shared: dict[str, float] = {}


def use_projects(projects: Projects | None, queue: "JobQueue | None" = None) -> None:
    """Name what this process' jobs work on, and where they put further jobs; once, before the first job."""
    global _projects, _queue
    _projects, _queue = projects, queue
    _stopping.clear()
    allow_decoding()
    _shared.clear()


def ask_to_stop() -> None:
    """Let the running job give back what it has not begun: the worker is to end."""
    _stopping.set()
    stop_decoding(after_s=DECODING_ENDS_AFTER_S)


def is_stopping() -> bool:
    """Return whether this process was asked to end."""
    return _stopping.is_set()


def wait_to_stop(seconds: float) -> bool:
    """Wait until this process is asked to end, or so long; whether it was."""
    deadline = time.monotonic() + seconds
    # Not the event's own wait: a signal's handler that sets it could meet its lock taken by this thread.
    while not _stopping.is_set() and time.monotonic() < deadline:
        time.sleep(0.1)
    return _stopping.is_set()


def leave_for_maintenance(project_key: str) -> None:
    """Have a project looked through later: the queue gave out one of its jobs and could not note that it began."""
    projects, _ = _current()
    projects.store.mark_for_reconcile(project_key)


def share_figures() -> None:
    """Add what this process counted since the last time to the sums that the service shows; later if Redis is away."""
    projects, queue = _current()
    totals = projects.metrics.totals()
    news = {name: value - _shared.get(name, 0.0) for name, value in totals.items() if value != _shared.get(name, 0.0)}
    if news:
        queue.add_figures(news)
        _shared.update(totals)


def _current() -> tuple[Projects, "JobQueue"]:
    if _projects is None or _queue is None:
        raise ConfigurationError("jobs run in a worker: start one with `python -m backend work`")
    return _projects, _queue


def _run(name: str, project_key: str, work: Callable[[Projects], dict[str, Any]]) -> dict[str, Any]:
    started = time.perf_counter()
    projects, _ = _current()
    level = logging.INFO
    try:
        outcome = work(projects)
    except LabelStudioUnavailableError as error:
        # Nothing is lost: the project is looked through again as soon as Label Studio is back.
        projects.store.mark_for_reconcile(project_key)
        outcome, level = {"waits_for_label_studio": str(error)}, logging.WARNING
    except NotFoundError as error:
        outcome, level = {"gone": str(error)}, logging.WARNING
    except SoftmatcherError as error:
        # A wrong token, say. It is tried again, so that what the operator mends makes up for what was missed.
        projects.store.mark_for_reconcile(project_key)
        outcome, level = {"failed": str(error)}, logging.ERROR
    _log_job(name, project_key, started, outcome, level=level)
    return outcome


def _log_job(
    name: str, project_key: str, started: float, outcome: dict[str, Any], *, level: int = logging.INFO
) -> None:
    job, milliseconds = get_current_job(), round(1000 * (time.perf_counter() - started))
    figures = {"id": job.id if job is not None else "inline", "project": project_key, **outcome, "ms": milliseconds}
    logger.log(
        level, "job=%s %s", name, " ".join(f"{key}={value}" for key, value in figures.items()),
        extra={"figures": {"job": name, **figures}},
    )  # fmt: skip


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


def refresh_project(project_key: str) -> dict[str, Any]:
    """Ask Label Studio what a project is now; with another label config its annotations are compared, too."""

    def work(projects: Projects) -> dict[str, Any]:
        before = projects.store.project(project_key)
        after = projects.references.look_at_project(project_key)
        if before is not None and before.label_config == after.label_config:
            return {"title": after.title}
        # With another label config an annotation may mean more, or less, than it did.
        return projects.references.reconcile(project_key)

    return _run("refresh_project", project_key, work)


def plan_propagation(project_key: str, propagation_id: int) -> dict[str, Any]:
    """Look the project through, list its tasks, and call workers as the list grows."""
    projects, queue = _current()
    started = time.perf_counter()
    try:
        outcome = projects.propagation_plans.plan(
            propagation_id, on_page=lambda: _call_workers(projects, queue, project_key, propagation_id)
        )
    except NotFoundError as error:
        outcome = {"gone": str(error)}
    if outcome.get("planned") or outcome.get("paused_s") is None:
        _call_workers(projects, queue, project_key, propagation_id)
    _log_job("plan_propagation", project_key, started, {"propagation": propagation_id, **outcome})
    return outcome


def propagate(project_key: str, propagation_id: int) -> dict[str, Any]:
    """Predict tasks of a propagation for some minutes, write them to Label Studio, leave the rest to another job."""
    projects, queue = _current()
    started = time.perf_counter()
    must_stop = _StopSignal(queue)
    job = get_current_job()
    claim = f"{job.worker_name}:{job.id}" if job is not None else f"inline:{uuid4().hex}"
    try:
        worked = projects.propagation_work.run(
            propagation_id, claim, is_alive=queue.is_claim_alive, should_stop=must_stop, lanes=LANES
        )
    except NotFoundError as error:
        gone = {"propagation": propagation_id, "gone": str(error)}
        _log_job("propagate", project_key, started, gone, level=logging.WARNING)
        return gone
    if worked.left == "more":
        try:
            queue.propagate(project_key, propagation_id)
        except QueueUnavailableError as error:
            logger.warning("propagation=%d waits for the queue: %s", propagation_id, error)
    outcome = {"propagation": propagation_id, "finished": worked.finished, "left": worked.left}
    _log_job("propagate", project_key, started, outcome)
    return outcome


def tidy_propagation(project_key: str, propagation_id: int) -> dict[str, Any]:
    """Remove what an import left twice that Label Studio did after its answer was given up."""
    return _run(
        "tidy_propagation", project_key,
        lambda projects: {
            "propagation": propagation_id, "removed": projects.propagation_work.tidy_late(propagation_id)
        },
    )  # fmt: skip


def estimate_quality(project_key: str) -> dict[str, Any]:
    """Leave each reference out in turn and predict it from the others."""
    return _run(
        "estimate_quality", project_key, lambda projects: {"iou": projects.quality.estimate(project_key)["iou"]}
    )


def _call_workers(projects: Projects, queue: "JobQueue", project_key: str, propagation_id: int) -> None:
    """See that there are as many jobs as are of use: one for each worker, as far as there are tasks for it."""
    try:
        record = projects.store.propagations.get(propagation_id)
        if record.is_active:
            waiting = projects.store.propagation_tasks.waiting(
                propagation_id, _MOST_JOBS_A_PROPAGATION * _TASKS_WORTH_A_JOB
            )
            queue.ensure_propagation_jobs(project_key, propagation_id, waiting)
    except (NotFoundError, QueueUnavailableError) as error:
        logger.warning("propagation=%d workers are called later: %s", propagation_id, error)


class _StopSignal:
    """True when the worker is to end, or an annotation waits: labelers go first."""

    def __init__(self, queue: "JobQueue") -> None:
        self._queue = queue
        self._asked_at = time.monotonic()

    def __call__(self) -> bool:
        if _stopping.is_set():
            return True
        if time.monotonic() - self._asked_at < _QUEUE_ASKED_S:
            return False
        self._asked_at = time.monotonic()
        return self._queue.has_references_waiting()


class JobQueue:
    """Puts jobs on Redis or Valkey.

    Every method raises `QueueUnavailableError` if Redis does not answer.
    """

    def __init__(self, redis_url: str) -> None:
        self.connection = Redis.from_url(redis_url, socket_connect_timeout=1.0, socket_timeout=2.0)
        self._queues = {name: Queue(name, connection=self.connection, serializer=JSONSerializer) for name in QUEUES}

    def take_in_annotation(self, project_key: str, annotation_id: int) -> str:
        """Returns the job's id: of one that still waits, if there is one, since it will see what is there by then."""
        return self._enqueue_once(REFERENCES, take_in_annotation, (project_key, annotation_id), timeout_s=300)

    def reconcile(self, project_key: str) -> str:
        """Returns the job's id, as `take_in_annotation` does."""
        return self._enqueue_once(REFERENCES, reconcile, (project_key,), timeout_s=3600)

    def refresh_project(self, project_key: str) -> str:
        """Returns the job's id, as `take_in_annotation` does."""
        return self._enqueue_once(REFERENCES, refresh_project, (project_key,), timeout_s=3600)

    def plan_propagation(self, project_key: str, propagation_id: int) -> str:
        """Returns the job's id."""
        return self._enqueue(
            PLANS, plan_propagation, (project_key, propagation_id), timeout_s=3600, name=_plan_job(propagation_id)
        )

    def propagate(self, project_key: str, propagation_id: int) -> str:
        """Returns the job's id."""
        return self._enqueue(
            PROPAGATIONS, propagate, (project_key, propagation_id), timeout_s=_PROPAGATION_JOB_TIMEOUT_S,
            name=_propagation_job(propagation_id),
        )  # fmt: skip

    def tidy_propagation(self, project_key: str, propagation_id: int) -> str:
        """Returns the job's id, as `take_in_annotation` does."""
        return self._enqueue_once(PLANS, tidy_propagation, (project_key, propagation_id), timeout_s=3600)

    def estimate_quality(self, project_key: str) -> str:
        """Returns the job's id."""
        return self._enqueue(PLANS, estimate_quality, (project_key,), timeout_s=1800)

    def ensure_planned(self, project_key: str, propagation_id: int) -> bool:
        """Queue the planning unless that job waits or runs; whether it was queued."""
        if self._live_jobs(PLANS, _plan_job(propagation_id)):
            return False
        self.plan_propagation(project_key, propagation_id)
        return True

    def ensure_propagation_jobs(self, project_key: str, propagation_id: int, tasks: int) -> int:
        """Queue as many jobs as are missing for `tasks` waiting tasks and the workers there are; how many."""
        wanted = min(-(-tasks // _TASKS_WORTH_A_JOB), max(1, self.count_workers()), _MOST_JOBS_A_PROPAGATION)
        # One job at least: when all tasks are finished somebody has to tidy up.
        missing = max(1, wanted) - len(self._live_jobs(PROPAGATIONS, _propagation_job(propagation_id)))
        for _ in range(missing):
            self.propagate(project_key, propagation_id)
        return max(0, missing)

    def is_claim_alive(self, claim: str) -> bool:
        """Whether the worker that a claim names still lives and has that job; yes if Redis cannot tell.

        A process of this host that has ended is seen at once. Else heartbeats decide: a worker's key, a job's entry
        among the started ones and `claim_key` expire without them. The last one alone comes back with the next
        heartbeat after the queue was emptied.
        """
        worker, _, job = claim.partition(":")
        if has_ended(worker):
            return False
        try:
            if self.connection.exists(claim_key(worker, job.partition(LANE)[0])):
                return True
            has_key = self.connection.exists(f"{Worker.redis_worker_namespace_prefix}{worker}")
            if has_key and job.partition(LANE)[0] in self._started(PROPAGATIONS):
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

    def tell_settings(self, told: Mapping[str, Any]) -> None:
        """Leave the service's settings for workers.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        try:
            self.connection.set(_SETTINGS_KEY, json.dumps(dict(told)))
        except RedisError as error:
            raise _unavailable(error) from error

    def told_settings(self) -> dict[str, Any]:
        """The service's settings; empty if none has told any.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        return told_settings(self.connection)

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

    def add_figures(self, figures: Mapping[str, float]) -> None:
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

    def _enqueue_once(
        self, queue: str, function: Callable[..., object], args: tuple[object, ...], *, timeout_s: int
    ) -> str:
        # The queue is bounded by what there is to do, however often it is announced.
        noted = f"softmatcher:waiting:{function.__name__}:{':'.join(map(str, args))}"
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
        function: Callable[..., object],
        args: tuple[object, ...],
        *,
        timeout_s: int,
        name: str | None = None,
    ) -> str:
        try:
            job = self._queues[queue].enqueue_call(
                function,
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


def claim_key(worker: str, job_id: str) -> str:
    """Return the key that is there as long as a worker runs a job."""
    return f"{_CLAIM_KEYS}{worker}:{job_id}"


def told_settings(connection: Redis) -> dict[str, Any]:
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
