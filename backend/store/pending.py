"""Annotations that were announced and are not ingested yet."""

from typing import Final

import sqlalchemy as sa

from backend.store import tables
from backend.store.database import upsert
from backend.store.records import ProjectKey
from backend.store.session import Database

PENDING_KEPT_S: Final = 86400.0
"""Seconds for which an announcement is remembered."""


class PendingStore(Database):
    """Announced annotations; a part of `Store`. Every method is one short transaction."""

    def mark_pending(self, project_key: ProjectKey, annotation_id: int) -> float:
        """Note that an annotation was announced; its mark is for `clear_pending`. The project may be unknown yet."""
        mark = self.now()
        row = {"project_key": project_key, "annotation_id": annotation_id, "marked_at": mark}
        with self.write() as connection:
            connection.execute(upsert(self.is_sqlite, tables.pending, row, {"marked_at": mark}))
            connection.execute(sa.delete(tables.pending).where(tables.pending.c.marked_at < mark - PENDING_KEPT_S))
        return mark

    def clear_pending(self, project_key: ProjectKey, annotation_id: int, mark: float | None = None) -> None:
        """Note that an annotation was ingested.

        Args:
            project_key: of its project.
            annotation_id: as in Label Studio.
            project_key: of its project.
            annotation_id: its id.
            mark: what `mark_pending` returned: a later announcement of the same annotation then stays pending.
        """
        own = (tables.pending.c.project_key == project_key) & (tables.pending.c.annotation_id == annotation_id)
        if mark is not None:
            own &= tables.pending.c.marked_at <= mark
        with self.write() as connection:
            connection.execute(sa.delete(tables.pending).where(own))

    def left_pending(self, older_than_s: float, count: int) -> list[tuple[str, int]]:
        """Return up to `count` annotations that were announced so long ago and are not taken in: (project key, id)."""
        waiting = tables.pending.c.marked_at < self.now() - older_than_s
        rows = self.read(
            sa.select(tables.pending.c.project_key, tables.pending.c.annotation_id)
            .where(waiting)
            .order_by(tables.pending.c.marked_at)
            .limit(count)
        )
        return [(row.project_key, row.annotation_id) for row in rows]

    def has_pending(self, project_key: ProjectKey, younger_than_s: float) -> bool:
        """Return whether an annotation was announced within the last seconds and is not ingested yet."""
        recent = (tables.pending.c.project_key == project_key) & (
            tables.pending.c.marked_at > self.now() - younger_than_s
        )
        return bool(self.read(sa.select(tables.pending.c.annotation_id).where(recent).limit(1)))
