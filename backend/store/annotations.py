"""Annotations that were ingested, and what came of them."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from backend.errors import BadInputError, NotFoundError
from backend.store import tables
from backend.store.database import upsert
from backend.store.disabled_references import is_enabled, set_disabled_digests
from backend.store.packing import reference_to_row
from backend.store.patch_packing import pack_patches
from backend.store.patches import insert_patches
from backend.store.records import AnnotationRecord, NewReference, ProjectKey, UnreadAnnotation
from backend.store.session import Database

TOMBSTONE_S: Final = 3600.0
"""Seconds for which a deletion outranks a writer that started before it: longer than any job, short enough to mend a
mistake."""
_IDS_A_STATEMENT: Final = 500
_KIND: Final = "annotation"
"""Kind of the tombstones: the table could hold others."""


class AnnotationStore(Database):
    """Annotations; a part of `Store`. Every method is one short transaction."""

    def replace_references(
        self,
        annotation: AnnotationRecord,
        references: Sequence[NewReference],
        *,
        unread: Collection[str] = (),
        unread_labels: Collection[tuple[str, str]] = (),
    ) -> bool:
        """Make these the only references of an annotation, all or none.

        Args:
            annotation: that they were made of.
            references: of it.
            unread: image tags whose image cannot be had now. If the annotation itself has not changed, its references
                there are kept: nobody knows any better.
            unread_labels: image tag and label of marks that could not be read now; their references are kept likewise.

        Returns:
            False, and nothing is changed, if the store knows a newer state: the annotation updated later, or
            deleted within the last hour and after `updated_at`.

        Raises:
            NotFoundError: the project is not in the store (any more).
            BadInputError: a mask that is not (H, W) bool, a time that is not ISO 8601.
            ValueError: a reference of another signature than the annotation.
        """
        now = self.now()
        # All packing comes before the transaction: other writers wait for the inserts only.
        rows = [reference_to_row(annotation, reference, now) for reference in references]
        patches = [list(pack_patches(new.reference)) for new in references]
        updated_us = _microseconds(annotation.updated_at)
        with self.write() as connection:
            self._lock_project(connection, annotation.project_key)
            if self._is_superseded(connection, annotation, updated_us, now):
                return False
            mine = (tables.annotations.c.project_key == annotation.project_key) & (
                tables.annotations.c.annotation_id == annotation.annotation_id
            )
            last = connection.scalar(sa.select(tables.annotations.c.content_digest).where(mine))
            disabled = _disabled_of(connection, annotation)
            left_out = _deleted_of(connection, annotation)
            row = {**vars(annotation), "updated_us": updated_us}
            if (unread or unread_labels) and last == annotation.content_digest:
                connection.execute(sa.update(tables.annotations).where(mine).values(row))
                replaced = (tables.references.c.project_key == annotation.project_key) & (
                    tables.references.c.annotation_id == annotation.annotation_id
                )
                tag, label = tables.references.c.image_tag, tables.references.c.label
                of_labels = [(tag == image_tag) & (label == name) for image_tag, name in sorted(set(unread_labels))]
                is_kept = sa.or_(tag.in_(sorted(set(unread))), *of_labels)
                connection.execute(sa.delete(tables.references).where(replaced, ~is_kept))
            else:
                connection.execute(sa.delete(tables.annotations).where(mine))
                connection.execute(sa.insert(tables.annotations).values(row))
            for reference_row, own in zip(rows, patches, strict=True):
                named = (reference_row["label"], reference_row["image_tag"])
                if named in left_out:
                    continue
                if named in disabled:
                    set_disabled_digests(
                        connection, annotation.project_key, [reference_row["digest"]], is_disabled=True
                    )
                inserted = connection.execute(sa.insert(tables.references).values(reference_row))
                insert_patches(connection, _new_id(inserted), own)
        return True

    def note_problem(self, project_key: ProjectKey, annotation_id: int, problem: str) -> None:
        """Record what is wrong with an annotation, whose references stay; it is taken in again the next time."""
        mine = (tables.annotations.c.project_key == project_key) & (tables.annotations.c.annotation_id == annotation_id)
        with self.write() as connection:
            connection.execute(sa.update(tables.annotations).where(mine).values(problem=problem))

    def delete_annotations(self, project_key: ProjectKey, ids: Collection[int]) -> int:
        """Forget annotations with their references; return how many were known."""
        if not ids:
            return 0
        now = self.now()
        mine = tables.projects.c.key == project_key
        old = tables.tombstones.c.deleted_at < now - TOMBSTONE_S
        with self.write() as connection:
            connection.execute(sa.select(tables.projects.c.key).where(mine).with_for_update())
            for item_id in sorted(set(ids)):
                row = {"project_key": project_key, "kind": _KIND, "item_id": item_id, "deleted_at": now}
                connection.execute(upsert(self.is_sqlite, tables.tombstones, row, {"deleted_at": now}))
            connection.execute(sa.delete(tables.tombstones).where(old))
            return _delete_annotations(connection, project_key, list(ids))

    def annotations(self, project_key: ProjectKey) -> list[AnnotationRecord]:
        """Return all ingested annotations, by id.

        To reconcile, read this before Label Studio's list: what is taken in between would else look deleted.
        """
        columns = [tables.annotations.c[name] for name in AnnotationRecord.__dataclass_fields__]
        mine = sa.select(*columns).where(tables.annotations.c.project_key == project_key)
        return [
            AnnotationRecord(**row._mapping) for row in self.read(mine.order_by(tables.annotations.c.annotation_id))
        ]

    def unread_annotations(self, project_key: ProjectKey) -> list[UnreadAnnotation]:
        """Return the annotations with a recorded problem, those without any reference first."""
        record, reference = tables.annotations.c, tables.references.c
        joined = tables.annotations.outerjoin(
            tables.references,
            (record.project_key == reference.project_key) & (record.annotation_id == reference.annotation_id),
        )
        counted = sa.func.count(reference.id).label("references")
        columns = (record.annotation_id, record.task_id, record.problem)
        wanted = sa.select(*columns, counted).select_from(joined).where(record.project_key == project_key)
        grouped = wanted.where(record.problem.is_not(None)).group_by(*columns)
        rows = self.read(grouped.order_by(counted, record.task_id, record.annotation_id))
        return [UnreadAnnotation(**row._mapping) for row in rows]

    def _lock_project(self, connection: sa.Connection, key: str) -> None:
        # SQLite has one writer anyway; on PostgreSQL this keeps a deletion and a late writer of one project in order.
        if (
            connection.scalar(sa.select(tables.projects.c.key).where(tables.projects.c.key == key).with_for_update())
            is None
        ):
            raise NotFoundError(f"project {key} is not in the store: connect its backend again in Label Studio")

    def _is_superseded(
        self, connection: sa.Connection, annotation: AnnotationRecord, updated_us: int, now: float
    ) -> bool:
        # Updated after it was deleted: it lives, as a skipped annotation does that is submitted after all.
        deleted = (
            (tables.tombstones.c.project_key == annotation.project_key)
            & (tables.tombstones.c.deleted_at > now - TOMBSTONE_S)
            & (tables.tombstones.c.deleted_at >= updated_us / 1e6)
        )
        gone = (tables.tombstones.c.kind == _KIND) & (tables.tombstones.c.item_id == annotation.annotation_id)
        newer = (
            (tables.annotations.c.project_key == annotation.project_key)
            & (tables.annotations.c.annotation_id == annotation.annotation_id)
            & (tables.annotations.c.updated_us > updated_us)
        )
        is_gone = sa.exists().where(deleted, gone)
        return bool(connection.scalar(sa.select(sa.or_(is_gone, sa.exists().where(newer)))))


def _disabled_of(connection: sa.Connection, annotation: AnnotationRecord) -> set[tuple[str, str]]:
    """Return label and image tag of the annotation's references that somebody disabled."""
    references = tables.references.c
    mine = (references.project_key == annotation.project_key) & (references.annotation_id == annotation.annotation_id)
    found = connection.execute(sa.select(references.label, references.image_tag).where(mine, ~is_enabled()))
    return {(row.label, row.image_tag) for row in found}


def _deleted_of(connection: sa.Connection, annotation: AnnotationRecord) -> set[tuple[str, str]]:
    """Return label and image tag of references that somebody deleted; forgotten if the annotation is another by now."""
    deleted = tables.deleted_references
    mine = (deleted.c.project_key == annotation.project_key) & (deleted.c.annotation_id == annotation.annotation_id)
    connection.execute(sa.delete(deleted).where(mine, deleted.c.content_digest != annotation.content_digest))
    found = connection.execute(sa.select(deleted.c.label, deleted.c.image_tag).where(mine))
    return {(row.label, row.image_tag) for row in found}


def _new_id(inserted: sa.CursorResult[Any]) -> int:
    key = inserted.inserted_primary_key
    assert key is not None  # one row was inserted
    return int(key[0])


def _microseconds(iso_time: str) -> int:
    # Compared as text, "12Z" would be later than "12.3Z": Label Studio leaves out a fraction of 0.
    try:
        moment = datetime.fromisoformat(iso_time)
    except ValueError as error:
        raise BadInputError(f"updated_at must be an ISO 8601 time, got {iso_time!r}") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since_epoch = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since_epoch.days * 86400 + since_epoch.seconds) * 1_000_000 + since_epoch.microseconds


def _delete_annotations(connection: sa.Connection, project_key: ProjectKey, ids: Sequence[int]) -> int:
    deleted = 0
    for start in range(0, len(ids), _IDS_A_STATEMENT):
        some = tables.annotations.c.annotation_id.in_(ids[start : start + _IDS_A_STATEMENT])
        deleted += connection.execute(
            sa.delete(tables.annotations).where(tables.annotations.c.project_key == project_key, some)
        ).rowcount
    return deleted
