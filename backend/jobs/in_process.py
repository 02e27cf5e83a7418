"""The queue of a backend that is one process: jobs wait in memory, and a thread of its own runs them."""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from backend.errors import QueueUnavailableError
from backend.jobs import tasks
from backend.jobs.queue import MOST_VISIBLE, QUEUES, VISIBLE_S, JobQueue
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)

_IDLE_S = 0.2
"""Seconds between two questions whether there is anything to do beside the jobs."""
_END_S = 2.0
"""Seconds after a failed job in which the end of this backend explains it."""


@dataclass(frozen=True)
class _Job:
    id: str
    function: str
    args: tuple[object, ...]


class InProcessQueue(JobQueue):
    """Runs the jobs of `tasks` one after the other; those of a queue before those of the queues after it.

    Attributes:
        when_idle: called again and again while no job waits; returns whether it did anything. It should be over soon.
    """

    when_idle: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self) -> None:
        self._waiting: dict[str, deque[_Job]] = {name: deque() for name in QUEUES}
        self._running: tuple[str, _Job] | None = None
        self._visible: dict[ProjectKey, OrderedDict[int, float]] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin to run jobs; `tasks.use_projects` was called."""
        self._thread.start()

    def close(self, wait_s: float) -> None:
        """Begin no further job, and wait for the end of the one that runs."""
        tasks.ask_to_stop()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def note_visible(self, project_key: ProjectKey, task_ids: Sequence[int]) -> None:
        """Note that somebody looks at these tasks on the project's page."""
        now = time.monotonic()
        with self._changed:
            seen = self._visible.setdefault(project_key, OrderedDict())
            for task_id in reversed(task_ids):
                seen.pop(task_id, None)
                seen[task_id] = now
            while len(seen) > MOST_VISIBLE:
                seen.popitem(last=False)

    def visible(self, project_key: ProjectKey) -> list[int]:
        """Return the tasks that somebody looks at, in the order of their tiles."""
        oldest = time.monotonic() - VISIBLE_S
        with self._changed:
            seen = self._visible.get(project_key, OrderedDict[int, float]())
            return [task_id for task_id, at in reversed(seen.items()) if at >= oldest]

    def is_lease_alive(self, lease: str) -> bool:
        """Return whether the job that a lease names still runs."""
        with self._changed:
            return self._running is not None

    def waiting(self) -> dict[str, int]:
        """Return the number of waiting jobs by queue."""
        with self._changed:
            return {name: len(jobs) for name, jobs in self._waiting.items()}

    def has_work_waiting(self) -> bool:
        """Return whether a job waits, or nothing more shall be begun."""
        with self._changed:
            return self._is_closed or any(self._waiting.values())

    def count_workers(self) -> int:
        """Return 1: the thread."""
        return 1

    def _waiting_jobs(self, queues: Sequence[str]) -> list[str]:
        with self._changed:
            return [job.id for name in queues for job in self._waiting[name]]

    def _live_jobs(self, queue: str, name: str) -> list[str]:
        with self._changed:
            running = [self._running[1]] if self._running is not None and self._running[0] == queue else []
            return [job.id for job in (*running, *self._waiting[queue]) if job.id.startswith(name)]

    def _enqueue(
        self,
        queue: str,
        function: str,
        args: tuple[object, ...],
        *,
        timeout_s: int,
        name: str | None = None,
    ) -> str:
        return self._put(queue, _Job(f"{name or ''}{uuid4().hex}", function, args), once=False)

    def _enqueue_once(self, queue: str, function: str, args: tuple[object, ...], *, timeout_s: int) -> str:
        return self._put(queue, _Job(uuid4().hex, function, args), once=True)

    def _put(self, queue: str, job: _Job, *, once: bool) -> str:
        with self._changed:
            if self._is_closed:
                raise QueueUnavailableError("this backend is about to end")
            for known in self._waiting[queue] if once else ():
                if (known.function, known.args) == (job.function, job.args):
                    return known.id
            self._waiting[queue].append(job)
            self._changed.notify_all()
        return job.id

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._is_closed:
                    return
                name = next((each for each in QUEUES if self._waiting[each]), None)
                if name is not None:
                    self._running = (name, self._waiting[name].popleft())
            if name is None:
                self._idle()
            else:
                self._run()

    def _run(self) -> None:
        assert self._running is not None
        job = self._running[1]
        try:
            getattr(tasks, job.function)(*job.args)
        except Exception as error:
            with self._changed:
                # Ctrl-C ends what a job works with before anybody says that this backend ends.
                self._changed.wait_for(lambda: self._is_closed, _END_S)
            if self._is_closed:
                # The next start does the rest.
                logger.info("job=%s is not finished, this backend ends: %s", job.function, error)
            else:
                logger.exception("job=%s", job.function)
        with self._changed:
            self._running = None

    def _idle(self) -> None:
        try:
            did_something = self.when_idle()
        except Exception:
            logger.exception("between the jobs")
            did_something = False
        if not did_something:
            with self._changed:
                if not self._is_closed and not any(self._waiting.values()):
                    self._changed.wait(_IDLE_S)
