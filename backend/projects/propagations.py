"""Propagation: the tasks of a whole project predicted from its references, by as many workers as there are.

The plan is rows in the store; workers claim some at a time, so a job is worth no more than «look what is left». What
stops a job (a signal, Label Studio away, a killed worker) leaves rows that another job takes.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

from backend.errors import (
    BadInputError,
    LabelStudioUnavailableError,
    NotFoundError,
    SoftmatcherError,
    StoreUnavailableError,
)
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.metrics import Metrics, PropagationFigures
from backend.projects.bulk import Batch, BulkPredictions
from backend.projects.connection import Connections
from backend.projects.predictions import Predictions
from backend.projects.references import References
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import PropagationCounts, PropagationFilter, PropagationRecord, TaskOutcome

logger = logging.getLogger(__name__)

Json = dict[str, Any]

_TASKS_A_JOB = 200
"""As many tasks are worth a job: minutes of work."""
_JOB_S = 120.0
"""A job that has run so long makes room for other projects' jobs and goes to the end of the queue."""
_TASKS_A_BATCH = 25
_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0
_LONGEST_ASKED_FOR_S = 900.0
_STATE_CHECKED_S = 2.0
_STORE_TRIES = 4
_FIGURES_KEPT_S = 5.0
LANE: Final = "#"
"""Stands between the name of a job and the number of its lane, in the names of claims."""

Left = Literal["nothing", "more", "paused"]


@dataclass(frozen=True)
class Worked:
    """What one job did.

    Attributes:
        finished: how many tasks.
        left: whether another job is due: `more` at once, `paused` when the pause is over.
    """

    finished: int
    left: Left


class _Shift:
    """How long a job works: some minutes, or so many tasks, or until it is asked to stop, in all its lanes together."""

    def __init__(self, should_stop: Callable[[], bool], lanes: int) -> None:
        self.finished = 0
        self._should_stop = should_stop
        self._deadline = time.monotonic() + _JOB_S
        self._tasks = _TASKS_A_JOB * lanes
        self._is_stopped = threading.Event()
        self._lock = threading.Lock()

    def must_stop(self) -> bool:
        """Whether to leave even a batch that was begun: a slow model takes minutes for one."""
        return self._is_stopped.is_set() or time.monotonic() > self._deadline or self._should_stop()

    def is_over(self) -> bool:
        """Whether to begin no other batch."""
        return self.finished >= self._tasks or self.must_stop()

    def note(self, finished: int) -> None:
        """Count finished tasks."""
        with self._lock:
            self.finished += finished

    def stop(self) -> None:
        """Let the other lanes end too."""
        self._is_stopped.set()


class Propagations:
    """Starts, plans, works on, shows and ends propagations."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        connections: Connections,
        references: References,
        predictions: Predictions,
        bulk: BulkPredictions,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._connections = connections
        self._references = references
        self._predictions = predictions
        self._bulk = bulk
        self._figures: tuple[float, PropagationFigures | None] = (0.0, None)
        self._lock = threading.Lock()

    # -- start and end

    def start(
        self, project_key: str, wanted: PropagationFilter, started_by: str, *, supersede: bool
    ) -> PropagationRecord:
        """A new propagation; a worker looks the project through and plans it.

        Raises:
            ConflictError: one runs, and `supersede` is False.
            NotFoundError: the project is not known.
            BadInputError: a label that the project does not have, a limit below 1.
        """
        self._check(self._project(project_key), wanted)
        record = self._store.propagations.create(project_key, wanted, started_by, supersede=supersede)
        logger.info("project=%s propagation=%d started by %s", project_key, record.id, started_by)
        return record

    def count(self, project_key: str, wanted: PropagationFilter) -> int:
        """How many tasks a propagation would have; nothing is started.

        Raises:
            NotFoundError: the project is not known.
            LabelStudioError, ConfigurationError: Label Studio cannot be asked.
            BadInputError: a label that the project does not have, a limit below 1.
        """
        project = self._project(project_key)
        self._check(project, wanted)
        client = self._connections.client(project_key)
        total = client.count_tasks(project.project_id, only_unlabeled=wanted.only_unlabeled)
        return total if wanted.limit is None else min(total, wanted.limit)

    def hand_on(self, project_key: str, task_ids: Sequence[int]) -> int | None:
        """See that workers predict tasks for which a /predict had no time; id of the propagation."""
        if not task_ids:
            return None
        version = self._predictions.model_version(project_key)
        return self._store.propagations.hand_on(project_key, task_ids, version, "Label Studio: retrieve predictions")

    def retry(self, propagation_id: int, what: str) -> int:
        """Put tasks back to be predicted again; how many.

        Args:
            propagation_id: of the tasks.
            what: `failed`; `unfinished`: those failed and those cancelled; `outdated`: those predicted before the
                references changed.

        Raises:
            BadInputError: another `what`.
            NotFoundError: no such propagation.
            ConflictError: another propagation of the project runs.
        """
        store = self._store.propagations
        if what == "failed":
            return store.retry(propagation_id, ["failed"])
        if what == "unfinished":
            return store.retry(propagation_id, ["failed", "cancelled"])
        if what == "outdated":
            record = store.get(propagation_id)
            return store.retry(propagation_id, ["done", "empty"], other_than_version=self.version_now(record))
        raise BadInputError(f"expected what to retry: failed, unfinished or outdated, got {what[:40]!r}")

    def due_projects(self) -> list[str]:
        """Projects with enough new references for a propagation to start by itself."""
        enough = self._settings.propagate_after_references
        if not enough:
            return []
        store = self._store.propagations
        return [
            project.key
            for project in self._store.projects()
            if store.new_references_since_last(project.key) >= enough and not store.active(project.key)
        ]

    def _project(self, project_key: str) -> ProjectRecord:
        project = self._store.project(project_key)
        if project is None:
            raise NotFoundError(
                f"project {project_key} is not known here: connect this backend to it in Label Studio "
                "(Settings > Model)"
            )
        return project

    def _check(self, project: ProjectRecord, wanted: PropagationFilter) -> None:
        if wanted.limit is not None and wanted.limit < 1:
            raise BadInputError(f"the limit must be 1 or more tasks, got {wanted.limit}")
        if wanted.labels is not None and project.label_config:
            known = parse_label_config(project.label_config).labels
            unknown = [label for label in wanted.labels if label not in known]
            if unknown or not wanted.labels:
                raise BadInputError(f"labels must be of {', '.join(known)}; got {', '.join(unknown) or 'none'}")

    # -- plan

    def plan(self, propagation_id: int, on_page: Callable[[], None] = lambda: None) -> Json:
        """Take in what Label Studio did not announce, then list the project's tasks into the store.

        Goes on where it was interrupted. Nothing of the tasks but their ids is kept in memory.

        Args:
            propagation_id: in state `planning`; nothing happens in any other.
            on_page: called when there are tasks for workers: after the first page, the second, the fourth, ...

        Returns:
            Figures for the log; `paused_s` if Label Studio is away.
        """
        store = self._store.propagations
        record = store.get(propagation_id)
        if record.state != "planning" or _is_paused(record):
            return {"planned": 0, "state": record.state}
        planned = 0
        try:
            if not record.planned_up_to:
                self._references.reconcile(record.project_key)
            project = self._project(record.project_key)
            self._check(project, record.wanted)
            version, digest, has_references = self._versions(project, record.wanted)
            if not has_references:
                store.fail(
                    propagation_id,
                    "there is no reference to predict from: mark an object on a task, submit, start again",
                )
                return {"planned": 0, "state": "failed"}
            store.note_version(propagation_id, version, digest)
            for number, page in enumerate(self._pages(record, project), start=1):
                if not store.add_planned(propagation_id, page):
                    return {"planned": planned, "state": "ended"}
                planned += len(page)
                if number & (number - 1) == 0:
                    on_page()
            store.finish_plan(propagation_id)
        except (LabelStudioUnavailableError, StoreUnavailableError) as error:
            return {"planned": planned, "paused_s": round(self._pause(propagation_id, error))}
        except SoftmatcherError as error:
            store.fail(propagation_id, str(error))
            logger.warning("propagation=%d cannot be planned: %s", propagation_id, error)
            return {"planned": planned, "state": "failed"}
        return {"planned": planned}

    def _pages(self, record: PropagationRecord, project: ProjectRecord) -> Iterator[list[int]]:
        left = record.wanted.limit
        if left is not None:
            left -= self._store.propagations.counts(record.id).total
        client = self._connections.client(project.key)
        pages = client.task_ids(
            project.project_id, after=record.planned_up_to, only_unlabeled=record.wanted.only_unlabeled
        )
        for page in pages:
            if left is not None:
                page = page[:left]
                left -= len(page)
            if page:
                yield page
            if left is not None and left <= 0:
                return

    def _versions(self, project: ProjectRecord, wanted: PropagationFilter) -> tuple[str, str, bool]:
        config = parse_label_config(project.label_config)
        version, known = self._predictions.references(project, config, wanted.labels)
        digest = self._predictions.references_digest(project, _labels(config, wanted))
        return version, digest, bool(known.by_tag)

    def version_now(self, record: PropagationRecord) -> str:
        """The model_version that its tasks would get now.

        Raises:
            NotFoundError: the project is not known.
            ModelUnavailableError: no models.
        """
        return self._versions(self._project(record.project_key), record.wanted)[0]

    # -- work

    def work(
        self,
        propagation_id: int,
        claim: str,
        *,
        is_alive: Callable[[str], bool],
        should_stop: Callable[[], bool],
        lanes: int = 1,
    ) -> Worked:
        """Predict waiting tasks for some minutes, and tidy up if they were the last.

        Args:
            propagation_id: of the tasks.
            claim: names this job of this worker.
            is_alive: whether the job behind another claim still runs; what dead ones hold is given back.
            should_stop: asked before each task.
            lanes: batches at a time: while one is read from Label Studio or written to it, another uses the models.
        """
        store = self._store.propagations
        record = store.get(propagation_id)
        if not record.is_active:
            return Worked(0, "nothing")
        if _is_paused(record):
            return Worked(0, "paused")
        claims = [f"{claim}{LANE}{number}" for number in range(1, lanes + 1)]
        self.give_back_dead(propagation_id, lambda held: held not in claims and is_alive(held))
        shift = _Shift(should_stop, lanes)
        try:
            with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:
                others = [pool.submit(self._work_in_lane, propagation_id, other, shift) for other in claims[1:]]
                self._work_in_lane(propagation_id, claims[0], shift)
            for other in others:
                other.result()
            if store.try_finish(propagation_id) or store.get(propagation_id).state == "finishing":
                self._tidy_up(store.get(propagation_id))
        except SoftmatcherError as error:
            store.release(propagation_id, claims, counts_as_attempt=False)
            self._pause(propagation_id, error)
            return Worked(shift.finished, "paused")
        except BaseException:
            store.release(propagation_id, claims, counts_as_attempt=True)
            raise
        store.release(propagation_id, claims, counts_as_attempt=False)
        has_more = store.get(propagation_id).is_active and store.waiting(propagation_id, 1) > 0
        return Worked(shift.finished, "more" if has_more else "nothing")

    def _work_in_lane(self, propagation_id: int, claim: str, shift: "_Shift") -> None:
        store = self._store.propagations
        try:
            while not shift.is_over():
                task_ids = store.claim(propagation_id, claim, _TASKS_A_BATCH, on_given_up=self._note_given_up)
                if not task_ids:
                    break
                shift.note(self._work_on(store.get(propagation_id), claim, task_ids, shift.must_stop))
        except BaseException:
            shift.stop()
            raise

    def _note_given_up(self, count: int) -> None:
        self._metrics.failures.labels("worker_died").inc(count)

    def _work_on(
        self, record: PropagationRecord, claim: str, task_ids: Sequence[int], should_stop: Callable[[], bool]
    ) -> int:
        store = self._store.propagations
        project = self._project(record.project_key)
        config = parse_label_config(project.label_config)
        version, known = self._predictions.references(project, config, record.wanted.labels)
        if not known.by_tag:
            # The last reference was deleted meanwhile: without any there is nothing to look for.
            reason = "there is no reference left to predict from"
            outcomes = [TaskOutcome(task_id, "failed", reason=reason) for task_id in task_ids]
            self._metrics.failures.labels("no_reference").inc(len(outcomes))
        else:
            checked_at = time.monotonic()

            def is_over() -> bool:
                nonlocal checked_at
                if time.monotonic() - checked_at > _STATE_CHECKED_S:
                    checked_at = time.monotonic()
                    if not store.get(record.id).is_active:
                        return True
                return should_stop()

            outcomes = self._bulk.run(
                Batch(project, config, version, known, task_ids),
                should_stop=is_over,
                still_wanted=lambda: store.still_claimed(record.id, claim),
            )
        finished = self._patiently(lambda: store.finish(record.id, claim, outcomes))
        store.release(record.id, [claim], counts_as_attempt=False)
        return finished

    def _patiently(self, write: Callable[[], int]) -> int:
        # Predictions are in Label Studio by now; noting it is worth more than one wait of 15 s for a locked database.
        for _ in range(_STORE_TRIES - 1):
            try:
                return write()
            except StoreUnavailableError as error:
                logger.warning("trying again: %s", error)
        return write()

    def _tidy_up(self, record: PropagationRecord) -> None:
        """Label Studio's own retrieval, or an import whose answer got lost, may have left a task with two."""
        store = self._store.propagations
        project = self._project(record.project_key)
        client = self._connections.client(record.project_key)
        removed = 0
        for page in client.task_ids(project.project_id, more_predictions_than=1):
            mine = sorted(store.done_among(record.id, page))
            for start in range(0, len(mine), _TASKS_A_BATCH):
                removed += self._bulk.keep_one(project, mine[start : start + _TASKS_A_BATCH])
        if store.complete(record.id):
            counts = store.counts(record.id)
            logger.info(
                "project=%s propagation=%d done=%d empty=%d failed=%d surplus_removed=%d",
                record.project_key, record.id, counts.done, counts.empty, counts.failed, removed,
            )  # fmt: skip

    def give_back_dead(self, propagation_id: int, is_alive: Callable[[str], bool]) -> int:
        """Give back the tasks of jobs that do not run any more; how many tasks."""
        store = self._store.propagations
        dead = [claim for claim in store.claims(propagation_id) if not is_alive(claim)]
        released = store.release(propagation_id, dead, counts_as_attempt=True)
        if released:
            logger.warning("propagation=%d tasks=%d came back from a job that ended", propagation_id, released)
        return released

    def _pause(self, propagation_id: int, error: SoftmatcherError) -> float:
        asked_for_s = error.retry_after_s if isinstance(error, LabelStudioUnavailableError) else None
        at_least_s = min(asked_for_s or 0.0, _LONGEST_ASKED_FOR_S)
        pause_s = self._store.propagations.pause(
            propagation_id,
            str(error),
            first_s=max(_FIRST_PAUSE_S, at_least_s),
            at_most_s=max(_LONGEST_PAUSE_S, at_least_s),
        )
        logger.warning("propagation=%d pauses for %.0f s: %s", propagation_id, pause_s, error)
        return pause_s

    # -- show

    def figures(self) -> PropagationFigures:
        """For /metrics; at most some seconds old, since counting a million tasks takes tenths of a second."""
        with self._lock:
            read_at, figures = self._figures
            if figures is not None and time.monotonic() - read_at < _FIGURES_KEPT_S:
                return figures
            running = dict.fromkeys(("planning", "running", "finishing", "paused"), 0)
            tasks = dict.fromkeys(PropagationCounts.STATES, 0)
            rate = 0.0
            for record in self._store.propagations.active():
                counts = self._store.propagations.counts(record.id)
                running["paused" if _is_paused(record) else record.state] += 1
                for state in tasks:
                    tasks[state] += getattr(counts, state)
                rate += _rate(record, counts)
            figures = PropagationFigures(running, tasks, rate)
            self._figures = (time.monotonic(), figures)
            return figures

    def status(self, record: PropagationRecord) -> Json:
        """What `GET /projects/<id>/propagations/<id>` answers."""
        store = self._store.propagations
        counts = store.counts(record.id)
        rate = _rate(record, counts)
        return {
            "id": record.id,
            "project": int(record.project_key.split(".")[0]),
            "state": record.state,
            "is_active": record.is_active,
            "started_by": record.started_by,
            "filter": {
                "only_unlabeled": record.wanted.only_unlabeled,
                "labels": record.wanted.labels,
                "limit": record.wanted.limit,
            },
            "model_version": record.model_version,
            "references_digest": record.references_digest,
            "counts": {name: getattr(counts, name) for name in (*PropagationCounts.STATES, "total", "finished")},
            "rate_per_s": round(rate, 3),
            "eta_s": round(counts.unfinished / rate) if rate and record.state == "running" else None,
            "created_at": record.created_at,
            "started_at": record.started_at,
            "finished_at": record.finished_at,
            "problem": record.problem,
            "paused_until": record.paused_until if _is_paused(record) else None,
            "failures": [
                {"reason": group.reason, "count": group.count, "first_task": group.first_task_id}
                for group in (store.failures(record.id) if counts.failed else ())
            ],
        }


def _is_paused(record: PropagationRecord) -> bool:
    return record.paused_until is not None and record.paused_until > time.time()


def _labels(config: LabelConfig, wanted: PropagationFilter) -> list[str]:
    return [label for label in config.labels if wanted.labels is None or label in wanted.labels]


def _rate(record: PropagationRecord, counts: PropagationCounts) -> float:
    """Tasks per second within the last minute, or since it began."""
    if not record.is_active:
        began, ended = record.started_at, record.finished_at
        done = counts.done + counts.empty + counts.failed
        return done / (ended - began) if began and ended and ended > began else 0.0
    since = time.time() - (record.started_at or record.created_at)
    return counts.finished_lately / max(1.0, min(counts.window_s, since))
