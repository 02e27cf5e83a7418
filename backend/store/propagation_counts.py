"""Counters of a propagation's tasks: kept with every change of a task, in the same transaction.

Whoever changes tasks holds the propagation's row from before it reads them until its transaction ends (`hold`), so that
what it counts is what it changes. All transactions take their locks in this order: project, propagation, tasks,
counters.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from backend.store import tables
from backend.store.database import insert

TaskKind = tuple[str, str]
"""State of a task, and the model_version that it was predicted with, "" if with none."""

_runs, _rows, _counts = tables.propagations, tables.propagation_tasks, tables.propagation_counts
_KIND = (_rows.c.state, sa.func.coalesce(_rows.c.model_version, "").label("version"))


def hold(connection: sa.Connection, propagation_id: int) -> str | None:
    """Hold a propagation's row until the transaction ends; return its state, None if there is none of that id."""
    held = sa.select(_runs.c.state).where(_runs.c.id == propagation_id).with_for_update()
    state = connection.scalar(held)
    return None if state is None else str(state)


def kinds_of(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> Counter[TaskKind]:
    """Count the rows of tasks that meet the conditions, by kind: looks at each of them."""
    grouped = sa.select(*_KIND, sa.func.count().label("total")).where(*conditions).group_by(*_KIND)
    return Counter({(str(row.state), str(row.version)): int(row.total) for row in connection.execute(grouped)})


def move(
    connection: sa.Connection, propagation_id: int, before: Mapping[TaskKind, int], after: Mapping[TaskKind, int]
) -> None:
    """Count tasks as what they became.

    Args:
        connection: of the transaction that changes them; it holds the propagation's row.
        propagation_id: of the tasks.
        before: how many there were of each kind; {} for new tasks.
        after: how many there are now.
    """
    changes = Counter(after)
    changes.subtract(before)
    rows = [
        {"propagation_id": propagation_id, "state": state, "model_version": version, "total": total}
        for (state, version), total in sorted(changes.items())
        if total
    ]
    if rows:
        made = insert(connection.dialect.name == "sqlite", _counts)
        grown = {"total": _counts.c.total + made.excluded.total}
        connection.execute(made.on_conflict_do_update(index_elements=list(_counts.primary_key), set_=grown), rows)


def recount(connection: sa.Connection, propagation_ids: Iterable[int]) -> None:
    """Count the tasks of propagations anew, row by row."""
    for propagation_id in propagation_ids:
        hold(connection, propagation_id)
        connection.execute(sa.delete(_counts).where(_counts.c.propagation_id == propagation_id))
        move(connection, propagation_id, {}, kinds_of(connection, _rows.c.propagation_id == propagation_id))


def recount_all(connection: sa.Connection) -> None:
    """Count the tasks of all propagations anew: what an older release wrote has no counters."""
    recount(connection, [int(row.id) for row in connection.execute(sa.select(_runs.c.id).order_by(_runs.c.id))])
