"""Propagations and their tasks: who predicts which task, and what came of it.

A task's row goes pending -> running (claimed by one job of one worker) -> done, empty, failed or cancelled. Only who
holds the claim may finish it, so a job that was given up on and comes back late changes nothing.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from backend.errors import ConflictError, NotFoundError
from backend.store import tables
from backend.store.records import (
    FailureGroup,
    Json,
    PropagationCounts,
    PropagationFilter,
    PropagationRecord,
    TaskOutcome,
    TaskRow,
)

ACTIVE: Final = ("planning", "running", "finishing")
"""States in which a propagation still has something to do; a project has at most one of these."""
UNFINISHED: Final = ("pending", "running")
MAX_ATTEMPTS: Final = 4
"""A task that took its worker down this often is not tried again."""
_KEPT_A_PROJECT: Final = 20
_RATE_WINDOW_S: Final = 60.0
_IDS_A_STATEMENT: Final = 500
_SHARES: Final = 8
_SMALLEST_SHARE: Final = 4

_runs, _rows = tables.propagations, tables.propagation_tasks


class PropagationStore:
    """The propagations' part of the store; reached as `Store.propagations`. Every method is one short transaction."""

    def __init__(
        self,
        read: Callable[[sa.Select[Any]], Sequence[sa.Row[Any]]],
        write: Callable[[], AbstractContextManager[sa.Connection]],
    ) -> None:
        self._read = read
        self._write = write

    # -- propagations

    def create(
        self,
        project_key: str,
        wanted: PropagationFilter,
        started_by: str,
        *,
        supersede: bool,
        planned_tasks: Collection[int] | None = None,
    ) -> PropagationRecord:
        """A new propagation of a project.

        Args:
            project_key: of a known project.
            wanted: which tasks, and which labels.
            started_by: for people to read.
            supersede: end one that runs; False refuses then.
            planned_tasks: its tasks, if they are known already; None if they are still to be listed.

        Raises:
            ConflictError: one runs, and `supersede` is False.
            NotFoundError: the project is not in the store.
        """
        now = time.time()
        with self._write() as connection:
            _lock_project(connection, project_key)
            running = connection.execute(_select_runs(_is_active(project_key))).first()
            if running is not None and not supersede:
                raise ConflictError(
                    f"propagation {running.id} of this project is {running.state}: wait for it, cancel it, or ask to "
                    "supersede it"
                )
            if running is not None:
                _end(connection, int(running.id), "superseded", now)
            created = connection.execute(
                sa.insert(_runs).values(
                    project_key=project_key,
                    state="planning" if planned_tasks is None else "running",
                    filter=json.dumps(vars(wanted)),
                    started_by=started_by,
                    created_at=now,
                    planned_up_to=0,
                    is_planned=planned_tasks is not None,
                    started_at=None if planned_tasks is None else now,
                    pauses=0,
                )
            )
            key = created.inserted_primary_key
            assert key is not None
            identifier = int(key[0])
            _insert_rows(connection, identifier, planned_tasks or ())
            _forget_old(connection, project_key)
            row = connection.execute(_select_runs(_runs.c.id == identifier)).one()
        return _record(row)

    def get(self, propagation_id: int) -> PropagationRecord:
        """One propagation.

        Raises:
            NotFoundError: there is none of that id (any more).
        """
        rows = self._read(_select_runs(_runs.c.id == propagation_id))
        if not rows:
            raise NotFoundError(f"propagation {propagation_id} is not in the store (any more)")
        return _record(rows[0])

    def active(self, project_key: str | None = None) -> list[PropagationRecord]:
        """Those that have something to do, of one project or of all, oldest first."""
        return [_record(row) for row in self._read(_select_runs(_is_active(project_key)).order_by(_runs.c.id))]

    def latest(self, project_key: str, count: int = 10) -> list[PropagationRecord]:
        """The newest propagations of a project, newest first."""
        mine = _select_runs(_runs.c.project_key == project_key)
        return [_record(row) for row in self._read(mine.order_by(_runs.c.id.desc()).limit(count))]

    def note_version(self, propagation_id: int, model_version: str, references_digest: str) -> None:
        """Remember what the propagation predicts with."""
        self._update(propagation_id, model_version=model_version, references_digest=references_digest)

    def add_planned(self, propagation_id: int, task_ids: Sequence[int]) -> bool:
        """Add the next tasks of a plan, in the order of their ids; False, and nothing is added, if it was ended."""
        with self._write() as connection:
            mine = (_runs.c.id == propagation_id) & _runs.c.state.in_(ACTIVE)
            changes: Json = {"pauses": 0, "paused_until": None, "problem": None}
            if task_ids:
                changes["planned_up_to"] = max(task_ids)
            if not connection.execute(sa.update(_runs).where(mine).values(**changes)).rowcount:
                return False
            _insert_rows(connection, propagation_id, task_ids)
        return True

    def finish_plan(self, propagation_id: int) -> None:
        """All tasks are in: the propagation runs."""
        self._update(
            propagation_id, _runs.c.state == "planning", state="running", is_planned=True, started_at=time.time()
        )

    def hand_on(self, project_key: str, task_ids: Sequence[int], model_version: str, started_by: str) -> int:
        """See that tasks get predicted: by the propagation that runs, else by a new one for them.

        Tasks that wait already, are being predicted, or have been with this very version are left as they are.

        Returns:
            Id of the propagation.

        Raises:
            NotFoundError: the project is not in the store.
        """
        running = self.active(project_key)
        if not running:
            try:
                made = self.create(
                    project_key, PropagationFilter(), started_by, supersede=False, planned_tasks=task_ids
                )
            except ConflictError:
                running = self.active(project_key)
            else:
                return made.id
        if not running:
            return self.hand_on(project_key, task_ids, model_version, started_by)
        identifier = running[0].id
        with self._write() as connection:
            known: dict[int, Any] = {}
            for some in _portions(sorted(set(task_ids))):
                mine = (_rows.c.propagation_id == identifier) & _rows.c.task_id.in_(some)
                known |= {row.task_id: row for row in connection.execute(sa.select(_rows).where(mine))}
            again = [
                task_id
                for task_id, row in known.items()
                if row.state not in UNFINISHED
                and not (row.state in ("done", "empty") and row.model_version == model_version)
            ]
            _set_pending(connection, identifier, again)
            _insert_rows(connection, identifier, sorted(set(task_ids) - known.keys()))
            connection.execute(
                sa.update(_runs)
                .where(_runs.c.id == identifier, _runs.c.state == "finishing")
                .values(state="running", finished_at=None)
            )
        return identifier

    def cancel(self, propagation_id: int) -> bool:
        """End a propagation; tasks that are being predicted end as cancelled unless they are written already.

        Returns:
            False if it had ended before.
        """
        with self._write() as connection:
            return _end(connection, propagation_id, "cancelled", time.time())

    def fail(self, propagation_id: int, problem: str) -> None:
        """End a propagation that cannot be done at all."""
        with self._write() as connection:
            if _end(connection, propagation_id, "failed", time.time()):
                connection.execute(sa.update(_runs).where(_runs.c.id == propagation_id).values(problem=problem))

    def retry(self, propagation_id: int, states: Collection[str], *, other_than_version: str | None = None) -> int:
        """Put tasks of these states back, and let the propagation run again.

        Args:
            propagation_id: one that has ended, or runs.
            states: of failed, cancelled, done, empty.
            other_than_version: only tasks that were predicted with another model_version than this.

        Returns:
            How many tasks.

        Raises:
            ConflictError: another propagation of the project runs.
            NotFoundError: there is none of that id.
        """
        record = self.get(propagation_id)
        with self._write() as connection:
            _lock_project(connection, record.project_key)
            other = connection.execute(
                _select_runs(_is_active(record.project_key) & (_runs.c.id != propagation_id))
            ).first()
            if other is not None:
                raise ConflictError(f"propagation {other.id} of this project runs: wait for it or cancel it first")
            chosen = (_rows.c.propagation_id == propagation_id) & _rows.c.state.in_(sorted(states))
            if other_than_version is not None:
                chosen &= _rows.c.model_version != other_than_version
            count = connection.execute(sa.update(_rows).where(chosen).values(**_PENDING)).rowcount
            if count or not record.is_planned:
                state = "running" if record.is_planned else "planning"
                connection.execute(
                    sa.update(_runs)
                    .where(_runs.c.id == propagation_id)
                    .values(state=state, problem=None, paused_until=None, pauses=0, finished_at=None)
                )
        return int(count)

    def pause(self, propagation_id: int, problem: str, *, first_s: float, at_most_s: float) -> float:
        """Let no job work on it for a while: twice as long as the last time, until something succeeds.

        Returns:
            For how many seconds.
        """
        now = time.time()
        with self._write() as connection:
            row = connection.execute(_select_runs(_runs.c.id == propagation_id)).first()
            if row is None:
                return 0.0
            # Jobs that fail together are one pause.
            is_new = row.paused_until is None or row.paused_until <= now
            pauses = row.pauses + int(is_new)
            pause_s = min(at_most_s, first_s * 2.0 ** (pauses - 1))
            until = now + pause_s if is_new else row.paused_until
            connection.execute(
                sa.update(_runs)
                .where(_runs.c.id == propagation_id)
                .values(problem=problem, paused_until=until, pauses=pauses)
            )
        return float(until - now)

    def try_finish(self, propagation_id: int) -> bool:
        """True for whoever is the one to tidy up: every task is finished, and nobody does it yet."""
        unfinished = sa.exists().where(_rows.c.propagation_id == propagation_id, _rows.c.state.in_(UNFINISHED))
        return self._update(propagation_id, _runs.c.state == "running", ~unfinished, state="finishing") > 0

    def complete(self, propagation_id: int) -> bool:
        """All is tidied up. False if tasks were added meanwhile."""
        now = time.time()
        return self._update(propagation_id, _runs.c.state == "finishing", state="done", finished_at=now) > 0

    # -- their tasks

    def claim(
        self, propagation_id: int, claim: str, limit: int, *, on_given_up: Callable[[int], None] = lambda _: None
    ) -> list[int]:
        """Take up to `limit` waiting tasks; nobody else gets them until they are released.

        Fewer where few are left, so that all workers share the end of a propagation, and a small one shows progress.
        Tasks that took a worker down are given out alone, so that they cannot take others with them, and after
        `MAX_ATTEMPTS` not at all.

        Args:
            propagation_id: of the tasks.
            claim: names the worker, its job and its lane.
            limit: most tasks.
            on_given_up: told of tasks that are not tried any more.
        """
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "pending")
        some = sa.select(_rows.c.task_id).where(mine).limit(limit * _SHARES).subquery()
        first = sa.select(_rows.c.task_id, _rows.c.attempts).where(mine)
        first = first.order_by(_rows.c.finished_at, _rows.c.task_id).with_for_update(skip_locked=True)
        with self._write() as connection:
            state = connection.scalar(sa.select(_runs.c.state).where(_runs.c.id == propagation_id))
            if state not in ACTIVE:
                return []
            waiting = connection.scalar(sa.select(sa.func.count()).select_from(some)) or 0
            share = min(limit, max(_SMALLEST_SHARE, waiting // _SHARES))
            found = connection.execute(first.limit(share)).all()
            hopeless = [row.task_id for row in found if row.attempts >= MAX_ATTEMPTS]
            if hopeless:
                _update_rows(
                    connection, propagation_id, hopeless, state="failed", finished_at=time.time(),
                    reason=f"given up after {MAX_ATTEMPTS} tries: its worker ended each time; the log says more",
                )  # fmt: skip
                on_given_up(len(hopeless))
            usable = [row for row in found if row.attempts < MAX_ATTEMPTS]
            is_suspect = bool(usable and usable[0].attempts)
            usable = usable[:1] if is_suspect else [row for row in usable if not row.attempts]
            ids = [int(row.task_id) for row in usable]
            _update_rows(connection, propagation_id, ids, state="running", claim=claim, attempts=_rows.c.attempts + 1)
        return ids

    def still_claimed(self, propagation_id: int, claim: str) -> set[int]:
        """The tasks that a claim still holds; none once the propagation was ended."""
        held = sa.select(_rows.c.task_id).join(_runs, _runs.c.id == _rows.c.propagation_id)
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.claim == claim) & (_rows.c.state == "running")
        return {int(row.task_id) for row in self._read(held.where(mine, _runs.c.state.in_(ACTIVE)))}

    def finish(self, propagation_id: int, claim: str, outcomes: Sequence[TaskOutcome]) -> int:
        """Note what came of claimed tasks; how many the claim still held."""
        if not outcomes:
            return 0
        now = time.time()
        mine = (
            (_rows.c.propagation_id == propagation_id)
            & (_rows.c.task_id == sa.bindparam("of_task"))
            & (_rows.c.claim == claim)
        )
        changed = (
            sa.update(_rows)
            .where(mine)
            .values(
                {name: sa.bindparam(f"new_{name}") for name in ("state", "score", "model_version", "reason")}
                | {"finished_at": now, "claim": None}
            )
        )
        values = [
            {"of_task": one.task_id} | {f"new_{name}": value for name, value in vars(one).items() if name != "task_id"}
            for one in outcomes
        ]
        with self._write() as connection:
            count = connection.execute(changed, values).rowcount
            connection.execute(
                sa.update(_runs).where(_runs.c.id == propagation_id).values(pauses=0, paused_until=None, problem=None)
            )
        return int(count)

    def release(self, propagation_id: int, claims: Collection[str], *, counts_as_attempt: bool) -> int:
        """Give back what claims hold: to wait again, or, if the propagation was ended, as cancelled.

        Args:
            propagation_id: of the tasks.
            claims: whose.
            counts_as_attempt: False if the task is not to blame: the worker was asked to end, Label Studio is away.

        Returns:
            How many tasks.
        """
        if not claims:
            return 0
        mine = (
            (_rows.c.propagation_id == propagation_id)
            & (_rows.c.state == "running")
            & _rows.c.claim.in_(sorted(claims))
        )
        with self._write() as connection:
            state = connection.scalar(sa.select(_runs.c.state).where(_runs.c.id == propagation_id))
            if state in ACTIVE:
                changes: Json = {"state": "pending", "claim": None}
                if not counts_as_attempt:
                    changes["attempts"] = _rows.c.attempts - 1
            else:
                changes = {"state": "cancelled", "claim": None, "finished_at": time.time()}
            return int(connection.execute(sa.update(_rows).where(mine).values(**changes)).rowcount)

    def claims(self, propagation_id: int) -> set[str]:
        """Every claim that holds a task."""
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "running")
        return {str(row.claim) for row in self._read(sa.select(_rows.c.claim).where(mine).distinct())}

    def counts(self, propagation_id: int) -> PropagationCounts:
        """How many tasks are in each state, and how many were finished lately."""
        since = time.time() - _RATE_WINDOW_S
        lately = sa.case((_rows.c.finished_at > since, 1), else_=0)
        grouped = (
            sa.select(
                _rows.c.state,
                sa.func.count().label("total"),
                sa.func.sum(lately).label("lately"),
            )
            .where(_rows.c.propagation_id == propagation_id)
            .group_by(_rows.c.state)
        )
        rows = self._read(grouped)
        by_state = {row.state: int(row.total) for row in rows}
        finished = sum(int(row.lately or 0) for row in rows if row.state in ("done", "empty", "failed"))
        return PropagationCounts(
            **{state: by_state.get(state, 0) for state in PropagationCounts.STATES},
            finished_lately=finished,
            window_s=_RATE_WINDOW_S,
        )

    def waiting(self, propagation_id: int, at_most: int) -> int:
        """How many tasks wait, counted up to `at_most`: as quick for a million as for a thousand."""
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "pending")
        some = sa.select(_rows.c.task_id).where(mine).limit(at_most).subquery()
        return int(self._read(sa.select(sa.func.count().label("total")).select_from(some))[0].total)

    def failures(self, propagation_id: int, limit: int = 20) -> list[FailureGroup]:
        """Why tasks failed, the most frequent reason first, with one task each."""
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "failed")
        grouped = (
            sa.select(_rows.c.reason, sa.func.count().label("total"), sa.func.min(_rows.c.task_id).label("first"))
            .where(mine)
            .group_by(_rows.c.reason)
            .order_by(sa.desc("total"), _rows.c.reason)
            .limit(limit)
        )
        return [FailureGroup(str(row.reason), int(row.total), int(row.first)) for row in self._read(grouped)]

    def task(self, propagation_id: int, task_id: int) -> TaskRow | None:
        """One task's row."""
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.task_id == task_id)
        rows = self._read(sa.select(_rows).where(mine))
        return _task_row(rows[0]) if rows else None

    def lowest_scored(self, propagation_id: int, count: int) -> list[TaskRow]:
        """The predicted tasks with the lowest scores, lowest first."""
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "done") & _rows.c.score.is_not(None)
        ordered = sa.select(_rows).where(mine).order_by(_rows.c.score, _rows.c.task_id).limit(count)
        return [_task_row(row) for row in self._read(ordered)]

    def done_among(self, propagation_id: int, task_ids: Collection[int]) -> set[int]:
        """Which of the tasks this propagation predicted, or found to be empty."""
        found: set[int] = set()
        for some in _portions(sorted(task_ids)):
            mine = (_rows.c.propagation_id == propagation_id) & _rows.c.task_id.in_(some)
            finished = sa.select(_rows.c.task_id).where(mine, _rows.c.state.in_(("done", "empty")))
            found |= {int(row.task_id) for row in self._read(finished)}
        return found

    def count_outdated(self, propagation_id: int, model_version: str) -> int:
        """Tasks predicted with another model_version than this one."""
        mine = (_rows.c.propagation_id == propagation_id) & _rows.c.state.in_(("done", "empty"))
        counted = sa.select(sa.func.count().label("total")).where(mine, _rows.c.model_version != model_version)
        return int(self._read(counted)[0].total)

    def new_references_since_last(self, project_key: str) -> int:
        """References made after the project's newest propagation was started; all of them if there was none."""
        started = self._read(
            sa.select(sa.func.max(_runs.c.created_at).label("at")).where(
                _runs.c.project_key == project_key, _runs.c.is_planned | (_runs.c.state != "failed")
            )
        )[0].at
        counted = sa.select(sa.func.count().label("total")).where(
            tables.references.c.project_key == project_key, tables.references.c.created_at > (started or 0.0)
        )
        return int(self._read(counted)[0].total)

    # -- quality estimates

    def save_quality(self, project_key: str, model_version: str, figures: Json) -> None:
        """Remember the newest estimate of a project."""
        row = {
            "project_key": project_key, "model_version": model_version, "estimated_at": time.time(),
            "figures": json.dumps(figures),
        }  # fmt: skip
        with self._write() as connection:
            _lock_project(connection, project_key)
            connection.execute(
                sa.delete(tables.quality_estimates).where(tables.quality_estimates.c.project_key == project_key)
            )
            connection.execute(sa.insert(tables.quality_estimates).values(row))

    def quality(self, project_key: str) -> tuple[str, float, Json] | None:
        """model_version, unix time and figures of the newest estimate."""
        mine = tables.quality_estimates.c.project_key == project_key
        rows = self._read(sa.select(tables.quality_estimates).where(mine))
        if not rows:
            return None
        return str(rows[0].model_version), float(rows[0].estimated_at), json.loads(rows[0].figures)

    def _update(self, propagation_id: int, *conditions: sa.ColumnElement[bool], **values: Any) -> int:
        with self._write() as connection:
            changed = sa.update(_runs).where(_runs.c.id == propagation_id, *conditions).values(**values)
            return int(connection.execute(changed).rowcount)


_PENDING: Final[Json] = {
    "state": "pending", "attempts": 0, "claim": None, "finished_at": None, "score": None, "model_version": None,
    "reason": None,
}  # fmt: skip


def _is_active(project_key: str | None) -> sa.ColumnElement[bool]:
    is_active = _runs.c.state.in_(ACTIVE)
    return is_active if project_key is None else is_active & (_runs.c.project_key == project_key)


def _select_runs(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(_runs).where(condition)


def _lock_project(connection: sa.Connection, key: str) -> None:
    # Two starts at once on PostgreSQL would each see no propagation that runs; SQLite has one writer anyway.
    locked = sa.select(tables.projects.c.key).where(tables.projects.c.key == key).with_for_update()
    if connection.scalar(locked) is None:
        raise NotFoundError(f"project {key} is not in the store: connect its backend again in Label Studio")


def _end(connection: sa.Connection, propagation_id: int, state: str, now: float) -> bool:
    ended = (
        sa.update(_runs)
        .where(_runs.c.id == propagation_id, _runs.c.state.in_(ACTIVE))
        .values(state=state, finished_at=now, paused_until=None)
    )
    if not connection.execute(ended).rowcount:
        return False
    waiting = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "pending")
    connection.execute(sa.update(_rows).where(waiting).values(state="cancelled", finished_at=now))
    return True


def _insert_rows(connection: sa.Connection, propagation_id: int, task_ids: Iterable[int]) -> None:
    rows = [
        {"propagation_id": propagation_id, "task_id": task_id, "state": "pending", "attempts": 0}
        for task_id in sorted(set(task_ids))
    ]
    if rows:
        # A task may have been handed on while the planner had not yet come to it.
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        connection.execute(dialect.insert(_rows).on_conflict_do_nothing(), rows)


def _update_rows(connection: sa.Connection, propagation_id: int, task_ids: Sequence[int], **values: Any) -> None:
    for some in _portions(task_ids):
        mine = (_rows.c.propagation_id == propagation_id) & _rows.c.task_id.in_(some)
        connection.execute(sa.update(_rows).where(mine).values(**values))


def _set_pending(connection: sa.Connection, propagation_id: int, task_ids: Sequence[int]) -> None:
    _update_rows(connection, propagation_id, task_ids, **_PENDING)


def _forget_old(connection: sa.Connection, project_key: str) -> None:
    newest = (
        sa.select(_runs.c.id)
        .where(_runs.c.project_key == project_key)
        .order_by(_runs.c.id.desc())
        .limit(_KEPT_A_PROJECT)
    )
    kept = [row.id for row in connection.execute(newest)]
    connection.execute(sa.delete(_runs).where(_runs.c.project_key == project_key, _runs.c.id.not_in(kept)))


def _portions(task_ids: Sequence[int]) -> Iterable[Sequence[int]]:
    for start in range(0, len(task_ids), _IDS_A_STATEMENT):
        yield task_ids[start : start + _IDS_A_STATEMENT]


def _record(row: sa.Row[Any]) -> PropagationRecord:
    fields = {name: getattr(row, name) for name in PropagationRecord.__dataclass_fields__ if name != "wanted"}
    return PropagationRecord(**fields, wanted=PropagationFilter(**_as_filter(json.loads(row.filter))))


def _as_filter(told: Json) -> Json:
    return told | {"labels": None if told.get("labels") is None else tuple(told["labels"])}


def _task_row(row: sa.Row[Any]) -> TaskRow:
    return TaskRow(int(row.task_id), str(row.state), row.score, row.model_version, row.reason, int(row.attempts))
