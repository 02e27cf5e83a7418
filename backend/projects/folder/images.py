"""The images of a folder: found within bounds, and read only where they were found."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from backend.errors import BadInputError, NotFoundError
from backend.labelstudio.images import FetchedFile, Validators

ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MOST_IMAGES = 10_000
"""Images of a folder; those after them are left out, and it is said."""
_MOST_ENTRIES = 200_000
_LOCAL_FILES = "/data/local-files/?d="
"""How Label Studio names files of its own disk: what is written here can be imported there."""


@dataclass(frozen=True)
class FoundImages:
    """The images of a folder.

    Attributes:
        paths: in their order, relative to the folder, percent-encoded: any name of a file is plain text then.
        notes: what was left out, and why; a sentence each.
    """

    paths: tuple[str, ...]
    notes: tuple[str, ...]


def find_images(folder: Path, *, most_images: int = MOST_IMAGES) -> FoundImages:
    """Return the images of a folder and the folders in it, by their endings; no file is opened.

    Hidden files and folders are left out, and so are links that lead out of the folder, and links to folders.

    Raises:
        NotFoundError: there is no such folder, or no image in it.
        BadInputError: the folder cannot be read.
    """
    if not folder.is_dir():
        raise NotFoundError(f"expected a folder of images, got {_shown(folder)}: there is no such folder")
    search = _Search(folder.resolve(), most_images)
    paths = tuple(search.images())
    notes = tuple(search.notes())
    if not paths:
        left_out = "".join(f"; {note}" for note in notes)
        raise NotFoundError(
            f"no image was found in {_shown(folder)} (names that end in {', '.join(ENDINGS)}){left_out}: name a folder "
            "with images"
        )
    return FoundImages(paths, notes)


class _Search:
    def __init__(self, root: Path, most_images: int) -> None:
        self._root = root
        self._most_images = most_images
        self._entries = 0
        self._found = 0
        self._has_more = False
        self._outside = 0
        self._linked_folders = 0
        self._unreadable: list[str] = []

    def images(self) -> Iterator[str]:
        """Yield the paths, the files of a folder before those of the folders in it."""
        waiting = [self._root]
        while waiting:
            folder = waiting.pop()
            files, folders = self._look_into(folder)
            for file in files:
                if self._found >= self._most_images:
                    self._has_more = True
                    return
                self._found += 1
                yield quote(os.fsencode(file.relative_to(self._root)))
            waiting += reversed(folders)

    def notes(self) -> Iterator[str]:
        """Yield what was left out."""
        if self._has_more:
            yield f"only the first {self._found} images are taken, there are more"
        if self._outside:
            yield f"{_counted(self._outside)} out of the folder"
        if self._linked_folders:
            yield f"{_counted(self._linked_folders)} to a folder"
        for name in self._unreadable[:3]:
            yield f"the folder {name} cannot be read"
        if len(self._unreadable) > 3:
            yield f"{len(self._unreadable) - 3} more folders cannot be read"

    def _look_into(self, folder: Path) -> tuple[list[Path], list[Path]]:
        files, folders = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in islice(entries, _MOST_ENTRIES - self._entries):
                    self._entries += 1
                    if entry.name.startswith("."):
                        continue
                    path = folder / entry.name
                    if entry.is_symlink():
                        if self._is_own_file(path):
                            files.append(path)
                    elif entry.is_dir():
                        folders.append(path)
                    elif entry.is_file() and entry.name.lower().endswith(ENDINGS):
                        files.append(path)
        except OSError as error:
            if folder == self._root:
                raise BadInputError(f"the folder {_shown(folder)} cannot be read: {error.strerror}") from error
            self._unreadable.append(_shown(folder.relative_to(self._root)))
        if self._entries >= _MOST_ENTRIES:
            self._has_more = True
            folders = []
        return sorted(files, key=_natural), sorted(folders, key=_natural)

    def _is_own_file(self, link: Path) -> bool:
        """Return whether a link leads to an image of the folder; counts others."""
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):
            return False  # it leads nowhere, or in circles
        if target.is_dir():
            self._linked_folders += 1
            return False
        if not target.is_relative_to(self._root):
            self._outside += link.name.lower().endswith(ENDINGS)
            return False
        return target.is_file() and link.name.lower().endswith(ENDINGS)


class FolderFiles:
    """Reads images of a folder by the addresses that its tasks have; threads share one."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._root = folder.resolve()
        self._max_bytes = max_bytes

    def address(self, path: str) -> str:
        """Return the address of an image in task data.

        Args:
            path: as in `FoundImages`.
        """
        name = quote(os.fsencode(self._root.name))
        return f"{_LOCAL_FILES}{name}/{path}" if name else f"{_LOCAL_FILES}{path}"

    def fetch(self, url: str, task_id: int | None = None) -> bytes:
        """Return a file.

        Raises:
            NotFoundError: it is gone.
            BadInputError: it lies outside of the folder, is no file, is too large, or cannot be read.
        """
        content = self.fetch_if_changed(url, task_id, None).content
        assert content is not None  # nothing is known that it could be the same as
        return content

    def fetch_if_changed(self, url: str, task_id: int | None, known: Validators | None) -> FetchedFile:
        """Return a file, without its content if its time, size and inode are those of `known`."""
        return self._read(url, known, None)

    def fetch_if_sized(self, url: str, task_id: int | None, sizes: frozenset[int]) -> bytes | None:
        """Return a file; None if it has another size."""
        return self._read(url, None, sizes).content

    def _read(self, url: str, known: Validators | None, sizes: frozenset[int] | None) -> FetchedFile:
        start = self.address("")
        if not url.startswith(start):
            raise BadInputError(f"expected an address that begins with {start}, got {url[:80]!r}")
        relative = Path(os.fsdecode(unquote_to_bytes(url[len(start) :])))
        name = _shown(relative)
        try:
            path = (self._root / relative).resolve(strict=True)
            if not path.is_relative_to(self._root):
                raise BadInputError(f"{name} leads out of the folder: it is not read")
            # Without waiting for the other end of a pipe that took the file's place.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise BadInputError(f"{name} is no file")
                if found.st_size > self._max_bytes:
                    raise BadInputError(
                        f"{name} must be at most {self._max_bytes / 1e6:g} MB, got {found.st_size / 1e6:.0f}: use a "
                        "smaller file or raise SOFTMATCHER_MAX_IMAGE_MB"
                    )
                validators = Validators(etag=f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}")
                if validators == known or (sizes is not None and found.st_size not in sizes):
                    return FetchedFile(None, validators)
                return FetchedFile(file.read(self._max_bytes), validators)
        except FileNotFoundError as error:
            raise NotFoundError(f"{name} is not in the folder (any more)") from error
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it leads nowhere"
            raise BadInputError(f"{name} cannot be read: {reason}") from error


def name_of(path: str) -> str:
    """Return a path of `FoundImages` for people: bytes that are no text, and what cannot be shown, as �."""
    text = unquote_to_bytes(path).decode(errors="replace")
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _shown(path: Path) -> str:
    return name_of(quote(os.fsencode(path)))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order "2.jpg" before "10.jpg"."""
    parts = re.split(r"([0-9]{1,18})", path.name)
    return [(int(part), "") if part.isdigit() and part.isascii() else (0, part.casefold()) for part in parts]


def _counted(count: int) -> str:
    return "1 link is left out: it leads" if count == 1 else f"{count} links are left out: they lead"
