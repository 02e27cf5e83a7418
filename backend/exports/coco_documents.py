"""COCO documents of a folder as mask sources: what repeats or contradicts itself is named, and matches nothing."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backend.core.types import Json, Mask
from backend.errors import BadInputError
from backend.exports.coco_segmentation import segmentation_to_mask
from backend.exports.image_names import name_in_file, path_parts
from backend.exports.mask_sources import FolderImage, FoundMasks, Load, MaskFolder, MaskSource, read_json

_KEYS = {"images", "annotations", "categories"}
_POLYGONS = "_polygons"

Id = int | str


@dataclass(frozen=True)
class _Entry:
    """An image of a document, with its objects."""

    document: Path
    id: Id
    file_name: str
    size_hw: tuple[int, int]
    sha256: str | None
    task_id: int | None
    objects: tuple[Json, ...]
    labels: Mapping[Id, str]
    problem: str | None


def find_coco(folder: MaskFolder) -> FoundMasks:
    """Read the COCO documents of a folder; without sources if it has none.

    Raises:
        BadInputError: a document that is COCO by its keys has entries without id, name or size, or categories that
            contradict each other.
    """
    documents: dict[Path, Json] = {}
    problems: list[str] = []
    notes: list[str] = []
    for path in folder.files:
        if path.suffix.lower() != ".json":
            continue
        try:
            found = read_json(path)
        except (OSError, ValueError) as error:
            problems.append(
                f"{folder.shown(path)}: a JSON file that cannot be read, nothing of it was imported ({error})"
            )
            continue
        if isinstance(found, dict) and found.keys() >= _KEYS:
            documents[path] = found
        elif isinstance(found, dict) and "annotations" in found:
            missing = ", ".join(sorted(_KEYS - found.keys()))
            problems.append(f"{folder.shown(path)}: a COCO document must have {missing} too, nothing was imported")
        elif not _is_known(path, folder):
            notes.append(f"{folder.shown(path)}: no COCO document (images, annotations, categories), left out")
    for path in _same_as_polygons(documents):
        notes.append(f"{folder.shown(path)}: has the objects of the exact document beside it as polygons, left out")
        del documents[path]
    entries: list[_Entry] = []
    for path, document in documents.items():
        found_entries, problems_here = _read_document(path, document, folder.shown(path))
        entries += found_entries
        problems += problems_here
    sources = [_source(group, folder, image) for group, image in _same_images(entries, folder)]
    return FoundMasks(tuple(sources), tuple(problems), tuple(notes))


def _is_known(path: Path, folder: MaskFolder) -> bool:
    return path == folder.folder / "labels.json" or (folder.is_own_export and path == folder.folder / "export.json")


def _same_as_polygons(documents: Mapping[Path, Json]) -> list[Path]:
    """Return the documents that say as polygons what one beside them says exactly, as an export of ours has both."""
    found = []
    for path, document in documents.items():
        exact = documents.get(path.with_name(f"{path.stem.removesuffix(_POLYGONS)}.json"))
        if path.stem.endswith(_POLYGONS) and exact is not None and _objects_of(document) == _objects_of(exact):
            found.append(path)
    return found


def _objects_of(document: Json) -> Counter[str] | None:
    objects = document["annotations"]
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        return None
    names = ("id", "image_id", "category_id")
    return Counter(json.dumps([each.get(name) for name in names]) for each in objects)


def _read_document(path: Path, document: Json, shown: str) -> tuple[list[_Entry], list[str]]:
    """Read a document's images with their objects, and say what of it belongs to none."""
    images, objects, categories = (
        _dicts(document[key], f"{shown}: {key}") for key in ("images", "annotations", "categories")
    )
    problems: list[str] = []
    labels = _labels(categories, shown)
    by_image: defaultdict[Id | None, list[Json]] = defaultdict(list)
    for one in _without_repetitions(objects):
        by_image[_id_or_none(one.get("image_id"))].append(one)
    known: dict[Id, list[tuple[str, tuple[int, int], Json]]] = defaultdict(list)
    for number, image in enumerate(images, start=1):
        what = f"{shown}: image {number}"
        entry = _text(image, "file_name", what), _size_hw(image, what)
        same = known[_id(image, what)]
        if not any((name, size) == entry and image.get("sha256") == other.get("sha256") for name, size, other in same):
            same.append((*entry, image))
    lost = {image_id: found for image_id, found in by_image.items() if image_id not in known}
    for image_id, found in lost.items():
        written = image_id if image_id is not None else found[0].get("image_id")
        problems.append(f"{shown}: {len(found)} objects of image_id {written!r:.40}, which is not among its images")
    problems += _repeated_objects(list(_without_repetitions(objects)), shown)
    ids_by_name: defaultdict[tuple[str, ...], set[Id]] = defaultdict(set)
    for image_id, written in known.items():
        for name, _, _ in written:
            ids_by_name[path_parts(name)].add(image_id)
    entries = []
    for image_id, written in known.items():
        for name, size_hw, image in written:
            problem = None
            mine = by_image.get(image_id, [])
            if len(written) > 1:
                others = ", ".join(sorted(other for other, _, _ in written))
                problem = (
                    f"{shown} gives image id {image_id} more than once ({others}): whose its objects are cannot be told"
                )
            elif len(ids_by_name[path_parts(name)]) > 1:
                ids = ", ".join(map(str, ids_by_name[path_parts(name)]))
                problem = f"{shown} has this name with the ids {ids}: which picture is meant cannot be told"
            elif lost and not mine:
                problem = f"{shown} has objects of unknown images: that there is nothing on this one cannot be told"
            task = image.get("task")
            entries.append(
                _Entry(
                    path, image_id, name, size_hw, _claimed_sha256(image), task if _is_whole(task) else None,
                    tuple(mine), labels, problem,
                )
            )  # fmt: skip
    return entries, problems


def _without_repetitions(objects: Sequence[Json]) -> Iterator[Json]:
    """Yield objects, those that stand there twice, id and all, once."""
    known: defaultdict[Id, list[Json]] = defaultdict(list)
    for one in objects:
        found = _id_or_none(one.get("id"))
        if found is None or one not in known[found]:
            yield one
        if found is not None:
            known[found].append(one)


def _repeated_objects(objects: Sequence[Json], shown: str) -> list[str]:
    ids = Counter(found for each in objects if (found := _id_or_none(each.get("id"))) is not None)
    repeated = [each for each, count in ids.items() if count > 1]
    if not repeated:
        return []
    return [
        f"{shown}: {len(repeated)} ids of objects are given more than once ({', '.join(map(str, repeated[:5]))}): each "
        "object was taken for the image that it names"
    ]


def _same_images(entries: Sequence[_Entry], folder: MaskFolder) -> Iterator[tuple[list[_Entry], FolderImage]]:
    """Yield the entries of an image: of several documents (one a label, say), an image has the objects of all."""
    groups: dict[object, tuple[list[_Entry], FolderImage]] = {}
    for entry in entries:
        image = folder.find_image(entry.file_name, entry.document)
        name = path_parts(entry.file_name)
        content = entry.sha256 or image.sha256
        # Without a content, equal names of two folders may be two pictures.
        key = (name, content) if content else (name, entry.document.parent)
        groups.setdefault(key, ([], image))[0].append(entry)
    yield from groups.values()


def _source(entries: Sequence[_Entry], folder: MaskFolder, image: FolderImage) -> MaskSource:
    first = entries[0]
    problem = next((each.problem for each in entries if each.problem is not None), None)
    claimed = first.sha256
    if problem is None and len({each.size_hw for each in entries}) > 1:
        problem = f"documents give it different sizes, {sorted({each.size_hw for each in entries})}"
    if problem is None and claimed is None:
        problem = image.problem
    if problem is None and claimed and image.sha256 and claimed != image.sha256 and image.sha256 not in folder.exported:
        problem = f"the file in the folder is not the picture that the document means (sha256 {claimed[:12]})"
    return MaskSource(
        shown=first.file_name,
        name=name_in_file(first.file_name, is_stem=False),
        load=_loader(entries),
        sha256s=image.sha256s(claimed),
        size_bytes=image.size_of(claimed),
        task_id=first.task_id if claimed else None,
        problem=problem,
    )


def _loader(entries: Sequence[_Entry]) -> Load:
    def load(size_hw: tuple[int, int]) -> Iterator[tuple[str, Mask]]:
        known: set[bytes] = set()
        for entry in entries:
            if entry.size_hw != size_hw:
                raise BadInputError(
                    f"masks must be of the image's size {size_hw[1]} x {size_hw[0]} px, got {entry.size_hw[1]} x "
                    f"{entry.size_hw[0]}"
                )
            own: set[bytes] = set()
            for one in entry.objects:
                label, mask = _object(one, entry, size_hw)
                if len(entries) > 1:
                    digest = hashlib.sha256(label.encode() + b"\0" + np.packbits(mask).tobytes()).digest()
                    own.add(digest)
                    if digest in known:  # another document has the same object
                        continue
                yield label, mask
            known |= own

    return load


def _object(one: Json, entry: _Entry, size_hw: tuple[int, int]) -> tuple[str, Mask]:
    category = _id_or_none(one.get("category_id"))
    if category is None or category not in entry.labels:
        raise BadInputError(
            f"object {one.get('id')!r:.40} must be of one of the file's categories {list(entry.labels)[:20]}, got "
            f"{one.get('category_id')!r:.40}"
        )
    segmentation = one.get("segmentation")
    try:
        if not segmentation and "bbox" in one:
            raise BadInputError("it has a box only")
        return entry.labels[category], segmentation_to_mask(segmentation, size_hw)
    except BadInputError as error:
        raise BadInputError(f"object {one.get('id')!r:.40} must have a mask, got a wrong one: {error}") from error


# -- entries


def _dicts(found: object, what: str) -> list[Json]:
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BadInputError(f"{what} must be a list of objects, as COCO has it, got {type(found).__name__}")
    return found


def _labels(categories: Sequence[Json], shown: str) -> dict[Id, str]:
    labels: dict[Id, str] = {}
    for number, category in enumerate(categories, start=1):
        found, label = (
            _id(category, f"{shown}: category {number}"),
            _text(category, "name", f"{shown}: category {number}"),
        )
        if labels.setdefault(found, label) != label:
            raise BadInputError(
                f"{shown}: category id {found} must have one name, got {labels[found]!r} and {label!r}: which of "
                "them its objects are of cannot be told"
            )
    return labels


def _id(entry: Json, what: str) -> Id:
    found = _id_or_none(entry.get("id"))
    if found is None:
        raise BadInputError(f"{what} must have an id, a whole number or text, got {entry.get('id')!r:.40}")
    return found


def _id_or_none(value: object) -> Id | None:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if (isinstance(value, str) and value) or _is_whole(value) else None  # type: ignore[return-value]


def _text(entry: Json, key: str, what: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadInputError(f"{what} must have a {key}, got {value!r:.40}")
    return value


def _size_hw(entry: Json, what: str) -> tuple[int, int]:
    sides = [_id_or_none(entry.get(key)) for key in ("height", "width")]
    height, width = (side if isinstance(side, int) and side > 0 else None for side in sides)
    if height is None or width is None:
        got = [entry.get(key) for key in ("height", "width")]
        raise BadInputError(f"{what} must have height and width in px, got {got!r:.80}")
    return height, width


def _claimed_sha256(entry: Json) -> str | None:
    value = entry.get("sha256")
    return value.lower() if isinstance(value, str) and value else None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
