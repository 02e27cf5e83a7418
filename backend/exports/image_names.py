"""Compares the names under which an image is known: in a folder of masks, and in Label Studio."""

import re
import unicodedata
from dataclasses import dataclass

from backend.exports.names import image_path, original_name

NameKey = tuple[str, bool, str]
"""Family ("plain", or "upload" for what only an upload may be called), whether it is a stem, the name."""

_DRIVE = re.compile(r"[A-Za-z]:")
PLAIN_FOLDERS = frozenset((
    "images", "image", "imgs", "img", "jpegimages", "photos", "photo", "pictures", "pics", "frames", "data",
    "dataset", "datasets", "media", "files", "file", "upload", "uploads", "public", "static", "assets", "raw",
    "rgb", "color", "masks", "mask", "labels", "label", "annotations", "annotation", "segmentation",
    "segmentations", "segmentationclass", "segmentationobject", "seg", "gt", "ground_truth", "groundtruth",
))  # fmt: skip
"""Folders whose names say what kind of file is in them, not which."""


@dataclass(frozen=True)
class ImageName:
    """The name of an image, normalised.

    Attributes:
        folders: that its path has before the name, without what only a machine knows.
        keys: two images that share one may be the same.
        shown: for messages.
    """

    folders: tuple[str, ...]
    keys: frozenset[NameKey]
    shown: str

    def agreement(self, other: "ImageName") -> int:
        """Return how many folders before the name are the same in both, from the last on."""
        count = 0
        for mine, theirs in zip(reversed(self.folders), reversed(other.folders), strict=False):
            if mine != theirs:
                break
            count += 1
        return count

    def contradicts(self, other: "ImageName") -> bool:
        """Return whether both lie in folders of names of their own, and these differ: `seq01/1.png`, `seq02/1.png`."""
        own, others = (
            next((folder for folder in reversed(each.folders[-2:]) if folder not in PLAIN_FOLDERS), None)
            for each in (self, other)
        )
        return own is not None and others is not None and own != others


def name_in_file(path: str, *, is_stem: bool) -> ImageName:
    """Return the name of an image as a COCO document writes it, or as a mask file has it.

    Nothing is taken off it: digits before a name are the name of whoever gave it.

    Args:
        path: with slashes or backslashes.
        is_stem: the ending is the mask's, not the image's.
    """
    parts = path_parts(path)
    name = parts[-1] if parts else ""
    spellings = {
        ("plain", _as_stored(unicodedata.normalize("NFC", name))),
        ("upload", _as_stored(unicodedata.normalize("NFD", name))),
    }
    keys = {(family, is_stem, _stem(spelt) if is_stem else spelt) for family, spelt in spellings}
    return ImageName(_folded(parts[:-1]), frozenset(key for key in keys if key[2]), path)


def name_in_label_studio(address: str) -> ImageName:
    """Return the name of a task's image.

    Label Studio 1.23.2 stores an upload as eight hex digits and the name as Django writes it: spaces become
    underscores, what is no letter, digit, dot or dash goes, and so do accents that are characters of their own (NFD).

    Args:
        address: as in task data.
    """
    path, is_upload = image_path(address)
    parts = path_parts(path)
    if not parts:
        return ImageName((), frozenset(), address[:60])
    names = {parts[-1], original_name(address)} if is_upload else {parts[-1]}
    keys: set[NameKey] = set()
    for name in names:
        stored = _as_stored(unicodedata.normalize("NFC", name))
        for family in ("plain", "upload") if is_upload else ("plain",):
            keys |= {(family, False, stored), (family, True, _stem(stored))}
    folders = () if is_upload else _folded(parts[:-1])
    return ImageName(folders, frozenset(key for key in keys if key[2]), "/".join([*folders, parts[-1]]))


def path_parts(path: str) -> tuple[str, ...]:
    """Return the parts of a path of any system, NFC, without drive, root and dots."""
    parts = unicodedata.normalize("NFC", path.replace("\\", "/")).split("/")
    return tuple(part for part in parts if part not in ("", ".", "..") and not _DRIVE.fullmatch(part))


def _folded(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.casefold() for part in parts)


def _as_stored(name: str) -> str:
    """Return what Django's `get_valid_filename` makes of a name, without regard to case."""
    stored = re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))
    return unicodedata.normalize("NFC", stored.casefold())


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
