"""Projects of Label Studio, as last seen."""

import json
from typing import Any

import sqlalchemy as sa

from backend.core.types import Json
from backend.errors import BadInputError
from backend.store import tables
from backend.store.database import upsert
from backend.store.records import ProjectRecord
from backend.store.session import Database


class ProjectStore(Database):
    """Projects; a part of `Store`. Every method is one short transaction."""

    def save_project(
        self,
        key: str,
        *,
        title: str | None = None,
        label_config: str | None = None,
        settings: Json | None = None,
        setup_token: str | None = None,
        needs_reconcile: bool | None = None,
        with_text: bool | None = None,
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
            "with_text": with_text,
        }
        changes = {name: value for name, value in told.items() if value is not None} | {"updated_at": self.now()}
        defaults = {"label_config": "", "needs_reconcile": False}
        row = {"key": key, "project_id": project_id, "created": created} | defaults | changes
        with self.write() as connection:
            connection.execute(upsert(self.is_sqlite, tables.projects, row, changes))
            saved = connection.execute(sa.select(tables.projects).where(tables.projects.c.key == key)).one()
        return _project(saved)

    def mark_for_reconcile(self, key: str) -> bool:
        """Note that a known project's annotations are to be compared with Label Studio's; False if it is unknown."""
        mine = sa.update(tables.projects).where(tables.projects.c.key == key)
        with self.write() as connection:
            return bool(connection.execute(mine.values(needs_reconcile=True)).rowcount)

    def set_score_fit(self, key: str, score_fit: Json | None) -> None:
        """Remember how scores were fitted on the project's annotated images; None: they were not."""
        written = None if score_fit is None else json.dumps(score_fit)
        mine = sa.update(tables.projects).where(tables.projects.c.key == key)
        with self.write() as connection:
            connection.execute(mine.values(score_fit=written))

    def set_task_order(self, key: str, task_order: Json | None) -> None:
        """Remember what to restore when Label Studio's own order of tasks is wanted again; None: nothing."""
        written = None if task_order is None else json.dumps(task_order)
        mine = sa.update(tables.projects).where(tables.projects.c.key == key)
        with self.write() as connection:
            connection.execute(mine.values(task_order=written))

    def mark_present(self, key: str) -> None:
        """Note that Label Studio has a project (again)."""
        mine = (tables.projects.c.key == key) & tables.projects.c.gone_since.is_not(None)
        with self.write() as connection:
            connection.execute(sa.update(tables.projects).where(mine).values(gone_since=None))

    def project(self, key: str) -> ProjectRecord | None:
        """Return the project of a key; None if unknown."""
        rows = self.read(sa.select(tables.projects).where(tables.projects.c.key == key))
        return _project(rows[0]) if rows else None

    def project_by_id(self, project_id: int) -> ProjectRecord | None:
        """Return the newest project of Label Studio's id, preferring one that is not gone; None if unknown."""
        mine = sa.select(tables.projects).where(tables.projects.c.project_id == project_id)
        is_gone = tables.projects.c.gone_since.is_not(None)
        rows = self.read(mine.order_by(is_gone, tables.projects.c.created.desc()).limit(1))
        return _project(rows[0]) if rows else None

    def projects(self) -> list[ProjectRecord]:
        """Return all projects, by id, then time of creation."""
        return [_project(row) for row in self.read(sa.select(tables.projects).order_by("project_id", "created"))]

    def drop_project(self, key: str) -> None:
        """Remove a project and all that belongs to it; nothing happens if it is unknown."""
        with self.write() as connection:
            _drop(connection, key)


def _parse_project_key(key: str) -> tuple[int, int]:
    project_id, dot, created = key.partition(".")
    if not (dot and project_id.isascii() and project_id.isdigit() and created.isascii() and created.isdigit()):
        raise BadInputError(f"project must be '<id>.<unix time of creation>', got {key!r}")
    return int(project_id), int(created)


def _drop(connection: sa.Connection, key: str) -> None:
    # Annotations and references go with the project's row.
    for table in (tables.pending, tables.tombstones):
        connection.execute(sa.delete(table).where(table.c.project_key == key))
    connection.execute(sa.delete(tables.projects).where(tables.projects.c.key == key))


def _project(row: sa.Row[Any]) -> ProjectRecord:
    fields = {name: getattr(row, name) for name in ProjectRecord.__dataclass_fields__}
    in_json = ("settings", "task_order", "score_fit")
    parsed = {name: None if fields[name] is None else json.loads(fields[name]) for name in in_json}
    return ProjectRecord(**fields | parsed)
