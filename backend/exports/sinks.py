"""Destinations of an export: a folder that appears as a whole (`folder_sink`), or a zip that is written as it comes."""

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from backend.errors import OutputError
from backend.exports.records import ImageFile

SUMS = "SHA256SUMS"
RECORD = "export.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can say: a real one would make two exports of the same differ."""


@contextmanager
def disk_errors_reported(what: str) -> Iterator[None]:
    """Turn the operating system's errors of writing into an error with a message.

    Args:
        what: cannot be written then, for the message.

    Raises:
        OutputError: the disk is full, a folder is read-only, or the like.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):  # of a stream's reader, or of somebody's network: no file
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise OutputError(
            f"{what} cannot be written: {os.strerror(error.errno)}. Make room, change permissions or name another "
            "place, and run it again"
        ) from error


class Sink(Protocol):
    """Takes files by their path in the data set."""

    @property
    def scratch(self) -> Path:
        """Return a folder for what is needed in between."""
        ...

    def write(self, path: str, chunks: Iterable[bytes]) -> None:
        """Put a file there."""
        ...

    def recall_image(self, task_id: int, tag: str, address: str) -> ImageFile | None:
        """Return what an interrupted run knew of an image; asked in the order in which they were noted."""
        ...

    def note_image(self, task_id: int, tag: str, address: str, file: ImageFile, path: str | None) -> None:
        """Remember an image, which is stored at `path`."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return a file that was written before; None if this sink cannot read."""
        ...


class ZipSink:
    """Writes a zip into a stream that cannot go back; nothing of it depends on the time or this machine."""

    def __init__(self, stream: IO[bytes], scratch: Path, folder: str) -> None:
        self._stream = stream
        self._zip = zipfile.ZipFile(stream, "w", allowZip64=True)
        self._scratch = scratch
        self._folder = folder
        self._sums = (scratch / SUMS).open("w")

    def __enter__(self) -> "ZipSink":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # A ZipFile that is thrown away writes its directory: the part would pass for the whole.
            self._zip.fp = None
        self._sums.close()

    @property
    def scratch(self) -> Path:
        """Return a folder for what is needed in between."""
        return self._scratch

    def write(self, path: str, chunks: Iterable[bytes]) -> None:
        """Put a file into the zip; what is compressed by its nature as it is."""
        self._sums.write(f"{self._put(path, chunks)}  {path}\n")

    def _put(self, path: str, chunks: Iterable[bytes]) -> str:
        entry = zipfile.ZipInfo(f"{self._folder}/{path}", _EPOCH)
        entry.create_system = 3
        entry.external_attr = 0o644 << 16
        is_text = PurePosixPath(path).suffix in (".json", ".jsonl", ".txt", ".md", ".html", ".yaml", "")
        entry.compress_type = zipfile.ZIP_DEFLATED if is_text else zipfile.ZIP_STORED
        digest = hashlib.sha256()
        with self._zip.open(entry, "w", force_zip64=True) as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
        self._stream.flush()
        return digest.hexdigest()

    def recall_image(self, task_id: int, tag: str, address: str) -> ImageFile | None:
        """Recall nothing: a zip is written in one go."""
        return None

    def note_image(self, task_id: int, tag: str, address: str, file: ImageFile, path: str | None) -> None:
        """Remember nothing: a zip is written in one go."""

    def read(self, path: str) -> bytes | None:
        """Return None: a stream cannot be read."""
        return None

    def finish(self) -> None:
        """Write the sums and the zip's directory."""
        self._sums.close()
        self._put(SUMS, [(self._scratch / SUMS).read_bytes()])
        self._zip.close()
