"""Scales of phrases whose labels have no references: measured on images of the project."""

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from backend.core.text_scores import LabelPhrases, TextScale, scale_of_images
from backend.core.types import EncodedImage
from backend.errors import SoftmatcherError
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImages
from backend.projects.prediction.reference_banks import ReferenceBanks
from backend.projects.text_references import TextReferences
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)

MOST_IMAGES = 16
"""Images of a project that scales are measured on: those of its first tasks."""


class PhraseScales:
    """Measures what the phrases of labels without references score on images of their project."""

    def __init__(
        self, store: Store, connections: Connections, images: TaskImages, banks: ReferenceBanks, texts: TextReferences
    ) -> None:
        self._store = store
        self._connections = connections
        self._images = images
        self._banks = banks
        self._texts = texts

    def missing(self, project_key: ProjectKey) -> dict[str, LabelPhrases]:
        """Return the labels with phrases and without references whose scale is not measured yet."""
        project = self._store.project(project_key)
        if project is None or not project.label_config:
            return {}
        config = parse_label_config(project.label_config)
        known = self._texts.scales(project_key, self._texts.digest(project, config))
        with_references = self._banks.labels_with_references(project, config)
        return {
            label: phrases
            for label, phrases in self._texts.of_labels(project, config).items()
            if label not in with_references and not _is_of_images(known, label)
        }

    def measure(self, project_key: ProjectKey) -> list[str]:
        """Measure the scales that are missing, and keep them; return their labels.

        Raises:
            ModelUnavailableError: no models.
            LabelStudioUnavailableError, LabelStudioError, ConfigurationError: tasks cannot be listed.
        """
        missing = self.missing(project_key)
        project = self._store.project(project_key)
        if not missing or project is None:
            return []
        config = parse_label_config(project.label_config)
        digest = self._texts.digest(project, config)
        assert digest is not None  # there are phrases
        scales = self.of_project(project, config, missing, [])
        for label, scale in scales.items():
            self._texts.save_scale(project_key, label, digest, scale)
        return sorted(scales)

    def of_project(
        self,
        project: ProjectRecord,
        config: LabelConfig,
        phrases: Mapping[str, LabelPhrases],
        shown: Sequence[EncodedImage],
        *,
        within_s: float = 600.0,
    ) -> dict[str, TextScale | None]:
        """Measure the scales of labels on the project's first images, and on those that are shown.

        Args:
            project: whose images.
            config: its label config.
            phrases: of each label.
            shown: images that were encoded with text features.
            within_s: no further image is begun after so many seconds.
        """
        until = time.monotonic() + within_s
        scores: dict[str, list[NDArray[np.float32]]] = {label: [] for label in phrases}

        def note(encoded: EncodedImage) -> None:
            if encoded.text_features is not None:
                patches = encoded.text_features.astype(np.float32).reshape(-1, encoded.text_features.shape[2])
                for label, of_label in phrases.items():
                    scores[label].append(of_label.scores(patches))

        for encoded in shown:
            note(encoded)
        fetcher = self._connections.fetcher(project.key)
        for task in self._connections.client(project.key).tasks_after(project.project_id, 0, MOST_IMAGES):
            for tag in config.images:
                if time.monotonic() > until or not tag.is_in(task.get("data") or {}):
                    continue
                try:
                    note(self._images.load(task, tag, fetcher, is_interactive=False, with_text=True).encoded)
                except SoftmatcherError as error:
                    logger.info("project=%s task=%s: %s", project.key, task.get("id"), error)
        return {label: scale_of_images(of_label) for label, of_label in scores.items()}


def _is_of_images(known: Mapping[str, TextScale | None], label: str) -> bool:
    if label not in known:
        return False
    scale = known[label]
    return scale is None or scale.is_gated
