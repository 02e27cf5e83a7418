"""Finder of phrases that are not kept yet: their masks on an image, beside the references of their labels."""

from collections.abc import Mapping

from backend.core.text_scores import LabelPhrases, TextScale
from backend.core.types import Json, LabelMask
from backend.engine.phrase_source import PhraseSource
from backend.labelstudio.label_config import ImageTag
from backend.projects.images import TaskImages
from backend.projects.model_host import Models
from backend.projects.prediction.phrase_scales import PhraseScales
from backend.projects.prediction.reference_banks import PredictionContext, ReferenceBanks
from backend.projects.task_source import ImageFiles

_MODEL_WAIT_S = 30.0
_SCALES_S = 5.0
"""Seconds that images of the project are read for scales: somebody waits."""


class PhraseFinder:
    """Looks for what phrases mean on single images, for those who wait for it."""

    def __init__(self, models: Models, images: TaskImages, banks: ReferenceBanks, scales: PhraseScales) -> None:
        self._models = models
        self._images = images
        self._banks = banks
        self._scales = scales

    def find(
        self,
        known: PredictionContext,
        phrases: Mapping[str, LabelPhrases],
        task: Json,
        tag: ImageTag,
        fetcher: ImageFiles,
    ) -> list[LabelMask]:
        """Return the masks of the labels with these phrases on an image tag of a task; [] if it has none of them.

        Args:
            known: what tasks of the project are predicted with.
            phrases: of each label.
            task: as Label Studio gives it.
            tag: one of the label config.
            fetcher: of the project.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had.
            ModelUnavailableError: no models in time.
        """
        project, config = known.project, known.config
        on_image = {label for brush in config.brushes if brush.to_name == tag.name for label in brush.labels}
        here = {label: some for label, some in phrases.items() if label in on_image}
        if not here or not tag.is_in(task.get("data") or {}):
            return []
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        # As predictions do: a label of references with a refiner has it beside a phrase, too.
        refiners = {label: one for label, one in known.refiners_on(tag.name).items() if label in here}
        image = self._images.load(
            task,
            tag,
            fetcher,
            is_interactive=True,
            wait_s=_MODEL_WAIT_S,
            with_text=True,
            with_pixels=known.needs_pixels_on(tag.name),
        )
        banks = known.banks.get(tag.name, {})
        alone = {label: some for label, some in here.items() if label not in banks}
        scales: dict[str, TextScale | None] = {
            label: self._banks.fit(project, config, tag.name, label, some, known)
            for label, some in here.items()
            if label in banks
        }
        if alone:
            scales |= self._scales.of_project(project, config, alone, [image.encoded], within_s=_SCALES_S)
        sources = {label: [PhraseSource(here[label], scale)] for label, scale in scales.items() if scale is not None}
        with self._models.scheduler.slot(is_interactive=True):
            return softmatcher.segment(
                image.encoded,
                {label: bank for label, bank in banks.items() if label in here},
                known.options,
                sources=sources,
                refiners=refiners,
                pixels=image.pixels,
            )
