"""Annotations become references: one for each label and image of an annotation."""

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from backend.core.cancellation import WorkTimeoutError, time_limit
from backend.core.marked_objects import MarkedObject
from backend.core.references import MaskUncertainty
from backend.core.types import EncodedImage, Mask, Scribble
from backend.engine.softmatcher import Softmatcher
from backend.errors import (
    BadInputError,
    LabelStudioError,
    LabelStudioUnavailableError,
    ModelUnavailableError,
    NotFoundError,
    SoftmatcherError,
    StoreUnavailableError,
)
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.codec import read_regions
from backend.labelstudio.label_config import ImageTag, LabelConfig, parse_label_config
from backend.labelstudio.label_prompts import LabelPrompts, group_annotation
from backend.metrics import Metrics
from backend.projects.connections import Connections
from backend.projects.images import TaskImage, TaskImages, versions_from_json, versions_to_json
from backend.projects.model_host import Models
from backend.projects.options import background_labels_of, is_complete, reading_digest
from backend.projects.project_key import key_of_project
from backend.settings import Settings
from backend.store import AnnotationRecord, NewReference, ProjectRecord, Store

logger = logging.getLogger(__name__)

Outcome = Literal["references", "none", "removed", "superseded", "failed"]

_FINISHED_IOU = 0.8
"""A manual brush that agrees this well with the segmenter's mask was painted as a mask, not as a scribble."""
MOST_CUTTING_S = 60.0
"""Processor time for all marks of an annotation: 48 marks take 6 s, a thousand boxes 50 s."""
_TOO_MANY_MARKS = (
    f"the marks of an annotation must be cut within {MOST_CUTTING_S:g} s of processor time, these are not: they gave "
    "no reference; mark fewer objects, or paint whole masks with a brush for masks"
)
_MODEL_WAIT_S = 120.0
_MOST_PROBLEMS = 20
_LONGEST_PROBLEM = 1000
"""Problems of one annotation that are recorded, and characters of each."""
_ASKED_FOR_AT_A_TIME = 200
"""Annotations that seem gone and are asked for one by one; the rest waits for the next reconciliation."""
_ASKERS = 8
"""Images that are asked at a time whether they changed."""
_MOST_ASKED = 64

Json = Mapping[str, Any]
_ImagesFound = Literal["changed", "unchanged"] | SoftmatcherError


class References:
    """Takes annotations in and keeps the store equal to what Label Studio has."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        models: Models,
        connections: Connections,
        images: TaskImages,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._models = models
        self._connections = connections
        self._images = images

    def ingest(self, project_key: str, annotation_id: int) -> Outcome:
        """Make the references of one annotation what Label Studio says now.

        Those of an annotation that Label Studio does not have are removed once it was seen to have the project.

        Raises:
            NotFoundError: Label Studio does not have the project; see `look_at_project`.
            LabelStudioUnavailableError: Label Studio does not answer; what is stored stays as it is.
            LabelStudioError, ConfigurationError: it refuses, or there is no token.
        """
        started = self._store.now()
        try:
            client = self._connections.client(project_key)
            try:
                annotation = client.annotation(annotation_id)
            except NotFoundError:
                self.look_at_project(project_key)
                self._store.delete_annotations(project_key, [annotation_id])
                outcome: Outcome = "removed"
            else:
                outcome = self._ingest_of_its_project(project_key, annotation)
        except LabelStudioUnavailableError:
            raise  # it stays pending: maintenance queues it again
        except BaseException:
            self._store.clear_pending(project_key, annotation_id, mark=started)
            raise
        # What was announced after the start is still to be taken in, by the job that came with it.
        self._store.clear_pending(project_key, annotation_id, mark=started)
        self._metrics.annotations.labels(outcome).inc()
        return outcome

    def reconcile(self, project_key: str) -> dict[str, Any]:
        """Compare the store with Label Studio: take in what is new or changed, forget what is gone.

        Returns:
            How many annotations were looked at, had each outcome, or were unchanged.

        Raises:
            NotFoundError: Label Studio does not have the project; see `look_at_project`.
            LabelStudioUnavailableError: Label Studio does not answer; what was done so far stays.
            LabelStudioError, ConfigurationError: it refuses, or there is no token.
        """
        known = {record.annotation_id: record for record in self._store.annotations(project_key)}
        client = self._connections.client(project_key)
        project_id = int(project_key.split(".")[0])
        project = self.look_at_project(project_key)
        made_with = self._models.get(_MODEL_WAIT_S)[0].signature, self._reading(project)
        counts: dict[str, Any] = {"seen": 0, "unchanged": 0}
        seen: set[int] = set()
        asked: deque[tuple[Json, Json, Future[_ImagesFound]]] = deque()

        def settle() -> None:
            task, annotation, images = asked.popleft()
            self._settle(project, task, annotation, images.result(), counts)

        with ThreadPoolExecutor(_ASKERS, thread_name_prefix="unchanged") as pool:
            for task, annotations in client.annotated_tasks(project_id):
                for annotation in annotations:
                    annotation_id = int(annotation["id"])
                    seen.add(annotation_id)
                    counts["seen"] += 1
                    record = known.get(annotation_id)
                    if record and _is_current(record, annotation, made_with):
                        asked.append((task, annotation, pool.submit(self._look_at_images, project, task, record)))
                        if len(asked) >= _MOST_ASKED:
                            settle()
                    else:
                        self._ingest_counted(project, task, annotation, counts)
            while asked:
                settle()
        # A page that a list lacks may be a proxy's doing: what seems gone is asked for by itself.
        missing = sorted(known.keys() - seen)
        gone = [
            annotation_id for annotation_id in missing[:_ASKED_FOR_AT_A_TIME] if self._is_gone(client, annotation_id)
        ]
        if gone:
            counts["removed"] = self._store.delete_annotations(project_key, gone)
        if len(missing) > _ASKED_FOR_AT_A_TIME:
            self._store.mark_for_reconcile(project_key)
            counts["left_for_later"] = len(missing) - _ASKED_FOR_AT_A_TIME
        return counts

    def _look_at_images(self, project: ProjectRecord, task: Json, record: AnnotationRecord) -> _ImagesFound:
        """Find out whether the images that the references of an annotation were made of are still the same."""
        config, fetcher = parse_label_config(project.label_config), self._connections.fetcher(project.key)
        for tag_name, version in versions_from_json(record.images).items():
            try:
                if not self._images.is_unchanged(task, config.image(tag_name), fetcher, version):
                    return "changed"
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                return error
        return "unchanged"

    def _settle(
        self, project: ProjectRecord, task: Json, annotation: Json, images: _ImagesFound, counts: dict[str, Any]
    ) -> None:
        if images == "changed":
            logger.warning(
                "project=%s annotation=%s: its image was replaced since: it is taken in again",
                project.key, annotation["id"],
            )  # fmt: skip
            self._ingest_counted(project, task, annotation, counts)
            return
        if isinstance(images, SoftmatcherError):
            if isinstance(images, LabelStudioUnavailableError):
                self._connections.client(project.key).version()  # raises if it is all of Label Studio
            # Its references stay: an image that cannot be had today says nothing against them.
            problem = f"its image cannot be had, the references made of it stay: {images}"
            self._store.note_problem(project.key, int(annotation["id"]), problem)
            logger.warning("project=%s annotation=%s: %s", project.key, annotation["id"], problem)
            counts["image_missing"] = counts.get("image_missing", 0) + 1
            return
        counts["unchanged"] += 1

    def _ingest_counted(self, project: ProjectRecord, task: Json, annotation: Json, counts: dict[str, Any]) -> None:
        outcome = self._ingest(project, task, annotation)
        self._metrics.annotations.labels(outcome).inc()
        counts[outcome] = counts.get(outcome, 0) + 1

    def count_outdated(self, project: ProjectRecord) -> int:
        """Count the references that other settings, another label config or other models made than there are now.

        Models that are not loaded are not compared.
        """
        try:
            signature = self._models.get(0.0)[0].signature if self._models.state == "ready" else None
        except ModelUnavailableError:
            signature = None
        return self._store.count_references_not_of(project.key, self._reading(project), signature)

    def _reading(self, project: ProjectRecord) -> str:
        try:
            return reading_digest(self._settings, project)
        except BadInputError:
            return ""  # a label config that cannot be used: no annotation can be read with it, and each says why

    def look_at_project(self, project_key: str) -> ProjectRecord:
        """Ask Label Studio for a project, and remember what it says.

        One that Label Studio does not have is marked as gone and keeps its data (`Projects.forget_gone`); its
        unfinished propagations end.

        Raises:
            NotFoundError: Label Studio does not have it, or has another project of its id.
            LabelStudioUnavailableError, LabelStudioError, ConfigurationError: it cannot be asked.
        """
        project_id = int(project_key.split(".")[0])
        try:
            project = self._connections.client(project_key).project(project_id)
            if key_of_project(project) != project_key:
                raise NotFoundError(f"Label Studio has another project of the id {project_id} than {project_key}")
        except NotFoundError as error:
            if self._store.mark_gone(project_key, f"Label Studio does not have the project (any more): {error}"):
                logger.warning("project=%s is gone from Label Studio; its data is kept for now: %s", project_key, error)
            raise
        self._store.mark_present(project_key)
        return self._store.save_project(
            project_key, title=str(project.get("title", "")), label_config=str(project.get("label_config", ""))
        )

    def _is_gone(self, client: LabelStudioClient, annotation_id: int) -> bool:
        try:
            client.annotation(annotation_id)
        except NotFoundError:
            return True
        return False

    def _ingest_of_its_project(self, project_key: str, annotation: Mapping[str, Any]) -> Outcome:
        project_id = int(project_key.split(".")[0])
        if annotation.get("project") not in (None, project_id):
            logger.warning("project=%s annotation=%s is of another project", project_key, annotation.get("id"))
            return "none"
        project = self._store.project(project_key)
        if project is None or not project.label_config:
            project = self.look_at_project(project_key)
        try:
            task = self._connections.client(project_key).task(int(annotation["task"]), project_id)
        except NotFoundError as error:
            # The annotation is there, so its task is: it may be between two pages, or hidden from the token.
            raise LabelStudioUnavailableError(
                f"Label Studio has the annotation, but does not list its task: {error}"
            ) from error
        return self._ingest(project, task, annotation, tries_again=True)

    def _ingest(
        self,
        project: ProjectRecord,
        task: Mapping[str, Any],
        annotation: Mapping[str, Any],
        *,
        tries_again: bool = False,
    ) -> Outcome:
        """Describe an annotation and store the result; a bad annotation is recorded with its problem, never raised."""
        softmatcher = self._models.get(_MODEL_WAIT_S)[0]
        problems: list[str] = []
        references: list[NewReference] = []
        images: dict[str, TaskImage] = {}
        unread: dict[str, SoftmatcherError] = {}
        kept: set[str] = set()
        config: LabelConfig | None = None
        try:
            if not annotation.get("was_cancelled") and annotation.get("result"):
                config = parse_label_config(project.label_config)
                images, unread = self._load_images(project, config, task, annotation["result"])
                problems += [f"image {tag_name!r}: {error}" for tag_name, error in unread.items()]
                references = self._describe(softmatcher, project, config, annotation["result"], images, problems)
        except (LabelStudioUnavailableError, ModelUnavailableError, StoreUnavailableError):
            raise
        except SoftmatcherError as error:
            problems.append(str(error))
        except WorkTimeoutError:
            raise  # the job's time is over: that says nothing of this annotation
        except Exception as error:
            # Whatever surprises in one annotation is its own problem: the others of the project go on.
            logger.exception("project=%s annotation=%s cannot be taken in", project.key, annotation.get("id"))
            problems.append(f"it cannot be taken in, {type(error).__name__}: {error}; the worker's log has more")
            # What the same annotation gave before stays: the surprise may be the machine's, not the annotation's.
            kept = {tag.name for tag in config.images} if config is not None else set()
        record = AnnotationRecord(
            project_key=project.key,
            annotation_id=int(annotation["id"]),
            task_id=int(task["id"]),
            updated_at=str(annotation.get("updated_at") or annotation.get("created_at")),
            signature=softmatcher.signature,
            content_digest=_content_digest(annotation),
            reading=self._reading(project),
            problem=_as_text(problems),
            images=versions_to_json({tag_name: image.version for tag_name, image in images.items()}),
        )
        for problem in problems:
            logger.warning("project=%s annotation=%s: %s", project.key, record.annotation_id, problem)
        if not self._store.replace_references(record, references, unread={*unread, *kept}):
            return "superseded"
        if tries_again and any(isinstance(error, LabelStudioUnavailableError) for error in unread.values()):
            self._store.mark_for_reconcile(project.key)  # a host of images that is down for a minute needs nobody
        if references:
            return "references"
        return "failed" if problems else "none"

    def _load_images(
        self,
        project: ProjectRecord,
        config: LabelConfig,
        task: Mapping[str, Any],
        result: Sequence[object],
    ) -> tuple[dict[str, TaskImage], dict[str, SoftmatcherError]]:
        """Load the images that a result has regions on; each stands alone: what is wrong with one is its own problem.

        Returns:
            The images by tag name, and what is wrong with those that cannot be had.

        Raises:
            LabelStudioUnavailableError: Label Studio does not answer; one host of images that does not is a problem.
        """
        fetcher = self._connections.fetcher(project.key)
        images: dict[str, TaskImage] = {}
        unread: dict[str, SoftmatcherError] = {}
        for tag in _images_shown(config, result):
            try:
                images[tag.name] = self._images.load(task, tag, fetcher, is_interactive=False, with_pixels=True)
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                if isinstance(error, LabelStudioUnavailableError):
                    self._connections.client(project.key).version()
                unread[tag.name] = error
        return images, unread

    def _describe(
        self,
        softmatcher: Softmatcher,
        project: ProjectRecord,
        config: LabelConfig,
        result: Sequence[Any],
        images: Mapping[str, TaskImage],
        problems: list[str],
    ) -> list[NewReference]:
        sizes_hw = {to_name: image.encoded.size_hw for to_name, image in images.items()}
        read = read_regions(result, config, sizes_hw, joins_masks=True)
        problems.extend(read.problems)
        if read.passed_over and not read.regions and not read.problems:
            problems.append(
                f"nothing in it is read: {', '.join(read.passed_over[:5])}; brush strokes, key points, rectangles, "
                "polygons, ellipses and bitmasks are, with a label that a brush of the image has"
            )
        marked = group_annotation(read.regions, background_labels_of(config, self._settings), self._settings.mask_tags)
        references = []
        cut_until = time.thread_time() + MOST_CUTTING_S
        for to_name, image in images.items():
            marks = [mark for mark in marked if mark.to_name == to_name]
            references += self._describe_image(softmatcher, project, to_name, image, marks, problems, cut_until)
        return references

    def _describe_image(
        self,
        softmatcher: Softmatcher,
        project: ProjectRecord,
        to_name: str,
        image: TaskImage,
        marks: Sequence[LabelPrompts],
        problems: list[str],
        cut_until: float,
    ) -> list[NewReference]:
        masks: dict[str, Mask] = {}
        uncertainties: dict[str, MaskUncertainty | None] = {}
        for mark in marks:
            try:
                with self._models.scheduler.slot(is_interactive=False), time_limit(cut_until, _TOO_MANY_MARKS):
                    mask, uncertainties[mark.label] = reference_mask(softmatcher, image.encoded, mark)
            except BadInputError as error:
                problems.append(f"label {mark.label!r}: {error}")
                continue
            if mask is None or not mask.any():
                problems.append(f"label {mark.label!r}: no object was found at the scribble; draw more of it")
                continue
            masks[mark.label] = mask
        references = []
        assert image.pixels is not None
        for mark in marks:
            if mark.label not in masks:
                continue
            mask = masks[mark.label]
            others = [other for label, other in masks.items() if label != mark.label]
            known_outside = others if mark.outside is None else [*others, mark.outside]
            outside = np.logical_or.reduce(known_outside) & ~mask if known_outside else None
            with self._models.scheduler.slot(is_interactive=False):
                reference = softmatcher.describe(
                    image.pixels, image.encoded, mask,
                    outside=outside, is_complete=is_complete(self._settings, project),
                    uncertainty=uncertainties[mark.label],
                )  # fmt: skip
            references.append(NewReference(mark.label, to_name, image.sha256, mask, reference))
        return references


def reference_mask(
    softmatcher: Softmatcher, encoded: EncodedImage, marks: LabelPrompts
) -> tuple[Mask | None, MaskUncertainty | None]:
    """Make the mask of a reference: the finished masks and what the scribbles give, object by object.

    Finished masks were seen by whoever submitted them, and strokes that fill an object are its mask; what becomes of
    other scribbles was not seen.

    Args:
        softmatcher: the engine.
        encoded: the image.
        marks: of one label on it.

    Returns:
        (H, W) bool, None if neither shows an object; and what is doubted of it.
    """
    finished = list(marks.finished)
    scribble = marks.scribble
    if finished:
        scribble = _without_points_in(scribble, np.logical_or.reduce(finished))
    found = [] if scribble.is_empty else softmatcher.objects_from_scribble(encoded, scribble)
    unseen: list[MarkedObject] = []
    for one in found:
        strokes = _painted_whole(one)
        if strokes is None:
            unseen.append(one)
        else:
            finished.append(strokes)
    seen = np.logical_or.reduce(finished) if finished else None
    uncertainty = softmatcher.uncertainty(encoded, unseen, finished=seen) if unseen else None
    masks = finished + [one.found.mask for one in unseen]
    return (np.logical_or.reduce(masks) if masks else None), uncertainty


def _painted_whole(one: MarkedObject) -> Mask | None:
    """Return an object's strokes if they are its whole mask already: then nothing of it is a guess."""
    strokes = one.scribble.positive_strokes
    return strokes if strokes is not None and _iou(strokes, one.found.mask) >= _FINISHED_IOU else None


def _as_text(problems: Sequence[str]) -> str | None:
    """Return the problems as one text that every database takes; None without any."""
    shown = [*problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        shown.append(f"and {len(problems) - _MOST_PROBLEMS} more")
    text = "; ".join(problem[:_LONGEST_PROBLEM] for problem in shown).replace("\0", "\\0")
    return text.encode(errors="backslashreplace").decode() or None


def _images_shown(config: LabelConfig, result: Sequence[object]) -> list[ImageTag]:
    """The config's images that regions of a result are on."""
    named = {str(region.get("to_name")) for region in result if isinstance(region, Mapping)}
    return [tag for tag in config.images if tag.name in named]


def _without_points_in(scribble: Scribble, mask: Mask) -> Scribble:
    """Points on an object that is finished already say nothing new."""
    height, width = mask.shape
    columns, rows = (scribble.positive_xy[:, axis].astype(int) for axis in (0, 1))
    is_new = ~mask[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return replace(scribble, positive_xy=scribble.positive_xy[is_new])


def _is_current(record: AnnotationRecord, annotation: Mapping[str, Any], made_with: tuple[str, str]) -> bool:
    """Return False if taking the annotation in again may give another result: the annotation, the models or its reading
    changed, or something was wrong the last time.

    Args:
        record: of the last time.
        annotation: as Label Studio has it now.
        made_with: signature of the models and digest of the reading, as they are now.
    """
    last = (record.content_digest, record.signature, record.reading, record.problem)
    return last == (_content_digest(annotation), *made_with, None)


def _iou(one: Mask, other: Mask) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0


def _content_digest(annotation: Mapping[str, Any]) -> str:
    """Return a sha256 of the annotation's own part of its references: the result, and whether it was skipped."""
    content = [annotation.get("result"), bool(annotation.get("was_cancelled"))]
    try:
        text = json.dumps(content, sort_keys=True)
    except (RecursionError, TypeError, ValueError):
        # Nested too deeply, or keys that cannot be ordered: what is wrong with it shows when it is read.
        text = f"unreadable, {annotation.get('updated_at')}"
    return hashlib.sha256(text.encode()).hexdigest()
