"""A PostgreSQL server of the tests' own, from Debian's package, in a folder that goes away.

On a Unix socket, or for other hosts too, with a password.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

VARIABLE = "SOFTMATCHER_TEST_POSTGRES_URL"
"""Names a database to use instead."""


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, of the newest release that is installed; None without any."""
    releases = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return releases[-1].parent if releases else None


@dataclass(frozen=True)
class Listener:
    """Where a server listens to other hosts, and what they have to say."""

    address: str
    port: int
    network: str
    password: str


@contextmanager
def running_server(bin_folder: Path, listener: Listener | None = None) -> Iterator[str]:
    """Start a server; gives SQLAlchemy's address of its database, at the listener if there is one."""
    # The server refuses to run as root.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="softmatcher-pg-"))
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)

    def run(program: str, *arguments: str) -> None:
        command: list[str | Path] = [bin_folder / program, "-D", folder / "data", *arguments]
        subprocess.run(command, user=user, cwd=folder, check=True, capture_output=True, timeout=120)

    try:
        run("initdb", "-U", "softmatcher", "-A", "trust", "--no-sync")
        where = "-c listen_addresses=''"
        if listener is not None:
            where = f"-h {listener.address} -p {listener.port}"
            with (folder / "data" / "pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {listener.network} scram-sha-256\n")
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"{where} -k {folder} -F", "start")
        try:
            if listener is None:
                yield f"postgresql+psycopg://softmatcher@/postgres?host={folder}"
                return
            with psycopg.connect(f"host={folder} port={listener.port} user=softmatcher dbname=postgres") as connection:
                setting = sql.SQL("ALTER ROLE softmatcher PASSWORD {}").format(sql.Literal(listener.password))
                connection.execute(setting)
            account = f"softmatcher:{listener.password}"
            yield f"postgresql+psycopg://{account}@{listener.address}:{listener.port}/postgres"
        finally:
            run("pg_ctl", "-w", "-m", "fast", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
