"""Refiners that references switched on: the newest of each label, with the references that it was trained on."""

import time
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import sqlalchemy as sa
from safetensors import SafetensorError

from backend.core.types import Arrays
from backend.store import tables
from backend.store.part import StorePart
from backend.store.propagations import lock_project
from backend.store.records import ProjectKey

_refiners = tables.refiners


@dataclass(frozen=True)
class RefinerRecord:
    """The outcome of the newest training for a label.

    Attributes:
        label: of the references.
        trained_on: digest of the references and of all else that training depends on.
        digest: of the refiner; "" if the references switch none on.
    """

    label: str
    trained_on: str
    digest: str


class RefinerStore(StorePart):
    """Reached as `Store.refiners`."""

    def save(self, project_key: ProjectKey, record: RefinerRecord, arrays: Arrays | None) -> None:
        """Remember the newest outcome of a label.

        Args:
            project_key: of the project.
            record: what was trained, and on what.
            arrays: of the refiner; None if there is none.

        Raises:
            NotFoundError: the project is not in the store.
        """
        # safetensors writes a transposed array's memory under its transposed shape.
        ordered = {name: np.asarray(one, order="C") for name, one in (arrays or {}).items()}
        row = {
            "project_key": project_key,
            "label": record.label,
            "trained_on": record.trained_on,
            "digest": record.digest,
            "trained_at": time.time(),
            "arrays": safetensors.numpy.save(ordered) if arrays is not None else None,
        }
        mine = (_refiners.c.project_key == project_key) & (_refiners.c.label == record.label)
        with self._write() as connection:
            lock_project(connection, project_key)
            connection.execute(sa.delete(_refiners).where(mine))
            connection.execute(sa.insert(_refiners).values(row))

    def records(self, project_key: ProjectKey) -> list[RefinerRecord]:
        """Return what was trained for a project's labels, in their order; reads no arrays."""
        wanted = sa.select(_refiners.c.label, _refiners.c.trained_on, _refiners.c.digest)
        rows = self._read(wanted.where(_refiners.c.project_key == project_key).order_by(_refiners.c.label))
        return [RefinerRecord(row.label, row.trained_on, row.digest) for row in rows]

    def arrays(self, project_key: ProjectKey, record: RefinerRecord) -> Arrays | None:
        """Return the arrays of a refiner; None if another one took its place meanwhile.

        Raises:
            ValueError: they are damaged.
        """
        wanted = sa.select(_refiners.c.arrays).where(
            _refiners.c.project_key == project_key,
            _refiners.c.label == record.label,
            _refiners.c.digest == record.digest,
        )
        rows = self._read(wanted)
        if not rows or rows[0].arrays is None:
            return None
        try:
            return dict(safetensors.numpy.load(rows[0].arrays))
        except SafetensorError as error:
            raise ValueError(f"refiner is damaged: {error}") from error
