"""The tasks of propagations: who predicts which, and what came of it.

A task's row goes pending -> running (leased by one job of one worker) -> done, empty, failed or cancelled. Only who
holds the lease may finish it, so a job that was given up on and comes back late changes nothing.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from backend.core.types import Json
from backend.store import tables
from backend.store.part import StorePart
from backend.store.propagation_counts import TaskKind, hold, kinds_of, move
from backend.store.records import FailureGroup, ProjectKey, PropagationCounts, TaskOutcome, TaskRow

ACTIVE: Final = ("planning", "running", "finishing")
"""States in which a propagation still has something to do; a project has at most one of these."""
UNFINISHED: Final = ("pending", "running")
MAX_ATTEMPTS: Final = 4
"""Number of times that a task may take its worker down before it is given up."""
_RATE_WINDOW_S: Final = 60.0
_IDS_A_STATEMENT: Final = 500
_SHARES: Final = 8
_SMALLEST_SHARE: Final = 4
PENDING: Final[Json] = {
    "state": "pending", "attempts": 0, "claim": None, "finished_at": None, "score": None, "model_version": None,
    "reason": None, "images": None,
}  # fmt: skip

_WAITING: Final[TaskKind] = ("pending", "")
_LEASED: Final[TaskKind] = ("running", "")

_runs, _rows, _counts = tables.propagations, tables.propagation_tasks, tables.propagation_counts


class PropagationTaskStore(StorePart):
    """The tasks; reached as `Store.propagation_tasks`. Every method is one short transaction."""

    def lease(
        self, propagation_id: int, lease: str, limit: int, *, on_given_up: Callable[[int], None] = lambda _: None
    ) -> list[int]:
        """Take up to `limit` waiting tasks; nobody else gets them until they are released.

        Fewer where few are left, so that all workers share the end of a propagation, and a small one shows progress.
        Tasks that took a worker down are given out alone, so that they cannot take others with them, and after
        `MAX_ATTEMPTS` not at all.

        Args:
            propagation_id: of the tasks.
            lease: names the worker, its job and its batch.
            limit: most tasks.
            on_given_up: told of tasks that are not tried any more.
        """
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "pending")
        some = sa.select(_rows.c.task_id).where(mine).limit(limit * _SHARES).subquery()
        first = sa.select(_rows.c.task_id, _rows.c.attempts).where(mine)
        first = first.order_by(_rows.c.finished_at, _rows.c.task_id).with_for_update(skip_locked=True)
        with self._write() as connection:
            if hold(connection, propagation_id) not in ACTIVE:
                return []
            waiting = connection.scalar(sa.select(sa.func.count()).select_from(some)) or 0
            share = min(limit, max(_SMALLEST_SHARE, waiting // _SHARES))
            found = connection.execute(first.limit(share)).all()
            hopeless = [row.task_id for row in found if row.attempts >= MAX_ATTEMPTS]
            if hopeless:
                _update_rows(
                    connection, propagation_id, hopeless, state="failed", finished_at=self._now(),
                    reason=f"given up after {MAX_ATTEMPTS} tries: its worker ended each time; the log says more",
                )  # fmt: skip
                move(connection, propagation_id, {_WAITING: len(hopeless)}, {("failed", ""): len(hopeless)})
                on_given_up(len(hopeless))
            usable = [row for row in found if row.attempts < MAX_ATTEMPTS]
            is_suspect = bool(usable and usable[0].attempts)
            usable = usable[:1] if is_suspect else [row for row in usable if not row.attempts]
            ids = [int(row.task_id) for row in usable]
            _update_rows(connection, propagation_id, ids, state="running", claim=lease, attempts=_rows.c.attempts + 1)
            move(connection, propagation_id, {_WAITING: len(ids)}, {_LEASED: len(ids)})
        return ids

    def still_leased(self, propagation_id: int, lease: str) -> set[int]:
        """Return the tasks that a lease still holds; none once the propagation was ended."""
        held = sa.select(_rows.c.task_id).join(_runs, _runs.c.id == _rows.c.propagation_id)
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.claim == lease) & (_rows.c.state == "running")
        return {int(row.task_id) for row in self._read(held.where(mine, _runs.c.state.in_(ACTIVE)))}

    def finish(self, propagation_id: int, lease: str, outcomes: Sequence[TaskOutcome]) -> int:
        """Note what came of leased tasks; how many the lease still held."""
        if not outcomes:
            return 0
        now = self._now()
        mine = (
            (_rows.c.propagation_id == propagation_id)
            & (_rows.c.task_id == sa.bindparam("of_task"))
            & (_rows.c.claim == lease)
        )
        changed = (
            sa.update(_rows)
            .where(mine)
            .values(
                {name: sa.bindparam(f"new_{name}") for name in ("state", "score", "model_version", "reason", "images")}
                | {"finished_at": now, "claim": None}
            )
        )
        left_out = ("task_id", "is_kept")
        with self._write() as connection:
            hold(connection, propagation_id)
            held = sa.select(_rows.c.task_id).where(
                _rows.c.propagation_id == propagation_id, _rows.c.state == "running", _rows.c.claim == lease
            )
            mine_still = {int(row.task_id) for row in connection.execute(held)}
            first = {one.task_id: one for one in reversed(outcomes) if one.task_id in mine_still}
            values = [
                {"of_task": one.task_id}
                | {f"new_{name}": value for name, value in vars(one).items() if name not in left_out}
                for one in first.values()
            ]
            if values:
                connection.execute(changed, values)
            became = Counter((one.state, one.model_version or "") for one in first.values())
            move(connection, propagation_id, {_LEASED: len(first)}, became)
            kept = sum(one.is_kept and one.state == "done" for one in first.values())
            connection.execute(
                sa.update(_runs)
                .where(_runs.c.id == propagation_id)
                .values(pauses=0, paused_until=None, problem=None, kept=_runs.c.kept + kept)
            )
        return len(first)

    def release(self, propagation_id: int, leases: Collection[str], *, counts_as_attempt: bool) -> int:
        """Give back what leases hold: to wait again, or, if the propagation was ended, as cancelled.

        Args:
            propagation_id: of the tasks.
            leases: whose.
            counts_as_attempt: False if the task is not to blame: the worker was asked to end, Label Studio is away.

        Returns:
            How many tasks.
        """
        if not leases:
            return 0
        mine = (
            (_rows.c.propagation_id == propagation_id)
            & (_rows.c.state == "running")
            & _rows.c.claim.in_(sorted(leases))
        )
        with self._write() as connection:
            if hold(connection, propagation_id) in ACTIVE:
                changes: Json = {"state": "pending", "claim": None}
                if not counts_as_attempt:
                    changes["attempts"] = _rows.c.attempts - 1
            else:
                changes = {"state": "cancelled", "claim": None, "finished_at": self._now()}
            count = int(connection.execute(sa.update(_rows).where(mine).values(**changes)).rowcount)
            move(connection, propagation_id, {_LEASED: count}, {(changes["state"], ""): count})
        return count

    def leases(self, propagation_id: int) -> set[str]:
        """Return every lease that holds a task."""
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "running")
        return {str(row.claim) for row in self._read(sa.select(_rows.c.claim).where(mine).distinct())}

    def counts(self, propagation_id: int) -> PropagationCounts:
        """Return the tasks in each state, and how many were finished lately: as quick for any number of tasks."""
        lately = sa.select(sa.func.count()).where(
            _rows.c.propagation_id == propagation_id, _rows.c.state.in_(("done", "empty", "failed")),
            _rows.c.finished_at > self._now() - _RATE_WINDOW_S,
        )  # fmt: skip
        totals = (
            sa.select(_counts.c.state, sa.func.sum(_counts.c.total).label("total"))
            .add_columns(lately.scalar_subquery().label("lately"))
            .where(_counts.c.propagation_id == propagation_id)
            .group_by(_counts.c.state)
        )
        rows = self._read(totals)
        by_state = {row.state: int(row.total) for row in rows}
        return PropagationCounts(
            **{state: by_state.get(state, 0) for state in PropagationCounts.STATES},
            finished_lately=int(rows[0].lately) if rows else 0,
            window_s=_RATE_WINDOW_S,
        )

    def predicted_among_running(self, propagation_id: int) -> int:
        """Count the leased tasks that are predicted already, and not yet written to Label Studio."""
        tiles = tables.tiles.c
        same = (tiles.project_key == _runs.c.project_key) & (tiles.task_id == _rows.c.task_id)
        joined = _rows.join(_runs, _runs.c.id == _rows.c.propagation_id).join(tables.tiles, same)
        counted = sa.select(sa.func.count().label("total")).select_from(joined)
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "running")
        return int(self._read(counted.where(mine, tiles.updated_at >= _runs.c.started_at))[0].total)

    def waiting(self, propagation_id: int, at_most: int) -> int:
        """Count the waiting tasks up to `at_most`: as quick for a million as for a thousand."""
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "pending")
        some = sa.select(_rows.c.task_id).where(mine).limit(at_most).subquery()
        return int(self._read(sa.select(sa.func.count().label("total")).select_from(some))[0].total)

    def failures(self, propagation_id: int, limit: int = 20) -> list[FailureGroup]:
        """Return why tasks failed, or were predicted without one of their images, the most frequent reason first."""
        mine = (_rows.c.propagation_id == propagation_id) & _rows.c.reason.is_not(None)
        grouped = (
            sa.select(_rows.c.reason, sa.func.count().label("total"), sa.func.min(_rows.c.task_id).label("first"))
            .where(mine)
            .group_by(_rows.c.reason)
            .order_by(sa.desc("total"), _rows.c.reason)
            .limit(limit)
        )
        return [FailureGroup(str(row.reason), int(row.total), int(row.first)) for row in self._read(grouped)]

    def task(self, propagation_id: int, task_id: int) -> TaskRow | None:
        """Return one task's row."""
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.task_id == task_id)
        rows = self._read(sa.select(_rows).where(mine))
        return _task_row(rows[0]) if rows else None

    def lowest_scored(self, propagation_id: int, count: int) -> list[TaskRow]:
        """Return the predicted tasks with the lowest scores, lowest first."""
        mine = (_rows.c.propagation_id == propagation_id) & (_rows.c.state == "done") & _rows.c.score.is_not(None)
        ordered = sa.select(_rows).where(mine).order_by(_rows.c.score, _rows.c.task_id).limit(count)
        return [_task_row(row) for row in self._read(ordered)]

    def done_among(self, propagation_id: int, task_ids: Collection[int]) -> set[int]:
        """Return those of the tasks that this propagation predicted, or found to be empty."""
        found: set[int] = set()
        for some in portions(sorted(task_ids)):
            mine = (_rows.c.propagation_id == propagation_id) & _rows.c.task_id.in_(some)
            finished = sa.select(_rows.c.task_id).where(mine, _rows.c.state.in_(("done", "empty")))
            found |= {int(row.task_id) for row in self._read(finished)}
        return found

    def newest_versions(self, project_key: ProjectKey, task_ids: Collection[int]) -> dict[int, str | None]:
        """Return the model_version that each task was last predicted with, by any propagation; None where none was."""
        newest: dict[int, str | None] = dict.fromkeys(task_ids)
        newest_last = (
            sa.select(_rows.c.task_id, _rows.c.model_version)
            .join(_runs, _runs.c.id == _rows.c.propagation_id)
            .where(_runs.c.project_key == project_key, _rows.c.state == "done")
            .order_by(_rows.c.finished_at)
        )
        for some in portions(sorted(task_ids)):
            read = self._read(newest_last.where(_rows.c.task_id.in_(some)))
            newest |= {int(row.task_id): row.model_version for row in read}
        return newest

    def made_of(self, project_key: ProjectKey, task_ids: Collection[int], model_version: str) -> dict[int, str]:
        """Return what the newest predictions of a version were made of, as `TaskOutcome.images`, as far as noted.

        Args:
            project_key: of the tasks; all its propagations are looked at.
            task_ids: of the tasks.
            model_version: of the predictions.
        """
        noted: dict[int, str] = {}
        newest_last = (
            sa.select(_rows.c.task_id, _rows.c.images)
            .join(_runs, _runs.c.id == _rows.c.propagation_id)
            .where(_runs.c.project_key == project_key, _rows.c.state.in_(("done", "empty")))
            .where(_rows.c.images.is_not(None), _rows.c.model_version == model_version)
            .order_by(_rows.c.propagation_id)
        )
        for some in portions(sorted(task_ids)):
            noted |= {int(row.task_id): row.images for row in self._read(newest_last.where(_rows.c.task_id.in_(some)))}
        return noted

    def count_outdated(self, propagation_id: int, model_version: str) -> int:
        """Tasks predicted with another model_version than this one."""
        counted = sa.select(sa.func.coalesce(sa.func.sum(_counts.c.total), 0).label("total")).where(
            _counts.c.propagation_id == propagation_id, _counts.c.state.in_(("done", "empty")),
            _counts.c.model_version.not_in(("", model_version)),
        )  # fmt: skip
        return int(self._read(counted)[0].total)


def insert_rows(connection: sa.Connection, propagation_id: int, task_ids: Iterable[int]) -> None:
    """Add waiting tasks, within a transaction that holds the propagation; those that are there stay as they are."""
    wanted = sorted(set(task_ids))
    for some in portions(wanted):
        # A task may have been handed on while the planner had not yet come to it.
        mine = (_rows.c.propagation_id == propagation_id) & _rows.c.task_id.in_(some)
        known = {int(row.task_id) for row in connection.execute(sa.select(_rows.c.task_id).where(mine))}
        rows = [
            {"propagation_id": propagation_id, "task_id": task_id, "state": "pending", "attempts": 0}
            for task_id in some
            if task_id not in known
        ]
        if rows:
            connection.execute(sa.insert(_rows), rows)
            move(connection, propagation_id, {}, {_WAITING: len(rows)})


def _update_rows(connection: sa.Connection, propagation_id: int, task_ids: Sequence[int], **values: Any) -> None:
    for some in portions(task_ids):
        mine = (_rows.c.propagation_id == propagation_id) & _rows.c.task_id.in_(some)
        connection.execute(sa.update(_rows).where(mine).values(**values))


def set_pending(connection: sa.Connection, propagation_id: int, task_ids: Sequence[int]) -> None:
    """Let tasks wait again, within a transaction that holds the propagation."""
    for some in portions(task_ids):
        mine = (_rows.c.propagation_id == propagation_id) & _rows.c.task_id.in_(some)
        set_pending_where(connection, propagation_id, mine)


def set_pending_where(connection: sa.Connection, propagation_id: int, chosen: sa.ColumnElement[bool]) -> int:
    """Let a propagation's tasks that meet a condition wait again, as `set_pending`; return how many."""
    before = kinds_of(connection, _rows.c.propagation_id == propagation_id, chosen)
    count = before.total()
    if count:
        mine = sa.update(_rows).where(_rows.c.propagation_id == propagation_id, chosen)
        connection.execute(mine.values(**PENDING))
        move(connection, propagation_id, before, {_WAITING: count})
    return count


def portions(task_ids: Sequence[int]) -> Iterable[Sequence[int]]:
    """Yield the ids, as many at a time as a statement may have."""
    for start in range(0, len(task_ids), _IDS_A_STATEMENT):
        yield task_ids[start : start + _IDS_A_STATEMENT]


def _task_row(row: sa.Row[Any]) -> TaskRow:
    return TaskRow(int(row.task_id), str(row.state), row.score, row.model_version, row.reason, int(row.attempts))
