"""A scribble drawn on the project's page: its mask, and what it would change, before anything is kept."""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import cv2
import numpy as np

from backend.core.cancellation import time_limit
from backend.core.matching import ReferenceBank
from backend.core.types import BoxedMask, Json, LabelMask, Mask, Reference, Scribble
from backend.errors import BadInputError, LabelStudioError, NotFoundError
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImages
from backend.projects.model_host import Models
from backend.projects.prediction.interactive import INTERACTIVE_CUTTING_S
from backend.projects.prediction.phrase_finder import PhraseFinder
from backend.projects.prediction.reference_banks import ReferenceBanks
from backend.projects.text_references import TextReferences
from backend.projects.tiles import DrawnMasks, draw_masks
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

_MODEL_WAIT_S = 30.0
_KEPT = 16
_STROKE_WIDTH = 0.015
"""Width of a stroke over the image's longer side."""
_TOO_LONG = f"what is drawn must be cut within {INTERACTIVE_CUTTING_S:g} s of processor time: draw less"


@dataclass(frozen=True)
class Stroke:
    """A line or a point that somebody drew.

    Attributes:
        points: (x, y) of each, as shares of the image's width and height; one point is a key point.
        is_positive: False: it is not the object.
    """

    points: tuple[tuple[float, float], ...]
    is_positive: bool


@dataclass(frozen=True, eq=False)
class PreviewedScribble:
    """A scribble with its mask.

    Attributes:
        name: by which the following requests mean it.
        project_key: of the task.
        task_id: that it was drawn on.
        label: that it is of.
        region: its mask as a region of Label Studio.
        drawn: the same as outlines.
        banks: image tag -> label -> references, those of the project with this one.
    """

    name: str
    project_key: ProjectKey
    task_id: int
    label: str
    region: Json
    drawn: DrawnMasks
    banks: Mapping[str, Mapping[str, ReferenceBank]]


class Previews:
    """Makes masks of scribbles on the page, and predicts tasks with them; keeps the last few in memory."""

    def __init__(
        self,
        store: Store,
        models: Models,
        connections: Connections,
        images: TaskImages,
        banks: ReferenceBanks,
        texts: TextReferences,
        finder: PhraseFinder,
    ) -> None:
        self._store = store
        self._models = models
        self._connections = connections
        self._images = images
        self._banks = banks
        self._texts = texts
        self._finder = finder
        self._kept: OrderedDict[str, PreviewedScribble] = OrderedDict()
        self._lock = threading.Lock()

    def draw(self, project: ProjectRecord, task_id: int, label: str, strokes: Sequence[Stroke]) -> PreviewedScribble:
        """Cut what a scribble marks, and remember it as a reference that is not kept yet.

        Raises:
            BadInputError: no such label; nothing positive was drawn, or no object is there.
            NotFoundError, LabelStudioError: the task or its image cannot be had.
            ModelUnavailableError: no models in time.
        """
        config = parse_label_config(project.label_config)
        tag = next((each for each in config.images if _has_label(config, each.name, label)), None)
        if tag is None:
            raise BadInputError(f"label must be one of {', '.join(config.labels)}, got {label[:80]!r}")
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        task = self._connections.client(project.key).task(task_id, project.project_id)
        fetcher = self._connections.fetcher(project.key)
        image = self._images.load(task, tag, fetcher, is_interactive=True, with_pixels=True, wait_s=_MODEL_WAIT_S)
        assert image.pixels is not None  # asked for
        scribble = _scribble(strokes, image.encoded.size_hw)
        if scribble.is_empty:
            raise BadInputError("draw a point or a line on the object first: so far nothing is marked")
        with self._models.scheduler.slot(is_interactive=True), time_limit(_cut_until(), _TOO_LONG):
            found = softmatcher.mask_from_scribble(image.encoded, scribble)
        if found is None or not found.mask.any():
            raise BadInputError("no object was found at the scribble: draw more of it")
        with self._models.scheduler.slot(is_interactive=True):
            reference = softmatcher.describe(image.pixels, image.encoded, found.mask)
        made = PreviewedScribble(
            uuid4().hex, project.key, task_id, label,
            mask_to_region(found.mask, brush=config.brush_for(tag.name, label), label=label, score=found.score),
            draw_masks({tag.name: [LabelMask(label, BoxedMask.of(found.mask), found.score)]}),
            self._banks_with(project, config, tag.name, label, reference),
        )  # fmt: skip
        with self._lock:
            self._kept[made.name] = made
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return made

    def get(self, project: ProjectRecord, name: str) -> PreviewedScribble:
        """Return a scribble that was drawn a moment ago.

        Raises:
            NotFoundError: it is forgotten.
        """
        with self._lock:
            found = self._kept.get(name)
        if found is None or found.project_key != project.key:
            raise NotFoundError("this preview is forgotten: draw it again")
        return found

    def predict(self, project: ProjectRecord, name: str, task_ids: Sequence[int]) -> dict[int, DrawnMasks]:
        """Return what tasks would show with the scribble among the references; tasks without an image are left out.

        Raises:
            NotFoundError: the scribble is forgotten.
            LabelStudioError: Label Studio cannot be asked.
            ModelUnavailableError: no models in time.
        """
        preview = self.get(project, name)
        config = parse_label_config(project.label_config)
        context = self._banks.context(project, config)
        # With one more reference a label's refiner has to be trained again; the other labels keep theirs.
        refiners = {label: one for label, one in context.refiners.items() if label != preview.label}
        context = replace(context, banks=preview.banks, refiners=refiners)
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        fetcher = self._connections.fetcher(project.key)
        shown: dict[int, DrawnMasks] = {}
        for task in self._connections.client(project.key).tasks_of(project.project_id, task_ids):
            found: dict[str, list[LabelMask]] = {}
            for tag_name, banks in preview.banks.items():
                try:
                    image = self._images.load(
                        task, config.image(tag_name), fetcher, is_interactive=True, with_text=project.with_text,
                        with_pixels=context.needs_pixels_on(tag_name),
                    )  # fmt: skip
                except (BadInputError, NotFoundError, LabelStudioError):
                    continue
                with self._models.scheduler.slot(is_interactive=True):
                    found[tag_name] = softmatcher.segment(
                        image.encoded, banks, context.options, **context.further_on(tag_name, image.pixels)
                    )
            if found:
                shown[int(task["id"])] = draw_masks(found)
        return shown

    def predict_phrases(
        self, project: ProjectRecord, texts: Mapping[str, str], task_ids: Sequence[int]
    ) -> dict[int, DrawnMasks]:
        """Return what tasks would show of the labels with these phrases; nothing is kept.

        Args:
            project: of the tasks.
            texts: label to the text of its phrases, as `parse_phrases` reads it.
            task_ids: of the tasks; those whose image cannot be had are left out.

        Raises:
            BadInputError: an unknown label, a phrase that cannot be read, a text encoder of other weights.
            LabelStudioError: Label Studio cannot be asked.
            ModelUnavailableError: no models in time, or no text encoder.
        """
        config = parse_label_config(project.label_config)
        context = self._banks.context(project, config)
        phrases = self._texts.of_texts(project, texts)
        fetcher = self._connections.fetcher(project.key)
        shown: dict[int, DrawnMasks] = {}
        for task in self._connections.client(project.key).tasks_of(project.project_id, task_ids) if phrases else ():
            found: dict[str, list[LabelMask]] = {}
            for tag in config.images:
                try:
                    found[tag.name] = self._finder.find(context, phrases, task, tag, fetcher)
                except (BadInputError, NotFoundError, LabelStudioError):
                    continue
            if found:
                shown[int(task["id"])] = draw_masks(found)
        return shown

    def _banks_with(
        self, project: ProjectRecord, config: LabelConfig, tag_name: str, label: str, reference: Reference
    ) -> dict[str, dict[str, ReferenceBank]]:
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        context = self._banks.context(project, config)
        banks = {tag: dict(of_tag) for tag, of_tag in context.banks.items()}
        stored = self._store.references(project.key, labels=[label], signature=softmatcher.signature)
        for served in config.served_by(tag_name, label):
            known = [
                one.reference
                for one in stored
                if one.reference is not None and served in config.served_by(one.image_tag, label)
            ]
            banks.setdefault(served, {})[label] = softmatcher.gather([*known, reference], context.options)
        return banks


def _has_label(config: LabelConfig, tag_name: str, label: str) -> bool:
    return any(brush.to_name == tag_name and label in brush.labels for brush in config.brushes)


def _cut_until() -> float:
    return time.thread_time() + INTERACTIVE_CUTTING_S


def _scribble(strokes: Sequence[Stroke], size_hw: tuple[int, int]) -> Scribble:
    height, width = size_hw
    points: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    painted: dict[bool, Mask | None] = {True: None, False: None}
    for stroke in strokes:
        at = [
            (min(x * width, width - 1.0), min(y * height, height - 1.0))
            for x, y in stroke.points
            if 0 <= x <= 1 and 0 <= y <= 1
        ]
        if len(at) == 1:
            points[stroke.is_positive] += at
        elif at:
            canvas = np.zeros(size_hw, np.uint8)
            thickness = max(1, round(_STROKE_WIDTH * max(size_hw)))
            cv2.polylines(canvas, [np.array(at).round().astype(np.int32)], isClosed=False, color=1, thickness=thickness)
            before = painted[stroke.is_positive]
            drawn = canvas.view(np.bool_)
            painted[stroke.is_positive] = drawn if before is None else before | drawn
    return Scribble(
        size_hw,
        positive_xy=np.array(points[True], np.float32).reshape(-1, 2),
        negative_xy=np.array(points[False], np.float32).reshape(-1, 2),
        positive_strokes=painted[True],
        negative_strokes=painted[False],
    )
