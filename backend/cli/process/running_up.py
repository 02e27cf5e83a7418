"""Where a running `up` listens, for commands in a second terminal: a file in the data folder, removed at the end.

`up` holds a lock on the file as long as it lives, so that what a killed one left is never taken for a running one.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backend.settings import Settings

FILE = "up.json"
_TRIES = 10


@contextmanager
def announced(settings: Settings, *, port: int, own_redis_url: str | None) -> Iterator[None]:
    """Say inside where this `up` listens.

    Args:
        settings: of this `up`.
        port: of its service.
        own_redis_url: of the queue that it started; None if the settings name one, with a password perhaps.
    """
    path = settings.data_dir / FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _lock(descriptor):
            yield  # another `up` of this data folder, with a queue of its own, was first: its file stays
            return
        told = {"host": settings.host, "port": port, "redis_url": own_redis_url}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(told).encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def beside_running_up(settings: Settings) -> Settings:
    """Return the settings with the addresses of the `up` that runs on the same data folder, where they name none."""
    told = _read(settings.data_dir / FILE)
    changes: dict[str, object] = {}
    port, host, redis_url = told.get("port"), told.get("host"), told.get("redis_url")
    # Port 0 is any free one: which, only the running one tells.
    if isinstance(port, int) and isinstance(host, str) and not (settings.port and "port" in settings.model_fields_set):
        changes |= {"host": host, "port": port}
    if isinstance(redis_url, str) and settings.redis_url is None:
        changes["redis_url"] = redis_url
    return settings.model_copy(update=changes)


def _lock(descriptor: int) -> bool:
    for _ in range(_TRIES):  # who looks whether the file is a dead one's holds the lock for a moment
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _read(path: Path) -> dict[str, object]:
    """Return what the file says; nothing if there is none, or whoever wrote it has ended."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            told = json.loads(file.read())
            return told if isinstance(told, dict) else {}
    return {}
