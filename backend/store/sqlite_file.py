"""Noticing that the SQLite file was deleted or replaced while it is open.

SQLite goes on writing into the open file, which no path leads to any more: all of it is lost at the next restart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from backend.errors import StoreUnavailableError

_OPENED = "softmatcher_opened_files"


class SqliteFile:
    """Compares what lies at the path with what was opened there, by device and inode.

    Args:
        engine: whose connections are watched.
        path: of the database.
    """

    def __init__(self, engine: sa.Engine, path: Path) -> None:
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._opened: tuple[int, int] | None = None
        self._wal_problem: str | None = None
        sa.event.listen(engine, "do_connect", self._before_connect)
        sa.event.listen(engine, "connect", self._after_connect)

    def forget(self) -> None:
        """Accept whatever is at the path at the next connection: all connections are closed."""
        self._opened = self._wal_problem = None

    def problem(self) -> str | None:
        """Return what happened to the file since it was opened; None if it is where it was."""
        if self._opened is None:
            return None
        found = _identity(self._path)
        if found == self._opened:
            return self._wal_problem
        return _told(self._path, found)

    def check(self, connection: sa.Connection) -> None:
        """Raise StoreUnavailableError if what this connection writes to is not at the path any more."""
        wal = connection.info.get(_OPENED)
        # An open connection keeps SQLite from deleting the log, so if it is another one somebody else deleted it.
        found = wal and _identity(self._wal)
        self._wal_problem = None if found == wal else _told(self._wal, found)
        problem = self.problem()
        if problem is not None:
            raise StoreUnavailableError(
                f"{problem}, so nothing is read or written any more: end service and workers, put the file back (a "
                "backup, or what /proc/<pid>/fd of a process that still runs has open), then start them again"
            )

    def _before_connect(self, _dialect: object, _record: object, _args: Sequence[Any], _kwargs: dict[str, Any]) -> None:
        # Connecting would make an empty file in place of the one that is gone.
        problem = self.problem()
        if problem is not None:
            raise StoreUnavailableError(f"{problem}: end service and workers, put the file back, then start them again")

    def _after_connect(self, connection: Any, record: Any) -> None:
        # The log is opened by the first read.
        connection.execute("PRAGMA schema_version").fetchone()
        record.info[_OPENED] = _identity(self._wal)
        if self._opened is None:
            self._opened = _identity(self._path)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _told(path: Path, found: tuple[int, int] | None) -> str:
    what = "deleted" if found is None else "replaced by another file"
    return f"the database file {path} was {what} while it was open"
