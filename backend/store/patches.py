"""Patches of stored references: summaries at hand, rows read as they are drawn."""

import json
import logging
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from safetensors import SafetensorError

from backend.core.patches import Indices, PatchRows, PatchSummary
from backend.core.types import Json, Reference
from backend.store import tables
from backend.store.disabled_references import is_enabled
from backend.store.packing import unpack_features
from backend.store.patch_packing import (
    PackedSummary,
    pack_patches,
    pack_summary,
    pack_text_features,
    patches_to_reference,
    unpack_patches,
    unpack_summary,
    unpack_text_features,
)
from backend.store.records import ProjectKey
from backend.store.session import Database

_log = logging.getLogger(__name__)

_ROWS_A_QUERY: Final = 512
"""Rows of the table that are in memory at a time, beside what was drawn of them: a megabyte."""
_SUMMARIES_A_QUERY: Final = 200
# The key of a row in one number, which both databases take apart: id of the reference, number of the first patch.
_ROW_BITS: Final = 20
_WANTED = {"sqlite": "json_each(:keys) AS wanted", "postgresql": "unnest(CAST(:keys AS bigint[])) AS wanted(value)"}
_FOUND = (
    " CROSS JOIN annotation_reference_patches AS found"
    f" WHERE found.reference_id = (wanted.value >> {_ROW_BITS})"
    f" AND found.first_row = (wanted.value & {(1 << _ROW_BITS) - 1})"
)

_KEY_SEPARATOR: Final = ":"
ReferenceKey = str
"""Digest and id of a reference: SQLite gives the id of a deleted row to another one. An index holds both."""


class DamagedPatchesError(ValueError):
    """Patches of a reference cannot be read.

    Attributes:
        reference_id: of it.
    """

    def __init__(self, reference_id: int, reason: str) -> None:
        super().__init__(reason)
        self.reference_id = reference_id


@dataclass(frozen=True, eq=False, slots=True)
class PatchedReference:
    """A reference whose patches are still in the database; fields as in `StoredReference`."""

    id: int
    label: str
    image_tag: str
    image_sha256: str
    packed: PackedSummary


class StoredPatches:
    """The patches of some references, read from one snapshot of the database; see `PatchSource`."""

    def __init__(self, connection: sa.Connection, references: Sequence[PatchedReference]) -> None:
        self._connection = connection
        self._references = references
        self.summaries: Sequence[PatchSummary] = [one.packed.summary for one in references]

    def read(self, owners: Indices, rows: Indices) -> PatchRows:
        """Return patches, see `PatchSource`.

        Raises:
            DamagedPatchesError: some cannot be read.
        """
        packed = self._references[0].packed
        depth, step = packed.depth, packed.patches_a_row
        for one in self._references:
            if (one.packed.depth, one.packed.patches_a_row) != (depth, step):
                raise DamagedPatchesError(one.id, f"its features have {one.packed.depth} channels, others {depth}")
        # After one more reference, patches of a few of thousands are read.
        drawn, owners = np.unique(owners, return_inverse=True)
        read = [self._references[owner] for owner in drawn.tolist()]
        counts = {one.id: one.packed.count for one in read}
        ids = np.array([one.id for one in read], np.int64)
        keys, places = np.unique((ids[owners] << _ROW_BITS) | (rows // step * step), return_inverse=True)
        patches = np.empty((len(rows), depth + 2), np.float16)
        # Places of the drawn patches in the order of their keys, and where each key's begin.
        by_key = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[by_key], np.arange(len(keys) + 1))
        for start in range(0, len(keys), _ROWS_A_QUERY):
            some = keys[start : start + _ROWS_A_QUERY]
            found = self._rows(some, depth, step, counts)
            mine = by_key[ends[start] : ends[start + len(some)]]
            patches[mine] = found[places[mine] - start, rows[mine] % step]
        return PatchRows(patches[:, :-2], patches[:, -2], patches[:, -1])

    def fine(self) -> "FinePatches | None":
        """Return the references at twice the size, see `PatchSource`."""
        thin = [one for one in self._references if one.packed.summary.fine is not None]
        return FinePatches(self._connection, thin) if thin else None

    def _rows(
        self, keys: Indices, depth: int, step: int, counts: Mapping[int, int]
    ) -> np.ndarray[Any, np.dtype[np.float16]]:
        """Return (K, step, D + 2): the rows of the table with these keys, in order."""
        place = {key: index for index, key in enumerate(keys.tolist())}
        size = 2 * (depth + 2)
        contents, places = [], []
        drawn = self._connection.execute(*_drawn(self._connection, list(place)))
        for reference_id, first_row, crc32, content in drawn.all():
            if len(content) != size * min(step, counts[reference_id] - first_row) or zlib.crc32(content) != crc32:
                reason = f"{len(content)} bytes of its features do not match their checksum"
                raise DamagedPatchesError(reference_id, reason)
            contents.append(content.ljust(size * step, b"\0"))
            places.append(place.pop((reference_id << _ROW_BITS) | first_row))
        if place:
            raise DamagedPatchesError(next(iter(place)) >> _ROW_BITS, "a part of its features is missing")
        found = np.empty((len(keys), step, depth + 2), np.float16)
        found[places] = np.frombuffer(b"".join(contents), np.float16).reshape(found.shape)
        return found


class FinePatches:
    """The patches of some references at twice the size; their rows follow the others'; see `PatchSource`."""

    def __init__(self, connection: sa.Connection, references: Sequence[PatchedReference]) -> None:
        self._all = StoredPatches(connection, references)
        self._first_rows = np.array([one.packed.summary.count for one in references], np.int64)
        self.summaries: Sequence[PatchSummary] = [one.fine for one in self._all.summaries if one.fine is not None]

    def read(self, owners: Indices, rows: Indices) -> PatchRows:
        """Return patches, see `StoredPatches.read`."""
        return self._all.read(owners, rows + self._first_rows[owners])

    def fine(self) -> "FinePatches | None":
        """Return None: these are at twice the size."""
        return None


@dataclass(frozen=True, eq=False)
class PatchSnapshot:
    """References of a project at one moment.

    Attributes:
        references: those with a readable summary, by label and digest: to be passed when the next snapshot is opened.
    """

    references: Mapping[ReferenceKey, PatchedReference]
    _connection: sa.Connection

    def source(self, references: Sequence[PatchedReference]) -> StoredPatches:
        """Return the patches of some of the references; usable as long as the snapshot is open."""
        return StoredPatches(self._connection, references)


class PatchStore(Database):
    """Patches of references; a part of `Store`."""

    @contextmanager
    def patches(
        self,
        project_key: ProjectKey,
        *,
        labels: Collection[str],
        signature: str,
        known: Mapping[ReferenceKey, PatchedReference],
    ) -> Iterator[PatchSnapshot]:
        """Open a snapshot of a project's references whose patches are read as they are drawn.

        References that an older release wrote are written anew first. Damaged ones are left out and logged.

        Args:
            project_key: the project.
            labels: only these.
            signature: of the models in use.
            known: references of an earlier snapshot: only new ones are read.
        """
        columns = tables.references.c
        mine = (
            (columns.project_key == project_key)
            & (columns.signature == signature)
            & columns.label.in_(sorted(set(labels)))
            & is_enabled()
        )
        # One row per label: of thousands of references, a row each takes four times as long.
        key = columns.digest + _KEY_SEPARATOR + sa.cast(columns.id, sa.Text)
        in_label = sa.func.aggregate_strings(key, ",").label("of_label")
        wanted = sa.select(in_label).where(mine).group_by(columns.label).order_by(columns.label)
        spread: set[int] = set()
        while True:
            with self.snapshot() as connection:
                keys = [key for row in connection.execute(wanted) for key in sorted(row.of_label.split(","))]
                new = [key for key in keys if key not in known]
                parts = (new[start : start + _SUMMARIES_A_QUERY] for start in range(0, len(new), _SUMMARIES_A_QUERY))
                read, old = dict(known), set[int]()
                for part in parts:
                    old |= _read_summaries(connection, part, signature, read) - spread
                if not old:
                    yield PatchSnapshot({key: read[key] for key in keys if key in read}, connection)
                    return
            for reference_id in old:
                self._spread(reference_id)
            spread |= old

    def _spread(self, reference_id: int) -> None:
        """Write the patches of a reference as rows, which an older release wrote as one value."""
        mine = tables.references.c.id == reference_id
        for row in self.read(sa.select(tables.references).where(mine, tables.references.c.patch_summary.is_(None))):
            try:
                reference = unpack_features(row)
            except (ValueError, KeyError, SafetensorError) as error:
                log_damage(reference_id, row.project_key, error)
                continue
            summary, patches = pack_summary(reference), list(pack_patches(reference))
            text = pack_text_features(reference)
            values = {"features": text, "patch_summary": summary, "features_crc32": zlib.crc32(summary)}
            still = (tables.references.c.digest == row.digest) & tables.references.c.patch_summary.is_(None)
            with self.write() as connection:
                # Another process may have been faster.
                if connection.execute(sa.update(tables.references).where(mine, still).values(values)).rowcount:
                    insert_patches(connection, reference_id, patches)


def insert_patches(connection: sa.Connection, reference_id: int, patches: Sequence[Json]) -> None:
    """Write the patches of a reference, as `pack_patches` packed them."""
    if patches:
        connection.execute(
            sa.insert(tables.reference_patches), [{"reference_id": reference_id, **patch} for patch in patches]
        )


def read_reference(connection: sa.Connection, row: sa.Row[Any]) -> Reference:
    """Return the patches of a row of `tables.references`, all of them.

    Raises:
        ValueError, KeyError, SafetensorError: damaged.
    """
    if row.patch_summary is None:
        columns = tables.references.c
        old: sa.Select[Any] = sa.select(columns.features, columns.features_crc32, columns.signature).where(
            columns.id == row.id
        )
        (features,) = connection.execute(old.where(columns.id == row.id))
        return unpack_features(features)
    packed = unpack_summary(row.patch_summary, row.features_crc32, row.signature)
    patch = tables.reference_patches.c
    wanted = sa.select(patch.crc32, patch.patches).where(patch.reference_id == row.id).order_by(patch.first_row)
    parts = [unpack_patches(part.patches, part.crc32, packed.depth) for part in connection.execute(wanted)]
    patches = np.concatenate([np.empty((0, packed.depth + 2), np.float16), *parts])
    if len(patches) != packed.count:
        raise ValueError(f"it must have {packed.count} patches, got {len(patches)}")
    text = sa.select(tables.references.c.features).where(tables.references.c.id == row.id)
    text_features = unpack_text_features(connection.scalar(text) or b"", packed.text_crc32)
    return patches_to_reference(patches, packed.summary, text_features)


def log_damage(reference_id: int, project_key: ProjectKey, error: Exception) -> None:
    """Log that a reference is left out."""
    _log.error("reference %d (project %s) is damaged and left out: %s", reference_id, project_key, error)


def _read_summaries(
    connection: sa.Connection,
    keys: Sequence[ReferenceKey],
    signature: str,
    read: dict[ReferenceKey, PatchedReference],
) -> set[int]:
    """Add to `read` what is at the keys; return the ids of those whose patches an older release wrote."""
    columns = tables.references.c
    named = (columns.id, columns.project_key, columns.label, columns.image_tag, columns.image_sha256)
    wanted = sa.select(*named, columns.patch_summary, columns.features_crc32)
    by_id = {int(key.partition(_KEY_SEPARATOR)[2]): key for key in keys}
    old = set()
    for row in connection.execute(wanted.where(columns.id.in_(list(by_id)))):
        if row.patch_summary is None:
            old.add(row.id)
            continue
        try:
            packed = unpack_summary(row.patch_summary, row.features_crc32, signature)
        except ValueError as error:
            log_damage(row.id, row.project_key, error)
        else:
            read[by_id[row.id]] = PatchedReference(row.id, row.label, row.image_tag, row.image_sha256, packed)
    return old


def _drawn(connection: sa.Connection, keys: list[int]) -> tuple[sa.TextClause, Json]:
    name = connection.dialect.name
    columns = "SELECT found.reference_id, found.first_row, found.crc32, found.patches"
    return sa.text(f"{columns} FROM {_WANTED[name]} {_FOUND}"), {"keys": json.dumps(keys) if name == "sqlite" else keys}
