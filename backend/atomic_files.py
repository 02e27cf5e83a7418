"""Files that others see whole or not at all: written beside their place, then renamed over it."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(
    path: Path, *, beside: Path | None = None, mode: int = 0o666, folder_mode: int = 0o777
) -> Iterator[BinaryIO]:
    """Open a file that takes the place of another one when the block ends; what was there stays if the block fails.

    Missing folders are made. A killed process leaves the unfinished file.

    Args:
        path: the place.
        beside: the unfinished file, on the same file system, for a single writer; None: `<name>.<16 hex digits>` in the
            folder of `path`, so that several processes may write.
        mode: permissions of the file, less the umask.
        folder_mode: permissions of folders that are made, less the umask.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}") if beside is None else beside
    flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if beside is None else os.O_TRUNC)
    path.parent.mkdir(parents=True, exist_ok=True, mode=folder_mode)
    try:
        descriptor = os.open(unfinished, flags, mode)
    except FileNotFoundError:
        # Another process has just removed the empty folder.
        path.parent.mkdir(parents=True, exist_ok=True, mode=folder_mode)
        descriptor = os.open(unfinished, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
