"""An annotation becomes references: one for each label and image."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from backend.core.cancellation import TimeLimitError, WorkTimeoutError, time_limit
from backend.core.references import MaskUncertainty
from backend.core.types import Mask
from backend.engine.softmatcher import Softmatcher
from backend.errors import (
    BadInputError,
    LabelStudioUnavailableError,
    ModelUnavailableError,
    SoftmatcherError,
    StoreUnavailableError,
)
from backend.labelstudio.codec import read_regions
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.labelstudio.label_prompts import LabelPrompts, group_annotation
from backend.projects.images import TaskImage, versions_to_json
from backend.projects.model_host import Models
from backend.projects.options import background_labels_of, is_complete, reading_digest
from backend.projects.references.annotation_images import AnnotationImages
from backend.projects.references.line_labels import LineLabels
from backend.projects.references.reference_mask import reference_mask
from backend.projects.text_references import TextReferences
from backend.settings import Settings
from backend.store import AnnotationRecord, NewReference, ProjectRecord, Store

logger = logging.getLogger(__name__)

Outcome = Literal["references", "none", "removed", "superseded", "failed"]

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


class Ingestion:
    """Makes the references of annotations."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        models: Models,
        images: AnnotationImages,
        texts: TextReferences,
        lines: LineLabels,
    ) -> None:
        self._texts = texts
        self._lines = lines
        self._settings = settings
        self._store = store
        self._models = models
        self._images = images

    def ingest(
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
        uncut: set[tuple[str, str]] = set()
        config: LabelConfig | None = None
        try:
            absent = self._store.page_annotations.absent_labels(project.key, int(annotation["id"]))
            result = annotation.get("result") or []
            if not annotation.get("was_cancelled") and (result or absent):
                config = parse_label_config(project.label_config)
                images, unread = self._images.load(project, config, task, result, absent)
                problems += [f"image {tag_name!r}: {error}" for tag_name, error in unread.items()]
                if result:
                    references = self._describe(softmatcher, project, config, result, images, problems, uncut)
                references += _absences(softmatcher, config, absent, images, references)
        except (LabelStudioUnavailableError, ModelUnavailableError, StoreUnavailableError):
            raise
        except SoftmatcherError as error:
            problems.append(str(error))
        except WorkTimeoutError:
            raise  # the job's time is over: that says nothing of this annotation
        except Exception as error:
            # Whatever surprises in one annotation is its own problem: the others of the project go on.
            logger.exception("project=%s annotation=%s cannot be ingested", project.key, annotation.get("id"))
            problems.append(f"it cannot be used, {type(error).__name__}: {error}; the worker's log has more")
            # What the same annotation gave before stays: the surprise may be the machine's, not the annotation's.
            kept = {tag.name for tag in config.images} if config is not None else set()
        record = AnnotationRecord(
            project_key=project.key,
            annotation_id=int(annotation["id"]),
            task_id=int(task["id"]),
            updated_at=str(annotation.get("updated_at") or annotation.get("created_at")),
            signature=softmatcher.signature,
            content_digest=_content_digest(annotation),
            reading=reading_of(self._settings, project),
            problem=_as_text(problems),
            images=versions_to_json({tag_name: image.version for tag_name, image in images.items()}),
        )
        for problem in problems:
            logger.warning("project=%s annotation=%s: %s", project.key, record.annotation_id, problem)
        if not self._store.replace_references(record, references, unread={*unread, *kept}, unread_labels=uncut):
            return "superseded"
        self._keep_phrases(project, record, annotation)
        if tries_again and any(isinstance(error, LabelStudioUnavailableError) for error in unread.values()):
            self._store.mark_for_reconcile(project.key)  # a host of images that is down for a minute needs nobody
        if references:
            return "references"
        return "failed" if problems else "none"

    def _keep_phrases(self, project: ProjectRecord, record: AnnotationRecord, annotation: Mapping[str, Any]) -> None:
        """Keep the phrases that the annotation carries; those that cannot be read are its problem."""
        result = annotation.get("result")
        read = result if isinstance(result, list) and not annotation.get("was_cancelled") else []
        try:
            self._texts.note_annotation(project, record.annotation_id, read)
        except BadInputError as error:
            logger.warning("project=%s annotation=%s: %s", project.key, record.annotation_id, error)
            problem = _as_text([part for part in (record.problem, str(error)) if part]) or ""
            self._store.note_problem(project.key, record.annotation_id, problem)

    def _describe(
        self,
        softmatcher: Softmatcher,
        project: ProjectRecord,
        config: LabelConfig,
        result: Sequence[Any],
        images: Mapping[str, TaskImage],
        problems: list[str],
        uncut: set[tuple[str, str]],
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
            references += self._describe_image(softmatcher, project, to_name, image, marks, problems, uncut, cut_until)
        return references

    def _describe_image(
        self,
        softmatcher: Softmatcher,
        project: ProjectRecord,
        to_name: str,
        image: TaskImage,
        marks: Sequence[LabelPrompts],
        problems: list[str],
        uncut: set[tuple[str, str]],
        cut_until: float,
    ) -> list[NewReference]:
        lines = self._lines.of(project.key) if any(mark.scribble.is_points for mark in marks) else frozenset()
        masks: dict[str, Mask] = {}
        uncertainties: dict[str, MaskUncertainty | None] = {}
        for mark in marks:
            try:
                with self._models.scheduler.slot(is_interactive=False), time_limit(cut_until, _TOO_MANY_MARKS):
                    mask, uncertainties[mark.label] = reference_mask(
                        softmatcher, image.encoded, mark, line_pixels=image.pixels if mark.label in lines else None
                    )
            except BadInputError as error:
                problems.append(f"label {mark.label!r}: {error}")
                if isinstance(error, TimeLimitError):
                    uncut.add((to_name, mark.label))  # what it gave before stays: a slower hour says nothing of it
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
            known_outside = others if mark.background is None else [*others, mark.background]
            outside = np.logical_or.reduce(known_outside) & ~mask if known_outside else None
            with self._models.scheduler.slot(is_interactive=False):
                reference = softmatcher.describe(
                    image.pixels, image.encoded, mask,
                    background=outside, is_complete=is_complete(self._settings, project),
                    uncertainty=uncertainties[mark.label],
                )  # fmt: skip
            references.append(NewReference(mark.label, to_name, image.sha256, mask, reference))
        return references


def _absences(
    softmatcher: Softmatcher,
    config: LabelConfig,
    labels: Sequence[str],
    images: Mapping[str, TaskImage],
    marked: Sequence[NewReference],
) -> list[NewReference]:
    """Return a reference without a mask for each label that somebody said is not on an image."""
    on_images = {(one.image_tag, one.label) for one in marked}
    return [
        NewReference(
            label, to_name, image.sha256, np.zeros(image.encoded.size_hw, np.bool_),
            softmatcher.describe_absence(image.encoded),
        )
        for to_name, image in images.items()
        for label in labels
        if (to_name, label) not in on_images
        and any(label in brush.labels for brush in config.brushes if brush.to_name == to_name)
    ]  # fmt: skip


def reading_of(settings: Settings, project: ProjectRecord) -> str:
    """Return the digest of how annotations of a project are read; "" if its label config cannot be used."""
    try:
        return reading_digest(settings, project)
    except BadInputError:
        return ""  # no annotation can be read with it, and each says why


def is_current(record: AnnotationRecord, annotation: Mapping[str, Any], made_with: tuple[str, str]) -> bool:
    """Return False if ingesting the annotation again may give another result.

    That is so if the annotation, the models or its reading changed, or if something was wrong the last time.

    Args:
        record: of the last time.
        annotation: as Label Studio has it now.
        made_with: signature of the models and digest of the reading, as they are now.
    """
    last = (record.content_digest, record.signature, record.reading, record.problem)
    return last == (_content_digest(annotation), *made_with, None)


def _as_text(problems: Sequence[str]) -> str | None:
    """Return the problems as one text that every database takes; None without any."""
    shown = [*problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        shown.append(f"and {len(problems) - _MOST_PROBLEMS} more")
    text = "; ".join(problem[:_LONGEST_PROBLEM] for problem in shown).replace("\0", "\\0")
    return text.encode(errors="backslashreplace").decode() or None


def _content_digest(annotation: Mapping[str, Any]) -> str:
    """Return a sha256 of the annotation's own part of its references: the result, and whether it was skipped."""
    content = [annotation.get("result"), bool(annotation.get("was_cancelled"))]
    try:
        text = json.dumps(content, sort_keys=True)
    except (RecursionError, TypeError, ValueError):
        # Nested too deeply, or keys that cannot be ordered: what is wrong with it shows when it is read.
        text = f"unreadable, {annotation.get('updated_at')}"
    return hashlib.sha256(text.encode()).hexdigest()
