"""References that somebody disabled on the page: they take no part in matching, nor in model_version."""

from collections.abc import Collection

import sqlalchemy as sa

from backend.store import tables
from backend.store.records import ProjectKey


def is_enabled() -> sa.ColumnElement[bool]:
    """Return the condition that nobody disabled a reference."""
    disabled, references = tables.disabled_references.c, tables.references.c
    return ~sa.exists().where(disabled.project_key == references.project_key, disabled.digest == references.digest)


def set_disabled_digests(
    connection: sa.Connection, project_key: ProjectKey, digests: Collection[str], *, is_disabled: bool
) -> None:
    """Disable references by their digests, or enable them, within a transaction."""
    rows = tables.disabled_references
    for digest in sorted(set(digests)):
        connection.execute(sa.delete(rows).where(rows.c.project_key == project_key, rows.c.digest == digest))
        if is_disabled:
            connection.execute(sa.insert(rows).values(project_key=project_key, digest=digest))
