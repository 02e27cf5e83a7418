"""What must outlive a process: projects, the annotations that were taken in, their references. SQLite or PostgreSQL.

What can be made again (features of targets) is not here but in `feature_cache`.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from safetensors import SafetensorError

from backend.errors import BadInputError, ConfigurationError, NotFoundError
from backend.store import tables
from backend.store.database import (
    CREATE_LOCK_ID,
    Clock,
    add_missing_columns,
    forget_connections_after_fork,
    named_errors,
    open_engine,
    parse_url,
    prepare_sqlite_file,
    upsert,
)
from backend.store.packing import reference_to_row, row_to_reference
from backend.store.propagation_tasks import PropagationTaskStore
from backend.store.propagations import PropagationStore
from backend.store.quality import QualityStore
from backend.store.records import (
    AnnotationRecord,
    Json,
    NewReference,
    ProjectRecord,
    ReferenceSummary,
    StoredReference,
    UnreadAnnotation,
)
from backend.store.sqlite_file import SqliteFile
from backend.store.tables import SCHEMA_VERSION

__all__ = ["AnnotationRecord", "NewReference", "ProjectRecord", "Store", "StoredReference"]

_log = logging.getLogger(__name__)

TOMBSTONE_S: Final = 3600.0
"""How long a deletion outranks a writer that started before it: longer than any job, short enough to mend a mistake."""
PENDING_KEPT_S: Final = 86400.0
_IDS_A_STATEMENT: Final = 500


class Store:
    """The database. Threads and processes may share it; every method is one short transaction.

    Every method may raise StoreUnavailableError (locked for longer than 15 s, full, unreachable, damaged) and
    BadInputError (a value that the database cannot hold).
    """

    def __init__(self, url: str) -> None:
        """Opens nothing yet.

        Args:
            url: `sqlite:///relative/or//absolute.db` or `postgresql://user:password@host/database`.

        Raises:
            ConfigurationError: not such a URL, or the driver for PostgreSQL is missing.
        """
        self._url = parse_url(url)
        self._name = self._url.render_as_string(hide_password=True)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        try:
            self._engine = open_engine(self._url)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"{self._name} needs the Python package {error.name}: pip install 'psycopg[binary]'"
            ) from error
        self._writing = self._engine.execution_options(is_writing=True)
        self._file = SqliteFile(self._engine, Path(self._url.database or "")) if self._is_sqlite else None
        self._clock = Clock(self._engine)
        self.propagations = PropagationStore(self._rows, self._write, self._about_now)
        self.propagation_tasks = PropagationTaskStore(self._rows, self._write, self._about_now)
        self.quality = QualityStore(self._rows, self._write, self._about_now)
        forget_connections_after_fork(self._engine)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._engine.dispose()
        if self._file is not None:
            self._file.forget()

    def now(self) -> float:
        """Return the time that all processes of this database agree on, unix s: all times in its rows are of it."""
        with named_errors(self._name):
            return self._clock(is_exact=True)

    def _about_now(self) -> float:
        with named_errors(self._name):
            return self._clock()

    def file_problem(self) -> str | None:
        """Return what happened to the SQLite file while it was open; None if it is in its place, or on PostgreSQL."""
        return None if self._file is None else self._file.problem()

    def create_tables(self) -> None:
        """Make what is missing, also in an older release's database. Processes that start at once wait for each other.

        A version adds tables, and columns that are nullable or have a server default: making what is missing is the
        whole migration, and no row is rewritten.

        Raises:
            ConfigurationError: a newer release wrote this database.
        """
        if self._is_sqlite:
            with named_errors(self._name):
                prepare_sqlite_file(Path(self._url.database or ""))
        with self._write() as connection:
            if not self._is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CREATE_LOCK_ID)))
            has_version = sa.inspect(connection).has_table(tables.schema.name)
            found = connection.scalar(sa.select(tables.schema.c.version)) if has_version else None
            if found is not None and found > SCHEMA_VERSION:
                raise ConfigurationError(
                    f"{self._name} has schema version {found}, this release knows versions up to {SCHEMA_VERSION}: "
                    "start the newer release that wrote it, or point the database URL at another database"
                )
            tables.metadata.create_all(connection)
            if found is not None and found < SCHEMA_VERSION:
                add_missing_columns(connection, tables.metadata)
            if found is None:
                connection.execute(sa.insert(tables.schema).values(id=1, version=SCHEMA_VERSION))
            elif found < SCHEMA_VERSION:
                connection.execute(sa.update(tables.schema).values(version=SCHEMA_VERSION))

    # -- projects

    def save_project(
        self,
        key: str,
        *,
        title: str | None = None,
        label_config: str | None = None,
        settings: Json | None = None,
        setup_token: str | None = None,
        needs_reconcile: bool | None = None,
    ) -> ProjectRecord:
        """Make or change a project; None leaves a field as it is.

        Label Studio gives an id twice only if its database was made anew. A project of the same id with another time of
        creation stays as it is: whether it is gone is Label Studio's to say (`mark_gone`).

        Raises:
            BadInputError: key is not "<id>.<unix time of creation>".
        """
        project_id, created = _parse_project_key(key)
        told = {
            "title": title,
            "label_config": label_config,
            "settings": None if settings is None else json.dumps(settings),
            "setup_token": setup_token,
            "needs_reconcile": needs_reconcile,
        }
        changes = {name: value for name, value in told.items() if value is not None} | {"updated_at": self.now()}
        defaults = {"label_config": "", "needs_reconcile": False}
        row = {"key": key, "project_id": project_id, "created": created} | defaults | changes
        with self._write() as connection:
            connection.execute(upsert(self._is_sqlite, tables.projects, row, changes))
            saved = connection.execute(sa.select(tables.projects).where(tables.projects.c.key == key)).one()
        return _project(saved)

    def mark_for_reconcile(self, key: str) -> bool:
        """Note that a known project's annotations are to be compared with Label Studio's; False if it is unknown."""
        mine = sa.update(tables.projects).where(tables.projects.c.key == key)
        with self._write() as connection:
            return bool(connection.execute(mine.values(needs_reconcile=True)).rowcount)

    def mark_gone(self, key: str, reason: str) -> bool:
        """Note that Label Studio says it does not have a project: its propagations end, its data stays.

        Args:
            key: of the project.
            reason: what its unfinished propagations end with.

        Returns:
            False if it was marked before, or is unknown.
        """
        mine = (tables.projects.c.key == key) & tables.projects.c.gone_since.is_(None)
        with self._write() as connection:
            is_new = connection.execute(
                sa.update(tables.projects).where(mine).values(gone_since=self._about_now())
            ).rowcount
        for record in self.propagations.active(key):
            self.propagations.fail(record.id, reason)
        return bool(is_new)

    def mark_present(self, key: str) -> None:
        """Note that Label Studio has a project (again)."""
        mine = (tables.projects.c.key == key) & tables.projects.c.gone_since.is_not(None)
        with self._write() as connection:
            connection.execute(sa.update(tables.projects).where(mine).values(gone_since=None))

    def project(self, key: str) -> ProjectRecord | None:
        """The project of a key; None if unknown."""
        rows = self._rows(sa.select(tables.projects).where(tables.projects.c.key == key))
        return _project(rows[0]) if rows else None

    def project_by_id(self, project_id: int) -> ProjectRecord | None:
        """The newest project of Label Studio's id, one that is not gone before others; None if unknown."""
        mine = sa.select(tables.projects).where(tables.projects.c.project_id == project_id)
        is_gone = tables.projects.c.gone_since.is_not(None)
        rows = self._rows(mine.order_by(is_gone, tables.projects.c.created.desc()).limit(1))
        return _project(rows[0]) if rows else None

    def projects(self) -> list[ProjectRecord]:
        """All projects, by id, then time of creation."""
        return [_project(row) for row in self._rows(sa.select(tables.projects).order_by("project_id", "created"))]

    def drop_project(self, key: str) -> None:
        """Remove a project and all that belongs to it; nothing happens if it is unknown."""
        with self._write() as connection:
            _drop(connection, key)

    # -- annotations and references

    def replace_references(
        self, annotation: AnnotationRecord, references: Sequence[NewReference], *, unread: Collection[str] = ()
    ) -> bool:
        """Make these the only references of an annotation, all or none.

        Args:
            annotation: that they were made of.
            references: of it.
            unread: image tags whose image cannot be had now. If the annotation itself has not changed, its references
                there are kept: nobody knows any better.

        Returns:
            False, and nothing is changed, if the store knows a newer state: the annotation updated later, or it or its
            task deleted within the last hour and after `updated_at`.

        Raises:
            NotFoundError: the project is not in the store (any more).
            BadInputError: a mask that is not (H, W) bool, a time that is not ISO 8601.
            ValueError: a reference of another signature than the annotation.
        """
        now = self.now()
        # All packing comes before the transaction: other writers wait for the inserts only.
        rows = [reference_to_row(annotation, reference, now) for reference in references]
        updated_us = _microseconds(annotation.updated_at)
        with self._write() as connection:
            self._lock_project(connection, annotation.project_key)
            if self._is_superseded(connection, annotation, updated_us, now):
                return False
            mine = (tables.annotations.c.project_key == annotation.project_key) & (
                tables.annotations.c.annotation_id == annotation.annotation_id
            )
            last = connection.scalar(sa.select(tables.annotations.c.content_digest).where(mine))
            row = {**vars(annotation), "updated_us": updated_us}
            if unread and last == annotation.content_digest:
                connection.execute(sa.update(tables.annotations).where(mine).values(row))
                replaced = (tables.references.c.project_key == annotation.project_key) & (
                    tables.references.c.annotation_id == annotation.annotation_id
                )
                connection.execute(
                    sa.delete(tables.references).where(
                        replaced, tables.references.c.image_tag.not_in(sorted(set(unread)))
                    )
                )
            else:
                connection.execute(sa.delete(tables.annotations).where(mine))
                connection.execute(sa.insert(tables.annotations).values(row))
            for reference_row in rows:
                connection.execute(sa.insert(tables.references).values(reference_row))
        return True

    def note_problem(self, project_key: str, annotation_id: int, problem: str) -> None:
        """Record what is wrong with an annotation, whose references stay; it is taken in again the next time."""
        mine = (tables.annotations.c.project_key == project_key) & (tables.annotations.c.annotation_id == annotation_id)
        with self._write() as connection:
            connection.execute(sa.update(tables.annotations).where(mine).values(problem=problem))

    def delete_annotations(self, project_key: str, ids: Collection[int]) -> int:
        """Forget annotations with their references; how many were known."""
        return self._delete(project_key, "annotation", tables.annotations.c.annotation_id, ids)

    def delete_tasks(self, project_key: str, task_ids: Collection[int]) -> int:
        """Forget all annotations of tasks with their references; how many annotations were known."""
        return self._delete(project_key, "task", tables.annotations.c.task_id, task_ids)

    def annotations(self, project_key: str) -> list[AnnotationRecord]:
        """All annotations taken in, by id.

        To reconcile, read this before Label Studio's list: what is taken in between would else look deleted.
        """
        columns = [tables.annotations.c[name] for name in AnnotationRecord.__dataclass_fields__]
        mine = sa.select(*columns).where(tables.annotations.c.project_key == project_key)
        return [
            AnnotationRecord(**row._mapping) for row in self._rows(mine.order_by(tables.annotations.c.annotation_id))
        ]

    def references(
        self, project_key: str, *, labels: Collection[str] | None, signature: str, with_features: bool = True
    ) -> list[StoredReference]:
        """References of a project made by the models of `signature`, in an order that depends on their content only.

        Damaged ones are left out and logged.

        Args:
            labels: only these; None for all.
            with_features: False reads masks only, `reference` is then None.
        """
        wanted = _references_where(project_key, labels, signature)
        return self._load_references(wanted, with_features=with_features)

    def reference_masks(self, project_key: str, *, labels: Collection[str] | None = None) -> list[StoredReference]:
        """References whatever models made them, without features: for showing and exporting."""
        return self._load_references(_references_where(project_key, labels, None), with_features=False)

    def reference_mask(self, project_key: str, reference_id: int) -> StoredReference | None:
        """One reference of a project, without features; None if it is not there (any more)."""
        wanted = [*_references_where(project_key, None, None), tables.references.c.id == reference_id]
        found = self._load_references(wanted, with_features=False)
        return found[0] if found else None

    def list_references(self, project_key: str) -> list[ReferenceSummary]:
        """All references of a project without their contents, by label, newest first."""
        columns = [tables.references.c[name] for name in ReferenceSummary.__dataclass_fields__]
        mine = sa.select(*columns).where(tables.references.c.project_key == project_key)
        ordered = mine.order_by(tables.references.c.label, tables.references.c.created_at.desc())
        return [ReferenceSummary(**row._mapping) for row in self._rows(ordered)]

    def references_digest(self, project_key: str, labels: Collection[str] | None, signature: str) -> str:
        """sha256 over the references' digests: the same references give the same one, whatever the order or process."""
        wanted = sa.select(tables.references.c.digest).where(*_references_where(project_key, labels, signature))
        digests = sorted(digest for (digest,) in self._rows(wanted))
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def reference_labels(self, project_key: str, labels: Collection[str] | None, signature: str) -> list[str]:
        """Which labels have references of these models, of all labels or of some, in order."""
        wanted = sa.select(tables.references.c.label).where(*_references_where(project_key, labels, signature))
        return [label for (label,) in self._rows(wanted.distinct().order_by(tables.references.c.label))]

    def count_references(self) -> dict[str, int]:
        """Project key to number of references, of all models; projects without any are in it with 0."""
        joined = tables.projects.outerjoin(tables.references, tables.references.c.project_key == tables.projects.c.key)
        counts = sa.select(tables.projects.c.key, sa.func.count(tables.references.c.id).label("total")).select_from(
            joined
        )
        return {row.key: row.total for row in self._rows(counts.group_by(tables.projects.c.key))}

    def unread_annotations(self, project_key: str) -> list[UnreadAnnotation]:
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
        rows = self._rows(grouped.order_by(counted, record.task_id, record.annotation_id))
        return [UnreadAnnotation(**row._mapping) for row in rows]

    def count_references_not_of(self, project_key: str, reading: str, signature: str | None) -> int:
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
        return int(self._rows(counted.where(reference.project_key == project_key, differs))[0].total)

    # -- annotations announced, not yet taken in

    def mark_pending(self, project_key: str, annotation_id: int) -> float:
        """Note that an annotation was announced; its mark is for `clear_pending`. The project may be unknown yet."""
        mark = self.now()
        row = {"project_key": project_key, "annotation_id": annotation_id, "marked_at": mark}
        with self._write() as connection:
            connection.execute(upsert(self._is_sqlite, tables.pending, row, {"marked_at": mark}))
            connection.execute(sa.delete(tables.pending).where(tables.pending.c.marked_at < mark - PENDING_KEPT_S))
        return mark

    def clear_pending(self, project_key: str, annotation_id: int, mark: float | None = None) -> None:
        """Note that an annotation was taken in.

        Args:
            mark: what `mark_pending` returned: a later announcement of the same annotation then stays pending.
        """
        own = (tables.pending.c.project_key == project_key) & (tables.pending.c.annotation_id == annotation_id)
        if mark is not None:
            own &= tables.pending.c.marked_at <= mark
        with self._write() as connection:
            connection.execute(sa.delete(tables.pending).where(own))

    def left_pending(self, older_than_s: float, count: int) -> list[tuple[str, int]]:
        """Return up to `count` annotations that were announced so long ago and are not taken in: (project key, id)."""
        waiting = tables.pending.c.marked_at < self.now() - older_than_s
        rows = self._rows(
            sa.select(tables.pending.c.project_key, tables.pending.c.annotation_id)
            .where(waiting)
            .order_by(tables.pending.c.marked_at)
            .limit(count)
        )
        return [(row.project_key, row.annotation_id) for row in rows]

    def has_pending(self, project_key: str, younger_than_s: float) -> bool:
        """True if an annotation was announced within the last seconds and is not taken in yet."""
        recent = (tables.pending.c.project_key == project_key) & (
            tables.pending.c.marked_at > self.now() - younger_than_s
        )
        return bool(self._rows(sa.select(tables.pending.c.annotation_id).where(recent).limit(1)))

    # -- how

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with named_errors(self._name), self._engine.connect() as connection:
            self._check_file(connection)
            return connection.execute(query).all()

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with named_errors(self._name), self._writing.connect() as connection:
            with connection.begin():
                self._check_file(connection)
                yield connection
            # Deleted in between, what was committed is lost: whoever wrote it has to know.
            self._check_file(connection)

    def _check_file(self, connection: sa.Connection) -> None:
        if self._file is not None:
            self._file.check(connection)

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
        gone = sa.or_(
            (tables.tombstones.c.kind == "annotation") & (tables.tombstones.c.item_id == annotation.annotation_id),
            (tables.tombstones.c.kind == "task") & (tables.tombstones.c.item_id == annotation.task_id),
        )
        newer = (
            (tables.annotations.c.project_key == annotation.project_key)
            & (tables.annotations.c.annotation_id == annotation.annotation_id)
            & (tables.annotations.c.updated_us > updated_us)
        )
        is_gone = sa.exists().where(deleted, gone)
        return bool(connection.scalar(sa.select(sa.or_(is_gone, sa.exists().where(newer)))))

    def _delete(self, project_key: str, kind: str, column: sa.Column[int], ids: Collection[int]) -> int:
        if not ids:
            return 0
        now = self.now()
        with self._write() as connection:
            connection.execute(
                sa.select(tables.projects.c.key).where(tables.projects.c.key == project_key).with_for_update()
            )
            for item_id in sorted(set(ids)):
                row = {"project_key": project_key, "kind": kind, "item_id": item_id, "deleted_at": now}
                connection.execute(upsert(self._is_sqlite, tables.tombstones, row, {"deleted_at": now}))
            connection.execute(sa.delete(tables.tombstones).where(tables.tombstones.c.deleted_at < now - TOMBSTONE_S))
            return _delete_annotations(connection, project_key, column, list(ids))

    def _load_references(
        self, wanted: Sequence[sa.ColumnElement[bool]], *, with_features: bool
    ) -> list[StoredReference]:
        left_out = set() if with_features else {"features"}
        columns = [column for column in tables.references.c if column.name not in left_out]
        in_order = sa.select(*columns).where(*wanted).order_by(tables.references.c.label, tables.references.c.digest)
        loaded = []
        for row in self._rows(in_order):
            try:
                loaded.append(row_to_reference(row, with_features=with_features))
            except (ValueError, KeyError, SafetensorError) as error:
                _log.error(
                    "reference %d (project %s, task %d, annotation %d, label %r) is damaged and left out: %s",
                    *(row.id, row.project_key, row.task_id, row.annotation_id, row.label, error),
                )
        return loaded


def _parse_project_key(key: str) -> tuple[int, int]:
    project_id, dot, created = key.partition(".")
    if not (dot and project_id.isascii() and project_id.isdigit() and created.isascii() and created.isdigit()):
        raise BadInputError(f"project must be '<id>.<unix time of creation>', got {key!r}")
    return int(project_id), int(created)


def _microseconds(iso_time: str) -> int:
    # Compared as text, "12Z" would be later than "12.3Z": Label Studio leaves out a fraction of 0.
    try:
        moment = datetime.fromisoformat(iso_time)
    except ValueError as error:
        raise BadInputError(f"updated_at must be an ISO 8601 time, got {iso_time!r}") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since_epoch = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since_epoch.days * 86400 + since_epoch.seconds) * 1_000_000 + since_epoch.microseconds


def _drop(connection: sa.Connection, key: str) -> None:
    # Annotations and references go with the project's row.
    for table in (tables.pending, tables.tombstones):
        connection.execute(sa.delete(table).where(table.c.project_key == key))
    connection.execute(sa.delete(tables.projects).where(tables.projects.c.key == key))


def _delete_annotations(connection: sa.Connection, project_key: str, column: sa.Column[int], ids: Sequence[int]) -> int:
    deleted = 0
    for start in range(0, len(ids), _IDS_A_STATEMENT):
        some = column.in_(ids[start : start + _IDS_A_STATEMENT])
        deleted += connection.execute(
            sa.delete(tables.annotations).where(tables.annotations.c.project_key == project_key, some)
        ).rowcount
    return deleted


def _references_where(
    project_key: str, labels: Collection[str] | None, signature: str | None
) -> list[sa.ColumnElement[bool]]:
    wanted = [tables.references.c.project_key == project_key]
    if signature is not None:
        wanted.append(tables.references.c.signature == signature)
    if labels is not None:
        wanted.append(tables.references.c.label.in_(sorted(set(labels))))
    return wanted


def _project(row: sa.Row[Any]) -> ProjectRecord:
    fields = {name: getattr(row, name) for name in ProjectRecord.__dataclass_fields__}
    return ProjectRecord(**fields | {"settings": None if row.settings is None else json.loads(row.settings)})
