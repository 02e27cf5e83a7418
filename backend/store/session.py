"""A database that is open: its connections, its tables, its transactions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from backend.errors import ConfigurationError
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
)
from backend.store.propagation_counts import recount_all
from backend.store.sqlite_file import SqliteFile
from backend.store.tables import SCHEMA_VERSION, WITH_COUNTERS


class Database:
    """The database that all parts of the store read from and write to.

    Attributes:
        engine: SQLAlchemy's; `read` and `write` are for nearly everything.
        is_sqlite: True for SQLite, False for PostgreSQL.
    """

    def __init__(self, url: str) -> None:
        """Check the URL; open nothing yet.

        Args:
            url: `sqlite:///relative/or//absolute.db` or `postgresql://user:password@host/database`.

        Raises:
            ConfigurationError: not such a URL, or the driver for PostgreSQL is missing.
        """
        self._url = parse_url(url)
        self._name = self._url.render_as_string(hide_password=True)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        if not self.is_sqlite:
            tables.complete_for_postgresql()
        try:
            self.engine = open_engine(self._url)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"{self._name} needs the Python package {error.name}: pip install 'psycopg[binary]'"
            ) from error
        self._writing = self.engine.execution_options(is_writing=True)
        self._file = SqliteFile(self.engine, Path(self._url.database or "")) if self.is_sqlite else None
        self._clock = Clock(self.engine)
        forget_connections_after_fork(self.engine)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self.engine.dispose()
        if self._file is not None:
            self._file.forget()

    def now(self) -> float:
        """Return the time that all processes of this database agree on, unix s: all times in its rows are of it."""
        with named_errors(self._name):
            return self._clock(is_exact=True)

    def about_now(self) -> float:
        """Return `now`, from a clock that is compared with the database's once a minute: costs no query."""
        with named_errors(self._name):
            return self._clock()

    def file_problem(self) -> str | None:
        """Return what happened to the SQLite file while it was open; None if it is in its place, or on PostgreSQL."""
        return None if self._file is None else self._file.problem()

    def create_tables(self) -> None:
        """Make the tables and columns that are missing. Processes that start at once wait for each other.

        A version adds tables, and columns that are nullable or have a server default: making what is missing is the
        whole migration, and no row is rewritten. Counters are counted once.

        Raises:
            ConfigurationError: a newer release wrote this database.
        """
        if self.is_sqlite:
            with named_errors(self._name):
                prepare_sqlite_file(Path(self._url.database or ""))
        with self.write() as connection:
            if not self.is_sqlite:
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
                if found < WITH_COUNTERS:
                    recount_all(connection)
            if found is None:
                connection.execute(sa.insert(tables.schema).values(id=1, version=SCHEMA_VERSION))
            elif found < SCHEMA_VERSION:
                connection.execute(sa.update(tables.schema).values(version=SCHEMA_VERSION))

    def read(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """Return the rows of a query."""
        with named_errors(self._name), self.engine.connect() as connection:
            self._check_file(connection)
            return connection.execute(query).all()

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """Open a transaction that only reads; all its queries see the same state."""
        with named_errors(self._name), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ")
            self._check_file(connection)
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction inside, which is committed at the end unless an error leaves the block."""
        with named_errors(self._name), self._writing.connect() as connection:
            with connection.begin():
                self._check_file(connection)
                yield connection
            # Deleted in between, what was committed is lost: whoever wrote it has to know.
            self._check_file(connection)

    def _check_file(self, connection: sa.Connection) -> None:
        if self._file is not None:
            self._file.check(connection)
