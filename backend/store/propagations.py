"""Propagations: what was asked for, how far it is, and how it ended. Their tasks are in `propagation_tasks`."""

import json
from collections.abc import Collection, Sequence
from typing import Any, Final

import sqlalchemy as sa

from backend.core.types import Json
from backend.errors import ConflictError, NotFoundError
from backend.store import tables
from backend.store.part import StorePart
from backend.store.propagation_counts import hold, move, recount
from backend.store.propagation_tasks import (
    ACTIVE,
    UNFINISHED,
    insert_rows,
    portions,
    set_pending,
    set_pending_where,
)
from backend.store.records import ProjectKey, PropagationFilter, PropagationRecord

_KEPT_A_PROJECT: Final = 20

_runs, _rows = tables.propagations, tables.propagation_tasks


class PropagationStore(StorePart):
    """Propagations; reached as `Store.propagations`. Every method is one short transaction."""

    # -- propagations

    def create(
        self,
        project_key: ProjectKey,
        wanted: PropagationFilter,
        started_by: str,
        *,
        supersede: bool,
        planned_tasks: Collection[int] | None = None,
    ) -> PropagationRecord:
        """Make a new propagation of a project.

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
        now = self._now()
        with self._write() as connection:
            lock_project(connection, project_key)
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
            insert_rows(connection, identifier, planned_tasks or ())
            _forget_old(connection, project_key)
            row = connection.execute(_select_runs(_runs.c.id == identifier)).one()
        return _record(row)

    def get(self, propagation_id: int) -> PropagationRecord:
        """Return one propagation.

        Raises:
            NotFoundError: there is none of that id (any more).
        """
        rows = self._read(_select_runs(_runs.c.id == propagation_id))
        if not rows:
            raise NotFoundError(f"propagation {propagation_id} is not in the store (any more)")
        return _record(rows[0])

    def active(self, project_key: ProjectKey | None = None) -> list[PropagationRecord]:
        """Those that have something to do, of one project or of all, oldest first."""
        return [_record(row) for row in self._read(_select_runs(_is_active(project_key)).order_by(_runs.c.id))]

    def latest(self, project_key: ProjectKey, count: int = 10) -> list[PropagationRecord]:
        """Return the newest propagations of a project, newest first."""
        mine = _select_runs(_runs.c.project_key == project_key)
        return [_record(row) for row in self._read(mine.order_by(_runs.c.id.desc()).limit(count))]

    def note_version(self, propagation_id: int, model_version: str, references_digest: str) -> None:
        """Remember what the propagation predicts with."""
        self._update(propagation_id, model_version=model_version, references_digest=references_digest)

    def add_planned(self, propagation_id: int, task_ids: Sequence[int]) -> bool:
        """Add the next tasks of a plan, in the order of their ids; False, and nothing is added, if it was ended."""
        with self._write() as connection:
            mine = (_runs.c.id == propagation_id) & _runs.c.state.in_(ACTIVE)
            changes: Json = {"pauses": 0, "paused_until": None, "problem": None, "plan_attempts": 0}
            if task_ids:
                changes["planned_up_to"] = max(task_ids)
            if not connection.execute(sa.update(_runs).where(mine).values(**changes)).rowcount:
                return False
            insert_rows(connection, propagation_id, task_ids)
        return True

    def finish_plan(self, propagation_id: int) -> None:
        """Note that all tasks are listed: the propagation runs."""
        self._update(
            propagation_id, _runs.c.state == "planning", state="running", is_planned=True, started_at=self._now()
        )

    def defer(self, project_key: ProjectKey, task_ids: Sequence[int], model_version: str, started_by: str) -> int:
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
            return self.defer(project_key, task_ids, model_version, started_by)
        identifier = running[0].id
        with self._write() as connection:
            hold(connection, identifier)
            known: dict[int, Any] = {}
            for some in portions(sorted(set(task_ids))):
                mine = (_rows.c.propagation_id == identifier) & _rows.c.task_id.in_(some)
                known |= {row.task_id: row for row in connection.execute(sa.select(_rows).where(mine))}
            again = [
                task_id
                for task_id, row in known.items()
                if row.state not in UNFINISHED
                and not (row.state in ("done", "empty") and row.model_version == model_version)
            ]
            set_pending(connection, identifier, again)
            insert_rows(connection, identifier, sorted(set(task_ids) - known.keys()))
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
            return _end(connection, propagation_id, "cancelled", self._now())

    def fail(self, propagation_id: int, problem: str) -> None:
        """End a propagation that cannot be done at all."""
        with self._write() as connection:
            if _end(connection, propagation_id, "failed", self._now()):
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
            lock_project(connection, record.project_key)
            other = connection.execute(
                _select_runs(_is_active(record.project_key) & (_runs.c.id != propagation_id))
            ).first()
            if other is not None:
                raise ConflictError(f"propagation {other.id} of this project runs: wait for it or cancel it first")
            hold(connection, propagation_id)
            is_chosen: list[sa.ColumnElement[bool]] = [_rows.c.state.in_(sorted(states))]
            if other_than_version is not None:
                is_chosen.append(_rows.c.model_version != other_than_version)
            count = set_pending_where(connection, propagation_id, sa.and_(*is_chosen))
            if count or not record.is_planned:
                state = "running" if record.is_planned else "planning"
                connection.execute(
                    sa.update(_runs)
                    .where(_runs.c.id == propagation_id)
                    .values(state=state, problem=None, paused_until=None, pauses=0, finished_at=None, plan_attempts=0)
                )
            if "done" in states:
                # They are predicted anew, or counted as kept again.
                connection.execute(sa.update(_runs).where(_runs.c.id == propagation_id).values(kept=0))
        return count

    def begin_plan(self, propagation_id: int) -> int:
        """Count an attempt to plan; returns how many there were without a page or a pause, this one included."""
        self._update(propagation_id, plan_attempts=_runs.c.plan_attempts + 1)
        read = self._read(sa.select(_runs.c.plan_attempts).where(_runs.c.id == propagation_id))
        return int(read[0].plan_attempts) if read else 0

    def reset_plan_attempts(self, propagation_id: int) -> None:
        """Let the attempts to plan count from 0 again: the last one came further."""
        self._update(propagation_id, plan_attempts=0)

    def note_problem(self, propagation_id: int, problem: str) -> None:
        """Remember what the last attempt to plan failed with."""
        self._update(propagation_id, problem=problem)

    def note_lost_answer(self, propagation_id: int, tidy_after: float) -> None:
        """Remember that Label Studio may still do an import whose answer got lost.

        Args:
            propagation_id: whose predictions were imported.
            tidy_after: unix time in s at which to look for surplus ones.
        """
        self._update(propagation_id, tidy_after=tidy_after)

    def due_to_tidy(self) -> list[PropagationRecord]:
        """Return the propagations whose surplus predictions are to be looked for now."""
        return [_record(row) for row in self._read(_select_runs(_runs.c.tidy_after < self._now()))]

    def note_tidied(self, propagation_id: int, tidy_after: float) -> None:
        """Forget a lost answer, unless another one got lost since."""
        self._update(propagation_id, _runs.c.tidy_after == tidy_after, tidy_after=None)

    def pause(self, propagation_id: int, problem: str, *, first_s: float, at_most_s: float) -> float:
        """Let no job work on it for a while: twice as long as the last time, until something succeeds.

        Returns:
            For how many seconds.
        """
        now = self._now()
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
                .values(problem=problem, paused_until=until, pauses=pauses, plan_attempts=0)
            )
        return float(until - now)

    def try_finish(self, propagation_id: int) -> bool:
        """Return True to the one caller that has to tidy up: every task is finished, and nobody does it yet."""
        unfinished = sa.exists().where(_rows.c.propagation_id == propagation_id, _rows.c.state.in_(UNFINISHED))
        return self._update(propagation_id, _runs.c.state == "running", ~unfinished, state="finishing") > 0

    def complete(self, propagation_id: int) -> bool:
        """Note that all is tidied up; return False if tasks were added meanwhile."""
        changed = sa.update(_runs).where(_runs.c.id == propagation_id, _runs.c.state == "finishing")
        changed = changed.values(state="done", finished_at=self._now())
        with self._write() as connection:
            if not connection.execute(changed).rowcount:
                return False
            # A worker of an older release, which keeps no counters, may have been at work too.
            recount(connection, [propagation_id])
        return True

    def new_references_since_last(self, project_key: ProjectKey) -> int:
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

    def _update(self, propagation_id: int, *conditions: sa.ColumnElement[bool], **values: Any) -> int:
        with self._write() as connection:
            changed = sa.update(_runs).where(_runs.c.id == propagation_id, *conditions).values(**values)
            return int(connection.execute(changed).rowcount)


def _is_active(project_key: ProjectKey | None) -> sa.ColumnElement[bool]:
    is_active = _runs.c.state.in_(ACTIVE)
    return is_active if project_key is None else is_active & (_runs.c.project_key == project_key)


def _select_runs(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(_runs).where(condition)


def lock_project(connection: sa.Connection, key: str) -> None:
    """Hold a project's row until the transaction ends.

    Raises:
        NotFoundError: the project is not in the store.
    """
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
    changed = connection.execute(sa.update(_rows).where(waiting).values(state="cancelled", finished_at=now))
    count = int(changed.rowcount)
    move(connection, propagation_id, {("pending", ""): count}, {("cancelled", ""): count})
    return True


def _forget_old(connection: sa.Connection, project_key: ProjectKey) -> None:
    newest = (
        sa.select(_runs.c.id)
        .where(_runs.c.project_key == project_key)
        .order_by(_runs.c.id.desc())
        .limit(_KEPT_A_PROJECT)
    )
    kept = [row.id for row in connection.execute(newest)]
    connection.execute(sa.delete(_runs).where(_runs.c.project_key == project_key, _runs.c.id.not_in(kept)))


def _record(row: sa.Row[Any]) -> PropagationRecord:
    fields = {name: getattr(row, name) for name in PropagationRecord.__dataclass_fields__ if name != "wanted"}
    return PropagationRecord(**fields, wanted=PropagationFilter(**_as_filter(json.loads(row.filter))))


def _as_filter(told: Json) -> Json:
    return told | {"labels": None if told.get("labels") is None else tuple(told["labels"])}
