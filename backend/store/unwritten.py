"""Predictions that tiles show and Label Studio does not have yet.

A row goes with its tile: whatever replaces the tile takes it along, so an older prediction is never written after a
newer one. One process at a time writes those of a project.
"""

import json
from collections.abc import Sequence
from uuid import uuid4

import sqlalchemy as sa

from backend.store import tables
from backend.store.part import StorePart
from backend.store.records import ProjectKey, UnwrittenPrediction

_rows, _counters = tables.unwritten_predictions, tables.tile_counters


class UnwrittenStore(StorePart):
    """Reached as `Store.unwritten`. Every method is one short transaction; `TileStore.save` adds the rows."""

    def projects(self) -> list[ProjectKey]:
        """Return the projects that have such predictions."""
        return [str(row.project_key) for row in self._read(sa.select(_rows.c.project_key).distinct())]

    def count(self, project_key: ProjectKey) -> int:
        """Return the number of predictions of a project that wait to be written."""
        counted = sa.select(sa.func.count().label("total")).where(_rows.c.project_key == project_key)
        return int(self._read(counted)[0].total)

    def of_task(self, project_key: ProjectKey, task_id: int) -> UnwrittenPrediction | None:
        """Return what waits of a task; None if Label Studio has its newest prediction."""
        wanted = sa.select(_rows).where(_rows.c.project_key == project_key, _rows.c.task_id == task_id)
        rows = self._read(wanted)
        return _from_row(rows[0]) if rows else None

    def oldest(self, project_key: ProjectKey, limit: int) -> list[UnwrittenPrediction]:
        """Return up to so many predictions, in the order in which they were made."""
        wanted = sa.select(_rows).where(_rows.c.project_key == project_key)
        return [_from_row(row) for row in self._read(wanted.order_by(_rows.c.counter, _rows.c.task_id).limit(limit))]

    def delete(self, project_key: ProjectKey, written: Sequence[UnwrittenPrediction]) -> None:
        """Remove predictions that need no more writing; newer ones of their tasks stay."""
        with self._write() as connection:
            for one in written:
                mine = (_rows.c.project_key == project_key) & (_rows.c.task_id == one.task_id)
                connection.execute(sa.delete(_rows).where(mine, _rows.c.counter == one.counter))

    def begin_writing(self, project_key: ProjectKey, seconds: float) -> str | None:
        """Become the one who writes those of a project, for so long; return a name for it, None if another one is."""
        name, now = uuid4().hex, self._now()
        is_free = sa.or_(_counters.c.writer.is_(None), _counters.c.writes_until < now)
        mine = sa.update(_counters).where(_counters.c.project_key == project_key, is_free)
        with self._write() as connection:
            taken = connection.execute(mine.values(writer=name, writes_until=now + seconds))
        return name if taken.rowcount else None

    def go_on_writing(self, project_key: ProjectKey, name: str, seconds: float) -> bool:
        """Write for so long from now on; return False if another one does by now."""
        mine = sa.update(_counters).where(_counters.c.project_key == project_key, _counters.c.writer == name)
        with self._write() as connection:
            return bool(connection.execute(mine.values(writes_until=self._now() + seconds)).rowcount)

    def end_writing(self, project_key: ProjectKey, name: str) -> None:
        """Let another one write."""
        mine = sa.update(_counters).where(_counters.c.project_key == project_key, _counters.c.writer == name)
        with self._write() as connection:
            connection.execute(mine.values(writer=None, writes_until=None))


def insert_unwritten(
    connection: sa.Connection, project_key: ProjectKey, counter: int, one: UnwrittenPrediction
) -> None:
    """Add a prediction, within the transaction that saved its tile."""
    connection.execute(
        sa.insert(_rows).values(
            project_key=project_key, task_id=one.task_id, counter=counter, model_version=one.model_version,
            prediction=None if one.prediction is None else json.dumps(one.prediction), images=one.images,
            absence=one.absence,
        )
    )  # fmt: skip


def _from_row(row: "sa.Row[tuple[object, ...]]") -> UnwrittenPrediction:
    return UnwrittenPrediction(
        int(row.task_id), str(row.model_version), None if row.prediction is None else json.loads(row.prediction),
        str(row.images), float(row.absence), int(row.counter),
    )  # fmt: skip
