"""What must outlive a process: projects, the annotations that were taken in, their references. SQLite or PostgreSQL.

What can be made again (features of targets) is not here but in `feature_cache`.

Masks are packed to one bit a pixel, then zlib: measured against 1-bit PNG (Pillow and OpenCV) it is smaller (2.0
against 2.6 kB at 640x480), four to ten times quicker to read, and knows no limit of pixels. Features are safetensors
bytes: reading them cannot run code, as a pickle could.
"""

import hashlib
import json
import logging
import os
import sqlite3
import time
import weakref
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
import sqlalchemy as sa
from safetensors import SafetensorError
from sqlalchemy.dialects import postgresql, sqlite

from backend.core.types import Mask, Reference
from backend.errors import BadInputError, ConfigurationError, NotFoundError, StoreUnavailableError

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
"""Raise it with every change of the tables; new tables alone need no more than that, see `Store.create_tables`."""
LOCK_TIMEOUT_S: Final = 15.0
TOMBSTONE_S: Final = 3600.0
"""How long a deletion outranks a writer that started before it: longer than any job, short enough to mend a mistake."""
PENDING_KEPT_S: Final = 86400.0
_CREATE_LOCK_ID: Final = 0x50F7_A7C4
_IDS_A_STATEMENT: Final = 500

Json = dict[str, Any]
"""A JSON object as it came from outside."""

_metadata = sa.MetaData()
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_schema = sa.Table(
    "schema_version",
    _metadata,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
)
_projects = sa.Table(
    "projects",
    _metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("project_id", _Id, nullable=False, index=True),
    sa.Column("created", _Id, nullable=False),
    sa.Column("title", sa.Text),
    sa.Column("label_config", sa.Text, nullable=False),
    sa.Column("settings", sa.Text),
    sa.Column("setup_token", sa.Text),
    sa.Column("needs_reconcile", sa.Boolean, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
)
_annotations = sa.Table(
    "annotations",
    _metadata,
    sa.Column("project_key", sa.ForeignKey(_projects.c.key, ondelete="CASCADE"), primary_key=True),
    sa.Column("annotation_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("task_id", _Id, nullable=False),
    sa.Column("updated_at", sa.Text, nullable=False),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
    sa.Column("content_digest", sa.Text, nullable=False),
    sa.Column("problem", sa.Text),
    sa.Index("annotations_by_task", "project_key", "task_id"),
)
# The blobs come last and the index holds all that a digest needs: neither digests nor counts ever read a blob's page.
_references = sa.Table(
    "annotation_references",
    _metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("project_key", sa.Text, nullable=False),
    sa.Column("annotation_id", _Id, nullable=False),
    sa.Column("task_id", _Id, nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("image_tag", sa.Text, nullable=False),
    sa.Column("image_sha256", sa.Text, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("features_crc32", sa.BigInteger, nullable=False),
    sa.Column("mask", sa.LargeBinary, nullable=False),
    sa.Column("features", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(
        ["project_key", "annotation_id"], ["annotations.project_key", "annotations.annotation_id"], ondelete="CASCADE"
    ),
    sa.Index("annotation_references_of", "project_key", "annotation_id"),
    sa.Index("annotation_references_digests", "project_key", "signature", "label", "digest"),
)
# Neither of the next two needs its project to exist: a webhook may come before /setup.
_tombstones = sa.Table(
    "tombstones",
    _metadata,
    sa.Column("project_key", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("item_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("deleted_at", sa.Double, nullable=False),
)
_pending = sa.Table(
    "pending_annotations",
    _metadata,
    sa.Column("project_key", sa.Text, primary_key=True),
    sa.Column("annotation_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("marked_at", sa.Double, nullable=False),
)


@dataclass(frozen=True)
class ProjectRecord:
    """One Label Studio project as last seen.

    Attributes:
        key: "<id>.<unix time of creation>", as Label Studio sends it.
        project_id: the number before the dot.
        title: None if never told.
        label_config: the XML; "" if never told.
        settings: the backend's extra parameters of this project; None if never told.
        setup_token: the access token that came with /setup; a secret.
        needs_reconcile: True if annotations may exist that were not announced.
        updated_at: unix time in s of the last save.
    """

    key: str
    project_id: int
    title: str | None
    label_config: str
    settings: Json | None
    setup_token: str | None = field(repr=False)
    needs_reconcile: bool
    updated_at: float


@dataclass(frozen=True)
class AnnotationRecord:
    """An annotation that was taken in, also if it gave no reference.

    Attributes:
        updated_at: ISO 8601 as Label Studio gives it; without a zone it is taken as UTC.
        signature: of the models that made its references.
        content_digest: of what the references were made from.
        problem: why it gave no reference or not all; None if nothing is wrong.
    """

    project_key: str
    annotation_id: int
    task_id: int
    updated_at: str
    signature: str
    content_digest: str
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class NewReference:
    """A reference on its way into the store.

    Attributes:
        label: the class.
        image_tag: name of the label config's image tag that shows the image.
        image_sha256: of the image file's bytes.
        mask: (H, W) bool at the image's natural size.
        reference: the features; their signature must be the annotation's.
    """

    label: str
    image_tag: str
    image_sha256: str
    mask: Mask
    reference: Reference

    @property
    def digest(self) -> str:
        """sha256 of what makes two references the same: label, image, mask, models, and what is known around the mask.

        The features themselves are left out. They follow from these, and a GPU does not give them bit for bit twice:
        taking an unchanged annotation in again would otherwise change model_version, and with it every prediction.
        """
        named = [self.reference.signature, self.label, self.image_tag, self.image_sha256, *map(str, self.mask.shape)]
        digest = hashlib.sha256(json.dumps(named).encode())
        digest.update(np.packbits(self.mask).tobytes())
        digest.update(self.reference.inside.tobytes())
        digest.update(self.reference.known.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class StoredReference:
    """A reference out of the store.

    Attributes:
        id: of its row; changes whenever its annotation is taken in again.
        size_hw: natural size of the image.
        mask: (H, W) bool.
        reference: None if features were not asked for.
        digest: see `NewReference.digest`.
        created_at: unix time in s.
    """

    id: int
    project_key: str
    task_id: int
    annotation_id: int
    label: str
    image_tag: str
    image_sha256: str
    size_hw: tuple[int, int]
    mask: Mask
    reference: Reference | None
    digest: str
    created_at: float


def pack_mask(mask: Mask) -> bytes:
    """(H, W) bool to row-major bits (8 pixels a byte, the first in the highest bit) under zlib.

    Raises:
        BadInputError: not two axes of bool.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise BadInputError(f"mask must be (H, W) bool, got {mask.shape} {mask.dtype}")
    return zlib.compress(np.packbits(mask).tobytes(), 6)


def unpack_mask(packed: bytes, size_hw: tuple[int, int]) -> Mask:
    """Inverse of `pack_mask`.

    Raises:
        ValueError: damaged, or of another size. No more is unpacked than the size asks for.
    """
    pixels = size_hw[0] * size_hw[1]
    size_bytes = (pixels + 7) // 8
    inflate = zlib.decompressobj()
    try:
        # One byte more than wanted: a damaged row cannot fill the memory, and too long a mask is noticed.
        bits = inflate.decompress(packed, size_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"mask is damaged: {error}") from error
    if len(bits) != size_bytes or not inflate.eof:
        raise ValueError(f"mask must unpack to {size_bytes} bytes for {size_hw}, got {len(bits)}")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=pixels).view(np.bool_).reshape(size_hw)


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
        self._url = _parse_url(url)
        self._name = self._url.render_as_string(hide_password=True)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        try:
            self._engine = _open_engine(self._url)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"{self._name} needs the Python package {error.name}: pip install 'psycopg[binary]'"
            ) from error
        self._writing = self._engine.execution_options(is_writing=True)
        _forget_connections_after_fork(self._engine)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._engine.dispose()

    def create_tables(self) -> None:
        """Make what is missing. Processes that start at once wait for each other.

        Raises:
            ConfigurationError: a newer release wrote this database.
        """
        if self._is_sqlite:
            self._prepare_file()
        with self._write() as connection:
            if not self._is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATE_LOCK_ID)))
            has_version = sa.inspect(connection).has_table(_schema.name)
            found = connection.scalar(sa.select(_schema.c.version)) if has_version else None
            if found is not None and found > SCHEMA_VERSION:
                raise ConfigurationError(
                    f"{self._name} has schema version {found}, this release knows versions up to {SCHEMA_VERSION}: "
                    "start the newer release that wrote it, or point the database URL at another database"
                )
            _metadata.create_all(connection)
            if found is None:
                connection.execute(sa.insert(_schema).values(id=1, version=SCHEMA_VERSION))
            elif found < SCHEMA_VERSION:
                connection.execute(sa.update(_schema).values(version=SCHEMA_VERSION))

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

        Label Studio gives an id twice only if its database was made anew: an older project of the same id is dropped.

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
        changes = {name: value for name, value in told.items() if value is not None} | {"updated_at": time.time()}
        defaults = {"label_config": "", "needs_reconcile": False}
        row = {"key": key, "project_id": project_id, "created": created} | defaults | changes
        is_older = (_projects.c.project_id == project_id) & (_projects.c.created < created)
        with self._write() as connection:
            connection.execute(self._upsert(_projects, row, changes))
            for old_key in connection.scalars(sa.select(_projects.c.key).where(is_older)).all():
                _log.warning("project %s replaces %s: Label Studio gave the id anew", key, old_key)
                _drop(connection, old_key)
            saved = connection.execute(sa.select(_projects).where(_projects.c.key == key)).one()
        return _project(saved)

    def project(self, key: str) -> ProjectRecord | None:
        """The project of a key; None if unknown."""
        rows = self._rows(sa.select(_projects).where(_projects.c.key == key))
        return _project(rows[0]) if rows else None

    def project_by_id(self, project_id: int) -> ProjectRecord | None:
        """The newest project of Label Studio's id; None if unknown."""
        newest_first = sa.select(_projects).where(_projects.c.project_id == project_id)
        rows = self._rows(newest_first.order_by(_projects.c.created.desc()).limit(1))
        return _project(rows[0]) if rows else None

    def projects(self) -> list[ProjectRecord]:
        """All projects, by id, then time of creation."""
        return [_project(row) for row in self._rows(sa.select(_projects).order_by("project_id", "created"))]

    def drop_project(self, key: str) -> None:
        """Remove a project and all that belongs to it; nothing happens if it is unknown."""
        with self._write() as connection:
            _drop(connection, key)

    # -- annotations and references

    def replace_references(self, annotation: AnnotationRecord, references: Sequence[NewReference]) -> bool:
        """Make these the only references of an annotation, all or none.

        Returns:
            False, and nothing is changed, if the store knows a newer state: the annotation updated later, or it or its
            task deleted within the last hour and after `updated_at`.

        Raises:
            NotFoundError: the project is not in the store (any more).
            BadInputError: a mask that is not (H, W) bool, a time that is not ISO 8601.
            ValueError: a reference of another signature than the annotation.
        """
        now = time.time()
        # All packing comes before the transaction: other writers wait for the inserts only.
        rows = [_reference_row(annotation, reference, now) for reference in references]
        updated_us = _microseconds(annotation.updated_at)
        with self._write() as connection:
            self._lock_project(connection, annotation.project_key)
            if self._is_superseded(connection, annotation, updated_us, now):
                return False
            _delete_annotations(
                connection, annotation.project_key, _annotations.c.annotation_id, [annotation.annotation_id]
            )
            connection.execute(sa.insert(_annotations).values(**vars(annotation), updated_us=updated_us))
            for row in rows:
                connection.execute(sa.insert(_references).values(row))
        return True

    def delete_annotations(self, project_key: str, ids: Collection[int]) -> int:
        """Forget annotations with their references; how many were known."""
        return self._delete(project_key, "annotation", _annotations.c.annotation_id, ids)

    def delete_tasks(self, project_key: str, task_ids: Collection[int]) -> int:
        """Forget all annotations of tasks with their references; how many annotations were known."""
        return self._delete(project_key, "task", _annotations.c.task_id, task_ids)

    def annotations(self, project_key: str) -> list[AnnotationRecord]:
        """All annotations taken in, by id.

        To reconcile, read this before Label Studio's list: what is taken in between would else look deleted.
        """
        columns = [_annotations.c[name] for name in AnnotationRecord.__dataclass_fields__]
        mine = sa.select(*columns).where(_annotations.c.project_key == project_key)
        return [AnnotationRecord(**row._mapping) for row in self._rows(mine.order_by(_annotations.c.annotation_id))]

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

    def references_digest(self, project_key: str, labels: Collection[str] | None, signature: str) -> str:
        """sha256 over the references' digests: the same references give the same one, whatever the order or process."""
        wanted = sa.select(_references.c.digest).where(*_references_where(project_key, labels, signature))
        digests = sorted(digest for (digest,) in self._rows(wanted))
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def count_references(self) -> dict[str, int]:
        """Project key to number of references, of all models; projects without any are in it with 0."""
        joined = _projects.outerjoin(_references, _references.c.project_key == _projects.c.key)
        counts = sa.select(_projects.c.key, sa.func.count(_references.c.id).label("total")).select_from(joined)
        return {row.key: row.total for row in self._rows(counts.group_by(_projects.c.key))}

    # -- annotations announced, not yet taken in

    def mark_pending(self, project_key: str, annotation_id: int) -> float:
        """Note that an annotation was announced; its mark is for `clear_pending`. The project may be unknown yet."""
        mark = time.time()
        row = {"project_key": project_key, "annotation_id": annotation_id, "marked_at": mark}
        with self._write() as connection:
            connection.execute(self._upsert(_pending, row, {"marked_at": mark}))
            connection.execute(sa.delete(_pending).where(_pending.c.marked_at < mark - PENDING_KEPT_S))
        return mark

    def clear_pending(self, project_key: str, annotation_id: int, mark: float | None = None) -> None:
        """Note that an annotation was taken in.

        Args:
            mark: what `mark_pending` returned: a later announcement of the same annotation then stays pending.
        """
        own = (_pending.c.project_key == project_key) & (_pending.c.annotation_id == annotation_id)
        if mark is not None:
            own &= _pending.c.marked_at <= mark
        with self._write() as connection:
            connection.execute(sa.delete(_pending).where(own))

    def has_pending(self, project_key: str, younger_than_s: float) -> bool:
        """True if an annotation was announced within the last seconds and is not taken in yet."""
        recent = (_pending.c.project_key == project_key) & (_pending.c.marked_at > time.time() - younger_than_s)
        return bool(self._rows(sa.select(_pending.c.annotation_id).where(recent).limit(1)))

    # -- how

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._named_errors(), self._engine.connect() as connection:
            return connection.execute(query).all()

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._named_errors(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DataError, UnicodeEncodeError, OverflowError) as error:
            raise BadInputError(f"the database cannot hold this value: {_reason(error)}") from error
        except (sa.exc.DBAPIError, sa.exc.TimeoutError, OSError) as error:
            reason = _reason(error)
            if "no such table" in reason or "UndefinedTable" in reason:
                raise ConfigurationError(f"{self._name} has no tables yet: Store.create_tables makes them") from error
            raise StoreUnavailableError(
                f"the store {self._name} cannot be used ({reason}): see that the database runs, has room, "
                "is writable and is not locked by another program, then try again"
            ) from error

    def _upsert(self, table: sa.Table, row: Json, changes: Json) -> sa.Executable:
        keys = list(table.primary_key)
        if self._is_sqlite:
            return sqlite.insert(table).values(row).on_conflict_do_update(index_elements=keys, set_=changes)
        return postgresql.insert(table).values(row).on_conflict_do_update(index_elements=keys, set_=changes)

    def _lock_project(self, connection: sa.Connection, key: str) -> None:
        # SQLite has one writer anyway; on PostgreSQL this keeps a deletion and a late writer of one project in order.
        if connection.scalar(sa.select(_projects.c.key).where(_projects.c.key == key).with_for_update()) is None:
            raise NotFoundError(f"project {key} is not in the store: connect its backend again in Label Studio")

    def _is_superseded(
        self, connection: sa.Connection, annotation: AnnotationRecord, updated_us: int, now: float
    ) -> bool:
        # Updated after it was deleted: it lives, as a skipped annotation does that is submitted after all.
        deleted = (
            (_tombstones.c.project_key == annotation.project_key)
            & (_tombstones.c.deleted_at > now - TOMBSTONE_S)
            & (_tombstones.c.deleted_at >= updated_us / 1e6)
        )
        gone = sa.or_(
            (_tombstones.c.kind == "annotation") & (_tombstones.c.item_id == annotation.annotation_id),
            (_tombstones.c.kind == "task") & (_tombstones.c.item_id == annotation.task_id),
        )
        newer = (
            (_annotations.c.project_key == annotation.project_key)
            & (_annotations.c.annotation_id == annotation.annotation_id)
            & (_annotations.c.updated_us > updated_us)
        )
        is_gone = sa.exists().where(deleted, gone)
        return bool(connection.scalar(sa.select(sa.or_(is_gone, sa.exists().where(newer)))))

    def _delete(self, project_key: str, kind: str, column: sa.Column[int], ids: Collection[int]) -> int:
        if not ids:
            return 0
        now = time.time()
        with self._write() as connection:
            connection.execute(sa.select(_projects.c.key).where(_projects.c.key == project_key).with_for_update())
            for item_id in sorted(set(ids)):
                row = {"project_key": project_key, "kind": kind, "item_id": item_id, "deleted_at": now}
                connection.execute(self._upsert(_tombstones, row, {"deleted_at": now}))
            connection.execute(sa.delete(_tombstones).where(_tombstones.c.deleted_at < now - TOMBSTONE_S))
            return _delete_annotations(connection, project_key, column, list(ids))

    def _load_references(
        self, wanted: Sequence[sa.ColumnElement[bool]], *, with_features: bool
    ) -> list[StoredReference]:
        left_out = set() if with_features else {"features"}
        columns = [column for column in _references.c if column.name not in left_out]
        in_order = sa.select(*columns).where(*wanted).order_by(_references.c.label, _references.c.digest)
        loaded = []
        for row in self._rows(in_order):
            try:
                loaded.append(_stored_reference(row, with_features=with_features))
            except (ValueError, KeyError, SafetensorError) as error:
                _log.error(
                    "reference %d (project %s, task %d, annotation %d, label %r) is damaged and left out: %s",
                    *(row.id, row.project_key, row.task_id, row.annotation_id, row.label, error),
                )
        return loaded

    def _prepare_file(self) -> None:
        path = Path(self._url.database or "")
        with self._named_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Tokens are in it. SQLite gives its -wal and -shm files the mode of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._named_errors():
            _switch_to_wal(path)


def _parse_url(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        parsed = None
    scheme = parsed.drivername.partition("+")[0] if parsed is not None else ""
    if parsed is not None and scheme == "sqlite" and parsed.database and not parsed.database.startswith((":", "file:")):
        return parsed.set(drivername="sqlite")
    if parsed is not None and scheme in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    # The URL itself stays out of the message: it may hold a password.
    raise ConfigurationError(
        "the database URL must be sqlite:///path/to/a/file.db or postgresql://user:password@host/database, "
        f"got one that starts with {scheme or 'no known scheme'!r}"
    )


def _open_engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": LOCK_TIMEOUT_S})
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = sa.create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    sa.event.listen(engine, "connect", _set_up_postgresql)
    sa.event.listen(engine, "before_cursor_execute", _ask_for_binary)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # Python's driver would begin transactions late and as readers: two writers that both read first then fail at once
    # instead of waiting. So `_begin_sqlite` begins them.
    connection.isolation_level = None
    for pragma in ("foreign_keys=ON", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _set_up_postgresql(connection: Any, _record: object) -> None:
    connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S:.0f}s'")
    connection.commit()


def _ask_for_binary(_connection: sa.Connection, cursor: Any, *_statement: object) -> None:
    # As text, PostgreSQL sends a blob as hexadecimal digits, which takes twice as long to read.
    cursor.format = 1


def _forget_connections_after_fork(engine: sa.Engine) -> None:
    # A connection used on both sides of a fork damages the database; the child opens its own.
    weak_engine = weakref.ref(engine)

    def forget() -> None:
        engine = weak_engine()
        if engine is not None:
            engine.dispose(close=False)

    os.register_at_fork(after_in_child=forget)


def _switch_to_wal(path: Path) -> None:
    # This one statement does not wait for SQLite's busy timeout, so that processes which start at once would fail.
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise OSError(str(error)) from error
            time.sleep(0.02)
        except sqlite3.DatabaseError as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()


def _reason(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return f"{type(original).__name__}: {original}".strip()


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
    for table in (_pending, _tombstones):
        connection.execute(sa.delete(table).where(table.c.project_key == key))
    connection.execute(sa.delete(_projects).where(_projects.c.key == key))


def _delete_annotations(connection: sa.Connection, project_key: str, column: sa.Column[int], ids: Sequence[int]) -> int:
    deleted = 0
    for start in range(0, len(ids), _IDS_A_STATEMENT):
        some = column.in_(ids[start : start + _IDS_A_STATEMENT])
        deleted += connection.execute(
            sa.delete(_annotations).where(_annotations.c.project_key == project_key, some)
        ).rowcount
    return deleted


def _references_where(
    project_key: str, labels: Collection[str] | None, signature: str | None
) -> list[sa.ColumnElement[bool]]:
    wanted = [_references.c.project_key == project_key]
    if signature is not None:
        wanted.append(_references.c.signature == signature)
    if labels is not None:
        wanted.append(_references.c.label.in_(sorted(set(labels))))
    return wanted


def _project(row: sa.Row[Any]) -> ProjectRecord:
    fields = {name: getattr(row, name) for name in ProjectRecord.__dataclass_fields__}
    return ProjectRecord(**fields | {"settings": None if row.settings is None else json.loads(row.settings)})


def _reference_row(annotation: AnnotationRecord, new: NewReference, created_at: float) -> Json:
    if new.reference.signature != annotation.signature:
        raise ValueError(f"signature must be {annotation.signature!r}, got {new.reference.signature!r}")
    packed = pack_mask(new.mask)
    # safetensors writes a transposed array's memory under its transposed shape, which silently is another array.
    arrays = {name: np.asarray(array, order="C") for name, array in new.reference.to_arrays().items()}
    features = safetensors.numpy.save(arrays)
    return {
        "project_key": annotation.project_key,
        "annotation_id": annotation.annotation_id,
        "task_id": annotation.task_id,
        "signature": annotation.signature,
        "label": new.label,
        "image_tag": new.image_tag,
        "image_sha256": new.image_sha256,
        "height": new.mask.shape[0],
        "width": new.mask.shape[1],
        "digest": new.digest,
        "created_at": created_at,
        "features_crc32": zlib.crc32(features),
        "mask": packed,
        "features": features,
    }


def _stored_reference(row: sa.Row[Any], *, with_features: bool) -> StoredReference:
    size_hw = (row.height, row.width)
    return StoredReference(
        id=row.id,
        project_key=row.project_key,
        task_id=row.task_id,
        annotation_id=row.annotation_id,
        label=row.label,
        image_tag=row.image_tag,
        image_sha256=row.image_sha256,
        size_hw=size_hw,
        mask=unpack_mask(row.mask, size_hw),
        reference=_unpack_reference(row) if with_features else None,
        digest=row.digest,
        created_at=row.created_at,
    )


def _unpack_reference(row: sa.Row[Any]) -> Reference:
    if zlib.crc32(row.features) != row.features_crc32:
        raise ValueError(f"its {len(row.features)} bytes of features do not match their checksum")
    reference = Reference.from_arrays(safetensors.numpy.load(row.features), row.signature)
    patches = reference.features.shape[:1]
    if reference.features.ndim != 2 or reference.inside.shape != patches or reference.known.shape != patches:
        shapes = [array.shape for array in reference.to_arrays().values()]
        raise ValueError(f"features, inside and known must be (R, D), (R,) and (R,), got {shapes}")
    return reference
