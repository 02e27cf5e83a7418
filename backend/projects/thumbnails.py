"""Small pictures for the project's page: a task's image with masks over it."""

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from backend.core.types import Image, Mask
from backend.drawing.overlay import Colour, colour_of, draw_overlay
from backend.errors import NotFoundError
from backend.labelstudio.codec import read_regions
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImages
from backend.projects.prediction.reference_banks import OWN_VERSIONS
from backend.store import ProjectRecord, Store

_SIDE_PX = 320
"""Longer side of a thumbnail, at most."""
_KEPT = 256
FOUND: Colour = (230, 40, 40)
MARKED: Colour = (30, 200, 60)
_AT_A_TIME = 2

_Key = tuple[object, ...]


class Thumbnails:
    """Draws and remembers the last pictures; few at a time, so that labelers' requests find free threads and cores."""

    def __init__(self, store: Store, connections: Connections, images: TaskImages) -> None:
        self._store = store
        self._connections = connections
        self._images = images
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_AT_A_TIME)

    def of_reference(self, project: ProjectRecord, reference_id: int) -> bytes:
        """Draw a JPEG of a reference's image with its mask.

        Raises:
            NotFoundError: no such reference (any more), or its task or image is gone.
            LabelStudioError: the image cannot be had.
        """
        reference = self._store.reference_mask(project.key, reference_id)
        if reference is None:
            raise NotFoundError(f"reference {reference_id} is not in the store (any more)")
        key = (project.key, "reference", reference.digest)
        return self._remembered(key) or self._draw(
            key, project, reference.task_id, reference.image_tag, {reference.label: reference.mask}
        )

    def of_prediction(self, project: ProjectRecord, task_id: int) -> bytes:
        """Draw a JPEG of a task's image with the masks of this backend's newest prediction.

        Raises:
            NotFoundError: the task, its image or its prediction is gone.
            LabelStudioError: Label Studio cannot be asked.
        """
        with self._slots:
            tasks = self._connections.client(project.key).tasks_of(project.project_id, [task_id])
        own = [
            each
            for task in tasks
            for each in task.get("predictions") or ()
            if str(each.get("model_version") or "").startswith(OWN_VERSIONS)
        ]
        if not own:
            raise NotFoundError(f"task {task_id} has no prediction of this backend")
        newest = max(own, key=lambda each: int(each["id"]))
        key = (project.key, "prediction", newest["id"], newest.get("model_version"))
        kept = self._remembered(key)
        if kept is not None:
            return kept
        config = parse_label_config(project.label_config)
        regions = [region for region in newest.get("result") or () if isinstance(region, dict)]
        tag = str(regions[0].get("to_name")) if regions else config.images[0].name
        return self._draw(key, project, task_id, tag, _masks(config, regions, tag), task=tasks[0])

    def of_masks(self, project: ProjectRecord, task_id: int, image_tag: str, *, found: Mask, marked: Mask) -> bytes:
        """Draw a JPEG of a task's image with what was found as an area, and what is marked as an outline.

        Args:
            project: of the task.
            task_id: of the task.
            image_tag: which of its images.
            found: (h, w) bool of the image's aspect ratio, at any size.
            marked: likewise.

        Raises:
            NotFoundError: the task or its image is gone.
            LabelStudioError: Label Studio cannot be asked.
        """
        digest = hashlib.sha256(np.packbits(found).tobytes() + np.packbits(marked).tobytes()).hexdigest()
        key = (project.key, "masks", task_id, image_tag, digest)
        return self._remembered(key) or self._draw(
            key, project, task_id, image_tag, {}, tinted=[(found, FOUND)], outlined=[(marked, MARKED)]
        )

    def _draw(
        self,
        key: _Key,
        project: ProjectRecord,
        task_id: int,
        tag_name: str,
        masks: Mapping[str, Mask],
        task: Mapping[str, Any] | None = None,
        tinted: Sequence[tuple[Mask, Colour]] = (),
        outlined: Sequence[tuple[Mask, Colour]] = (),
    ) -> bytes:
        config = parse_label_config(project.label_config)
        with self._slots:
            if task is None:
                tasks = self._connections.client(project.key).tasks_of(project.project_id, [task_id])
                if not tasks:
                    raise NotFoundError(f"task {task_id} is not in Label Studio (any more)")
                task = tasks[0]
            picture = self._images.picture(task, config.image(tag_name), self._connections.fetcher(project.key))
            coloured = [(mask, colour_of(label)) for label, mask in masks.items()]
            content = _draw_thumbnail(picture, [*coloured, *tinted], [*coloured, *outlined])
        with self._lock:
            self._kept[key] = content
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return content

    def _remembered(self, key: _Key) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)


def _masks(config: LabelConfig, regions: Iterable[Mapping[str, Any]], tag_name: str) -> dict[str, Mask]:
    masks: dict[str, Mask] = {}
    for region in read_regions(list(regions), config, joins_masks=True).regions:
        if region.to_name == tag_name and region.mask is not None:
            masks[region.label] = masks.get(region.label, np.zeros_like(region.mask)) | region.mask
    return masks


def _draw_thumbnail(
    picture: Image, tinted: Sequence[tuple[Mask, Colour]], outlined: Sequence[tuple[Mask, Colour]]
) -> bytes:
    image = PillowImage.fromarray(picture).convert("RGB")
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    buffer = io.BytesIO()
    drawn = draw_overlay(np.asarray(image), tinted=tinted, outlined=outlined)
    PillowImage.fromarray(drawn).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
