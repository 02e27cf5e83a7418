"""A data set's folder: filled beside its place, taken up again after an interruption, renamed when it is whole."""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from backend.atomic_files import replacing
from backend.core.types import Json
from backend.errors import BadInputError, ConflictError
from backend.exports.records import ImageFile
from backend.exports.sinks import RECORD, SUMS

_JOURNAL = ".journal.jsonl"
_SCRATCH = ".scratch"
_OF_IMAGES = ("label_studio", "project", "format", "images", "split", "software")
"""Options that decide whether and where an image file is in a data set: with other masks a run can still go on."""
_OF_READERS = re.compile(r"labels/\w+\.cache")
"""Ultralytics leaves its own beside the labels; they are of no use to other labels."""


class FolderSink:
    """Fills `.NAME.partial` beside the folder, and renames it when all is there.

    An interrupted run leaves that one behind. The next run of the same export goes through all tasks anew, so that it
    shows the project as it is then, but keeps the images, which are what takes the time.
    """

    def __init__(self, out: Path, identity: Json) -> None:
        """Open nothing yet.

        Args:
            out: the folder that shall be there in the end.
            identity: of the export: what project, in what form.
        """
        # Through links: the folder behind one is replaced, not the link.
        self._out = Path(os.path.realpath(out))
        self._partial = self._out.parent / f".{self._out.name}.partial"
        self._old = self._out.parent / f".{self._out.name}.old"
        self._identity = identity
        self._lock: IO[str] | None = None
        self._sums: IO[str] | None = None
        self._journal: IO[str] | None = None
        self._known: Iterator[Json] = iter(())
        self._next: Json | None = None
        self.has_resumed = False

    def __enter__(self) -> "FolderSink":
        """Check and prepare the folders.

        Raises:
            BadInputError: `out` holds something else than an export of this project in this format, or is no place for
                a folder.
            ConflictError: another process is writing this export.
            OSError: the place cannot be written.
        """
        if os.path.ismount(self._out):
            raise BadInputError(
                f"--out must be a folder that can be replaced as a whole, got {self._out}, where a disk is mounted: "
                "name a folder in it"
            )
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            if not self._out.exists() and self._old.exists():
                self._old.rename(self._out)  # a run was killed between its last steps
            elif (self._old / RECORD).is_file() and (self._old / SUMS).is_file():
                shutil.rmtree(self._old)  # ... or right after them
            check_replaceable(self._out, self._identity)
            self._take_up()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, BadInputError):
            shutil.rmtree(self._partial, ignore_errors=True)  # the next run would end in the same way
        self._release()

    def _take_lock(self) -> IO[str]:
        path = self._lock_path
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                raise BlockingIOError("whoever had it has removed the file, and a third may have made a new one")
        except (BlockingIOError, FileNotFoundError):
            file.close()
            raise ConflictError(
                f"another process is writing {self._out}: wait for it, or name another folder"
            ) from None
        except OSError:  # a file system without locks
            file.close()
            path.unlink(missing_ok=True)
            raise
        return file

    def _release(self) -> None:
        if self._lock is not None:
            with suppress(OSError):
                self._lock_path.unlink(missing_ok=True)
            self._lock.close()
        for file in (self._sums, self._journal):
            if file is not None:
                with suppress(OSError):  # what they still have to write does not fit; `finish` closes them itself
                    file.close()

    @property
    def _lock_path(self) -> Path:
        return self._out.parent / f".{self._out.name}.lock"

    def _take_up(self) -> None:
        identity = json.dumps([self._identity.get(name) for name in _OF_IMAGES])
        marker, journal, old_journal = (self._partial / name for name in (".identity", _JOURNAL, f"{_JOURNAL}.old"))
        # Parquet holds images in its rows: of these there is nothing on disk to go on with.
        keeps_images = self._identity.get("format") != "parquet" or self._identity.get("images") == "path"
        self.has_resumed = keeps_images and marker.is_file() and marker.read_text() == identity
        if self._partial.exists() and not self.has_resumed:
            shutil.rmtree(self._partial)
        self._partial.mkdir(exist_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        if journal.exists():
            if old_journal.exists():  # interrupted twice: the second run may have come less far than the first
                _merge_journals(old_journal, journal)
            else:
                journal.rename(old_journal)
        self._known = _read_journal(old_journal)
        self._next = next(self._known, None)
        marker.write_text(identity)
        self._journal = journal.open("w")
        self._sums = (self.scratch / SUMS).open("w")

    @property
    def scratch(self) -> Path:
        """Return a folder for what is needed in between."""
        return self._partial / _SCRATCH

    def write(self, path: str, chunks: Iterable[bytes]) -> None:
        """Put a file into the folder that becomes the data set."""
        target = self._partial / path
        digest = hashlib.sha256()
        # One name for all attempts: what a killed run left is overwritten, and no part of the data set.
        with replacing(target, beside=target.with_name(f".{target.name}.part")) as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
        self._note_sum(path, digest.hexdigest())

    def recall_image(self, task_id: int, tag: str, address: str) -> ImageFile | None:
        """Return what the interrupted run knew of an image; ask in the order of the tasks."""
        while self._next is not None and self._next["task"] < task_id:
            self._next = next(self._known, None)
        while self._next is not None and self._next["task"] == task_id:
            entry, self._next = self._next, next(self._known, None)
            if (entry["tag"], entry["address"]) != (tag, _digest(address)):
                continue
            if entry["path"] is not None and not (self._partial / entry["path"]).is_file():
                return None
            height, width = entry["size_hw"]
            return ImageFile(entry["sha256"], (height, width), entry["extension"], entry["stored_sha256"], None)
        return None

    def note_image(self, task_id: int, tag: str, address: str, file: ImageFile, path: str | None) -> None:
        """Remember for a next run; of an image that is there already also its sum."""
        entry = {
            "task": task_id, "tag": tag, "address": _digest(address), "sha256": file.sha256,
            "size_hw": file.size_hw, "extension": file.extension, "stored_sha256": file.stored_sha256, "path": path,
        }  # fmt: skip
        assert self._journal is not None
        self._journal.write(json.dumps(entry) + "\n")
        self._journal.flush()
        if path is not None and file.stored is None:
            self._note_sum(path, file.stored_sha256)

    def read(self, path: str) -> bytes | None:
        """Return a file that was written before."""
        return (self._partial / path).read_bytes()

    def finish(self) -> None:
        """Remove leftovers, and make the folder appear under its name."""
        assert self._sums is not None
        assert self._journal is not None
        self._sums.close()
        (self.scratch / SUMS).replace(self._partial / SUMS)
        self._journal.close()
        _remove_what_is_not_listed(self._partial)
        if self._out.exists():
            self._out.rename(self._old)
        try:
            self._partial.rename(self._out)
        except OSError:
            if self._old.exists():
                self._old.rename(self._out)
            raise
        shutil.rmtree(self._old, ignore_errors=True)

    def _note_sum(self, path: str, sha256: str) -> None:
        assert self._sums is not None
        self._sums.write(f"{sha256}  {path}\n")


def check_replaceable(out: Path, identity: Json) -> None:
    """Check that there is nothing at `out`, or an export of the same project and format as it was written.

    Raises:
        BadInputError: there is something else, which an export would destroy.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    advice = "name a new folder, or move what is there"
    if not out.is_dir():
        raise BadInputError(f"--out must be a folder of its own, got the file {out}: {advice}")
    try:
        record = json.loads((out / RECORD).read_text())
        listed = _listed(out)
        same = all(record.get(name) == identity.get(name) for name in ("label_studio", "project", "format"))
    except PermissionError:
        raise
    except (OSError, ValueError, AttributeError):
        raise BadInputError(
            f"--out must be a new folder or hold an earlier export, got other files: {advice}"
        ) from None
    if not same:
        raise BadInputError(
            f"--out holds an export of project {record.get('project')} as {record.get('format')}, not of project "
            f"{identity['project']} as {identity['format']}: {advice}"
        )
    foreign = next((path for path in _files(out) if path not in listed and not _OF_READERS.fullmatch(path)), None)
    if foreign is not None:
        raise BadInputError(f"--out holds {foreign}, which the earlier export did not write: {advice}")


def _listed(folder: Path) -> set[str]:
    """Return the files that a data set says it has; its list is one of them."""
    with (folder / SUMS).open() as lines:
        return {SUMS, *(line.rstrip("\n").partition("  ")[2] for line in lines)}


def _files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _remove_what_is_not_listed(folder: Path) -> None:
    """Remove what an interrupted run left: its notes, and images of tasks that are gone by now."""
    shutil.rmtree(folder / _SCRATCH)
    listed = _listed(folder)
    for path in list(_files(folder)):
        if path not in listed:
            (folder / path).unlink()
    for parent, folders, files in os.walk(folder, topdown=False):
        if not folders and not files and Path(parent) != folder and not any(Path(parent).iterdir()):
            Path(parent).rmdir()


def _read_journal(path: Path) -> Iterator[Json]:
    """Read the entries, in the order of the tasks; one that was cut short ends them."""
    if not path.exists():
        return
    with path.open() as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                return


def _merge_journals(first: Path, second: Path) -> None:
    """Merge both runs' entries in `first`: the second's, and what the first knew beyond them."""
    merged = first.with_name(f"{_JOURNAL}.merged")
    last = 0
    with merged.open("w") as file:
        for entry in _read_journal(second):
            last = max(last, entry["task"])
            file.write(json.dumps(entry) + "\n")
        for entry in _read_journal(first):
            if entry["task"] > last:
                file.write(json.dumps(entry) + "\n")
    merged.replace(first)
    second.unlink()


def _digest(address: str) -> str:
    """Return the digest of an address, which may be an image in itself, or hold a key."""
    return hashlib.sha256(address.encode()).hexdigest()
