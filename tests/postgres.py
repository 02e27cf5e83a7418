"""A PostgreSQL server of the tests' own, from Debian's package, on a Unix socket in a folder that goes away."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "SOFTMATCHER_TEST_POSTGRES_URL"
"""Names a database to use instead."""


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, of the newest release that is installed; None without any."""
    releases = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return releases[-1].parent if releases else None


@contextmanager
def running_server(bin_folder: Path) -> Iterator[str]:
    """Start a server; gives SQLAlchemy's address of its database."""
    # The server refuses to run as root.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="softmatcher-pg-"))
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)

    def run(program: str, *arguments: str) -> None:
        command = [bin_folder / program, "-D", folder / "data", *arguments]
        subprocess.run(command, user=user, cwd=folder, check=True, capture_output=True, timeout=120)

    try:
        run("initdb", "-U", "softmatcher", "-A", "trust", "--no-sync")
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-c listen_addresses='' -k {folder} -F", "start")
        try:
            yield f"postgresql+psycopg://softmatcher@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-w", "-m", "fast", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
