"""A folder with masks: whose image they are of, and what is to be read when it is wanted."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.core.types import Json, Mask
from backend.errors import BadInputError
from backend.exports.image_names import ImageName, path_parts
from backend.exports.sinks import RECORD, SUMS

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")

Load = Callable[[tuple[int, int]], Iterator[tuple[str, Mask]]]
"""Reads (label, mask) pairs of an image of this height and width, one at a time.

Raises BadInputError: something about them is wrong, and named.
"""


@dataclass(eq=False)
class MaskSource:
    """The masks of one image, not yet read.

    Attributes:
        shown: name for messages.
        name: of the image, as far as the masks have it.
        load: reads the masks.
        sha256s: of the image's file, where that is known: as an export of ours says, and of the file in the folder. An
            export may have written an image anew, and tasks may show either.
        size_bytes: of all files with these contents; None if it is not known.
        file_sha256: of the mask's own file, if it has one: a picture is no mask of itself.
        task_id: of the task that an export of ours made this of.
        problem: why these masks belong nowhere, or None.
    """

    shown: str
    name: ImageName
    load: Load
    sha256s: frozenset[str] = frozenset()
    size_bytes: int | None = None
    file_sha256: str | None = None
    task_id: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class FoundMasks:
    """The masks of a folder.

    Attributes:
        sources: one for each image.
        problems: what is broken, or belongs to no image.
        notes: what was left out for a reason that is no fault.
    """

    sources: tuple[MaskSource, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderImage:
    """The properties of an image that a folder of masks has.

    Attributes:
        sha256: of its file; None if it is not there.
        size_bytes: likewise.
        problem: why it cannot be told which file it is, or None.
    """

    sha256: str | None = None
    size_bytes: int | None = None
    problem: str | None = None

    def sha256s(self, stated: str | None) -> frozenset[str]:
        """Return what the image's file may have as sha256, with what a document claims."""
        return frozenset(each for each in (stated, self.sha256) if each)

    def size_of(self, stated: str | None) -> int | None:
        """Return the size of files with these sha256s, None if one of them is not there."""
        return self.size_bytes if stated in (None, self.sha256) else None


class MaskFolder:
    """The files of a folder, without hidden ones and without what an export of ours drew.

    Attributes:
        folder: its path.
        is_own_export: an export of ours has written it.
        files: of it and all folders below, sorted.
        exported: sha256 of the files that exports of ours have written, as these say: among them images written anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_own_export = (folder / RECORD).is_file()
        self.files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not self._is_hidden(path)]
        self.exported = frozenset(digest for path in self.files if path.name == SUMS for digest in _digests(path))
        self._sha256s: dict[Path, str] = {}
        self._images: defaultdict[str, list[tuple[Path, tuple[str, ...]]]] = defaultdict(list)
        for path in self.images():
            parts = self.parts(path)
            self._images[parts[-1].casefold()].append((path, parts))

    def images(self) -> Iterator[Path]:
        """Yield the image files that are not in a folder of masks."""
        for path in self.files:
            if path.suffix.lower() in IMAGE_ENDINGS and "masks" not in path.relative_to(self.folder).parts[:-1]:
                yield path

    def parts(self, path: Path) -> tuple[str, ...]:
        """Return the parts of a path below the folder, NFC."""
        return path_parts(path.relative_to(self.folder).as_posix())

    def shown(self, path: Path) -> str:
        """Return a path below the folder, for messages."""
        return path.relative_to(self.folder).as_posix()

    def sha256(self, path: Path) -> str:
        """Return the hex sha256 of a file, which is read once.

        Raises:
            BadInputError: it cannot be read.
        """
        if path not in self._sha256s:
            try:
                with path.open("rb") as file:
                    self._sha256s[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise BadInputError(f"{path} must be a file that can be read, got {error}") from error
        return self._sha256s[path]

    def image(self, path: Path) -> FolderImage:
        """Return what is known of an image by its file."""
        return FolderImage(self.sha256(path), path.stat().st_size)

    def find_image(self, written: str, document: Path) -> FolderImage:
        """Find the file that a document means, by its whole path as far as both have one.

        Args:
            written: the path as the document has it; may begin elsewhere, like `/home/me/images/a.png`.
            document: the file that it stands in.
        """
        wanted = path_parts(written)
        named = self._images.get(wanted[-1].casefold(), []) if wanted else []
        if not named:
            return FolderImage()
        near = self.parts(document)[:-1]
        for exact in ((*near, *wanted), wanted):
            if (path := next((path for path, parts in named if parts == exact), None)) is not None:
                return self.image(path)
        found = {self.image(path) for path, parts in named if _is_tail(parts, wanted)}
        if len(found) == 1:
            return found.pop()
        if found:
            return FolderImage(
                problem=f"{len(named)} different pictures of the folder are called so: say which is meant"
            )
        others = ", ".join(self.shown(path) for path, _ in named[:3])
        return FolderImage(
            problem=f"the folder has {others}, but no picture at this path: which is meant cannot be told"
        )

    def _is_hidden(self, path: Path) -> bool:
        parts = path.relative_to(self.folder).parts
        # The samples on an export's card have the names of their images.
        is_drawn = self.is_own_export and parts[0] in ("card", "legend.png")
        return is_drawn or any(part.startswith(".") for part in parts)


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8, with or without its mark.

    Raises:
        ValueError: it is no JSON, too deep, or names a key of an object twice.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _digests(sums: Path) -> list[str]:
    """Return the sha256s of a file as `sha256sum` reads it."""
    try:
        return [line[:64] for line in sums.read_text("utf-8", errors="replace").splitlines()]
    except OSError:
        return []


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _is_tail(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    """Return whether one path is the end of the other."""
    return all(
        mine.casefold() == theirs.casefold() for mine, theirs in zip(reversed(left), reversed(right), strict=False)
    )
