"""A project's references in memory, ready to be matched, and the model_version that masks made with them have."""

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backend import __version__
from backend.core.matching import ReferenceBank
from backend.core.types import Reference
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.models.calibrations import read_calibration
from backend.models.profiles import find_profile
from backend.projects.model_host import Models
from backend.projects.options import match_options
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)

OWN_VERSIONS = "softmatcher-"
"""Prefix of every model_version of this backend, whatever its release and profile."""

_MODEL_WAIT_S = 60.0
_KEPT_PROJECTS = 4

Banks = Mapping[str, Mapping[str, ReferenceBank]]
"""Image tag -> label -> the references of the label, ready to be matched."""


@dataclass(frozen=True, eq=False)
class PredictionContext:
    """All that tasks of a project are predicted with, besides the models.

    Attributes:
        project: of the tasks.
        config: its label config.
        version: the model_version.
        banks: image tag -> label -> its references, ready to be matched; empty if there are none.
        options: how they are matched.
    """

    project: ProjectRecord
    config: LabelConfig
    version: str
    banks: Banks
    options: MatchOptions


class ReferenceBanks:
    """Gathers the references of projects, and keeps those of the last few."""

    def __init__(self, settings: Settings, store: Store, models: Models) -> None:
        self._settings = settings
        self._store = store
        self._models = models
        self._calibration = read_calibration(find_profile(settings.profile).calibration, settings.calibration).digest()
        self._kept: OrderedDict[tuple[str, str], Banks] = OrderedDict()
        self._lock = threading.Lock()

    def model_version(self, project_key: ProjectKey, *, wait_s: float = _MODEL_WAIT_S) -> str:
        """Return a project's model_version: release, models, and a digest of its references and options.

        Raises:
            ModelUnavailableError: no models after `wait_s` seconds.
        """
        softmatcher, _ = self._models.get(wait_s)
        project = self._store.project(project_key)
        config = parse_label_config(project.label_config) if project and project.label_config else None
        return self.version_of(project, softmatcher.signature, config)

    def version_of(
        self,
        project: ProjectRecord | None,
        signature: str,
        config: LabelConfig | None,
        labels: Sequence[str] | None = None,
    ) -> str:
        """Return the model_version that models of this signature have with the project's references; needs no models.

        Args:
            project: None if it is not known yet.
            signature: of the models.
            config: the label config. A region also depends on where its label is in it: a prediction for a brush that
                has another name by now shows nothing.
            labels: of them; None: all.
        """
        parts = [signature, self._calibration]
        if project is not None:
            wanted = () if config is None else config.labels if labels is None else labels
            parts.append(match_options(self._settings, project).digest())
            parts.append(self._store.references_digest(project.key, wanted, signature))
            if config is not None:
                found = self._store.reference_labels(project.key, wanted, signature)
                parts += [place for label in found for place in _places(config, label)]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return f"{OWN_VERSIONS}{__version__}-{self._settings.profile}-{digest[:12]}"

    def context(
        self, project: ProjectRecord, config: LabelConfig, labels: Sequence[str] | None = None
    ) -> PredictionContext:
        """Return what tasks are predicted with: the references of the labels that the config has now, or of some.

        Args:
            project: of the tasks.
            config: its label config.
            labels: those wanted; None: all.

        Raises:
            ModelUnavailableError: no models.
        """
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        wanted = config.labels if labels is None else [label for label in config.labels if label in labels]
        version = self.version_of(project, softmatcher.signature, config, wanted)
        options = match_options(self._settings, project)
        key = (project.key, version)
        with self._lock:
            banks = self._kept.get(key)
            if banks is not None:
                self._kept.move_to_end(key)
        if banks is None:
            banks = self._gather(softmatcher, project, config, wanted, options)
            with self._lock:
                self._kept[key] = banks
                while len(self._kept) > _KEPT_PROJECTS:
                    self._kept.popitem(last=False)
        return PredictionContext(project, config, version, banks, options)

    def _gather(
        self,
        softmatcher: Softmatcher,
        project: ProjectRecord,
        config: LabelConfig,
        labels: Sequence[str],
        options: MatchOptions,
    ) -> Banks:
        by_tag: dict[str, dict[str, list[Reference]]] = {}
        for stored in self._store.references(project.key, labels=labels, signature=softmatcher.signature):
            if stored.reference is None:
                continue
            for tag_name in config.served_by(stored.image_tag, stored.label):
                by_tag.setdefault(tag_name, {}).setdefault(stored.label, []).append(stored.reference)
        banks: dict[str, dict[str, ReferenceBank]] = {}
        for tag_name, of_tag in by_tag.items():
            for label, references in of_tag.items():
                if not any(one.foreground_coverage.any() for one in references):
                    continue  # all that is known is where the label is not
                try:
                    banks.setdefault(tag_name, {})[label] = softmatcher.gather(references, options)
                except BadInputError as error:
                    # One label that cannot be matched leaves the others their predictions.
                    logger.warning("project=%s label=%s: %s", project.key, label, error)
        return banks

    def references_digest(self, project: ProjectRecord, labels: Sequence[str]) -> str:
        """Return a digest of the references of these labels.

        Raises:
            ModelUnavailableError: no models.
        """
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        return self._store.references_digest(project.key, labels, softmatcher.signature)


def _places(config: LabelConfig, label: str) -> list[str]:
    """Return where a label's regions go: brush, image, and the task key of that image."""
    return [
        json.dumps([label, brush.name, brush.to_name, config.image(brush.to_name).task_key])
        for brush in config.brushes
        if label in brush.labels
    ]
