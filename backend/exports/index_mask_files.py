"""PNG masks whose pixels are class numbers, of a folder, as mask sources."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from backend.core.types import Mask
from backend.errors import BadInputError
from backend.exports.image_names import PLAIN_FOLDERS, name_in_file
from backend.exports.mask_sources import FolderImage, FoundMasks, Load, MaskFolder, MaskSource, read_json
from backend.labelstudio.label_config import LabelConfig

_IGNORED = 255
"""PASCAL VOC's number for pixels that no class is given to: the rims of objects."""
_MODES = ("P", "L", "1", "I", "I;16")
"""Pillow's for one number a pixel."""


@dataclass(frozen=True)
class IndexLabels:
    """The labels of the numbers in masks.

    Attributes:
        labels: of the numbers that have one; None: any number but 0 is `only`.
        ignored: numbers without a label that do not mean "nothing" either.
        only: the label config's one label.
    """

    labels: Mapping[int, str] | None
    ignored: frozenset[int] = frozenset()
    only: str = ""


def find_index_masks(folder: MaskFolder, config: LabelConfig) -> FoundMasks:
    """Find the masks under `masks/`, as an export writes them, or else every PNG of one number a pixel.

    Raises:
        BadInputError: there are none; several labels and no `labels.json`, or one that cannot be read.
    """
    root = folder.folder / "masks"
    root = root if root.is_dir() else folder.folder
    paths = [path for path in folder.files if path.suffix.lower() == ".png" and path.is_relative_to(root)]
    notes: list[str] = []
    if root == folder.folder:
        pictures = {path for path in paths if _mode(path) not in (*_MODES, None)}
        if pictures:
            notes.append(f"{len(pictures)} PNG files in colours were taken for pictures, not for masks")
        paths = [path for path in paths if path not in pictures]
    if not paths:
        raise BadInputError(
            f"{folder.folder} must hold COCO files (*.json with images, annotations and categories) or PNG masks with "
            f"one number a pixel, got neither{''.join(f' ({note})' for note in notes)}"
        )
    meaning = _index_labels(folder, config)
    records = _export_records(folder)
    images = _images_of(paths, root, folder)
    sources = []
    for path in paths:
        relative = path.relative_to(root).as_posix()
        claimed, task_id = records.get(path.stem, (None, None))
        image = images[path]
        sources.append(
            MaskSource(
                shown=folder.shown(path),
                name=name_in_file(relative, is_stem=True),
                load=_loader(path, meaning),
                sha256s=image.sha256s(claimed),
                size_bytes=image.size_of(claimed),
                file_sha256=folder.sha256(path),
                task_id=task_id,
                problem=_contradiction(claimed, image, folder),
            )
        )
    return FoundMasks(tuple(sources), (), tuple(notes))


def _contradiction(claimed: str | None, image: FolderImage, folder: MaskFolder) -> str | None:
    if claimed is None:
        return image.problem
    if image.sha256 is not None and image.sha256 != claimed and image.sha256 not in folder.exported:
        return f"the picture in the folder is not the one that was exported (sha256 {claimed[:12]})"
    return None


def _images_of(masks: list[Path], root: Path, folder: MaskFolder) -> dict[Path, FolderImage]:
    """Return the picture of each mask: of its stem, in its folder, or in one whose path differs by one folder.

    `masks/a/1.png` is of `images/a/1.jpg`, not of `images/b/1.jpg`.
    """
    by_stem: defaultdict[str, list[tuple[Path, tuple[str, ...]]]] = defaultdict(list)
    for path in folder.images():
        parts = folder.parts(path)
        by_stem[_stem(parts[-1])].append((path, parts[:-1]))
    claims: dict[Path, tuple[int, list[Path]]] = {}
    claimed_at: dict[Path, int] = {}
    for mask in masks:
        parts = folder.parts(mask)
        near: defaultdict[int, list[Path]] = defaultdict(list)
        for path, folders in by_stem[_stem(parts[-1])]:
            if path != mask and (distance := _distance(parts[:-1], folders)) is not None:
                near[distance].append(path)
        if near:
            claims[mask] = min(near), near[min(near)]
            for path in near[min(near)]:
                claimed_at[path] = min(claimed_at.get(path, 9), min(near))
    counts: defaultdict[Path, int] = defaultdict(int)
    for distance, paths in claims.values():
        for path in paths:
            counts[path] += distance == claimed_at[path]
    found: dict[Path, FolderImage] = {}
    for mask in masks:
        others = [path for path, _ in by_stem[_stem(folder.parts(mask)[-1])] if path != mask]
        distance, paths = claims.get(mask, (0, []))
        own = [path for path in paths if distance == claimed_at[path] and counts[path] == 1]
        contents = {folder.image(path) for path in own}
        if len(contents) == 1 and len(own) == len(paths):
            found[mask] = contents.pop()
        elif others:
            shown = ", ".join(folder.shown(path) for path in others[:3])
            found[mask] = FolderImage(problem=f"the folder has {shown}: which picture it is of cannot be told")
        else:
            found[mask] = FolderImage()
    return found


def _distance(mask: tuple[str, ...], image: tuple[str, ...]) -> int | None:
    """Return 0 for the same folders, 1 for one more, 2 for one of another name; None if they are farther apart."""
    if mask == image:
        return 0
    longer, shorter = (mask, image) if len(mask) > len(image) else (image, mask)
    if len(longer) == len(shorter) + 1:
        cut = (longer[:place] + longer[place + 1 :] for place in range(len(longer)))
        return 1 if shorter in cut else None
    differing = [pair for pair in zip(mask, image, strict=False) if pair[0] != pair[1]]
    if len(longer) == len(shorter) and len(differing) == 1:
        # `seg/1.png` is of `images/1.jpg`; which of `a/1.png` and `b/1.jpg` holds masks nobody says.
        return 2 if any(folder.casefold() in PLAIN_FOLDERS for folder in differing[0]) else None
    return None


def _stem(name: str) -> str:
    return (name.rpartition(".")[0] or name).casefold()


def _export_records(folder: MaskFolder) -> dict[str, tuple[str, int | None]]:
    """Return what an export of ours says of its images, by stem: sha256 in Label Studio, task."""
    if not folder.is_own_export:
        return {}
    try:
        with (folder.folder / "objects.jsonl").open(encoding="utf-8") as lines:
            entries = [json.loads(line) for line in lines]
        return {str(each["image"]).rpartition(".")[0]: (str(each["sha256"]), int(each["task"])) for each in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"objects.jsonl of an export must be as it was written, got {type(error).__name__}: {error}"
        ) from error


def _index_labels(folder: MaskFolder, config: LabelConfig) -> IndexLabels:
    """Return what the numbers mean, by `labels.json`; without it the config's only label.

    Raises:
        BadInputError: several labels and no file that says which number is which, or one that cannot be read.
    """
    path = folder.folder / "labels.json"
    if path.is_file():
        try:
            return _read_labels(read_json(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(
                f'labels.json must be a list of {{"index": 1, "label": "Cat"}}, got {type(error).__name__}: {error}'
            ) from error
    if len(config.labels) == 1:
        return IndexLabels(None, only=config.labels[0])
    raise BadInputError(
        f"PNG masks of a project with {len(config.labels)} labels need labels.json beside them, a list of "
        f'{{"index": 1, "label": {json.dumps(config.labels[0])}}}, ..., got none'
    )


def _read_labels(entries: Any) -> IndexLabels:
    labels: dict[int, str] = {}
    ignored: set[int] = set()
    for each in entries:
        index, label = each["index"], each["label"]
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise ValueError(f"an index must be a whole number, got {index!r:.40}")
        if label is None:
            ignored.add(index)
        elif not isinstance(label, str) or not label:
            raise ValueError(f"a label must be text, or null, got {label!r:.40}")
        elif labels.setdefault(index, label) != label:
            raise ValueError(f"index {index} must have one label, got {labels[index]!r} and {label!r}")
    if both := ignored & labels.keys():
        raise ValueError(f"index {min(both)} must have one label, got {labels[min(both)]!r} and null")
    # 0 means "nothing" in every such file; an export of ours lists it.
    return IndexLabels(labels, frozenset(({_IGNORED} - labels.keys()) | (ignored - {0})))


def _loader(path: Path, meaning: IndexLabels) -> Load:
    def load(size_hw: tuple[int, int]) -> Iterator[tuple[str, Mask]]:
        indices = _read_indices(path, size_hw)
        numbers = [int(number) for number in np.unique(indices)]
        if meaning.labels is None:
            numbers = [number for number in numbers if number]
            if len(numbers) > 1:
                numbers = _without_ignored(numbers)
            if numbers:
                yield meaning.only, indices == numbers[0]
            return
        labels = meaning.labels
        unknown = [number for number in numbers if number and number not in labels and number not in meaning.ignored]
        if unknown:
            raise BadInputError(f"number {unknown[0]} is not in labels.json, which has {sorted(labels)}")
        labelled = [number for number in numbers if number in labels]
        if not labelled and any(number in meaning.ignored for number in numbers):
            raise BadInputError("has pixels to ignore and no label: that there is nothing on the image it does not say")
        for number in labelled:
            yield labels[number], indices == number

    return load


def _without_ignored(numbers: list[int]) -> list[int]:
    kept = [number for number in numbers if number != _IGNORED]
    if len(kept) > 1:
        raise BadInputError(
            f"a mask of one label must have one number beside 0 (and 255 for pixels to ignore), got {len(numbers)}: if "
            "it is a mask, and no picture, labels.json has to say what its numbers mean"
        )
    return kept


@contextmanager
def _opened(path: Path) -> Iterator[PillowImage.Image]:
    PillowImage.MAX_IMAGE_PIXELS = None  # a warning or an error by turns: the size has to agree with the image's
    with PillowImage.open(path, formats=("PNG",)) as picture:
        yield picture


def _mode(path: Path) -> str | None:
    """Return Pillow's mode of a PNG, by its header; None if it cannot be read."""
    try:
        with _opened(path) as picture:
            return picture.mode
    except Exception:  # Pillow's parsers raise whatever they stumble on
        return None


def _read_indices(path: Path, size_hw: tuple[int, int]) -> NDArray[Any]:
    """Return the numbers (H, W) of a mask, whose header has to agree with the image's size before it is decoded."""
    try:
        with _opened(path) as picture:
            if (picture.height, picture.width) != size_hw:
                raise BadInputError(
                    f"masks must be of the image's size {size_hw[1]} x {size_hw[0]} px, got {picture.width} x "
                    f"{picture.height}"
                )
            if picture.mode not in _MODES:
                raise BadInputError(f"a mask must have one number a pixel (palette or gray), got mode {picture.mode}")
            return np.asarray(picture)
    except BadInputError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever they stumble on
        raise BadInputError(f"a PNG that cannot be read ({type(error).__name__}: {error})") from error
