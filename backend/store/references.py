"""References: masks and features that annotations gave."""

import hashlib
import logging
from collections.abc import Collection, Sequence

import sqlalchemy as sa
from safetensors import SafetensorError

from backend.store import tables
from backend.store.database import upsert
from backend.store.disabled_references import is_enabled, set_disabled_digests
from backend.store.packing import row_to_reference
from backend.store.patches import read_reference
from backend.store.records import ProjectKey, ReferenceSummary, StoredReference
from backend.store.session import Database

_log = logging.getLogger(__name__)
_NAMED = ("annotation_id", "label", "image_tag")
"""What names a reference of a project, however often it is made again."""


class ReferenceStore(Database):
    """References; a part of `Store`. Every method is one short transaction."""

    def references(
        self, project_key: ProjectKey, *, labels: Collection[str] | None, signature: str, with_features: bool = True
    ) -> list[StoredReference]:
        """References of a project made by the models of `signature`, in an order that depends on their content only.

        Damaged ones are left out and logged.

        Args:
            project_key: the project.
            labels: only these; None for all.
            signature: of the models in use.
            with_features: False reads masks only, `reference` is then None.
        """
        wanted = _references_where(project_key, labels, signature)
        return self._load_references(wanted, with_features=with_features)

    def reference_mask(self, project_key: ProjectKey, reference_id: int) -> StoredReference | None:
        """Return one reference of a project, without features; None if it is not there (any more)."""
        wanted = [*_references_where(project_key, None, None), tables.references.c.id == reference_id]
        found = self._load_references(wanted, with_features=False)
        return found[0] if found else None

    def list_references(self, project_key: ProjectKey) -> list[ReferenceSummary]:
        """Return all references of a project without their contents, by label, newest first."""
        stored = [name for name in ReferenceSummary.__dataclass_fields__ if name != "is_disabled"]
        columns = [tables.references.c[name] for name in stored]
        mine = sa.select(*columns, (~is_enabled()).label("is_disabled")).where(
            tables.references.c.project_key == project_key
        )
        ordered = mine.order_by(tables.references.c.label, tables.references.c.created_at.desc())
        return [
            ReferenceSummary(**{**row._mapping, "is_disabled": bool(row.is_disabled)}) for row in self.read(ordered)
        ]

    def set_disabled(self, project_key: ProjectKey, reference_id: int, *, is_disabled: bool) -> bool:
        """Take a reference out of matching, or back in; return False if it is not there (any more)."""
        mine = (tables.references.c.project_key == project_key) & (tables.references.c.id == reference_id)
        with self.write() as connection:
            digest = connection.scalar(sa.select(tables.references.c.digest).where(mine))
            if digest is None:
                return False
            set_disabled_digests(connection, project_key, [digest], is_disabled=is_disabled)
        return True

    def delete_reference(self, project_key: ProjectKey, reference_id: int) -> bool:
        """Delete a reference; return False if it is not there (any more).

        Its annotation gives it again as soon as that is changed.
        """
        references, deleted, records = tables.references.c, tables.deleted_references, tables.annotations.c
        mine = (references.project_key == project_key) & (references.id == reference_id)
        same = (records.project_key == references.project_key) & (records.annotation_id == references.annotation_id)
        known = sa.select(
            references.annotation_id, references.label, references.image_tag, references.digest, records.content_digest
        ).join(tables.annotations, same)
        with self.write() as connection:
            row = connection.execute(known.where(mine)).first()
            if row is None:
                return False
            key = {"project_key": project_key, **{name: row._mapping[name] for name in _NAMED}}
            content = {"content_digest": row.content_digest}
            connection.execute(upsert(self.is_sqlite, deleted, key | content, content))
            connection.execute(sa.delete(tables.references).where(mine))
            set_disabled_digests(connection, project_key, [row.digest], is_disabled=False)
        return True

    def references_digest(self, project_key: ProjectKey, labels: Collection[str] | None, signature: str) -> str:
        """sha256 over the references' digests: the same references give the same one, whatever the order or process."""
        return self.references_digest_and_labels(project_key, labels, signature)[0]

    def references_digest_and_labels(
        self, project_key: ProjectKey, labels: Collection[str] | None, signature: str
    ) -> tuple[str, list[str]]:
        """Return what `references_digest` and `reference_labels` return, from one query."""
        columns = tables.references.c
        # One row per label: of thousands of references, a row each takes four times as long.
        digests = sa.func.aggregate_strings(columns.digest, ",").label("digests")
        wanted = sa.select(columns.label, digests).where(*_references_where(project_key, labels, signature))
        rows = self.read(wanted.group_by(columns.label).order_by(columns.label))
        in_order = sorted(digest for row in rows for digest in row.digests.split(","))
        return hashlib.sha256("\n".join(in_order).encode()).hexdigest(), [row.label for row in rows]

    def reference_labels(self, project_key: ProjectKey, labels: Collection[str] | None, signature: str) -> list[str]:
        """Return the labels that have references of these models, of all labels or of some, in order."""
        wanted = sa.select(tables.references.c.label).where(*_references_where(project_key, labels, signature))
        return [label for (label,) in self.read(wanted.distinct().order_by(tables.references.c.label))]

    def count_reference_images(self, project_key: ProjectKey, signature: str) -> dict[str, int]:
        """Return label -> number of different images that its references are of; counts those of these models."""
        images = sa.func.count(tables.references.c.image_sha256.distinct()).label("images")
        counted = sa.select(tables.references.c.label, images).where(*_references_where(project_key, None, signature))
        return {row.label: int(row.images) for row in self.read(counted.group_by(tables.references.c.label))}

    def count_annotated_images(self, project_key: ProjectKey, signature: str) -> int:
        """Return the number of different images that references of these models are of."""
        images = sa.func.count(tables.references.c.image_sha256.distinct())
        return int(self.read(sa.select(images).where(*_references_where(project_key, None, signature)))[0][0])

    def labelled_images(
        self, project_key: ProjectKey, labels: Collection[str] | None, signature: str
    ) -> list[tuple[str, str]]:
        """Return the pairs of label and image tag that have references of these models."""
        columns = tables.references.c
        wanted = sa.select(columns.label, columns.image_tag).where(*_references_where(project_key, labels, signature))
        return [(row.label, row.image_tag) for row in self.read(wanted.distinct())]

    def count_references(self) -> dict[str, int]:
        """Project key to number of references, of all models; projects without any are in it with 0."""
        joined = tables.projects.outerjoin(tables.references, tables.references.c.project_key == tables.projects.c.key)
        counts = sa.select(tables.projects.c.key, sa.func.count(tables.references.c.id).label("total")).select_from(
            joined
        )
        return {row.key: row.total for row in self.read(counts.group_by(tables.projects.c.key))}

    def count_references_not_of(self, project_key: ProjectKey, reading: str, signature: str | None) -> int:
        """Count the references of a project that were made with another reading, or by other models.

        Args:
            project_key: of the project.
            reading: digest of the present one, see `AnnotationRecord`.
            signature: of the present models; None: models are not compared.
        """
        record, reference = tables.annotations.c, tables.references.c
        joined = tables.references.join(
            tables.annotations,
            (record.project_key == reference.project_key) & (record.annotation_id == reference.annotation_id),
        )
        differs = record.reading.is_distinct_from(reading)
        if signature is not None:
            differs |= reference.signature != signature
        counted = sa.select(sa.func.count().label("total")).select_from(joined)
        return int(self.read(counted.where(reference.project_key == project_key, differs))[0].total)

    def _load_references(
        self, wanted: Sequence[sa.ColumnElement[bool]], *, with_features: bool
    ) -> list[StoredReference]:
        left_out = {"features"} if with_features else {"features", "patch_summary"}
        columns = [column for column in tables.references.c if column.name not in left_out]
        in_order = sa.select(*columns).where(*wanted).order_by(tables.references.c.label, tables.references.c.digest)
        loaded = []
        with self.snapshot() as connection:
            for row in connection.execute(in_order).all():
                try:
                    reference = read_reference(connection, row) if with_features else None
                    loaded.append(row_to_reference(row, reference))
                except (ValueError, KeyError, SafetensorError) as error:
                    _log.error(
                        "reference %d (project %s, task %d, annotation %d, label %r) is damaged and left out: %s",
                        *(row.id, row.project_key, row.task_id, row.annotation_id, row.label, error),
                    )
        return loaded


def _references_where(
    project_key: ProjectKey, labels: Collection[str] | None, signature: str | None
) -> list[sa.ColumnElement[bool]]:
    wanted = [tables.references.c.project_key == project_key]
    if signature is not None:
        # Whoever names the models wants to match.
        wanted += [is_enabled()]
        wanted.append(tables.references.c.signature == signature)
    if labels is not None:
        wanted.append(tables.references.c.label.in_(sorted(set(labels))))
    return wanted
