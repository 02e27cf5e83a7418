"""Annotations that people made on the project's page: what can be undone there, and what they say is absent."""

import json
from collections.abc import Collection
from typing import Any, Final

import sqlalchemy as sa

from backend.store import tables
from backend.store.part import StorePart
from backend.store.propagation_tasks import portions
from backend.store.propagations import lock_project
from backend.store.records import PageAnnotation, ProjectKey

_rows = tables.page_annotations
_SHOWN: Final = 1000
"""Annotations of a batch that are undone at a time."""


class PageAnnotationStore(StorePart):
    """Reached as `Store.page_annotations`. Every method is one short transaction."""

    def add(self, project_key: ProjectKey, annotation: PageAnnotation) -> None:
        """Remember an annotation.

        Raises:
            NotFoundError: the project is not in the store.
        """
        row = {**vars(annotation), "absent_labels": json.dumps(annotation.absent_labels), "made_at": self._now()}
        with self._write() as connection:
            lock_project(connection, project_key)
            mine = (_rows.c.project_key == project_key) & (_rows.c.annotation_id == annotation.annotation_id)
            connection.execute(sa.delete(_rows).where(mine))
            connection.execute(sa.insert(_rows).values(project_key=project_key, **row))

    def of_batch(self, project_key: ProjectKey, batch: str) -> list[PageAnnotation]:
        """Return the annotations that one action made."""
        mine = (_rows.c.project_key == project_key) & (_rows.c.batch == batch)
        return [_from_row(row) for row in self._read(sa.select(_rows).where(mine).limit(_SHOWN))]

    def newest(self, project_key: ProjectKey) -> PageAnnotation | None:
        """Return the last one that was made; None if all were undone."""
        mine = sa.select(_rows).where(_rows.c.project_key == project_key).order_by(_rows.c.made_at.desc()).limit(1)
        rows = self._read(mine)
        return _from_row(rows[0]) if rows else None

    def absent_labels(self, project_key: ProjectKey, annotation_id: int) -> tuple[str, ...]:
        """Return the labels that an annotation says are not on its image; () for one that was made elsewhere."""
        mine = (_rows.c.project_key == project_key) & (_rows.c.annotation_id == annotation_id)
        rows = self._read(sa.select(_rows).where(mine))
        return _from_row(rows[0]).absent_labels if rows else ()

    def forget(self, project_key: ProjectKey, annotation_ids: Collection[int]) -> None:
        """Forget annotations that are gone from Label Studio."""
        with self._write() as connection:
            for some in portions(sorted(annotation_ids)):
                mine = (_rows.c.project_key == project_key) & _rows.c.annotation_id.in_(some)
                connection.execute(sa.delete(_rows).where(mine))


def _from_row(row: sa.Row[Any]) -> PageAnnotation:
    return PageAnnotation(
        int(row.annotation_id), int(row.task_id), str(row.action), str(row.batch),
        tuple(json.loads(row.absent_labels)),
    )  # fmt: skip
