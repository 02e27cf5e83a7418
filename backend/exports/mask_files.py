"""Masks in files, COCO or PNG, for `importing`: whose image they are of, and what is to be read when it is wanted."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask

from backend.core.types import Mask
from backend.errors import BadInputError
from backend.exports.sinks import RECORD
from backend.labelstudio.label_config import LabelConfig

Json = dict[str, Any]

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_LARGEST_PNG_PX = 1 << 28


@dataclass(eq=False)
class MaskSource:
    """The masks of one image, not yet read.

    Attributes:
        name: of the image or mask file, for matching and for messages.
        sha256: of the image's file, where that is known.
        copy_sha256: of the file in the folder, where an export wrote the image anew: tasks may be of either.
        load: reads (label, mask) pairs.
        matched: whether a task was found.
    """

    name: str
    sha256: str | None
    load: Callable[[], list[tuple[str, Mask]]]
    copy_sha256: str | None = None
    matched: bool = False


def find_masks(folder: Path, config: LabelConfig) -> list[MaskSource]:
    """The masks in a folder: COCO files (`*.json` with images and annotations) if there are any, else index PNGs.

    Image files beside them are known by their content.

    Raises:
        BadInputError: neither, or a file that is not what it seems to be.
    """
    if not folder.is_dir():
        raise BadInputError(f"expected a folder with COCO files or PNG masks, got {folder}: it is none")
    documents = [path for path in sorted(folder.rglob("*.json")) if not _is_hidden(path, folder)]
    coco = {path: found for path in documents if (found := _read_coco(path)) is not None}
    # An export has polygons of the same objects beside the exact masks.
    exact = {path.with_name(f"{path.stem}_polygons.json") for path in coco}
    if coco:
        return _coco_sources({path: found for path, found in coco.items() if path not in exact}, folder)
    return _png_sources(folder, config)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


# -- COCO


def _read_coco(path: Path) -> Json | None:
    """A COCO document, or None if the file is something else."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or not {"images", "annotations", "categories"} <= document.keys():
        return None
    return document


def _coco_sources(documents: Mapping[Path, Json], folder: Path) -> list[MaskSource]:
    """One source an image; an image of several documents (one a label, say) has the objects of all of them."""
    hashes = _image_hashes(folder)
    sources: dict[tuple[str, str | None], MaskSource] = {}
    for path, document in documents.items():
        try:
            names = {each["id"]: str(each["name"]) for each in document["categories"]}
            by_image: defaultdict[Any, list[Json]] = defaultdict(list)
            for one in document["annotations"]:
                by_image[one["image_id"]].append(one)
            for image in document["images"]:
                name = str(image["file_name"])
                copy = hashes.get(name.rpartition("/")[2])
                sha256 = image.get("sha256") or copy
                size_hw = int(image["height"]), int(image["width"])
                load = _coco_loader(name, by_image.pop(image["id"], []), names, size_hw)
                known = sources.get((name, sha256))
                if known is not None:
                    known.load = _both(known.load, load)
                else:
                    sources[name, sha256] = MaskSource(name, sha256, load, copy)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInputError(
                f"{path.name}: COCO must have ids, names and sizes, got {type(error).__name__}: {error}"
            ) from error
        for image_id, lost in by_image.items():
            # Matched by nothing, and so told with all else that is not imported.
            unknown = f"{path.name}: {len(lost)} objects of image_id {image_id}, which is not among its images"
            sources[unknown, ""] = MaskSource(unknown, "", list)
    return list(sources.values())


def _both(
    first: Callable[[], list[tuple[str, Mask]]], second: Callable[[], list[tuple[str, Mask]]]
) -> Callable[[], list[tuple[str, Mask]]]:
    def load() -> list[tuple[str, Mask]]:
        found = first()
        return found + [
            (label, mask)
            for label, mask in second()
            if not any(label == other and np.array_equal(mask, known) for other, known in found)
        ]

    return load


def _coco_loader(
    name: str, annotations: Sequence[Json], names: Mapping[Any, str], size_hw: tuple[int, int]
) -> Callable[[], list[tuple[str, Mask]]]:
    def load() -> list[tuple[str, Mask]]:
        unknown = next((one for one in annotations if one.get("category_id") not in names), None)
        if unknown is not None:
            raise BadInputError(
                f"{name}: object {unknown.get('id')} must be of one of the file's categories {sorted(names)}, got "
                f"{unknown.get('category_id')!r}"
            )
        return [(names[one["category_id"]], _coco_mask(name, one, size_hw)) for one in annotations]

    return load


def _coco_mask(name: str, one: Json, size_hw: tuple[int, int]) -> Mask:
    segmentation = one.get("segmentation")
    try:
        if isinstance(segmentation, list) and segmentation:
            encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size_hw))
        elif isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
            encoded = coco_mask.frPyObjects(segmentation, *size_hw)
        elif isinstance(segmentation, dict):
            encoded = {**segmentation, "counts": str(segmentation["counts"]).encode()}
        else:
            raise ValueError("it has a box only" if "bbox" in one else "nothing")
        if tuple(encoded["size"]) != size_hw:
            raise ValueError(f"size {encoded['size']} in an image of {list(size_hw)}")
        decoded: Mask = np.ascontiguousarray(coco_mask.decode(encoded)) > 0
    except Exception as error:
        raise BadInputError(f"{name}: object {one.get('id')} must have a mask, got {error}") from error
    return decoded


def _image_hashes(folder: Path) -> dict[str, str]:
    """Content of the image files in a folder, by name; what is there under one name twice, differently, is left out."""
    hashes: dict[str, str | None] = {}
    is_own_export = (folder / RECORD).is_file()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        # The samples on an export's card have the names of their images.
        is_drawn = "masks" in parts or (is_own_export and parts[0] == "card")
        if path.suffix.lower() in _IMAGE_ENDINGS and not is_drawn and not _is_hidden(path, folder):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            hashes[path.name] = digest if hashes.get(path.name, digest) == digest else None
    return {name: digest for name, digest in hashes.items() if digest is not None}


# -- PNG


def _png_sources(folder: Path, config: LabelConfig) -> list[MaskSource]:
    """Index masks: those under `masks/` as an export writes them, or every PNG of the folder."""
    masks = folder / "masks" if (folder / "masks").is_dir() else folder
    paths = [path for path in sorted(masks.rglob("*.png")) if not _is_hidden(path, folder)]
    if not paths:
        raise BadInputError(
            f"{folder} must hold COCO files (*.json with images, annotations and categories) or PNG masks, got neither"
        )
    names = _label_names(folder, config)
    hashes = _stems(_image_hashes(folder)) if masks != folder else {}
    known = _export_hashes(folder)
    return [
        MaskSource(path.name, known.get(path.stem) or copy, _png_loader(path, names), copy)
        for path in paths
        for copy in (hashes.get(path.stem),)
    ]


def _stems(hashes: Mapping[str, str]) -> dict[str, str]:
    return {name.rpartition(".")[0]: digest for name, digest in hashes.items()}


def _export_hashes(folder: Path) -> dict[str, str]:
    """What an export of ours says of its images: it may hold turned copies, or none."""
    try:
        with (folder / "objects.jsonl").open() as lines:
            entries = [json.loads(line) for line in lines]
        return {str(entry["image"]).rpartition(".")[0]: str(entry["sha256"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _label_names(folder: Path, config: LabelConfig) -> Mapping[int, str] | str:
    """Label of each number, by `labels.json`; without it the config's only label, which every number but 0 means.

    Raises:
        BadInputError: several labels and no file that says which number is which, or one that cannot be read.
    """
    path = folder / "labels.json"
    if path.is_file():
        try:
            return {int(each["index"]): str(each["label"]) for each in json.loads(path.read_text()) if each["label"]}
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(
                f'labels.json must be a list of {{"index": 1, "label": "Cat"}}, got {type(error).__name__}: {error}'
            ) from error
    if len(config.labels) == 1:
        return config.labels[0]
    raise BadInputError(
        f"PNG masks of a project with {len(config.labels)} labels need labels.json beside them, a list of "
        f'{{"index": 1, "label": {json.dumps(config.labels[0])}}}, ..., got none'
    )


def _png_loader(path: Path, names: Mapping[int, str] | str) -> Callable[[], list[tuple[str, Mask]]]:
    def load() -> list[tuple[str, Mask]]:
        indices = _read_indices(path)
        if isinstance(names, str):
            return [(names, indices > 0)] if indices.any() else []
        found: list[tuple[str, Mask]] = []
        for number in np.unique(indices[indices > 0]):
            if int(number) not in names:
                raise BadInputError(f"{path.name}: number {number} is not in labels.json, which has {sorted(names)}")
            found.append((names[int(number)], indices == number))
        return found

    return load


def _read_indices(path: Path) -> NDArray[np.int64]:
    try:
        with PillowImage.open(path, formats=("PNG",)) as picture:
            if picture.width * picture.height > _LARGEST_PNG_PX:
                raise BadInputError(f"{path.name}: {picture.width} x {picture.height} px are too many")
            if picture.mode not in ("P", "L", "1", "I", "I;16"):
                raise BadInputError(
                    f"{path.name}: a mask must have one number a pixel (palette or gray), got mode {picture.mode}"
                )
            return np.asarray(picture).astype(np.int64)
    except OSError as error:
        raise BadInputError(f"{path.name}: a PNG that cannot be read ({error})") from error
