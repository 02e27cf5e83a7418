"""The queue: jobs by name, what waits, and what people look at; `redis_queue` and `in_process` run them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from backend.errors import QueueUnavailableError
from backend.store.records import ProjectKey

REFERENCES, TILES, WRITES, PLANS, PROPAGATIONS = (
    "softmatcher-references", "softmatcher-tiles", "softmatcher-writes", "softmatcher-plans",
    "softmatcher-propagations",
)  # fmt: skip
QUEUES = (REFERENCES, TILES, WRITES, PLANS, PROPAGATIONS)
"""In the order in which workers serve them: a labeler waits for references, then somebody who looks at the project's
page for its tiles; what these show is written to Label Studio afterwards; nobody waits for a propagation's end."""
VISIBLE_S = 45.0
"""Seconds for which a task counts as visible after a page said so; pages say it again every 20 s."""
MOST_VISIBLE = 120
"""Tasks that count as visible at a time, the last ones named."""
MOST_JOBS_A_PROPAGATION = 64
"""Most jobs of one propagation that wait or run at a time."""
TASKS_WORTH_A_JOB = 10
"""Number of waiting tasks for which another worker is called; it then takes as many as it can get."""

_PROPAGATION_JOB_TIMEOUT_S = 900


class JobQueue(ABC):
    """Puts jobs where something runs them.

    What enqueues raises `QueueUnavailableError` if the queue is away; what only asks answers as its docstring says.
    """

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

    def write_tiles(self, project_key: ProjectKey) -> str:
        """Have predictions written that tiles show already; return the job's id, as `ingest_annotation` does."""
        return self._enqueue_once(WRITES, "write_tiles", (project_key,), timeout_s=300)

    def accept_predictions(self, project_key: ProjectKey, score: float, batch: str) -> str:
        """Have annotations made of predictions; return the job's id."""
        return self._enqueue(PLANS, "accept_predictions", (project_key, score, batch), timeout_s=3600)

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

    def waiting_propagations(self) -> list[int]:
        """Return the propagations that have jobs waiting; [] if the queue cannot tell."""
        named = (re.match(r"(?:plan|propagation)-([0-9]+)-", job) for job in self._waiting_jobs((PLANS, PROPAGATIONS)))
        return list(dict.fromkeys(int(found[1]) for found in named if found is not None))

    def workers_now(self) -> int | None:
        """Return the number of workers that serve the queues; None if Redis does not answer."""
        try:
            return self.count_workers()
        except QueueUnavailableError:
            return None

    def share_counters(self, counters: Mapping[str, float]) -> None:  # noqa: B027 - there is nothing to share in one process
        """Add to the sums that all processes share.

        Raises:
            QueueUnavailableError: the queue does not answer.
        """

    @abstractmethod
    def note_visible(self, project_key: ProjectKey, task_ids: Sequence[int]) -> None:
        """Note that somebody looks at these tasks on the project's page."""

    @abstractmethod
    def visible(self, project_key: ProjectKey) -> list[int]:
        """Return the tasks that somebody looks at, in the order of their tiles; [] if the queue does not answer."""

    @abstractmethod
    def is_lease_alive(self, lease: str) -> bool:
        """Return whether the worker that a lease names still lives and has that job; True if nobody can tell.

        Args:
            lease: `<worker>:<job id>` of a propagation's job.
        """

    @abstractmethod
    def waiting(self) -> dict[str, int]:
        """Return the number of waiting jobs by queue; empty if the queue does not answer."""

    def has_references_waiting(self) -> bool:
        """Return whether annotations wait to be ingested; False if the queue cannot tell."""
        return bool(self.waiting().get(REFERENCES))

    def has_labelers_waiting(self) -> bool:
        """Return whether annotations wait to be ingested, or tiles to be predicted; False if the queue cannot tell."""
        waiting = self.waiting()
        return bool(waiting.get(REFERENCES) or waiting.get(TILES))

    @abstractmethod
    def count_workers(self) -> int:
        """Return the number of workers that serve the queues.

        Raises:
            QueueUnavailableError: the queue does not answer.
        """

    @abstractmethod
    def _waiting_jobs(self, queues: Sequence[str]) -> list[str]:
        """Return the ids of the jobs that wait in some queues; [] if the queue cannot tell."""

    @abstractmethod
    def _live_jobs(self, queue: str, name: str) -> list[str]:
        """Return the ids of the jobs of a name that wait or run."""

    @abstractmethod
    def _enqueue(
        self,
        queue: str,
        function: str,
        args: tuple[object, ...],
        *,
        timeout_s: int,
        name: str | None = None,
    ) -> str:
        """Have a function of `tasks` called; return the job's id.

        Args:
            queue: one of `QUEUES`.
            function: its name.
            args: JSON values.
            timeout_s: after which it is ended, if another process runs it.
            name: beginning of the job's id; a job with a name is begun again if its worker vanished.
        """

    @abstractmethod
    def _enqueue_once(self, queue: str, function: str, args: tuple[object, ...], *, timeout_s: int) -> str:
        """Do as `_enqueue`, unless the same job still waits: then return its id."""


def _plan_job(propagation_id: int) -> str:
    return f"plan-{propagation_id}-"


def _propagation_job(propagation_id: int) -> str:
    return f"propagation-{propagation_id}-"
