"""Masks that are there already, as COCO or PNG, into Label Studio: annotations of the tasks that show their images."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backend.errors import BadInputError, LabelStudioUnavailableError, SoftmatcherError
from backend.exports.mask_files import MaskSource
from backend.exports.names import match_keys, original_name
from backend.exports.reading import ExportedProject
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.label_config import ImageTag, LabelConfig

Json = dict[str, Any]


@dataclass
class ImportReport:
    """What came of an import: counts, and a line for each thing that was not imported."""

    imported: int = 0
    objects: int = 0
    already: int = 0
    annotations: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


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
            for digest in dict.fromkeys((source.sha256, source.copy_sha256)):
                if digest is not None:
                    self._by_sha256[digest].append(source)
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
