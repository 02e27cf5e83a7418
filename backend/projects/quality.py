"""Estimates quality from the references alone: each is left out once and predicted from the others."""

import logging
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from backend.core.calibration_fit import Row
from backend.core.masks import iou, mask_to_size
from backend.core.types import Json, Mask
from backend.errors import SoftmatcherError
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImage, TaskImages
from backend.projects.model_host import Models
from backend.projects.options import is_complete, match_options
from backend.projects.prediction.reference_banks import ReferenceBanks
from backend.settings import Settings
from backend.store import ProjectRecord, Store, StoredReference
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)


_AT_MOST = 40
"""References that are left out in turn, spread over all labels: some tenths of a second each."""
_MODEL_WAIT_S = 120.0


class Quality:
    """Leave-one-out over a project's references."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        models: Models,
        connections: Connections,
        images: TaskImages,
        banks: ReferenceBanks,
    ) -> None:
        self._settings = settings
        self._store = store
        self._models = models
        self._connections = connections
        self._images = images
        self._banks = banks

    def estimate(self, project_key: ProjectKey) -> Json:
        """Measure the IoU of each reference's mask with what references of other images find on its image; store it.

        Unless annotators are said to mark every object, only what touches the marked one counts: the rest of the image
        may hold others like it that nobody marked.

        Returns:
            `labels`: label -> {`references`, `tried`, `iou` (mean, None if there was none to try)}, `iou`: the mean
            over the labels.

        Raises:
            ModelUnavailableError: no models.
            LabelStudioUnavailableError: an image cannot be had now.
        """
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        project, by_label = self._references(project_key, softmatcher.signature)
        if project is None:
            return {"labels": {}, "iou": None}
        options = match_options(self._settings, project)
        ious: dict[str, list[float]] = defaultdict(list)
        for left_out, image, others in self._left_out(project, by_label, _AT_MOST):
            with self._models.scheduler.slot(is_interactive=False):
                found = softmatcher.segment(
                    image.encoded,
                    {label: [one.reference for one in some if one.reference] for label, some in others.items()},
                    options,
                )
            mask = next((one.mask for one in found if one.label == left_out.label), np.zeros_like(left_out.mask))
            if not is_complete(self._settings, project):
                mask = _touching(mask, left_out.mask)
            ious[left_out.label].append(_iou_at_size(mask, left_out.mask))
        labels = {
            label: {
                "references": len(some),
                "tried": len(ious[label]),
                "iou": round(float(np.mean(ious[label])), 3) if ious[label] else None,
            }
            for label, some in sorted(by_label.items())
        }
        means = [entry["iou"] for entry in labels.values() if entry["iou"] is not None]
        estimate: Json = {"labels": labels, "iou": round(float(np.mean(means)), 3) if means else None}
        self._store.quality.save(project_key, self._banks.model_version(project_key, wait_s=_MODEL_WAIT_S), estimate)
        return estimate

    def calibration_rows(self, project_key: ProjectKey) -> list[Row]:
        """Return what a calibration is fitted on: each reference left out in turn, and predicted from the others.

        A label that has no mark on an image counts as absent only if annotators mark every object
        (`complete_annotations`): else nobody knows.

        Raises:
            ModelUnavailableError: no models.
            LabelStudioUnavailableError: an image cannot be had now.
        """
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        project, by_label = self._references(project_key, softmatcher.signature)
        if project is None:
            return []
        options, marks_all = match_options(self._settings, project), is_complete(self._settings, project)
        labels_of: dict[str, set[str]] = defaultdict(set)
        for label, some in by_label.items():
            for one in some:
                labels_of[one.image_sha256].add(label)
        rows: list[Row] = []
        seen: set[str] = set()
        for left_out, image, others in self._left_out(project, by_label, sum(map(len, by_label.values()))):
            absent = [label for label in others if label not in labels_of[left_out.image_sha256]]
            tried = [left_out.label, *(absent if marks_all and left_out.image_sha256 not in seen else [])]
            seen.add(left_out.image_sha256)
            with self._models.scheduler.slot(is_interactive=False):
                banks = [[one.reference for one in others[label] if one.reference] for label in tried]
                proposals = softmatcher.label_candidates(image.encoded, banks, options)
            for label, proposal in zip(tried, proposals, strict=True):
                is_present = label == left_out.label
                mask = mask_to_size(proposal.mask, image.encoded.size_hw)
                if is_present and not marks_all:
                    mask = _touching(mask, left_out.mask)
                reached = _iou_at_size(mask, left_out.mask) if is_present else 0.0
                rows.append(Row(left_out.image_sha256, is_present, reached, proposal.features))
        return rows

    def _references(
        self, project_key: ProjectKey, signature: str
    ) -> tuple[ProjectRecord | None, dict[str, list[StoredReference]]]:
        by_label: dict[str, list[StoredReference]] = defaultdict(list)
        project = self._store.project(project_key)
        if project is None or not project.label_config:
            return None, by_label
        labels = parse_label_config(project.label_config).labels
        for stored in self._store.references(project_key, labels=labels, signature=signature):
            # One without a mask says that its label is absent: there is nothing to find on its image.
            if stored.reference is not None and stored.mask.any():
                by_label[stored.label].append(stored)
        return project, by_label

    def _left_out(
        self, project: ProjectRecord, by_label: dict[str, list[StoredReference]], at_most: int
    ) -> Iterator[tuple[StoredReference, TaskImage, dict[str, list[StoredReference]]]]:
        """Yield each reference in turn, its image, and what that is predicted from; log those without an image."""
        config = parse_label_config(project.label_config or "")
        client, fetcher = self._connections.client(project.key), self._connections.fetcher(project.key)
        for left_out in _in_turn(by_label, at_most):
            others = _others(config, by_label, left_out)
            if not others.get(left_out.label):
                continue
            try:
                (task,) = client.tasks_of(project.project_id, [left_out.task_id]) or (None,)
                if task is None:
                    continue
                image = self._images.load(task, config.image(left_out.image_tag), fetcher, is_interactive=False)
            except SoftmatcherError as error:
                logger.warning("project=%s reference=%d is not tried: %s", project.key, left_out.id, error)
                continue
            yield left_out, image, others


def _in_turn(by_label: dict[str, list[StoredReference]], at_most: int) -> list[StoredReference]:
    """Choose references, as far as possible the same number per label, in an order that depends on content only."""
    queues = [list(some) for _, some in sorted(by_label.items())]
    chosen: list[StoredReference] = []
    while len(chosen) < at_most and any(queues):
        for queue in queues:
            if queue and len(chosen) < at_most:
                chosen.append(queue.pop(0))
    return chosen


def _others(
    config: LabelConfig, by_label: dict[str, list[StoredReference]], left_out: StoredReference
) -> dict[str, list[StoredReference]]:
    """Return what the image is predicted from. Of the same image none stays: it would find itself."""
    found = {
        label: [
            one
            for one in some
            if one.image_sha256 != left_out.image_sha256
            and left_out.image_tag in config.served_by(one.image_tag, label)
        ]
        for label, some in by_label.items()
    }
    return {label: some for label, some in found.items() if some}


def _touching(mask: Mask, other: Mask) -> Mask:
    """Return the connected parts of a mask that meet another one."""
    if mask.shape != other.shape:
        return mask
    parts, _ = ndimage.label(mask)
    met = np.unique(parts[other & mask])
    return np.asarray(np.isin(parts, met) & mask)


def _iou_at_size(found: Mask, true: Mask) -> float:
    """Return their IoU; 0 if the image was replaced by one of another size."""
    return iou(found, true) if found.shape == true.shape else 0.0
