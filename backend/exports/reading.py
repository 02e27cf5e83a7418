"""Image records out of Label Studio, one after the other, a few images ahead."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from backend.core.types import Json
from backend.errors import LabelStudioUnavailableError, NotFoundError, SoftmatcherError
from backend.exports.image_files import read_image
from backend.exports.names import export_name
from backend.exports.options import ExportOptions
from backend.exports.records import ImageFile, ImageRecord, LeftOut, MaskRecord, Provenance
from backend.exports.selection import Chosen, choose
from backend.exports.sinks import Sink
from backend.exports.splits import split_of
from backend.labelstudio.budget import ReadingBudget
from backend.labelstudio.codec import Region, read_regions
from backend.labelstudio.label_config import ImageTag, LabelConfig, parse_label_config
from backend.projects.options import background_labels_of
from backend.projects.project_key import key_of_project
from backend.projects.stored_projects import StoredProjects
from backend.projects.task_source import ImageFiles, TaskSource
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)

_MOST_SECONDS_AN_ANNOTATION = 600.0
"""Nobody waits on the screen for an export."""

_AHEAD_A_THREAD = 2
IMAGE_PAUSES_S: tuple[float, ...] = (1.0, 10.0)
"""Before an image that did not come is tried again: hours of export shall not end with one busy moment of a host."""

_BACKGROUND_ONLY = ("background only", "it says what no object is, not that there is none")


@dataclass(frozen=True, eq=False)
class ExportedProject:
    """A project as exports and imports see it."""

    id: int
    key: str
    title: str
    config: LabelConfig
    client: TaskSource
    fetcher: ImageFiles
    references: "ReferenceIndex"
    max_pixels: int
    background: frozenset[str] = frozenset()
    """Labels that mark what an object is not: their masks are no objects, and they are no classes of a data set."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the classes of a data set, in the config's order."""
        return tuple(label for label in self.config.labels if label not in self.background)

    def is_mask(self, region: Mapping[str, Any]) -> bool:
        """Return whether a region, as Label Studio has it, is of a brush, or a shape of a label that a brush has."""
        if str(region.get("type")).lower() == "brushlabels":
            return True
        control, to_name, value = str(region.get("from_name")), str(region.get("to_name")), region.get("value")
        shape = self.config.shape(control, to_name)
        written = value.get(str(region.get("type")).lower()) if isinstance(value, dict) else None
        if shape is None or not isinstance(written, list):
            return False
        return any(self.config.label_names[control].get(str(name)) in shape.labels for name in written)

    def is_background(self, region: Mapping[str, Any]) -> bool:
        """Return whether a mask's region, as Label Studio has it, marks background and nothing else."""
        value = region.get("value")
        written = value.get(str(region.get("type")).lower()) if isinstance(value, dict) else None
        names = self.config.label_names.get(str(region.get("from_name")), {})
        return (
            isinstance(written, list)
            and bool(written)
            and all(names.get(str(name), str(name)) in self.background for name in written)
        )


VersionOf = Callable[[ProjectRecord | None, str, LabelConfig], str]
"""Project, signature, label config -> model_version; see `ReferenceBanks.version_of`."""


def open_project(projects: StoredProjects, project_id: int, version_of: VersionOf) -> ExportedProject:
    """Ask Label Studio for a project; this backend need not be connected to it.

    Args:
        projects: of this backend.
        project_id: in Label Studio.
        version_of: only asked if the project has references.

    Raises:
        NotFoundError: there is none of this id.
        BadInputError: its label config has no brush.
        LabelStudioError, ConfigurationError: Label Studio refuses, or there is no token.
    """
    known = projects.store.project_by_id(project_id)
    found = projects.tasks_for(known.key if known else f"{project_id}.0").project(project_id)
    key = key_of_project(found)
    config = parse_label_config(str(found.get("label_config") or ""))
    return ExportedProject(
        id=project_id,
        key=key,
        title=str(found.get("title") or f"project {project_id}"),
        config=config,
        client=projects.tasks_for(key),
        fetcher=projects.fetcher_for(key),
        references=ReferenceIndex(projects.store, key, config, version_of),
        max_pixels=int(projects.settings.max_image_mpx * 1e6),
        background=background_labels_of(config, projects.settings),
    )


class ReferenceIndex:
    """Which references of this backend belong to an annotation or a prediction. Without any, all answers are ()."""

    def __init__(self, store: Store, project_key: ProjectKey, config: LabelConfig, version_of: VersionOf) -> None:
        signatures = {each.annotation_id: each.signature for each in store.annotations(project_key)}
        self._of_annotation: dict[tuple[int, str], list[int]] = {}
        by_signature: dict[tuple[str, str], list[int]] = {}
        for reference in sorted(store.list_references(project_key), key=lambda each: each.id):
            self._of_annotation.setdefault((reference.annotation_id, reference.label), []).append(reference.id)
            signature = signatures.get(reference.annotation_id, "")
            by_signature.setdefault((signature, reference.label), []).append(reference.id)
        project = store.project(project_key)
        signatures_in_use = {signature for signature, _ in by_signature}
        versions = {signature: version_of(project, signature, config) for signature in signatures_in_use}
        self._of_prediction = {(versions[signature], label): ids for (signature, label), ids in by_signature.items()}

    def of_annotation(self, annotation_id: int, label: str) -> tuple[int, ...]:
        """Return those made of it."""
        return tuple(self._of_annotation.get((annotation_id, label), ()))

    def of_prediction(self, model_version: str | None, label: str) -> tuple[int, ...]:
        """Draw a JPEG of a task's image with the masks of this backend's newest prediction."""
        return tuple(self._of_prediction.get((model_version or "", label), ()))


def count_candidates(project: ExportedProject, options: ExportOptions) -> int:
    """Return how many tasks will be looked at."""
    total = project.client.count_tasks(project.id)
    if options.source == "annotations":
        return total - project.client.count_tasks(project.id, only_unlabeled=True)
    return total


def read_images(
    project: ExportedProject,
    options: ExportOptions,
    sink: Sink,
    *,
    threads: int,
    on_task: Callable[[], None],
    on_left_out: Callable[[LeftOut], None],
) -> Iterator[ImageRecord]:
    """Read all that is exported, in the order of the tasks.

    Memory holds a page of tasks and `2 * threads` images, whatever the size of the project. Image files are put into
    the sink as they come.

    Raises:
        LabelStudioError: Label Studio refuses; LabelStudioUnavailableError if it, or an image's host, does not answer.
    """
    reader = _Reader(project, options, sink, on_left_out)
    waiting: deque[_Work] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="export") as pool:
        try:
            for task in project.client.all_tasks(project.id, only_annotated=options.source == "annotations"):
                waiting.extend(reader.begin(task, pool))
                on_task()
                while len(waiting) > _AHEAD_A_THREAD * threads:
                    yield from reader.end(waiting.popleft())
            while waiting:
                yield from reader.end(waiting.popleft())
        finally:
            for work in waiting:
                work.image.cancel()


@dataclass(frozen=True, eq=False)
class _Work:
    """An image of a task that is being fetched."""

    task_id: int
    tag: ImageTag
    address: str
    chosen: tuple[Chosen, ...]
    image: "Future[ImageFile]"


class _Reader:
    def __init__(
        self, project: ExportedProject, options: ExportOptions, sink: Sink, on_left_out: Callable[[LeftOut], None]
    ) -> None:
        self._project = project
        self._options = options
        self._sink = sink
        self._on_left_out = on_left_out
        self._objects = 0

    def begin(self, task: dict[str, Any], pool: ThreadPoolExecutor) -> Iterator[_Work]:
        """Start to fetch the images of a task that is exported."""
        task_id = int(task["id"])
        chosen, left_out = choose(
            task, self._options, is_mask=self._project.is_mask, is_background=self._project.is_background
        )
        for each in left_out:
            self._on_left_out(each)
        for tag in self._project.config.images if chosen else ():
            try:
                fields = task.get("data")
                address = tag.address(fields if isinstance(fields, dict) else {})
            except SoftmatcherError as error:
                self._on_left_out(LeftOut(task_id, "image without an address", str(error)))
                continue
            known = self._sink.recall_image(task_id, tag.name, address)
            if known is not None:
                image: Future[ImageFile] = Future()
                image.set_result(known)
            else:
                image = pool.submit(self._load, task_id, address)
            yield _Work(task_id, tag, address, tuple(chosen), image)

    def end(self, work: _Work) -> Iterator[ImageRecord]:
        """Return the record of an image, or the reason why there is none."""
        try:
            file = work.image.result()
        except LabelStudioUnavailableError as error:
            if not self._options.leave_out_unreachable:
                raise LabelStudioUnavailableError(
                    f"image of task {work.task_id}: {error}. Run the same command again to go on from here; with "
                    "--leave-out-unreachable the export does without such images"
                ) from error
            self._on_left_out(LeftOut(work.task_id, "image out of reach", str(error)))
            return
        except NotFoundError as error:
            self._on_left_out(LeftOut(work.task_id, "image missing", str(error)))
            return
        except SoftmatcherError as error:
            self._on_left_out(LeftOut(work.task_id, "image that cannot be read", str(error)))
            return
        masks = tuple(self._masks(work, file))
        if not masks and (marked := self._masks_on(work)):
            if all(map(self._project.is_background, marked)):
                self._on_left_out(LeftOut(work.task_id, *_BACKGROUND_ONLY))
            else:
                message = "none of its masks can be used: without them it would say that there is nothing"
                self._on_left_out(LeftOut(work.task_id, "image without its masks", message))
            return
        yield self._record(work, file, masks)

    def _load(self, task_id: int, address: str) -> ImageFile:
        for pause_s in IMAGE_PAUSES_S:
            try:
                return read_image(self._project.fetcher.fetch(address, task_id), self._project.max_pixels)
            except LabelStudioUnavailableError as error:
                logger.info("project=%s task=%s image again in %g s: %s", self._project.key, task_id, pause_s, error)
                time.sleep(pause_s)
        return read_image(self._project.fetcher.fetch(address, task_id), self._project.max_pixels)

    def _record(self, work: _Work, file: ImageFile, masks: tuple[MaskRecord, ...]) -> ImageRecord:
        project, tags = self._project, self._project.config.images
        split = split_of(file.sha256, self._options.split)
        name = export_name(work.task_id, work.address, file.extension, tag=work.tag.name if len(tags) > 1 else None)
        path = f"images/{split}/{name}" if self._is_stored else None
        if path is not None and file.stored is not None:
            self._sink.write(path, [file.stored])
        self._sink.note_image(work.task_id, work.tag.name, work.address, file, path)

        def read() -> bytes:
            if file.stored is not None:
                return file.stored
            stored = self._sink.read(path) if path is not None else None
            if stored is not None:
                return stored
            again = read_image(project.fetcher.fetch(work.address, work.task_id), project.max_pixels).stored
            assert again is not None
            return again

        return ImageRecord(
            id=work.task_id * len(tags) + tags.index(work.tag),
            task_id=work.task_id,
            file_name=name,
            address="data:" if work.address[:5].lower() == "data:" else work.address,
            file=file,
            split=split,
            masks=masks,
            read=read,
        )

    @property
    def _is_stored(self) -> bool:
        """Return whether images are files of the data set: Parquet holds them in its rows."""
        return self._options.images == "include" and self._options.format != "parquet"

    def _masks_on(self, work: _Work) -> list[Json]:
        on_image = [each for one in work.chosen for each in one.result if each.get("to_name") == work.tag.name]
        return [each for each in on_image if self._project.is_mask(each)]

    def _masks(self, work: _Work, file: ImageFile) -> Iterator[MaskRecord]:
        for chosen in work.chosen:
            on_image = [each for each in chosen.result if each.get("to_name") == work.tag.name]
            budget = ReadingBudget(seconds=_MOST_SECONDS_AN_ANNOTATION)
            read = read_regions(on_image, self._project.config, {work.tag.name: file.size_hw}, budget=budget)
            for problem in read.problems:
                self._on_left_out(LeftOut(work.task_id, "region that cannot be used", problem))
            no_masks = [str(each.get("type")).lower() for each in on_image if not self._project.is_mask(each)]
            for kind, count in sorted(Counter(no_masks).items()):
                self._on_left_out(LeftOut(work.task_id, f"{kind} region", f"{count} of them are no masks"))
            for region in read.regions:
                if region.mask is None:
                    continue
                if region.label in self._project.background:
                    message = f"region {region.id} of label {region.label!r} marks what no object is"
                    self._on_left_out(LeftOut(work.task_id, "background region", message))
                    continue
                if not region.mask.any():
                    message = f"region {region.id} of label {region.label!r}"
                    self._on_left_out(LeftOut(work.task_id, "mask without a pixel", message))
                    continue
                self._objects += 1
                yield MaskRecord(self._objects, region.label, region.mask, self._provenance(chosen, region))

    def _provenance(self, chosen: Chosen, region: Region) -> Provenance:
        found, references = chosen.found, self._project.references
        version = found.get("model_version") if chosen.is_prediction else None
        source_id = int(found["id"])
        return Provenance(
            source="prediction" if chosen.is_prediction else "annotation",
            source_id=source_id,
            region_id=region.id,
            origin=region.origin,
            annotator=None if chosen.is_prediction else _user_id(found.get("completed_by")),
            score=chosen.score_of(region.id),
            model_version=str(version) if version is not None else None,
            reference_ids=(
                references.of_prediction(version, region.label)
                if chosen.is_prediction
                else references.of_annotation(source_id, region.label)
            ),
            created_at=_text(found.get("created_at")),
            updated_at=_text(found.get("updated_at")),
        )


def _user_id(completed_by: object) -> int | None:
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("id")
    return completed_by if isinstance(completed_by, int) and not isinstance(completed_by, bool) else None


def _text(value: object) -> str | None:
    return str(value) if value is not None else None
