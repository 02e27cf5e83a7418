"""A project's references in memory, ready to be matched, and the model_version that masks made with them have."""

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from operator import attrgetter
from typing import Any
from weakref import WeakValueDictionary

from backend import __version__
from backend.core.matching import ReferenceBank
from backend.core.patches import DrawnPatches, PatchesDrawnBefore, PatchSource
from backend.core.text_scores import LabelPhrases, TextScale
from backend.core.types import Image, Reference
from backend.engine.fine_features import needs_fine
from backend.engine.options import MatchOptions
from backend.engine.phrase_source import PhraseSource
from backend.engine.refiner import Refiner
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.projects.model_host import Models
from backend.projects.options import calibration_in_use, match_options
from backend.projects.prediction.refiners import LabelRefiners, to_version
from backend.projects.text_references import TextReferences
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.patches import DamagedPatchesError, PatchedReference, PatchSnapshot, ReferenceKey
from backend.store.records import ProjectKey
from backend.store.refiners import RefinerRecord

logger = logging.getLogger(__name__)

OWN_VERSIONS = "softmatcher-"
"""Prefix of every model_version of this backend, whatever its release and profile."""

_MODEL_WAIT_S = 60.0

Banks = Mapping[str, Mapping[str, ReferenceBank]]
"""Image tag -> label -> the references of the label, ready to be matched."""
Sources = Mapping[str, Mapping[str, PhraseSource]]
"""Image tag -> label -> the phrases of the label."""


@dataclass(frozen=True, eq=False)
class PredictionContext:
    """All that tasks of a project are predicted with, besides the models.

    Attributes:
        project: of the tasks.
        config: its label config.
        version: the model_version.
        banks: image tag -> label -> its references, ready to be matched; empty if there are none.
        options: how they are matched.
        sources: image tag -> label -> its phrases, as far as they are to be believed.
        refiners: label -> what refines its masks, for labels whose references switched it on.
    """

    project: ProjectRecord
    config: LabelConfig
    version: str
    banks: Banks
    options: MatchOptions
    sources: Sources = field(default_factory=dict)
    refiners: Mapping[str, Refiner] = field(default_factory=dict)

    @property
    def tags(self) -> tuple[str, ...]:
        """Return the image tags on which there is something to look for."""
        return tuple(dict.fromkeys([*self.banks, *self.sources]))

    @property
    def writes_absence(self) -> bool:
        """Return whether Label Studio gets a prediction, without regions, for a task on which nothing was found."""
        return self.project.task_order is not None

    @property
    def shown_version(self) -> str | None:
        """Return the model_version of which Label Studio shows predictions; None if it shows any."""
        return None if self.project.task_order is None else self.project.task_order.get("version")

    def sources_on(self, tag_name: str) -> dict[str, Any]:
        """Return the argument `sources` of `Softmatcher.segment` for an image tag; {} without phrases."""
        sources = self.sources.get(tag_name)
        return {"sources": {label: [one] for label, one in sources.items()}} if sources else {}

    def needs_pixels_on(self, tag_name: str) -> bool:
        """Return whether masks on an image tag are made of its pixels, too: of thin things, or by refiners."""
        return bool(self.refiners_on(tag_name)) or needs_fine(self.banks.get(tag_name, {}))

    def further_on(self, tag_name: str, pixels: Image | None) -> dict[str, Any]:
        """Return what `Softmatcher.segment` takes besides references and options, for an image tag.

        Args:
            tag_name: of the image.
            pixels: (H, W, 3) uint8 RGB of it; only looked at if `needs_pixels_on`.
        """
        if not self.needs_pixels_on(tag_name):
            return self.sources_on(tag_name)
        return {**self.sources_on(tag_name), "refiners": self.refiners_on(tag_name), "pixels": pixels}

    def refiners_on(self, tag_name: str) -> dict[str, Refiner]:
        """Return label -> refiner of the labels that have references on an image tag."""
        return {label: one for label, one in self.refiners.items() if label in self.banks.get(tag_name, {})}


_BankKey = tuple[str, bytes]


class _Loader:
    """The lock of whoever reads a project's references."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class _Kept:
    """The last context of a project, and what makes the next one cheap.

    Attributes:
        version: the model_version.
        banks: image tag -> label -> references.
        sources: image tag -> label -> phrases.
        by_references: of which references with which options each bank is.
        drawn: image tag and label -> what its bank was made of.
        references: all of them.
    """

    version: str
    banks: Banks
    sources: Sources
    by_references: Mapping[_BankKey, ReferenceBank]
    drawn: Mapping[tuple[str, str], DrawnPatches]
    references: Mapping[ReferenceKey, PatchedReference]
    nbytes: int = 0

    def measured(self) -> "_Kept":
        """Return it with `nbytes`, about what it occupies."""
        banks = self.by_references.values()
        # On the CPU a bank's features are those that were drawn.
        counted = {id(bank.features) for bank in banks}
        drawn = [one for one in self.drawn.values() if id(one.patches.features) not in counted]
        parts = sum(one.nbytes for part in (banks, drawn) for one in part)
        # Summaries of one project are of about one size, and there may be thousands.
        summary = max((one.packed.summary.nbytes for one in islice(self.references.values(), 8)), default=0)
        return replace(self, nbytes=parts + len(self.references) * summary)


class ReferenceBanks:
    """Reads the references of projects, and keeps as many banks as `SOFTMATCHER_BANKS_MB` allows."""

    def __init__(
        self, settings: Settings, store: Store, models: Models, texts: TextReferences, refiners: LabelRefiners
    ) -> None:
        self._settings = settings
        self._refiners = refiners
        self._store = store
        self._models = models
        self._texts = texts
        self._calibration = calibration_in_use(settings).digest()
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], _Kept] = OrderedDict()
        self._loading: WeakValueDictionary[tuple[str, tuple[str, ...]], _Loader] = WeakValueDictionary()
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
        wanted = () if config is None else config.labels if labels is None else labels
        refiners = [] if project is None else self._refiners.current(project, wanted, signature)
        return self._version(project, signature, config, wanted, refiners)

    def _version(
        self,
        project: ProjectRecord | None,
        signature: str,
        config: LabelConfig | None,
        wanted: Sequence[str],
        refiners: Sequence[RefinerRecord],
    ) -> str:
        parts = [signature, self._calibration]
        if project is not None:
            parts.append(match_options(self._settings, project).digest())
            digest, found = self._store.references_digest_and_labels(project.key, wanted, signature)
            parts.append(digest)
            if config is not None:
                parts += [place for label in found for place in _places(config, label)]
                parts += self._text_parts(project, config, wanted, found)
            parts += to_version(refiners)
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return f"{OWN_VERSIONS}{__version__}-{self._settings.profile}-{digest[:12]}"

    def _text_parts(
        self, project: ProjectRecord, config: LabelConfig, wanted: Sequence[str], with_references: Sequence[str]
    ) -> list[str]:
        """Return what the phrases add to model_version; [] if none is used."""
        digest = self._texts.digest(project, config)
        if digest is None:
            return []
        scales = self._texts.scales(project.key, digest)
        alone = [label for label in wanted if label in scales and label not in with_references]
        places = [place for label in alone for place in _places(config, label)]
        return [f"phrases {digest}", *places, *(f"{label} {scales[label]}" for label in alone)]

    def labels_with_references(self, project: ProjectRecord, config: LabelConfig) -> list[str]:
        """Return the labels of the config that have references of the models in use.

        Raises:
            ModelUnavailableError: no models.
        """
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        return self._store.reference_labels(project.key, config.labels, softmatcher.signature)

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
        version, refiners = self._version_and_refiners(softmatcher, project, config, wanted)
        options = match_options(self._settings, project)
        key = (project.key, tuple(wanted))
        kept = self._find(key, version)
        if kept is None:
            with self._lock:
                loader = self._loading.setdefault(key, _Loader())
            # One thread reads a version; those that wait for it find it kept.
            with loader.lock:
                kept = self._find(key, version) or self._load(softmatcher, project, config, wanted, options, version)
        return PredictionContext(project, config, version, kept.banks, options, kept.sources, refiners)

    def version_now(self, project: ProjectRecord, config: LabelConfig, labels: Sequence[str]) -> str:
        """Return the model_version that a context with these labels has; reads no references.

        Raises:
            ModelUnavailableError: no models.
        """
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        return self._version_and_refiners(softmatcher, project, config, labels)[0]

    def _version_and_refiners(
        self, softmatcher: Softmatcher, project: ProjectRecord, config: LabelConfig, labels: Sequence[str]
    ) -> tuple[str, Mapping[str, Refiner]]:
        records = self._refiners.current(project, labels, softmatcher.signature)
        refiners = self._refiners.load(project.key, records)
        # A version never names a refiner that its masks did not have: one that could not be loaded, say.
        records = [one for one in records if one.label in refiners]
        return self._version(project, softmatcher.signature, config, labels, records), refiners

    def has_references(self, project: ProjectRecord, config: LabelConfig, labels: Sequence[str]) -> bool:
        """Return whether anything of the labels can be looked for; reads no references if there are no phrases.

        Raises:
            ModelUnavailableError: no models.
        """
        if self._texts.of_labels(project, config):
            return bool(self.context(project, config, labels).tags)
        return self._serves_references(project, config, labels)

    def may_find_something(self, project: ProjectRecord, config: LabelConfig) -> bool:
        """Return whether any label has references or phrases; reads none of them.

        Raises:
            ModelUnavailableError: no models.
        """
        has_phrases = bool(self._texts.of_labels(project, config))
        return has_phrases or self._serves_references(project, config, config.labels)

    def _serves_references(self, project: ProjectRecord, config: LabelConfig, labels: Sequence[str]) -> bool:
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        found = self._store.labelled_images(project.key, labels, softmatcher.signature)
        return any(config.served_by(image_tag, label) for label, image_tag in found)

    def _find(self, key: tuple[str, tuple[str, ...]], version: str) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept.version != version:
                return None
            self._kept.move_to_end(key)
            return kept

    def _load(
        self,
        softmatcher: Softmatcher,
        project: ProjectRecord,
        config: LabelConfig,
        labels: Sequence[str],
        options: MatchOptions,
        version: str,
    ) -> _Kept:
        key = (project.key, tuple(labels))
        last = self._kept.get(key)
        drawn = {} if last is None else dict(last.drawn)
        with self._store.patches(
            project.key,
            labels=labels,
            signature=softmatcher.signature,
            known=last.references if last is not None else {},
        ) as snapshot:
            by_tag: dict[tuple[str, str], list[PatchedReference]] = {}
            by_mark: dict[tuple[str, str], list[PatchedReference]] = {}
            for mark, alike in groupby(snapshot.references.values(), attrgetter("image_tag", "label")):
                by_mark.setdefault(mark, []).extend(alike)
            for (marked_on, label), marked in by_mark.items():
                for tag_name in config.served_by(marked_on, label):
                    by_tag.setdefault((tag_name, label), []).extend(marked)
            banks: dict[str, dict[str, ReferenceBank]] = {}
            made: dict[_BankKey, ReferenceBank] = {}
            for (tag_name, label), references in by_tag.items():
                if all(one.packed.summary.mean_object is None for one in references):
                    continue  # all that is known is where the label is not
                digests = sorted(map(attrgetter("packed.summary.content_digest"), references))
                bank_key = (options.digest(), b"".join(digests))
                bank = made.get(bank_key) or (last.by_references.get(bank_key) if last is not None else None)
                try:
                    if bank is None:
                        gather = partial(softmatcher.gather_patches, options=options)
                        bank, drawn[tag_name, label] = read_undamaged(
                            snapshot, references, gather, drawn.get((tag_name, label))
                        )
                except BadInputError as error:
                    # One label that cannot be matched leaves the others their predictions.
                    logger.warning("project=%s label=%s: %s", project.key, label, error)
                    continue
                made[bank_key] = bank
                banks.setdefault(tag_name, {})[label] = bank
            known = snapshot.references
        sources = self._sources(softmatcher, project, config, labels, options, banks)
        drawn = {key: one for key, one in drawn.items() if key in by_tag}
        kept = _Kept(version, banks, sources, made, drawn, known).measured()
        with self._lock:
            self._kept[key] = kept
            self._kept.move_to_end(key)
            bytes_left = self._settings.banks_mb * 1e6 - sum(one.nbytes for one in self._kept.values())
            while bytes_left < 0 and len(self._kept) > 1:
                bytes_left += self._kept.popitem(last=False)[1].nbytes
        return kept

    def _sources(
        self,
        softmatcher: Softmatcher,
        project: ProjectRecord,
        config: LabelConfig,
        labels: Sequence[str],
        options: MatchOptions,
        banks: Banks,
    ) -> Sources:
        phrases = self._texts.of_labels(project, config)
        if not phrases:
            return {}
        # A phrase is measured on whole references of its label, with their patches in the space of the text.
        by_image: dict[tuple[str, str], dict[str, list[Reference]]] = {}
        spoken = [label for label in labels if label in phrases]
        for stored in self._store.references(project.key, labels=spoken, signature=softmatcher.signature):
            for tag_name in config.served_by(stored.image_tag, stored.label) if stored.reference is not None else ():
                assert stored.reference is not None
                images = by_image.setdefault((tag_name, stored.label), {})
                images.setdefault(stored.image_sha256, []).append(stored.reference)
        digest = self._texts.digest(project, config)
        assert digest is not None  # there are phrases
        scales = self._texts.scales(project.key, digest)
        sources: dict[str, dict[str, PhraseSource]] = {}
        for tag in config.images:
            on_image = {label for brush in config.brushes if brush.to_name == tag.name for label in brush.labels}
            for label in (one for one in labels if one in on_image and one in phrases):
                grouped = list(by_image.get((tag.name, label), {}).values())
                if grouped:
                    scale: TextScale | None = softmatcher.fit_phrases(
                        label, phrases[label], grouped, banks.get(tag.name, {}), options
                    )
                    self._texts.save_scale(project.key, label, digest, scale)
                else:
                    scale = scales.get(label)
                    scale = scale if scale is not None and scale.is_gated else None
                if scale is not None and scale.weight > 0:
                    sources.setdefault(tag.name, {})[label] = PhraseSource(phrases[label], scale)
        return sources

    def fit(
        self,
        project: ProjectRecord,
        config: LabelConfig,
        tag_name: str,
        label: str,
        phrases: LabelPhrases,
        known: PredictionContext,
    ) -> TextScale:
        """Return how far phrases that are not the label's own yet are to be believed, by its references."""
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        images: dict[str, list[Reference]] = {}
        for stored in self._store.references(project.key, labels=[label], signature=softmatcher.signature):
            if stored.reference is not None and tag_name in config.served_by(stored.image_tag, label):
                images.setdefault(stored.image_sha256, []).append(stored.reference)
        return softmatcher.fit_phrases(
            label, phrases, list(images.values()), known.banks.get(tag_name, {}), known.options
        )

    def references_digest(self, project: ProjectRecord, labels: Sequence[str]) -> str:
        """Return a digest of the references of these labels.

        Raises:
            ModelUnavailableError: no models.
        """
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        return self._store.references_digest(project.key, labels, softmatcher.signature)


def read_undamaged(
    snapshot: PatchSnapshot,
    references: Sequence[PatchedReference],
    gather: Callable[[PatchSource], ReferenceBank],
    last: DrawnPatches | None,
) -> tuple[ReferenceBank, DrawnPatches]:
    """Return the bank of a label's references and the patches drawn for it; damaged ones are left out and logged.

    Args:
        snapshot: of the database.
        references: of one label.
        gather: makes the bank.
        last: what was drawn for the label's bank before: none of it is read again.

    Raises:
        BadInputError: no reference is left, or they cannot be matched.
    """
    left = list(references)
    while True:
        source = PatchesDrawnBefore(snapshot.source(left), last)
        try:
            bank = gather(source)
        except DamagedPatchesError as error:
            logger.error("reference %d is damaged and left out: %s", error.reference_id, error)
            left = [one for one in left if one.id != error.reference_id]
            continue
        assert source.drawn is not None  # whoever gathers reads
        return bank, source.drawn


def _places(config: LabelConfig, label: str) -> list[str]:
    """Return where a label's regions go: brush, image, and the task key of that image."""
    return [
        json.dumps([label, brush.name, brush.to_name, config.image(brush.to_name).task_key])
        for brush in config.brushes
        if label in brush.labels
    ]
