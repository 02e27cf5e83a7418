"""Opening the database, and what differs between SQLite and PostgreSQL."""

import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from backend.core.types import Json
from backend.errors import BadInputError, ConfigurationError, StoreUnavailableError

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

LOCK_TIMEOUT_S: Final = 15.0
_CLOCK_KEPT_S: Final = 60.0
CREATE_LOCK_ID: Final = 0x50F7_A7C4
"""Id of the advisory lock that a process holds while it makes the tables of PostgreSQL."""
# A reference is megabytes: with SQLite's own 4 kB a page, writing it takes 40 % more CPU time and reading it 5 %.
_PAGE_BYTES: Final = 16384


def parse_url(url: str) -> sa.URL:
    """Return the URL with its driver named.

    Raises:
        ConfigurationError: neither a SQLite file nor PostgreSQL.
    """
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


def open_engine(url: sa.URL) -> sa.Engine:
    """Return an engine that waits 15 s for locks. On SQLite, connections with the option `is_writing` begin as writers.

    Raises:
        ModuleNotFoundError: the driver is not installed.
    """
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


def forget_connections_after_fork(engine: sa.Engine) -> None:
    """Let a forked child open its own connections."""
    # A connection used on both sides of a fork damages the database; the child opens its own.
    weak_engine = weakref.ref(engine)

    def forget() -> None:
        engine = weak_engine()
        if engine is not None:
            engine.dispose(close=False)

    os.register_at_fork(after_in_child=forget)


def prepare_sqlite_file(path: Path) -> None:
    """Make the file, for its owner only, with a write-ahead log; one that is there stays as it is.

    Raises:
        OSError: it cannot be made or written, or is no database.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Tokens are in it. SQLite gives its -wal and -shm files the mode of this one. One that is there is not opened here:
    # closing it would drop the locks that SQLite holds on it for this process' other connections.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(f"{path} cannot be read and written by this user")
    _switch_to_wal(path)


def _switch_to_wal(path: Path) -> None:
    # This one statement does not wait for SQLite's busy timeout, so that processes which start at once would fail.
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S)
        try:
            connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
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


def upsert(is_sqlite: bool, table: sa.Table, row: Json, changes: Json) -> sa.Executable:
    """Insert a row; where its primary key is there already, make the changes instead."""
    inserted = insert(is_sqlite, table).values(row)
    return inserted.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)


def insert(is_sqlite: bool, table: sa.Table) -> "sqlite.Insert | postgresql.Insert":
    """Return the insertion of a database's dialect, which knows `on_conflict_do_update`."""
    if is_sqlite:
        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql  # takes a twentieth of a command's start

    return postgresql.insert(table)


def add_missing_columns(connection: sa.Connection, metadata: sa.MetaData) -> None:
    """Add the columns that the tables of an older release lack; each is nullable or has a server default."""
    inspector = sa.inspect(connection)
    quote = connection.dialect.identifier_preparer.format_table
    for table in metadata.sorted_tables:
        present = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {quote(table)} ADD COLUMN {definition}")


class Clock:
    """The time that all processes of a database agree on, unix s: clocks of their machines may be far apart.

    With PostgreSQL that is the server's. All processes of a SQLite file share a machine.

    Args:
        engine: of the database.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._asked: tuple[float, float] | None = None
        """Return the server's time, and this process' monotonic clock then."""

    def __call__(self, *, is_exact: bool = False) -> float:
        """Return the time now.

        Args:
            is_exact: True to ask the server, so that what comes after another process' time is later than it. False is
                some milliseconds off, and asks once a minute.

        Raises:
            sqlalchemy.exc.DBAPIError: the server has to be asked and does not answer.
        """
        if self._is_sqlite:
            return time.time()
        asked = self._asked
        if is_exact or asked is None or time.monotonic() - asked[1] > _CLOCK_KEPT_S:
            with self._engine.connect() as connection:
                told = connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())"))
            asked = self._asked = (float(told or 0.0), time.monotonic())
        return asked[0] + time.monotonic() - asked[1]


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn the drivers' errors into ours.

    Args:
        name: of the database, without its password.

    Raises:
        BadInputError: a value that the database cannot hold.
        ConfigurationError: it has no tables.
        StoreUnavailableError: anything else that the database or its file refuses.
    """
    try:
        yield
    except (sa.exc.DataError, UnicodeEncodeError, OverflowError) as error:
        raise BadInputError(f"the database cannot hold this value: {_reason(error)}") from error
    except (sa.exc.DBAPIError, sa.exc.TimeoutError, OSError) as error:
        reason = _reason(error)
        if "no such table" in reason or "UndefinedTable" in reason:
            raise ConfigurationError(f"{name} has no tables yet: Store.create_tables makes them") from error
        raise StoreUnavailableError(
            f"the store {name} cannot be used ({reason}): see that the database runs, has room, "
            "is writable and is not locked by another program, then try again"
        ) from error


def _reason(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return f"{type(original).__name__}: {original}".strip()
