"""The jobs of the workers: plain functions of ids and JSON.

A job may run twice or late: each looks at the state of the store and of Label Studio when it runs, so the result is the
same.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from rq import get_current_job

from backend.errors import (
    ConfigurationError,
    LabelStudioUnavailableError,
    NotFoundError,
    QueueUnavailableError,
    SoftmatcherError,
    StoreUnavailableError,
)
from backend.jobs.queue import MOST_JOBS_A_PROPAGATION, TASKS_WORTH_A_JOB, JobQueue
from backend.labelstudio.image_decoding import DECODING_ENDS_AFTER_S, allow_decoding, stop_decoding
from backend.projects.composition import Projects
from backend.projects.quality.evaluation import INTERRUPTED, EvaluationPlan
from backend.settings import CONCURRENT_BATCHES
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)


_QUEUE_ASKED_S = 0.05
"""Seconds between two questions whether a labeler waits: so long, at most, somebody waits for work that nobody sees."""
_ESTIMATES = 4
"""Times that an estimate of quality begins; the last one is not stopped for annotations, so that it comes to an end."""
_ESTIMATE_S = 300.0
"""Seconds of one estimate: meanwhile its worker does nothing else."""


_projects: Projects | None = None
_queue: JobQueue | None = None
_stopping = threading.Event()
_shared: dict[str, float] = {}


def use_projects(projects: Projects | None, queue: JobQueue | None = None) -> None:
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


def leave_for_maintenance(project_key: ProjectKey) -> None:
    """Have a project reconciled later: the queue gave out one of its jobs and could not note that it began."""
    projects, _ = _current()
    projects.store.mark_for_reconcile(project_key)


def share_counters() -> None:
    """Add what this process counted since the last time to the sums that the service shows; later if Redis is away."""
    projects, queue = _current()
    totals = projects.metrics.totals()
    news = {name: value - _shared.get(name, 0.0) for name, value in totals.items() if value != _shared.get(name, 0.0)}
    if news:
        queue.share_counters(news)
        _shared.update(totals)


def _current() -> tuple[Projects, JobQueue]:
    if _projects is None or _queue is None:
        raise ConfigurationError("jobs run in a worker: start one with `python -m backend work`")
    return _projects, _queue


def _run(name: str, project_key: ProjectKey, work: Callable[[Projects], dict[str, Any]]) -> dict[str, Any]:
    started = time.perf_counter()
    projects, _ = _current()
    level = logging.INFO
    try:
        outcome = work(projects)
    except LabelStudioUnavailableError as error:
        # Nothing is lost: the project is reconciled again as soon as Label Studio is back.
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
    name: str, project_key: ProjectKey, started: float, outcome: dict[str, Any], *, level: int = logging.INFO
) -> None:
    job, milliseconds = get_current_job(), round(1000 * (time.perf_counter() - started))
    figures = {"id": job.id if job is not None else "inline", "project": project_key, **outcome, "ms": milliseconds}
    logger.log(
        level, "job=%s %s", name, " ".join(f"{key}={value}" for key, value in figures.items()),
        extra={"figures": {"job": name, **figures}},
    )  # fmt: skip


def ingest_annotation(project_key: ProjectKey, annotation_id: int) -> dict[str, Any]:
    """Make the references of one annotation what Label Studio says now; removes them if it is gone."""
    outcome = _run(
        "ingest_annotation", project_key,
        lambda projects: {
            "annotation": annotation_id, "outcome": projects.references.ingest(project_key, annotation_id)
        },
    )  # fmt: skip
    _show_changes(project_key)
    _have_refiners_trained(project_key)
    return outcome


def reconcile(project_key: ProjectKey) -> dict[str, Any]:
    """Take in all that Label Studio has and did not announce, and forget what it has no more."""
    outcome = _run("reconcile", project_key, lambda projects: projects.references.reconcile(project_key))
    _show_changes(project_key)
    _have_refiners_trained(project_key)
    return outcome


def refresh_tiles(project_key: ProjectKey) -> dict[str, Any]:
    """Predict the tasks that somebody looks at on the project's page; they are written to Label Studio afterwards."""
    _, queue = _current()

    def must_stop() -> bool:
        return _stopping.is_set() or queue.has_references_waiting()

    def work(projects: Projects) -> dict[str, Any]:
        outcome = projects.gallery.refresh(project_key, queue.visible(project_key), should_stop=must_stop)
        queue.write_tiles(project_key)
        if outcome.get("left"):
            queue.refresh_tiles(project_key)  # behind the annotations that it made room for
        return outcome

    return _run("refresh_tiles", project_key, work)


def write_tiles(project_key: ProjectKey) -> dict[str, Any]:
    """Write predictions to Label Studio that tiles show already; what does not get there is tried again later."""
    _, queue = _current()

    def must_stop() -> bool:
        return _stopping.is_set() or queue.has_labelers_waiting()

    def work(projects: Projects) -> dict[str, Any]:
        try:
            outcome = projects.gallery.write(project_key, should_stop=must_stop)
        except LabelStudioUnavailableError as error:
            # Maintenance queues it again as long as something waits.
            return {"waits_for_label_studio": str(error)}
        if outcome["left"] and queue.has_labelers_waiting():
            queue.write_tiles(project_key)  # behind those that it made room for
        return outcome

    return _run("write_tiles", project_key, work)


def accept_predictions(project_key: ProjectKey, score: float, batch: str) -> dict[str, Any]:
    """Make annotations of all predictions whose regions have at least this score."""
    return _run(
        "accept_predictions", project_key,
        lambda projects: {"accepted": projects.page_actions.accept_above(project_key, score, batch)},
    )  # fmt: skip


def _show_changes(project_key: ProjectKey) -> None:
    """Let open pages look again, and have what they show predicted with what is known now."""
    projects, queue = _current()
    try:
        projects.store.tiles.touch(project_key)
        if queue.visible(project_key):
            queue.refresh_tiles(project_key)
    except (QueueUnavailableError, StoreUnavailableError) as error:
        logger.warning("project=%s tiles are refreshed later: %s", project_key, error)


def refresh_project(project_key: ProjectKey) -> dict[str, Any]:
    """Ask Label Studio what a project is now; with another label config its annotations are compared, too."""

    def work(projects: Projects) -> dict[str, Any]:
        before = projects.store.project(project_key)
        after = projects.refresh(project_key)
        if before is not None and before.label_config == after.label_config:
            return {"title": after.title}
        # With another label config an annotation may mean more, or less, than it did.
        return projects.references.reconcile(project_key)

    return _run("refresh_project", project_key, work)


def plan_propagation(project_key: ProjectKey, propagation_id: int) -> dict[str, Any]:
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


def propagate(project_key: ProjectKey, propagation_id: int) -> dict[str, Any]:
    """Predict tasks of a propagation for some minutes, write them to Label Studio, leave the rest to another job."""
    projects, queue = _current()
    started = time.perf_counter()
    must_stop = _StopSignal(queue)
    job = get_current_job()
    claim = f"{job.worker_name}:{job.id}" if job is not None else f"inline:{uuid4().hex}"
    try:
        worked = projects.propagation_work.run(
            propagation_id,
            claim,
            is_alive=queue.is_lease_alive,
            should_stop=must_stop,
            concurrent_batches=CONCURRENT_BATCHES,
            makes_room=lambda: projects.propagation_work.has_smaller(propagation_id, queue.waiting_propagations()),
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
    else:
        _have_tasks_ordered(projects, queue, project_key, propagation_id)
    outcome = {"propagation": propagation_id, "finished": worked.finished, "left": worked.left}
    _log_job("propagate", project_key, started, outcome)
    return outcome


def order_tasks(project_key: ProjectKey) -> dict[str, Any]:
    """Set the clusters by which Label Studio orders a project's tasks, or take all of its order back."""
    _, queue = _current()

    def work(projects: Projects) -> dict[str, Any]:
        project = projects.store.project(project_key)
        if project is None or project.task_order is None:
            return {"cleared": projects.task_order.clear(project_key)}
        changed = projects.task_order.set_clusters(project_key, should_stop=_StopSignal(queue))
        if changed is None and not _stopping.is_set():
            queue.order_tasks(project_key)
        return {"clusters": "later" if changed is None else changed}

    return _run("order_tasks", project_key, work)


def tidy_propagation(project_key: ProjectKey, propagation_id: int) -> dict[str, Any]:
    """Remove what an import left twice that Label Studio did after its answer was given up."""
    return _run(
        "tidy_propagation", project_key,
        lambda projects: {
            "propagation": propagation_id, "removed": projects.propagation_work.tidy_late(propagation_id)
        },
    )  # fmt: skip


def estimate_quality(project_key: ProjectKey, compare: Sequence[str] = (), attempt: int = 1) -> dict[str, Any]:
    """Predict each annotated image from the others; stop for labelers, and begin again up to `_ESTIMATES` times."""
    _, queue = _current()
    is_last = attempt >= _ESTIMATES
    plan = EvaluationPlan(
        compare=tuple(compare),
        budget_s=_ESTIMATE_S,
        should_stop=is_stopping if is_last else _StopSignal(queue),
    )

    def work(projects: Projects) -> dict[str, Any]:
        figures = projects.quality.estimate(project_key, plan)
        if figures.get("stopped") == INTERRUPTED and not is_last:
            queue.estimate_quality(project_key, compare, attempt + 1)
        return {"iou": figures["iou"], "tried": figures.get("tried"), "stopped": figures.get("stopped")}

    return _run("estimate_quality", project_key, work)


def train_refiners(project_key: ProjectKey) -> dict[str, Any]:
    """Train the refiners and fit the scores that are due; an annotation that waits ends it, and queues it again."""
    projects, queue = _current()
    started = time.perf_counter()
    level = logging.INFO
    try:
        should_stop = _StopSignal(queue)
        outcome: dict[str, Any] = {"tried": projects.refiners.train(project_key, should_stop)}
        fit = projects.quality.fit_score(project_key, should_stop)
        if fit is not None and fit["offset"] is not None:
            outcome |= {"score_offset": fit["offset"], "masks": fit["masks"]}
            _show_changes(project_key)
    except SoftmatcherError as error:
        # Masks stay the posterior's and scores the profile's until the next annotation or reconciliation queues it.
        outcome, level = {"failed": str(error)}, logging.WARNING
    _log_job("train_refiners", project_key, started, outcome, level=level)
    return outcome


def scale_phrases(project_key: ProjectKey) -> dict[str, Any]:
    """Measure what the phrases of labels without references score on images of the project."""
    return _run(
        "scale_phrases", project_key,
        lambda projects: {"labels": ", ".join(projects.phrase_scales.measure(project_key))},
    )  # fmt: skip


def _have_refiners_trained(project_key: ProjectKey) -> None:
    """Queue the training of refiners and the fit of scores if references changed and there are enough of them."""
    projects, queue = _current()
    try:
        if projects.refiners.is_due(project_key) or projects.quality.is_score_due(project_key):
            queue.train_refiners(project_key)
    except SoftmatcherError as error:
        logger.warning("project=%s refiners are trained later: %s", project_key, error)


def _have_tasks_ordered(projects: Projects, queue: JobQueue, project_key: ProjectKey, propagation_id: int) -> None:
    """Queue the clusters of new predictions, if Label Studio's order of tasks is set."""
    try:
        project = projects.store.project(project_key)
        is_done = projects.store.propagations.get(propagation_id).state == "done"
        if project is not None and project.task_order is not None and is_done:
            queue.order_tasks(project_key)
    except (NotFoundError, QueueUnavailableError) as error:
        logger.warning("project=%s gets no clusters: %s", project_key, error)


def _call_workers(projects: Projects, queue: JobQueue, project_key: ProjectKey, propagation_id: int) -> None:
    """See that there are as many jobs as are of use: one for each worker, as far as there are tasks for it."""
    try:
        record = projects.store.propagations.get(propagation_id)
        if record.is_active:
            waiting = projects.store.propagation_tasks.waiting(
                propagation_id, MOST_JOBS_A_PROPAGATION * TASKS_WORTH_A_JOB
            )
            queue.ensure_propagation_jobs(project_key, propagation_id, waiting)
    except (NotFoundError, QueueUnavailableError) as error:
        logger.warning("propagation=%d workers are called later: %s", propagation_id, error)


class _StopSignal:
    """Answers whether the worker is to end, or an annotation waits: labelers go first."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._asked_at = time.monotonic()

    def __call__(self) -> bool:
        if _stopping.is_set():
            return True
        if time.monotonic() - self._asked_at < _QUEUE_ASKED_S:
            return False
        self._asked_at = time.monotonic()
        return self._queue.has_labelers_waiting()
