"""Refiners of a project's labels: trained by a worker, kept in the store, used by whoever predicts.

They are trained from the references' images, which are read again from Label Studio: the store keeps no pixels. Until a
label's present references have been tried, its masks are the posterior's; `model_version` names the refiners in use.
"""

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from backend.core import cancellation
from backend.core.cancellation import CancelledWorkError
from backend.core.types import Json
from backend.engine.pixel_refiner import LEAST_REFERENCES, REFINER_VERSION, PixelRefiner
from backend.engine.refiner_training import ReferenceImage, train_label_refiner
from backend.errors import BadInputError, LabelStudioError, LabelStudioUnavailableError, NotFoundError
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImages
from backend.projects.model_host import Models
from backend.projects.options import match_options
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey, StoredReference
from backend.store.refiners import RefinerRecord

logger = logging.getLogger(__name__)

_MODEL_WAIT_S = 120.0
_KEPT = 64
"""Refiners that a process keeps in memory; one takes some 10 kB."""


class LabelRefiners:
    """Trains refiners, and gives those that fit a project's present references."""

    def __init__(
        self, settings: Settings, store: Store, models: Models, connections: Connections, images: TaskImages
    ) -> None:
        self._settings = settings
        self._store = store
        self._models = models
        self._connections = connections
        self._images = images
        self._kept: OrderedDict[str, PixelRefiner] = OrderedDict()
        self._lock = threading.Lock()

    def current(self, project: ProjectRecord, labels: Sequence[str], signature: str) -> list[RefinerRecord]:
        """Return the refiners that the present references of these labels switched on; reads no arrays."""
        return [
            record
            for record in self._store.refiners.records(project.key)
            if record.digest
            and record.label in labels
            and record.trained_on == self._training_digest(project, record.label, signature)
        ]

    def load(self, project_key: ProjectKey, records: Sequence[RefinerRecord]) -> dict[str, PixelRefiner]:
        """Return label -> refiner of these records; one that is damaged or was replaced meanwhile is left out."""
        loaded = {}
        for record in records:
            with self._lock:
                refiner = self._kept.get(record.digest)
            if refiner is None:
                try:
                    arrays = self._store.refiners.arrays(project_key, record)
                    refiner = None if arrays is None else PixelRefiner.from_arrays(arrays)
                except (ValueError, KeyError) as error:
                    logger.error("project=%s label=%r: %s", project_key, record.label, error)
            if refiner is not None:
                loaded[record.label] = refiner
                with self._lock:
                    self._kept[record.digest] = refiner
                    self._kept.move_to_end(record.digest)
                    while len(self._kept) > _KEPT:
                        self._kept.popitem(last=False)
        return loaded

    def is_due(self, project_key: ProjectKey) -> bool:
        """Return whether a label has references enough that were not tried yet.

        Raises:
            ModelUnavailableError: no models.
        """
        project = self._store.project(project_key)
        if project is None or not project.label_config:
            return False
        return bool(self._due(project, parse_label_config(project.label_config)))

    def train(self, project_key: ProjectKey, should_stop: Callable[[], bool]) -> Json:
        """Train the refiners that are due, and keep what came of it.

        Args:
            project_key: of the project.
            should_stop: asked often; True leaves the rest to another call.

        Returns:
            For each label that was tried its expected gain in IoU, and whether its refiner is used.

        Raises:
            ModelUnavailableError: no models.
            LabelStudioUnavailableError: Label Studio does not answer.
        """
        tried: Json = {}
        project = self._store.project(project_key)
        if project is None or not project.label_config:
            return tried
        config = parse_label_config(project.label_config)
        for label, trained_on in self._due(project, config).items():
            try:
                with cancellation.cancellable(should_stop):
                    tried[label] = self._train_label(project, config, label, trained_on)
            except CancelledWorkError:
                break
        return tried

    def _due(self, project: ProjectRecord, config: LabelConfig) -> dict[str, str]:
        signature = self._models.get(_MODEL_WAIT_S)[0].signature
        known = {record.label: record.trained_on for record in self._store.refiners.records(project.key)}
        images = self._store.count_reference_images(project.key, signature)
        enough = [label for label in config.labels if images.get(label, 0) >= LEAST_REFERENCES]
        digests = {label: self._training_digest(project, label, signature) for label in enough}
        return {label: digest for label, digest in digests.items() if known.get(label) != digest}

    def _train_label(self, project: ProjectRecord, config: LabelConfig, label: str, trained_on: str) -> Json:
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        options = match_options(self._settings, project)
        by_image: dict[str, StoredReference] = {}
        for stored in self._store.references(project.key, labels=[label], signature=softmatcher.signature):
            if stored.reference is not None and stored.mask.any():
                by_image.setdefault(stored.image_sha256, stored)
        usable = [one for one in by_image.values() if self._image(project, config, one) is not None]
        references = [one.reference for one in usable if one.reference is not None]

        def load(number: int) -> ReferenceImage:
            image = self._image(project, config, usable[number])
            if image is None:
                raise BadInputError(f"the image of reference {usable[number].id} cannot be had any more")
            return image

        try:
            trial = train_label_refiner(softmatcher, references, load, options, slot=self._slot)
        except BadInputError as error:
            logger.warning("project=%s label=%r has no refiner: %s", project.key, label, error)
            trial = None
        refiner = trial.refiner if trial is not None else None
        record = RefinerRecord(label, trained_on, "" if refiner is None else refiner.digest())
        self._store.refiners.save(project.key, record, None if refiner is None else refiner.to_arrays())
        if trial is None:
            return {"used": False}
        return {"used": refiner is not None, "gain": round(trial.refined_iou - trial.posterior_iou, 3)}

    def _slot(self) -> AbstractContextManager[None]:
        return self._models.scheduler.slot(is_interactive=False)

    def _image(self, project: ProjectRecord, config: LabelConfig, stored: StoredReference) -> ReferenceImage | None:
        """Return a reference's image; None if it is gone, or another one by now."""
        cancellation.check()
        client, fetcher = self._connections.client(project.key), self._connections.fetcher(project.key)
        try:
            (task,) = client.tasks_of(project.project_id, [stored.task_id]) or (None,)
            if task is None:
                return None
            image = self._images.load(
                task, config.image(stored.image_tag), fetcher, is_interactive=False, with_pixels=True
            )
        except LabelStudioUnavailableError:
            raise  # it is tried again: the references may well switch a refiner on
        except (BadInputError, NotFoundError, LabelStudioError) as error:
            logger.warning("project=%s reference=%d is left out: %s", project.key, stored.id, error)
            return None
        if image.pixels is None or image.sha256 != stored.image_sha256 or stored.mask.shape != image.pixels.shape[:2]:
            return None
        return ReferenceImage(image.pixels, image.encoded, stored.mask)

    def _training_digest(self, project: ProjectRecord, label: str, signature: str) -> str:
        parts = [
            str(REFINER_VERSION),
            signature,
            match_options(self._settings, project).digest(),
            self._store.references_digest(project.key, [label], signature),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def to_version(records: Sequence[RefinerRecord]) -> list[str]:
    """Return what model_version is made of besides, if refiners are in use."""
    return [f"{record.label}:{record.digest}" for record in records]
