"""Work on a propagation: lease some tasks, predict and write them, lease the next; tidy up after the last.

What stops a job (a signal, Label Studio away, a killed worker) leaves rows that another job takes.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal

from backend.errors import NotFoundError, SoftmatcherError, StoreUnavailableError
from backend.labelstudio.label_config import parse_label_config
from backend.metrics import Metrics
from backend.projects.connections import Connections
from backend.projects.images import ImageVersion, versions_from_json
from backend.projects.prediction.bulk_writer import Batch, BulkPredictions
from backend.projects.prediction.prediction_writer import keep_one
from backend.projects.prediction.reference_banks import ReferenceBanks
from backend.projects.propagation.backoff import is_paused, pause
from backend.projects.propagation.planning import project_of
from backend.projects.task_order import TaskOrder
from backend.store import Store
from backend.store.records import ProjectKey, PropagationRecord, TaskOutcome

logger = logging.getLogger(__name__)

_TASKS_A_JOB = 200
"""Tasks of one job: minutes of work."""
_JOB_S = 120.0
"""A job that has run so long makes room for other projects' jobs and goes to the end of the queue."""
_TASKS_A_PAGE = 24
"""Tasks that are checked at a time for surplus predictions."""
_STATE_CHECKED_S = 2.0
_STORE_TRIES = 4
_COUNTED_AT_MOST = 5000
"""Waiting tasks that are told from each other when propagations are compared."""
_LATE_IMPORT_S = 300.0
"""After an import without an answer: a slow Label Studio was seen to do one 75 s later."""
_PAUSES_FOR_IMAGES = 4
"""Pauses (75 s in all) for images that fail alike, before they count as failures."""
BATCH_SEPARATOR: Final = "#"
"""Separates the name of a job from the number of its concurrent batch, in the names of leases."""

Left = Literal["nothing", "more", "paused"]


@dataclass(frozen=True)
class Worked:
    """The counters of one job.

    Attributes:
        finished: how many tasks.
        left: whether another job is due: `more` at once, `paused` when the pause is over.
    """

    finished: int
    left: Left


class _WorkBudget:
    """Limits the work of a job, its concurrent batches together: minutes, tasks, and a request to stop."""

    def __init__(
        self, should_stop: Callable[[], bool], concurrent_batches: int, makes_room: Callable[[], bool]
    ) -> None:
        self.finished = 0
        self._should_stop = should_stop
        self._makes_room = makes_room
        self._deadline = time.monotonic() + _JOB_S
        self._tasks = _TASKS_A_JOB * concurrent_batches
        self._is_stopped = threading.Event()
        self._lock = threading.Lock()

    def must_stop(self) -> bool:
        """Return whether to leave even a batch that was begun: a slow model takes minutes for one."""
        return self._is_stopped.is_set() or time.monotonic() > self._deadline or self._should_stop()

    def is_over(self) -> bool:
        """Return whether to begin no other batch."""
        return self.finished >= self._tasks or self.must_stop() or self._makes_room()

    def note(self, finished: int) -> None:
        """Count finished tasks."""
        with self._lock:
            self.finished += finished

    def stop(self) -> None:
        """Let the other concurrent batches end too."""
        self._is_stopped.set()


class PropagationWork:
    """The work of the workers for propagations."""

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        connections: Connections,
        banks: ReferenceBanks,
        bulk: BulkPredictions,
        task_order: TaskOrder,
    ) -> None:
        self._store = store
        self._task_order = task_order
        self._tasks = store.propagation_tasks
        self._metrics = metrics
        self._connections = connections
        self._banks = banks
        self._bulk = bulk
        self._missing_images: set[int] = set()

    def run(
        self,
        propagation_id: int,
        lease: str,
        *,
        is_alive: Callable[[str], bool],
        should_stop: Callable[[], bool],
        concurrent_batches: int = 1,
        makes_room: Callable[[], bool] = lambda: False,
    ) -> Worked:
        """Predict waiting tasks for some minutes, and tidy up if they were the last.

        Args:
            propagation_id: of the tasks.
            lease: names this job of this worker.
            is_alive: whether the job behind another lease still runs; what dead ones hold is given back.
            should_stop: asked before each task.
            concurrent_batches: batches at a time: while one is read from Label Studio or written to it, another uses
                the models.
            makes_room: asked before each batch; True leaves the rest to another job, behind those that wait.
        """
        store = self._store.propagations
        record = store.get(propagation_id)
        if not record.is_active:
            return Worked(0, "nothing")
        if is_paused(self._store, record):
            return Worked(0, "paused")
        leases = [f"{lease}{BATCH_SEPARATOR}{number}" for number in range(1, concurrent_batches + 1)]
        self.give_back_dead(propagation_id, lambda job: job != lease and is_alive(job))
        budget = _WorkBudget(should_stop, concurrent_batches, makes_room)
        try:
            with ThreadPoolExecutor(concurrent_batches, thread_name_prefix="batch") as pool:
                others = [pool.submit(self._work_on_leases, propagation_id, other, budget) for other in leases[1:]]
                self._work_on_leases(propagation_id, leases[0], budget)
            for other in others:
                other.result()
            if store.try_finish(propagation_id) or store.get(propagation_id).state == "finishing":
                self._tidy_up(store.get(propagation_id))
        except SoftmatcherError as error:
            self._tasks.release(propagation_id, leases, counts_as_attempt=False)
            if isinstance(error, NotFoundError):
                # The project itself may be gone: the reconciliation finds out, and ends its propagations then.
                self._store.mark_for_reconcile(record.project_key)
            pause(self._store, propagation_id, error)
            return Worked(budget.finished, "paused")
        except BaseException:
            self._tasks.release(propagation_id, leases, counts_as_attempt=True)
            raise
        self._tasks.release(propagation_id, leases, counts_as_attempt=False)
        has_more = store.get(propagation_id).is_active and self._tasks.waiting(propagation_id, 1) > 0
        return Worked(budget.finished, "more" if has_more else "nothing")

    def _work_on_leases(self, propagation_id: int, lease: str, budget: "_WorkBudget") -> None:
        store = self._store.propagations
        try:
            while not budget.is_over():
                task_ids = self._tasks.lease(
                    propagation_id, lease, self._bulk.preferred_batch_size, on_given_up=self._note_given_up
                )
                if not task_ids:
                    break
                budget.note(self._work_on(store.get(propagation_id), lease, task_ids, budget.must_stop))
        except BaseException:
            budget.stop()
            raise

    def _note_given_up(self, count: int) -> None:
        self._metrics.failures.labels("worker_died").inc(count)

    def _work_on(
        self, record: PropagationRecord, lease: str, task_ids: Sequence[int], should_stop: Callable[[], bool]
    ) -> int:
        store = self._store.propagations
        project = project_of(self._store, record.project_key)
        config = parse_label_config(project.label_config)
        context = self._banks.context(project, config, record.wanted.labels)
        if not context.tags:
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
                Batch(context, task_ids, self._made_of(record, task_ids, context.version)),
                should_stop=is_over,
                still_wanted=lambda: self._tasks.still_leased(record.id, lease),
                on_lost_answer=lambda: store.note_lost_answer(record.id, self._store.now() + _LATE_IMPORT_S),
                on_other_config=lambda label_config: self._note_config(project.key, label_config),
                waits_for_images=record.pauses < _PAUSES_FOR_IMAGES and record.id not in self._missing_images,
            )
            if record.pauses >= _PAUSES_FOR_IMAGES:
                self._missing_images.add(record.id)  # they are missing: no more pauses for them in this propagation
        finished = self._patiently(lambda: self._tasks.finish(record.id, lease, outcomes))
        self._tasks.release(record.id, [lease], counts_as_attempt=False)
        return finished

    def _made_of(
        self, record: PropagationRecord, task_ids: Sequence[int], version: str
    ) -> dict[int, dict[str, ImageVersion]]:
        noted = self._tasks.made_of(record.project_key, task_ids, version)
        return {task_id: versions_from_json(images) for task_id, images in noted.items()}

    def _note_config(self, project_key: ProjectKey, label_config: str) -> None:
        logger.warning("project=%s has another label config now: its tasks are predicted with that one", project_key)
        self._store.save_project(project_key, label_config=label_config, needs_reconcile=True)

    def _patiently(self, write: Callable[[], int]) -> int:
        # Predictions are in Label Studio by now; noting it is worth more than one wait of 15 s for a locked database.
        for _ in range(_STORE_TRIES - 1):
            try:
                return write()
            except StoreUnavailableError as error:
                logger.warning("trying again: %s", error)
        return write()

    def _tidy_up(self, record: PropagationRecord) -> None:
        """Remove surplus predictions: of Label Studio's own retrieval, or of an import whose answer got lost."""
        store = self._store.propagations
        # Before the predictions that Label Studio still shows are surplus.
        self._task_order.follow(record.project_key)
        removed = self._remove_surplus(record)
        if store.complete(record.id):
            counts = self._tasks.counts(record.id)
            logger.info(
                "project=%s propagation=%d done=%d empty=%d failed=%d surplus_removed=%d",
                record.project_key, record.id, counts.done, counts.empty, counts.failed, removed,
            )  # fmt: skip

    def tidy_late(self, propagation_id: int) -> int:
        """Look for surplus predictions once more after an import whose answer got lost; return how many were removed.

        Raises:
            LabelStudioError, ConfigurationError: Label Studio cannot be used; it stays due.
        """
        record = self._store.propagations.get(propagation_id)
        if record.tidy_after is None or record.tidy_after > self._store.now():
            return 0
        removed = self._remove_surplus(record)
        self._store.propagations.note_tidied(propagation_id, record.tidy_after)
        return removed

    def _remove_surplus(self, record: PropagationRecord) -> int:
        project = project_of(self._store, record.project_key)
        client = self._connections.client(record.project_key)
        removed = 0
        for page in client.task_ids(project.project_id, more_predictions_than=1):
            mine = sorted(self._tasks.done_among(record.id, page))
            for start in range(0, len(mine), _TASKS_A_PAGE):
                some = mine[start : start + _TASKS_A_PAGE]
                versions = self._tasks.newest_versions(record.project_key, some)
                removed += keep_one(client, project.project_id, versions)
        return removed

    def has_smaller(self, propagation_id: int, others: Sequence[int]) -> bool:
        """Return whether one of the other propagations has fewer tasks left than this one."""
        left = self._tasks.waiting(propagation_id, _COUNTED_AT_MOST)
        return any(self._tasks.waiting(other, _COUNTED_AT_MOST) < left for other in others if other != propagation_id)

    def give_back_dead(self, propagation_id: int, is_alive: Callable[[str], bool]) -> int:
        """Give back the tasks of jobs that do not run any more; return how many tasks.

        Args:
            propagation_id: of the tasks.
            is_alive: whether the job of a lease, as `run` gets it, still runs.
        """
        leases = self._tasks.leases(propagation_id)
        dead = [lease for lease in leases if not is_alive(lease.partition(BATCH_SEPARATOR)[0])]
        released = self._tasks.release(propagation_id, dead, counts_as_attempt=True)
        if released:
            logger.warning("propagation=%d tasks=%d came back from a job that ended", propagation_id, released)
        return released
