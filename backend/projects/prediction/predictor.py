"""Masks out: for the scribble on the screen, for tasks without context, and through the queue for the rest."""

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from backend import __version__
from backend.core import cancellation
from backend.core.cancellation import CancelledWorkError, time_limit
from backend.core.matching import ReferenceBank
from backend.core.types import EncodedImage, LabelMask, Reference
from backend.drawing.explanation import draw_explanations
from backend.engine.softmatcher import SegmentationPlan
from backend.errors import BadInputError, LabelStudioError, NotFoundError, SoftmatcherError
from backend.labelstudio.budget import ReadingBudget
from backend.labelstudio.codec import Region, is_mark, mask_to_region, read_regions
from backend.labelstudio.images import ImageFetcher
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.labelstudio.label_prompts import group_annotation
from backend.metrics import Metrics
from backend.projects.connections import Connections
from backend.projects.images import ImageFile, ImageVersion, TaskImage, TaskImages
from backend.projects.model_host import Models
from backend.projects.options import background_labels_of, match_options
from backend.projects.prediction.batch_pipeline import BatchPipeline, BatchStages, Predicted, TaskPrediction
from backend.projects.prediction.prefetch import Prefetch
from backend.settings import Settings
from backend.store import ProjectRecord, Store

logger = logging.getLogger(__name__)

OWN_VERSIONS = "softmatcher-"
"""What every model_version of this backend begins with, whatever its release and profile."""

Json = dict[str, Any]

_INTERACTIVE_WAIT_S = 30.0
_INTERACTIVE_READ_S = 5.0
"""For all marks of a click and its drafts: a labeler waits."""
INTERACTIVE_CUTTING_S = 30.0
"""Processor time for the same."""
_TOO_MANY_MARKS = (
    f"the marks of a click and its drafts must be cut within {INTERACTIVE_CUTTING_S:g} s of processor time, these are "
    "not; submit what is marked, and mark the next objects in another annotation"
)
_BATCH_WAIT_S = 60.0
_PENDING_POLL_S = 0.03
_KEPT_PROJECTS = 4


@dataclass(frozen=True)
class Answer:
    """What /predict answers.

    Attributes:
        results: one item a task, in the order of the tasks: a prediction, or [] for «nothing found» or «not yet».
        found: tasks with at least one region.
        unfinished: ids of the tasks that the time did not suffice for.
    """

    results: list[Json | list[Json]]
    found: int
    unfinished: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class KnownReferences:
    """A project's references in memory, ready to be matched: image tag -> label -> their bank."""

    by_tag: Mapping[str, Mapping[str, ReferenceBank]]


class Predictions:
    """Predicts tasks of a project from its references, and the open task from its scribbles."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        models: Models,
        connections: Connections,
        images: TaskImages,
        prefetch: Prefetch | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._models = models
        self._connections = connections
        self._images = images
        self._prefetch = prefetch
        self._known: OrderedDict[tuple[str, str], KnownReferences] = OrderedDict()
        self._lock = threading.Lock()

    def model_version(self, project_key: str, *, wait_s: float = _BATCH_WAIT_S) -> str:
        """Release, models, and a digest of the project's references and options: the same for the same masks.

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
        """The model_version that models of this signature have with the project's references; needs no models.

        Args:
            project: None if it is not known yet.
            signature: of the models.
            config: the label config. A region also depends on where its label is in it: a prediction for a brush that
                has another name by now shows nothing.
            labels: of them; None: all.
        """
        parts = [signature]
        if project is not None:
            wanted = () if config is None else config.labels if labels is None else labels
            parts.append(match_options(self._settings, project).digest())
            parts.append(self._store.references_digest(project.key, wanted, signature))
            if config is not None:
                found = self._store.reference_labels(project.key, wanted, signature)
                parts += [place for label in found for place in _places(config, label)]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return f"{OWN_VERSIONS}{__version__}-{self._settings.profile}-{digest[:12]}"

    def predict(self, project_key: str, label_config: str, tasks: Sequence[Json]) -> Answer:
        """Predict tasks from the project's references, within the time that Label Studio waits.

        A task that fails gives [] and a line in the log; it never spoils the others.

        Raises:
            BadInputError: the label config cannot be used.
            ModelUnavailableError: the models cannot be loaded in time.
        """
        deadline = time.monotonic() + self._settings.predict_budget_s
        config = parse_label_config(label_config)
        self._models.get(min(_BATCH_WAIT_S, self._settings.predict_budget_s))
        project = self._project(project_key, label_config)
        is_open = len(tasks) == 1
        if is_open:
            self._wait_for_references(project_key)
        version, known = self.references(project, config)
        results: list[Json | list[Json]] = [[] for _ in tasks]
        if is_open and self._prefetch is not None:
            # Even without references: the labeler will scribble on the next task too.
            self._prefetch.note_opened(project_key, tasks[0].get("id"), config)
        if not known.by_tag:
            return Answer(results, 0, ())
        found = 0
        unfinished: list[int] = []
        done = 0
        is_over = partial(_is_past, deadline)
        try:
            # Also within a task: where many labelers click, a batch's turn on the models may be minutes away.
            with cancellation.cancellable(is_over):
                for task, predict in self.each(project, config, known, version, tasks, is_over, is_open=is_open):
                    prediction = self._predict_or_report(project, task, predict)
                    if prediction is not None:
                        results[done] = prediction
                        found += 1
                    done += 1
        except CancelledWorkError:
            if not is_over():
                raise  # the client went away
        if done < len(tasks):
            unfinished = [rest["id"] for rest in tasks[done:] if isinstance(rest.get("id"), int)]
            self._metrics.tasks.labels("handed_on").inc(len(unfinished))
        return Answer(results, found, tuple(unfinished))

    def each(
        self,
        project: ProjectRecord,
        config: LabelConfig,
        known: KnownReferences,
        version: str,
        tasks: Sequence[Json],
        is_over: Callable[[], bool],
        *,
        is_open: bool = False,
    ) -> Iterator[Predicted]:
        """Tasks in their order, and what predicts them; those that are left when it is over do not come.

        Args, Raises: as `predict_task` and `predict_batch`.
        """
        if len(tasks) > 1 and self._images.preferred_batch_size > 1:
            fetcher = self._connections.fetcher(project.key)
            yield from self.predict_batch(project, config, known, version, tasks, fetcher, is_over)
            return
        for task in tasks:
            if is_over():
                return
            cancellation.check()
            yield (
                task,
                partial(self.predict_task, project, config, known, version, task, is_open=is_open),
            )

    def _predict_or_report(
        self, project: ProjectRecord, task: Json, predict: Callable[[], TaskPrediction]
    ) -> Json | None:
        try:
            found = predict()
        except CancelledWorkError:
            raise
        except SoftmatcherError as error:
            self._metrics.tasks.labels("failed").inc()
            logger.warning("project=%s task=%s: %s", project.key, task.get("id"), error)
            return None
        except Exception:
            self._metrics.tasks.labels("failed").inc()
            logger.exception("project=%s task=%s", project.key, task.get("id"))
            return None
        if found.problem:
            logger.warning("project=%s task=%s: %s", project.key, task.get("id"), found.problem)
        self._metrics.tasks.labels("found" if found.prediction else "empty").inc()
        return found.prediction

    def predict_task(
        self,
        project: ProjectRecord,
        config: LabelConfig,
        known: KnownReferences,
        version: str,
        task: Json,
        *,
        files: Mapping[str, ImageFile | SoftmatcherError] | None = None,
        fetcher: ImageFetcher | None = None,
        is_open: bool = False,
    ) -> TaskPrediction:
        """One task's prediction from references, of those of its images that can be had.

        Args:
            project: of the task.
            config: its label config.
            known: as `references` gives them.
            version: as `references` gives it.
            task: as Label Studio gives it.
            files: image tag -> file, or what was wrong with it, as far as they were fetched before.
            fetcher: of the project; made anew if it is not given.
            is_open: somebody waits for this one task on the screen, so it goes before batches.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: no image can be had or used; the message says why.
            ModelUnavailableError: no models.
        """
        softmatcher, _ = self._models.get(_BATCH_WAIT_S)
        options = match_options(self._settings, project)
        fetcher = fetcher or self._connections.fetcher(project.key)
        regions: list[Json] = []
        versions: dict[str, ImageVersion] = {}
        failures: dict[str, SoftmatcherError] = {}
        for tag_name, references in known.by_tag.items():
            file = files.get(tag_name) if files else None
            try:
                if isinstance(file, SoftmatcherError):
                    raise file
                image = self._images.load(task, config.image(tag_name), fetcher, is_interactive=is_open, file=file)
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                failures[tag_name] = error
                continue
            versions[tag_name] = image.version
            with self._models.scheduler.slot(is_interactive=is_open):
                found = softmatcher.segment(image.encoded, references, options)
            regions += self._regions(config, tag_name, found)
        if failures and not versions:
            raise next(iter(failures.values()))
        return TaskPrediction(_prediction(regions, version) if regions else None, versions, failures)

    def predict_batch(
        self,
        project: ProjectRecord,
        config: LabelConfig,
        known: KnownReferences,
        version: str,
        tasks: Sequence[Json],
        fetcher: ImageFetcher,
        should_stop: Callable[[], bool],
    ) -> Iterator[Predicted]:
        """`predict_task` of many tasks, where the device gains by several images at a time.

        Args:
            project, config, known, version, fetcher: as there.
            tasks: as Label Studio gives them.
            should_stop: asked before each batch; True leaves the rest.

        Yields:
            A task and what gives its prediction, or raises what was wrong with it.

        Raises:
            ModelUnavailableError: no models.
        """
        softmatcher, _ = self._models.get(_BATCH_WAIT_S)
        options = match_options(self._settings, project)

        def plan(encoded: Mapping[str, EncodedImage]) -> dict[str, SegmentationPlan]:
            return {tag: softmatcher.plan(image, known.by_tag[tag], options) for tag, image in encoded.items()}

        def segment(planned: Sequence[dict[str, SegmentationPlan]]) -> list[Callable[[], Json | None]]:
            masks = iter(softmatcher.segment_planned([one for plans in planned for one in plans.values()]))
            return [partial(finish, {tag: next(masks) for tag in plans}) for plans in planned]

        def finish(masks: Mapping[str, Callable[[], list[LabelMask]]]) -> Json | None:
            regions = [one for tag, found in masks.items() for one in self._regions(config, tag, found())]
            return _prediction(regions, version) if regions else None

        tags = [config.image(tag_name) for tag_name in known.by_tag]
        steps = BatchStages(plan, segment)
        yield from BatchPipeline(self._models, self._images).run(tasks, tags, fetcher, steps, should_stop)

    def _regions(self, config: LabelConfig, tag_name: str, found: Sequence[LabelMask]) -> list[Json]:
        with self._metrics.stage("rle"):
            return [
                mask_to_region(
                    item.mask, brush=config.brush_for(tag_name, item.label), label=item.label, score=item.score
                )
                for item in found
            ]

    def interact(self, project_key: str, label_config: str, task: Json, context: Sequence[Json]) -> Json:
        """The mask of the scribbles on the open task: one brush region for each label used, none if nothing is found.

        Results of other controls (text, choices) are no marks: without any the answer is empty, and no image is loaded.
        Strokes of the same label that are only in the user's draft count too; so do its prompts of another kind. Those
        of the same kind do not: Label Studio sends all of them in the context, and a draft may be some seconds old.

        Raises:
            BadInputError: a region cannot be used (unknown label, no size); label config or image cannot be used.
            NotFoundError, LabelStudioError: the image cannot be had.
        """
        config = parse_label_config(label_config)
        project = self._project(project_key, label_config)
        named = [item for item in context if isinstance(item, dict) and is_mark(item)]
        if not named:
            return _prediction([], self.model_version(project_key))
        softmatcher, _ = self._models.get(_INTERACTIVE_WAIT_S)
        images = self._images_marked(project, config, task, named)
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
                found = softmatcher.mask_from_scribble(images[mark.to_name].encoded, mark.scribble)
            if found is not None:
                with self._metrics.stage("rle"):
                    regions.append(mask_to_region(found.mask, brush=brush, label=mark.label, score=found.score))
        return _prediction(regions, self.version_of(project, softmatcher.signature, config))

    def _images_marked(
        self, project: ProjectRecord, config: LabelConfig, task: Json, named: Sequence[Json]
    ) -> dict[str, TaskImage]:
        """Load the images that a scribble is on; those that cannot be had leave the others theirs."""
        fetcher = self._connections.fetcher(project.key)
        images: dict[str, TaskImage] = {}
        failures: list[SoftmatcherError] = []
        for tag in config.images:
            if any(item.get("to_name") == tag.name for item in named):
                try:
                    images[tag.name] = self._images.load(
                        task, tag, fetcher, is_interactive=True, wait_s=_INTERACTIVE_WAIT_S
                    )
                except (BadInputError, NotFoundError, LabelStudioError) as error:
                    logger.warning("project=%s task=%s image=%s: %s", project.key, task.get("id"), tag.name, error)
                    failures.append(error)
        if failures and not images:
            raise failures[0]
        return images

    def explain(self, project_id: int, task_id: int) -> bytes:
        """Why the masks of a task are as they are: a PNG with score maps, points and proposals, kept and dropped.

        Raises:
            NotFoundError: project, task or image are not there (any more).
            BadInputError: the label config or the image cannot be used.
            LabelStudioUnavailableError: Label Studio does not answer.
            ModelUnavailableError: the models cannot be loaded in time.
        """
        project = self._store.project_by_id(project_id)
        if project is None or not project.label_config:
            raise NotFoundError(f"project {project_id} is not known: connect it to this backend in Label Studio")
        config = parse_label_config(project.label_config)
        softmatcher, _ = self._models.get(_BATCH_WAIT_S)
        task = self._connections.client(project.key).task(task_id, project_id)
        version, known = self.references(project, config)
        options = match_options(self._settings, project)
        tags = [tag for tag in config.images if tag.name in known.by_tag] or list(config.images[:1])
        pictures = []
        failures: list[SoftmatcherError] = []
        for tag in tags:
            try:
                image = self._images.load(
                    task, tag, self._connections.fetcher(project.key), is_interactive=False, with_pixels=True
                )
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                failures.append(error)  # the other images are shown without it
                continue
            with self._models.scheduler.slot(is_interactive=False):
                trace = softmatcher.explain(image.encoded, known.by_tag.get(tag.name, {}), options)
            assert image.pixels is not None  # asked for
            pictures.append((image.pixels, trace, f"project {project_id}, task {task_id}, {tag.name}: {version}"))
        if failures and not pictures:
            raise failures[0]
        return draw_explanations(pictures, config.labels)

    def _project(self, project_key: str, label_config: str) -> ProjectRecord:
        """The project, made known if the backend never saw it: it connected to another store, or one that is lost."""
        project = self._store.project(project_key)
        if project is None:
            return self._store.save_project(project_key, label_config=label_config, needs_reconcile=True)
        if project.label_config != label_config:
            return self._store.save_project(project_key, label_config=label_config, needs_reconcile=True)
        return project

    def _wait_for_references(self, project_key: str) -> None:
        """After «submit» the next task opens within milliseconds: give the annotation just made the time to count."""
        wait_s = self._settings.reference_wait_s
        deadline = time.monotonic() + wait_s
        with self._metrics.stage("wait_for_reference"):
            while time.monotonic() < deadline and self._store.has_pending(project_key, wait_s + 1):
                time.sleep(_PENDING_POLL_S)

    def references(
        self, project: ProjectRecord, config: LabelConfig, labels: Sequence[str] | None = None
    ) -> tuple[str, KnownReferences]:
        """The model_version, and the references of the labels that the config has now, or of some of them.

        Raises:
            ModelUnavailableError: no models.
        """
        softmatcher, _ = self._models.get(_BATCH_WAIT_S)
        wanted = config.labels if labels is None else [label for label in config.labels if label in labels]
        version = self.version_of(project, softmatcher.signature, config, wanted)
        key = (project.key, version)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return version, self._known[key]
        by_tag: dict[str, dict[str, list[Reference]]] = {}
        for stored in self._store.references(project.key, labels=wanted, signature=softmatcher.signature):
            if stored.reference is None:
                continue
            for tag_name in config.served_by(stored.image_tag, stored.label):
                by_tag.setdefault(tag_name, {}).setdefault(stored.label, []).append(stored.reference)
        options = match_options(self._settings, project)
        banks: dict[str, dict[str, ReferenceBank]] = {}
        for tag_name, of_tag in by_tag.items():
            for label, references in of_tag.items():
                try:
                    banks.setdefault(tag_name, {})[label] = softmatcher.gather(references, options)
                except BadInputError as error:
                    # One label that cannot be matched leaves the others their predictions.
                    logger.warning("project=%s label=%s: %s", project.key, label, error)
        known = KnownReferences(banks)
        with self._lock:
            self._known[key] = known
            while len(self._known) > _KEPT_PROJECTS:
                self._known.popitem(last=False)
        return version, known

    def references_digest(self, project: ProjectRecord, labels: Sequence[str]) -> str:
        """Digest of the references of these labels.

        Raises:
            ModelUnavailableError: no models.
        """
        softmatcher, _ = self._models.get(_BATCH_WAIT_S)
        return self._store.references_digest(project.key, labels, softmatcher.signature)


def _is_past(deadline: float) -> bool:
    return time.monotonic() > deadline


def _from_drafts(
    task: Json,
    config: LabelConfig,
    sizes_hw: Mapping[str, tuple[int, int]],
    own: Sequence[Region],
    budget: ReadingBudget,
) -> list[Region]:
    """Scribbles in the user's drafts that belong to those of the context: same image and label, another kind."""
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
    """Strokes drawn since the draft was last merged (`touches`), or a prompt; a finished brush region is neither."""
    value = item.get("value") if isinstance(item, dict) else None
    return isinstance(value, dict) and ("touches" in value or "rle" not in value)


def _places(config: LabelConfig, label: str) -> list[str]:
    """Where a label's regions go: brush, image, and where a task has that one's address."""
    return [
        json.dumps([label, brush.name, brush.to_name, config.image(brush.to_name).task_key])
        for brush in config.brushes
        if label in brush.labels
    ]


def _prediction(regions: list[Json], version: str) -> Json:
    scores = [float(region["score"]) for region in regions]
    return {"result": regions, "score": sum(scores) / len(scores) if scores else None, "model_version": version}
