"""Masks that are there already, as COCO or PNG, into Label Studio: annotations of the tasks that show their images."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from backend.core.types import Json
from backend.errors import BadInputError, LabelStudioUnavailableError, NotFoundError, SoftmatcherError
from backend.exports.image_matching import Match, Progress, SeenImage, TaskImage, match_images, no_progress
from backend.exports.image_names import name_in_label_studio
from backend.exports.mask_sources import FoundMasks
from backend.exports.reading import ExportedProject
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.label_config import ImageTag, LabelConfig


@dataclass
class ImportReport:
    """The result of an import: counts, and a line for each thing that was not imported.

    Attributes:
        imported: annotations that were made, or would be.
        objects: their masks.
        already: tasks that have these very masks.
        annotations: ids of those that were made.
        problems: what did not fit.
        kept: tasks that have an annotation of their own.
        notes: files that were left out for a reason that is no fault.
    """

    imported: int = 0
    objects: int = 0
    already: int = 0
    annotations: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_masks(
    project: ExportedProject,
    found: FoundMasks,
    *,
    on_task: Callable[[], None] = lambda: None,
    progress: Progress = no_progress,
    report: ImportReport | None = None,
    is_dry_run: bool = False,
) -> ImportReport:
    """Give each task whose image has masks an annotation with them.

    A mask belongs to the tasks whose image has the same content, or else to the one whose image has the name that no
    other image has. A task that somebody annotated is left as it is; one that has these masks already is counted and
    nothing more, so that a second run adds nothing.

    Args:
        project: that gets the annotations.
        found: in a folder.
        on_task: is called for each task of the project when it has been listed.
        progress: shows each part of the work, the listing too.
        report: is filled in while it goes on, so that it holds what was done if something ends it.
        is_dry_run: look at everything and write nothing.

    Raises:
        LabelStudioError: Label Studio refuses or does not answer; what is there stays, run it again.
    """
    if len(project.config.images) != 1:
        raise BadInputError(
            f"import-masks needs a label config with one <Image>, got {len(project.config.images)}: which of them the "
            "masks are of cannot be told"
        )
    tag = project.config.images[0]
    report = ImportReport() if report is None else report
    report.problems += found.problems
    report.notes += found.notes
    tasks: list[TaskImage] = []
    with progress(project.client.count_tasks(project.id), "tasks") as on_listed:
        for images in _tasks(project, tag):
            tasks += images
            on_task()
            on_listed()
    matches = match_images(project.id, tasks, found.sources, partial(_look, project), progress=progress)
    report.problems += matches.problems
    report.notes += matches.notes
    with progress(len(matches.found), "masks") as on_match:
        for match in matches.found:
            try:
                _import_match(project, tag, match, report, is_dry_run=is_dry_run)
            except LabelStudioUnavailableError:
                raise
            except SoftmatcherError as error:
                report.problems.append(f"{match.source.shown}, task {match.task.task_id}: {error}")
            on_match()
    return report


def _tasks(project: ExportedProject, tag: ImageTag) -> Iterator[list[TaskImage]]:
    """Yield the image of each task of a project; [] for one without an address."""
    for task in project.client.all_tasks(project.id):
        address = _address(tag, task)
        if address is None:
            yield []
        else:
            yield [TaskImage(int(task["id"]), address, name_in_label_studio(address))]


def _address(tag: ImageTag, task: Json) -> str | None:
    fields = task.get("data")
    try:
        return tag.address(fields if isinstance(fields, Mapping) else {})
    except BadInputError:
        return None


def _look(project: ExportedProject, task: TaskImage, sizes: frozenset[int] | None) -> SeenImage | None:
    if sizes is None:
        content = project.fetcher.fetch(task.address, task.task_id)
    else:
        sized = project.fetcher.fetch_if_sized(task.address, task.task_id, sizes)
        if sized is None:
            return None
        content = sized
    height, width = decode_image(content, project.max_pixels).shape[:2]
    return SeenImage(hashlib.sha256(content).hexdigest(), (height, width))


def _import_match(
    project: ExportedProject, tag: ImageTag, match: Match, report: ImportReport, *, is_dry_run: bool
) -> None:
    regions = _regions(project.config, tag, match, report)
    # As it is now: others work on the project while this goes on.
    tasks = project.client.tasks_of(project.id, [match.task.task_id])
    if not tasks or _address(tag, tasks[0]) != match.task.address:
        raise NotFoundError("the task was deleted or got another image meanwhile: run it again")
    existing = [each for each in tasks[0].get("annotations") or () if not each.get("was_cancelled")]
    if existing:
        wanted = {region["id"] for region in regions}
        present = {str(region.get("id")) for each in existing for region in each.get("result") or ()}
        if wanted <= present and (wanted or any(not each.get("result") for each in existing)):
            report.already += 1
        else:
            report.kept.append(
                f"task {match.task.task_id}: has an annotation already; masks of {match.source.shown} were not added"
            )
        return
    if not is_dry_run:
        created = project.client.create_annotation(match.task.task_id, regions)
        report.annotations.append(int(created["id"]))
    report.imported += 1
    report.objects += len(regions)


def _regions(config: LabelConfig, tag: ImageTag, match: Match, report: ImportReport) -> list[Json]:
    """Return masks as regions with ids that follow from what they show, marked as complete masks."""
    regions: list[Json] = []
    counts: Counter[str] = Counter()
    empty: list[str] = []
    for label, mask in match.source.load(match.seen.size_hw):
        if label not in config.labels:
            raise BadInputError(
                f"label {label!r} is not in the label config, which has {list(config.labels)}: add it there; nothing "
                "of this image was imported, since it would seem complete"
            )
        if not mask.any():
            empty.append(label)
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
    if empty and not regions:
        raise BadInputError(f"its masks have no pixel (label {empty[0]!r}): that there is nothing they do not say")
    report.problems += [
        f"{match.source.shown}: a mask of label {label!r} without a pixel was not imported" for label in empty
    ]
    return regions
