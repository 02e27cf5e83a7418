"""Estimates of a project's quality: the newest one."""

import json

import sqlalchemy as sa

from backend.core.types import Json
from backend.store import tables
from backend.store.part import StorePart
from backend.store.propagations import lock_project
from backend.store.records import ProjectKey

_estimates = tables.quality_estimates


class QualityStore(StorePart):
    """Reached as `Store.quality`."""

    def save(self, project_key: ProjectKey, model_version: str, figures: Json) -> None:
        """Remember the newest estimate of a project.

        Raises:
            NotFoundError: the project is not in the store.
        """
        row = {
            "project_key": project_key, "model_version": model_version, "estimated_at": self._now(),
            "figures": json.dumps(figures),
        }  # fmt: skip
        with self._write() as connection:
            lock_project(connection, project_key)
            connection.execute(sa.delete(_estimates).where(_estimates.c.project_key == project_key))
            connection.execute(sa.insert(_estimates).values(row))

    def newest(self, project_key: ProjectKey) -> tuple[str, float, Json] | None:
        """model_version, unix time and figures of the newest estimate."""
        rows = self._read(sa.select(_estimates).where(_estimates.c.project_key == project_key))
        if not rows:
            return None
        return str(rows[0].model_version), float(rows[0].estimated_at), json.loads(rows[0].figures)
