"""Turns the scribbles on the open task into masks."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from backend.core.cancellation import time_limit
from backend.core.types import Json
from backend.errors import BadInputError, LabelStudioError, NotFoundError, SoftmatcherError
from backend.labelstudio.budget import ReadingBudget
from backend.labelstudio.codec import Region, is_mark, mask_to_region, read_regions
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.labelstudio.label_prompts import group_annotation
from backend.labelstudio.text_area import has_phrases
from backend.metrics import Metrics
from backend.projects.connections import Connections
from backend.projects.images import TaskImage, TaskImages
from backend.projects.model_host import Models
from backend.projects.options import background_labels_of
from backend.projects.prediction.phrase_finder import PhraseFinder
from backend.projects.prediction.reference_banks import ReferenceBanks
from backend.projects.prediction.results import prediction_of
from backend.projects.project_key import project_of_request
from backend.projects.references.line_labels import LineLabels
from backend.projects.text_references import TextReferences
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)


_INTERACTIVE_WAIT_S = 30.0
_INTERACTIVE_READ_S = 5.0
"""Limit for reading all regions of a click and its drafts: a labeler waits."""
INTERACTIVE_CUTTING_S = 30.0
"""Processor time for the same."""
_TOO_MANY_MARKS = (
    f"the marks of a click and its drafts must be cut within {INTERACTIVE_CUTTING_S:g} s of processor time, these are "
    "not; submit what is marked, and mark the next objects in another annotation"
)


class InteractivePredictions:
    """Turns the scribbles on the open task into masks."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        models: Models,
        connections: Connections,
        images: TaskImages,
        banks: ReferenceBanks,
        texts: TextReferences,
        finder: PhraseFinder,
        lines: LineLabels,
    ) -> None:
        self._texts = texts
        self._lines = lines
        self._finder = finder
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._models = models
        self._connections = connections
        self._images = images
        self._banks = banks

    def predict(self, project_key: ProjectKey, label_config: str, task: Json, context: Sequence[Json]) -> Json:
        """Return the masks of the scribbles on the open task: up to one brush region for each label used.

        The text area of phrases without a scribble gets the masks that the phrases find. Results of other controls
        (text, choices) are no scribbles: with these alone, the answer is empty, no image loaded.
        Strokes of the same label that are only in the user's draft count too; so do its prompts of another kind. Those
        of the same kind do not: Label Studio sends all of them in the context, and a draft may be some seconds old.

        Raises:
            BadInputError: a region cannot be used (unknown label, no size); label config or image cannot be used.
            NotFoundError, LabelStudioError: the image cannot be had.
        """
        config = parse_label_config(label_config)
        project = project_of_request(self._store, project_key, label_config)
        named = [item for item in context if isinstance(item, dict) and is_mark(item)]
        if not named and has_phrases(context):
            return self._predict_phrases(project, config, task, context)
        if not named:
            return prediction_of([], self._banks.model_version(project_key))
        softmatcher, _ = self._models.get(_INTERACTIVE_WAIT_S)
        clicks = sum(str(item.get("type")).lower() == "keypointlabels" for item in named)
        lines = self._lines.of(project.key) if clicks > 1 else frozenset()
        images = self._images_marked(project, config, task, named, with_pixels=bool(lines))
        sizes_hw = {to_name: image.encoded.size_hw for to_name, image in images.items()}
        budget = ReadingBudget(seconds=_INTERACTIVE_READ_S)
        read = read_regions(named, config, sizes_hw, budget=budget, joins_masks=True)
        if not read.regions:
            raise BadInputError(
                "; ".join(read.problems) or "the scribble has no key point or rectangle of a known image"
            )
        for problem in read.problems:
            logger.warning("project=%s task=%s: %s", project_key, task.get("id"), problem)
        cut_until = time.thread_time() + INTERACTIVE_CUTTING_S
        marked = [*read.regions, *_from_drafts(task, config, sizes_hw, read.regions, budget)]
        regions: list[Json] = []
        for mark in group_annotation(marked, background_labels_of(config, self._settings), self._settings.mask_tags):
            brush = config.brush_for(mark.to_name, mark.label)
            if mark.scribble.is_empty or mark.to_name not in images:
                continue
            with (
                self._models.scheduler.slot(is_interactive=True),
                time_limit(cut_until, _TOO_MANY_MARKS),
            ):
                image = images[mark.to_name]
                found = softmatcher.mask_from_scribble(
                    image.encoded, mark.scribble, line_pixels=image.pixels if mark.label in lines else None
                )
            if found is not None:
                with self._metrics.stage("rle"):
                    regions.append(mask_to_region(found.mask, brush=brush, label=mark.label, score=found.score))
        return prediction_of(regions, self._banks.version_of(project, softmatcher.signature, config))

    def _predict_phrases(
        self, project: ProjectRecord, config: LabelConfig, task: Json, context: Sequence[Json]
    ) -> Json:
        """Return the masks of what the phrases in the editor find on the open task; its text is not part of them."""
        softmatcher, _ = self._models.get(_INTERACTIVE_WAIT_S)
        phrases = self._texts.of_editor(project, context)
        version = self._banks.version_of(project, softmatcher.signature, config)
        if not phrases:
            return prediction_of([], version)
        known = self._banks.context(project, config)
        fetcher = self._connections.fetcher(project.key)
        regions: list[Json] = []
        for tag in config.images:
            found = self._finder.find(known, phrases, task, tag, fetcher)
            with self._metrics.stage("rle"):
                regions += [
                    mask_to_region(
                        one.boxed, brush=config.brush_for(tag.name, one.label), label=one.label, score=one.score
                    )
                    for one in found
                ]
        return prediction_of(regions, version)

    def _images_marked(
        self, project: ProjectRecord, config: LabelConfig, task: Json, named: Sequence[Json], *, with_pixels: bool
    ) -> dict[str, TaskImage]:
        """Load the images that a scribble is on; those that cannot be had leave the others theirs."""
        fetcher = self._connections.fetcher(project.key)
        images: dict[str, TaskImage] = {}
        failures: list[SoftmatcherError] = []
        for tag in config.images:
            if any(item.get("to_name") == tag.name for item in named):
                try:
                    images[tag.name] = self._images.load(
                        task, tag, fetcher, is_interactive=True, with_pixels=with_pixels, wait_s=_INTERACTIVE_WAIT_S
                    )
                except (BadInputError, NotFoundError, LabelStudioError) as error:
                    logger.warning("project=%s task=%s image=%s: %s", project.key, task.get("id"), tag.name, error)
                    failures.append(error)
        if failures and not images:
            raise failures[0]
        return images


def _from_drafts(
    task: Json,
    config: LabelConfig,
    sizes_hw: Mapping[str, tuple[int, int]],
    own: Sequence[Region],
    budget: ReadingBudget,
) -> list[Region]:
    """Return scribbles of the user's drafts that belong to those of the context: same image and label, another kind."""
    wanted = {(region.to_name, region.label) for region in own}
    kinds = {region.kind for region in own}
    drafts = [draft for draft in _list_in(task, "drafts") if isinstance(draft, dict)]
    scribbles = [item for draft in drafts for item in _list_in(draft, "result") if _is_scribble(item)]
    return [
        region
        for region in read_regions(scribbles, config, sizes_hw, budget=budget, joins_masks=True).regions
        if (region.to_name, region.label) in wanted and region.kind not in kinds
    ]


def _list_in(holder: Json, name: str) -> list[Any]:
    value = holder.get(name)
    return value if isinstance(value, list) else []


def _is_scribble(item: object) -> bool:
    """Return whether a region is a prompt, or has strokes drawn since the draft was last merged (`touches`)."""
    value = item.get("value") if isinstance(item, dict) else None
    return isinstance(value, dict) and ("touches" in value or "rle" not in value)
