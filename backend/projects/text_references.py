"""Phrases of a project's labels: where they come from, their vectors, and what they mean for matching."""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from backend.core.phrases import Phrase, parse_phrases
from backend.core.text_scores import LabelPhrases, TextScale, mean_of_phrases
from backend.core.types import Json
from backend.errors import BadInputError, SoftmatcherError
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.labelstudio.text_area import has_phrases, read_phrases, read_text_prompts
from backend.models.profiles import PROFILES
from backend.models.text.protocol import TextEncoder
from backend.projects.model_host import Models
from backend.projects.options import background_labels_of
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey, TextReference
from backend.store.texts import FROM_CONFIG, FROM_PAGE, source_of_annotation

logger = logging.getLogger(__name__)

_WITH_TEXT = [profile.name for profile in PROFILES.values() if profile.text_encoder is not None]
NEEDS_PROFILE = (
    f"phrases need the profile {' or '.join(_WITH_TEXT)} (SOFTMATCHER_PROFILE={_WITH_TEXT[0]}); they are kept until "
    "then"
)
"""Told where phrases are kept that the models in use cannot read."""

LoadTextEncoder = Callable[[], TextEncoder]


class TextReferences:
    """Keeps the phrases of labels, and has them encoded.

    Args:
        settings: of the process.
        store: holds them.
        models: whose text features the vectors have to fit.
        load: loads the text encoder; it is let go as soon as phrases are encoded.
    """

    def __init__(self, settings: Settings, store: Store, models: Models, load: LoadTextEncoder) -> None:
        self._settings = settings
        self._store = store
        self._models = models
        self._load = load
        self._encoding = threading.Lock()
        self._told: set[ProjectKey] = set()
        self._failure: str | None = None

    @property
    def text_space(self) -> str | None:
        """Return the space that the loaded models' text features are in; None if they have none, or are not loaded."""
        return self._models.text_space

    @property
    def notice(self) -> str | None:
        """Return why phrases are not used, for people; None if they are, or the models are not loaded yet."""
        if self._models.state == "ready" and self.text_space is None:
            return NEEDS_PROFILE
        return self._failure

    def note_config(self, project_key: ProjectKey, label_config: str) -> tuple[str, ...]:
        """Keep the phrases of a label config in place of those that it had; return what is wrong with the others."""
        config = parse_label_config(label_config)
        phrases, problems = read_text_prompts(config, background_labels_of(config, self._settings))
        self._store.texts.replace(project_key, FROM_CONFIG, phrases)
        if phrases and project_key not in self._told and self.notice is not None:
            self._told.add(project_key)
            logger.warning("project=%s %s", project_key, self.notice)
        return problems

    def set_from_page(self, project: ProjectRecord, texts: Mapping[str, str]) -> None:
        """Keep the phrases that somebody wrote on the project's page; those of labels that are not named stay.

        Raises:
            BadInputError: an unknown label, a phrase that `parse_phrases` rejects; nothing is changed then.
        """
        read = self._read(project, texts)
        kept: dict[str, Sequence[Phrase]] = {}
        for one in self._store.texts.of_project(project.key):
            if one.source == FROM_PAGE and one.label not in texts:
                kept[one.label] = [*kept.get(one.label, ()), one.phrase]
        self._store.texts.replace(project.key, FROM_PAGE, {**kept, **read})

    def _read(self, project: ProjectRecord, texts: Mapping[str, str]) -> dict[str, tuple[Phrase, ...]]:
        """Read the phrases of labels that the project has.

        Raises:
            BadInputError: an unknown label, a phrase that `parse_phrases` rejects.
        """
        config = parse_label_config(project.label_config)
        known = (*config.labels, *background_labels_of(config, self._settings))
        unknown = [label for label in texts if label not in known]
        if unknown:
            raise BadInputError(f"a label must be one of {', '.join(config.labels)}, got {unknown[0][:60]!r}")
        return {label: parse_phrases(text) for label, text in texts.items()}

    def note_annotation(self, project: ProjectRecord, annotation_id: int, result: Sequence[object]) -> None:
        """Keep the phrases that an annotation carries, in place of those that it had.

        Raises:
            BadInputError: text that cannot be read.
        """
        phrases = self._of_editor(project, result) if has_phrases(result) else {}
        if phrases or any(
            one.source == source_of_annotation(annotation_id) for one in self._store.texts.of_project(project.key)
        ):
            self._store.texts.replace(
                project.key, source_of_annotation(annotation_id), phrases, annotation_id=annotation_id
            )

    def of_editor(self, project: ProjectRecord, result: Sequence[object]) -> dict[str, LabelPhrases]:
        """Return the phrases in the editor as vectors, with those of the project to tell them from; {} without any.

        Raises:
            BadInputError: text that cannot be read.
            ModelUnavailableError: the text encoder cannot be loaded.
        """
        return self._as_vectors(project, self._of_editor(project, result))

    def of_texts(self, project: ProjectRecord, texts: Mapping[str, str]) -> dict[str, LabelPhrases]:
        """Return phrases that are not kept as vectors, with those of the project to tell them from; {} without any.

        Raises:
            BadInputError: an unknown label, a phrase that `parse_phrases` rejects.
            ModelUnavailableError: the text encoder cannot be loaded.
        """
        return self._as_vectors(project, {label: some for label, some in self._read(project, texts).items() if some})

    def _as_vectors(self, project: ProjectRecord, phrases: Mapping[str, Sequence[Phrase]]) -> dict[str, LabelPhrases]:
        space = self.text_space
        if not phrases or space is None:
            return {}
        texts = {phrase.text for some in phrases.values() for phrase in some}
        vectors = self._store.texts.vectors(space, texts)
        missing = sorted(texts - vectors.keys())
        if missing:
            new = self._encode(space, missing)
            self._store.texts.save_vectors(space, new)
            vectors |= new
        own = [
            TextReference(label, phrase, "editor", vectors[phrase.text])
            for label, some in phrases.items()
            for phrase in some
        ]
        config = parse_label_config(project.label_config)
        others = [one for one in self._usable(project, config, space) if one.label not in phrases]
        found = self._by_label([*own, *others], config)
        return {label: found[label] for label in phrases if label in found}

    def _of_editor(self, project: ProjectRecord, result: Sequence[object]) -> dict[str, tuple[Phrase, ...]]:
        config = parse_label_config(project.label_config)
        return read_phrases(result, config, background_labels_of(config, self._settings))

    def of_labels(self, project: ProjectRecord, config: LabelConfig) -> dict[str, LabelPhrases]:
        """Return the phrases of the labels that have any, as vectors of the models in use."""
        space = self.text_space
        return {} if space is None else self._by_label(self._usable(project, config, space), config)

    def digest(self, project: ProjectRecord, config: LabelConfig) -> str | None:
        """Return a sha256 of the phrases that matching uses; None without any."""
        space = self.text_space
        used = [] if space is None else self._usable(project, config, space)
        if not any(not one.phrase.is_negative for one in used):
            return None
        named = sorted({(one.label, one.phrase.text, one.phrase.is_negative) for one in used})
        return hashlib.sha256(json.dumps([space, named]).encode()).hexdigest()

    def scales(self, project_key: ProjectKey, digest: str | None) -> dict[str, TextScale | None]:
        """Return the scales that were measured with these phrases; None for a label that no image shows."""
        known = self._store.texts.scales(project_key) if digest is not None else {}
        return {label: TextScale(**scale) if scale else None for label, (of, scale) in known.items() if of == digest}

    def weights(self, project: ProjectRecord, config: LabelConfig) -> dict[str, TextScale | None]:
        """Return how far the phrases of each label are believed, as far as that is measured."""
        return self.scales(project.key, self.digest(project, config))

    def save_scale(self, project_key: ProjectKey, label: str, digest: str, scale: TextScale | None) -> None:
        """Keep the scale of a label's phrases."""
        written: Json = {} if scale is None else asdict(scale)
        if self._store.texts.scales(project_key).get(label) != (digest, written):
            self._store.texts.save_scale(project_key, label, digest, written)

    def tend(self) -> list[ProjectKey]:
        """Read the label configs of all projects, and encode what no text encoder has seen; for the service.

        Returns:
            The projects whose phrases are used, and whose scales may be missing.

        Raises:
            ModelUnavailableError, ConfigurationError: the text encoder cannot be loaded; told once.
        """
        projects = [one for one in self._store.projects() if one.label_config and one.gone_since is None]
        for project in projects:
            try:
                self.note_config(project.key, project.label_config)
            except SoftmatcherError as error:
                logger.debug("project=%s its phrases are not read: %s", project.key, error)
        space = self.text_space
        if space is None:
            return []
        missing = self._store.texts.without_vector(space)
        if missing and self._failure is None:
            try:
                self._store.texts.save_vectors(space, self._encode(space, missing))
            except SoftmatcherError as error:
                self._failure = str(error)
                raise
        used = []
        for project in projects:
            if any(one.vector is not None for one in self._store.texts.of_project(project.key, space)):
                used.append(project.key)
                if not project.with_text:
                    # References are made again, with text features.
                    self._store.save_project(project.key, with_text=True, needs_reconcile=True)
        return used

    def prune(self) -> int:
        """Delete the vectors of phrases that no project has any more, and of other text encoders; return their number.

        Without a text encoder all are kept: a profile that has one may come back.
        """
        space = self.text_space
        return 0 if space is None else self._store.texts.prune_vectors(space)

    def _encode(self, space: str, phrases: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        with self._encoding:
            encoder = self._load()
            if encoder.text_space != space:
                raise BadInputError(
                    f"the text encoder must be of the weights of the image encoder, {space}, got {encoder.text_space}: "
                    "import both from one file"
                )
            vectors = encoder.encode(phrases)
        logger.info("phrases=%d encoded by %s", len(phrases), space)
        return {phrase: np.asarray(vector, np.float32) for phrase, vector in zip(phrases, vectors, strict=True)}

    def _usable(self, project: ProjectRecord, config: LabelConfig, space: str) -> list[TextReference]:
        """Return the phrases of the present labels with vectors of a space, each once."""
        known = {*config.labels, *background_labels_of(config, self._settings)}
        return list(
            {
                (one.label, one.phrase): one
                for one in self._store.texts.of_project(project.key, space)
                if one.label in known and one.vector is not None
            }.values()
        )

    def _by_label(self, texts: Collection[TextReference], config: LabelConfig) -> dict[str, LabelPhrases]:
        background = background_labels_of(config, self._settings)
        positive: dict[str, list[NDArray[np.float32]]] = {}
        negative: dict[str, list[NDArray[np.float32]]] = {}
        for one in texts:
            if one.vector is not None:
                (negative if one.phrase.is_negative else positive).setdefault(one.label, []).append(one.vector)
        of_background = [vector for label in sorted(background) for vector in positive.get(label, ())]
        means = {label: mean_of_phrases(some) for label, some in positive.items() if label not in background}
        found = {}
        for label, mean in means.items():
            others = [other for name, other in means.items() if name != label]
            others += [*negative.get(label, ()), *of_background]
            stacked = np.stack(others) if others else np.zeros((0, len(mean)), np.float32)
            found[label] = LabelPhrases(mean, stacked)
        return found
