"""Masks that are there already, as COCO or PNG, into Label Studio: annotations of the tasks that show their images."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask

from backend.core.types import Mask
from backend.errors import BadInputError, LabelStudioUnavailableError, SoftmatcherError
from backend.exports.names import match_keys, original_name
from backend.exports.reading import ExportedProject
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.label_config import ImageTag, LabelConfig

Json = dict[str, Any]

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_LARGEST_PNG_PX = 1 << 28


@dataclass(eq=False)
class MaskSource:
    """The masks of one image, not yet read.

    Attributes:
        name: of the image or mask file, for matching and for messages.
        sha256: of the image's file, where that is known.
        load: reads (label, mask) pairs.
        matched: whether a task was found.
    """

    name: str
    sha256: str | None
    load: Callable[[], list[tuple[str, Mask]]]
    matched: bool = False


@dataclass
class ImportReport:
    """What came of an import: counts, and a line for each thing that was not imported."""

    imported: int = 0
    objects: int = 0
    already: int = 0
    annotations: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def find_masks(folder: Path, config: LabelConfig) -> list[MaskSource]:
    """The masks in a folder: COCO files (`*.json` with images and annotations) if there are any, else index PNGs.

    Image files beside them are known by their content.

    Raises:
        BadInputError: neither, or a file that is not what it seems to be.
    """
    if not folder.is_dir():
        raise BadInputError(f"expected a folder with COCO files or PNG masks, got {folder}: it is none")
    documents = [path for path in sorted(folder.rglob("*.json")) if not _is_hidden(path, folder)]
    coco = [found for path in documents if (found := _read_coco(path)) is not None]
    if coco:
        return _coco_sources(coco, folder)
    return _png_sources(folder, config)


def import_masks(
    project: ExportedProject, sources: Sequence[MaskSource], *, on_task: Callable[[], None]
) -> ImportReport:
    """Give each task whose image has masks an annotation with them.

    A mask belongs to the task whose image has the same content, or else the same file name; where several tasks have
    the name, only the content decides. A task that somebody annotated is left as it is; one that has these masks
    already is counted and nothing more, so that a second run adds nothing.

    Raises:
        LabelStudioError: Label Studio refuses or does not answer; what is there stays, run it again.
    """
    report = ImportReport()
    if len(project.config.images) != 1:
        raise BadInputError(
            f"import-masks needs a label config with one <Image>, got {len(project.config.images)}: which of them the "
            "masks are of cannot be told"
        )
    tag = project.config.images[0]
    index = _Index(sources, _names_of_tasks(project, tag))
    for task in project.client.all_tasks(project.id):
        try:
            _import_task(project, tag, task, index, report)
        except LabelStudioUnavailableError:
            raise
        except SoftmatcherError as error:
            report.problems.append(f"task {task['id']}: {error}")
        on_task()
    for source in sources:
        if not source.matched:
            report.problems.append(f"{source.name}: no task of project {project.id} shows this image")
    return report


def _import_task(project: ExportedProject, tag: ImageTag, task: Json, index: "_Index", report: ImportReport) -> None:
    fields = task.get("data")
    address = tag.address(fields if isinstance(fields, Mapping) else {})
    if not index.may_have(address):
        return
    content = project.fetcher.fetch(address, int(task["id"]))
    source = index.find(address, hashlib.sha256(content).hexdigest(), report, int(task["id"]))
    if source is None:
        return
    source.matched = True
    size_hw = decode_image(content, project.max_pixels).shape[:2]
    regions = _regions(project.config, tag, source, size_hw, report)
    existing = [each for each in task.get("annotations") or () if not each.get("was_cancelled")]
    if existing:
        wanted = {region["id"] for region in regions}
        present = {str(region.get("id")) for each in existing for region in each.get("result") or ()}
        if wanted <= present and (wanted or any(not each.get("result") for each in existing)):
            report.already += 1
        else:
            report.kept.append(f"task {task['id']}: has an annotation already; masks of {source.name} were not added")
        return
    created = project.client.create_annotation(int(task["id"]), regions)
    report.annotations.append(int(created["id"]))
    report.imported += 1
    report.objects += len(regions)


def _regions(
    config: LabelConfig, tag: ImageTag, source: MaskSource, size_hw: tuple[int, ...], report: ImportReport
) -> list[Json]:
    """As regions with ids that follow from what they show, in the form that says: this is a finished mask."""
    regions: list[Json] = []
    counts: Counter[str] = Counter()
    for label, mask in source.load():
        if label not in config.labels:
            raise BadInputError(
                f"{source.name}: label {label!r} is not in the label config, which has {list(config.labels)}: add it "
                "there; nothing of this image was imported, since it would seem complete"
            )
        if mask.shape != size_hw:
            raise BadInputError(
                f"{source.name}: masks must be of the image's size {size_hw[1]} x {size_hw[0]} px, got "
                f"{mask.shape[1]} x {mask.shape[0]}"
            )
        if not mask.any():
            report.problems.append(f"{source.name}: a mask of label {label!r} without a pixel was not imported")
            continue
        digest = hashlib.sha256(json.dumps([label, list(mask.shape)]).encode())
        digest.update(np.packbits(mask).tobytes())
        counts[digest.hexdigest()] += 1
        digest.update(str(counts[digest.hexdigest()]).encode())
        region = mask_to_region(
            mask, brush=config.brush_for(tag.name, label), label=label, score=1.0,
            region_id=f"softmatcher-{digest.hexdigest()[:32]}",
        )  # fmt: skip
        # Nobody gave a score, and no model predicted it.
        regions.append({**{key: value for key, value in region.items() if key != "score"}, "origin": "manual"})
    return regions


def _names_of_tasks(project: ExportedProject, tag: ImageTag) -> Counter[str]:
    """How many tasks go by each name."""
    names: Counter[str] = Counter()
    for task in project.client.all_tasks(project.id):
        fields = task.get("data")
        try:
            address = tag.address(fields if isinstance(fields, Mapping) else {})
        except BadInputError:
            continue
        names.update(_keys(address))
    return names


def _keys(address: str) -> tuple[str, ...]:
    name = original_name(address)
    return match_keys(name) if name else ()


class _Index:
    """Finds the masks of a task."""

    def __init__(self, sources: Sequence[MaskSource], names_of_tasks: Mapping[str, int]) -> None:
        self._by_sha256: defaultdict[str, list[MaskSource]] = defaultdict(list)
        self._by_name: defaultdict[str, list[MaskSource]] = defaultdict(list)
        self._names_of_tasks = names_of_tasks
        for source in sources:
            if source.sha256 is not None:
                self._by_sha256[source.sha256].append(source)
            for key in match_keys(source.name):
                self._by_name[key].append(source)

    def may_have(self, address: str) -> bool:
        """Whether the image of this address is worth fetching."""
        return bool(self._by_sha256) or any(key in self._by_name for key in _keys(address))

    def find(self, address: str, sha256: str, report: ImportReport, task_id: int) -> MaskSource | None:
        """The masks of the image, by its content, else by its name; None if there are none or it cannot be told."""
        same = self._by_sha256.get(sha256, [])
        if len(same) > 1:  # copies of an image, each with its own masks: the name says which is which
            named = [each for key in _keys(address) for each in self._by_name[key] if each in same]
            same = named[:1] or same[:1]
        if same:
            return same[0]
        for key in _keys(address):
            # Of what is known by its content the name says nothing: it is another image.
            named = [each for each in self._by_name.get(key, ()) if each.sha256 is None]
            if len(named) == 1 and self._names_of_tasks[key] == 1:
                return named[0]
            if named:
                named[0].matched = True
                report.problems.append(
                    f"task {task_id}: {self._names_of_tasks[key]} tasks and {len(named)} mask files are called "
                    f"{key!r}: put the images into the folder too, then their content decides"
                )
                return None
        return None


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


def _coco_sources(documents: Sequence[Json], folder: Path) -> list[MaskSource]:
    hashes = _image_hashes(folder)
    sources: dict[str, MaskSource] = {}
    richness: dict[str, int] = {}
    for document in documents:
        try:
            names = {each["id"]: str(each["name"]) for each in document["categories"]}
            by_image: defaultdict[Any, list[Json]] = defaultdict(list)
            for one in document["annotations"]:
                by_image[one["image_id"]].append(one)
            for image in document["images"]:
                name = str(image["file_name"])
                exact = sum(isinstance(one.get("segmentation"), dict) for one in by_image[image["id"]])
                if name in sources and richness[name] >= exact:
                    continue  # an export has polygons of the same objects beside the exact masks
                sha256 = image.get("sha256") or hashes.get(name.rpartition("/")[2])
                load = _coco_loader(name, by_image[image["id"]], names, (int(image["height"]), int(image["width"])))
                sources[name], richness[name] = MaskSource(name, sha256, load), exact
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(
                f"COCO file must have ids, names and sizes, got {type(error).__name__}: {error}"
            ) from error
    return list(sources.values())


def _coco_loader(
    name: str, annotations: Sequence[Json], names: Mapping[Any, str], size_hw: tuple[int, int]
) -> Callable[[], list[tuple[str, Mask]]]:
    def load() -> list[tuple[str, Mask]]:
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
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _IMAGE_ENDINGS and not _is_hidden(path, folder) and "masks" not in path.parts:
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
        MaskSource(path.name, known.get(path.stem) or hashes.get(path.stem), _png_loader(path, names)) for path in paths
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
