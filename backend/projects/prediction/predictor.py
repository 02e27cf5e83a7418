"""Predictions of tasks from the project's references: for the task on the screen, and for many."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from backend.core import cancellation
from backend.core.cancellation import CancelledWorkError
from backend.core.types import EncodedImage, Json, LabelMask
from backend.engine.plans import FoundMasks, SegmentationPlan
from backend.errors import BadInputError, LabelStudioError, NotFoundError, SoftmatcherError
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.metrics import Metrics
from backend.projects.connections import Connections
from backend.projects.images import ImageFile, ImageVersion, TaskImages
from backend.projects.model_host import Models
from backend.projects.prediction.batch_pipeline import (
    BatchPipeline,
    BatchStages,
    Predicted,
    TaskMasks,
    TaskPrediction,
)
from backend.projects.prediction.prefetch import Prefetch
from backend.projects.prediction.read_ahead import begin_ahead
from backend.projects.prediction.reference_banks import PredictionContext, ReferenceBanks
from backend.projects.prediction.results import prediction_of
from backend.projects.project_key import project_of_request
from backend.projects.task_source import ImageFiles
from backend.projects.tiles import DrawnMasks, draw_masks, pack_sketch
from backend.settings import Settings
from backend.store import Store
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)

_Files = Mapping[str, ImageFile | SoftmatcherError]
"""Image tag -> its file, or what is wrong with it."""

_MODEL_WAIT_S = 60.0
_PENDING_POLL_S = 0.03
_FETCHED_AHEAD = 4
"""Tasks whose files are downloaded at a time, the one that is predicted included."""
_FETCHERS = 2
"""Downloads from Label Studio at a time, for one caller."""


@dataclass(frozen=True)
class Answer:
    """The answer to a /predict.

    Attributes:
        results: one item per task, in the order of the tasks: a prediction, or [] for «nothing found» or «not yet».
        found: number of tasks with at least one region.
        unfinished: ids of the tasks that the time did not suffice for.
    """

    results: list[Json | list[Json]]
    found: int
    unfinished: tuple[int, ...]


class Predictions:
    """Predicts tasks of a project from its references."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        models: Models,
        connections: Connections,
        images: TaskImages,
        banks: ReferenceBanks,
        prefetch: Prefetch | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._models = models
        self._connections = connections
        self._images = images
        self._banks = banks
        self._prefetch = prefetch

    def predict(self, project_key: ProjectKey, label_config: str, tasks: Sequence[Json]) -> Answer:
        """Predict tasks from the project's references, within the time that Label Studio waits.

        A task that fails gives [] and a line in the log; it never spoils the others.

        Raises:
            BadInputError: the label config cannot be used.
            ModelUnavailableError: the models cannot be loaded in time.
        """
        deadline = time.monotonic() + self._settings.predict_budget_s
        config = parse_label_config(label_config)
        self._models.get(min(_MODEL_WAIT_S, self._settings.predict_budget_s))
        project = project_of_request(self._store, project_key, label_config)
        is_open = len(tasks) == 1
        if is_open:
            self._wait_for_references(project_key)
        context = self._banks.context(project, config)
        results: list[Json | list[Json]] = [[] for _ in tasks]
        if is_open and self._prefetch is not None:
            # Even without references: the labeler will scribble on the next task too.
            self._prefetch.note_opened(project_key, tasks[0].get("id"), config, with_text=project.with_text)
        if not context.tags:
            return Answer(results, 0, ())
        found = 0
        unfinished: list[int] = []
        done = 0
        is_over = partial(_is_past, deadline)
        try:
            # Also within a task: while many labelers click, a batch may wait minutes for a slot on the models.
            with cancellation.cancellable(is_over):
                for task, predict in self.predict_each(context, tasks, is_over, is_open=is_open):
                    prediction = self._predict_or_report(project_key, task, predict)
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

    def predict_each(
        self,
        context: PredictionContext,
        tasks: Sequence[Json],
        should_stop: Callable[[], bool],
        *,
        is_open: bool = False,
        trusts_known: bool = False,
    ) -> Iterator[Predicted]:
        """Predict tasks in their order: in batches if the device gains by several images at a time, else one by one.

        Refiners and thin labels need an image's pixels, which batches do not keep: then tasks are predicted one by one.

        Args:
            context: what they are predicted with.
            tasks: as Label Studio gives them.
            should_stop: asked before each task or batch; True leaves the rest.
            is_open: the only task is open on somebody's screen, so it takes precedence over batches.
            trusts_known: don't ask whether images are still the same, see `TaskImages.download`.

        Yields:
            A task and what returns its prediction, or raises what was wrong with it.

        Raises:
            ModelUnavailableError: no models.
        """
        fetcher = self._connections.fetcher(context.project.key)
        if is_open:
            for task in tasks:
                if should_stop():
                    return
                yield task, partial(self._predict_task, context, task, fetcher, lambda: {}, is_open=True)
        elif self._images.preferred_batch_size > 1 and not any(map(context.needs_pixels_on, context.tags)):
            yield from self._predict_batches(context, tasks, fetcher, should_stop, trusts_known=trusts_known)
        else:
            yield from self._predict_one_by_one(context, tasks, fetcher, should_stop, trusts_known=trusts_known)

    def _predict_or_report(
        self, project_key: ProjectKey, task: Json, predict: Callable[[], TaskPrediction]
    ) -> Json | None:
        try:
            found = predict()
        except CancelledWorkError:
            raise
        except SoftmatcherError as error:
            self._metrics.tasks.labels("failed").inc()
            logger.warning("project=%s task=%s: %s", project_key, task.get("id"), error)
            return None
        except Exception:
            self._metrics.tasks.labels("failed").inc()
            logger.exception("project=%s task=%s", project_key, task.get("id"))
            return None
        if found.problem:
            logger.warning("project=%s task=%s: %s", project_key, task.get("id"), found.problem)
        self._metrics.tasks.labels("found" if found.prediction else "empty").inc()
        return found.prediction

    def _predict_one_by_one(
        self,
        context: PredictionContext,
        tasks: Sequence[Json],
        fetcher: ImageFiles,
        should_stop: Callable[[], bool],
        *,
        trusts_known: bool,
    ) -> Iterator[Predicted]:
        """Predict tasks, of which the next few are downloaded while one is being predicted."""
        in_pixels = {tag_name for tag_name in context.tags if context.needs_pixels_on(tag_name)}

        def fetch(task: Json) -> _Files:
            files: dict[str, ImageFile | SoftmatcherError] = {}
            for tag_name in context.tags:
                try:
                    files[tag_name] = self._images.download(
                        task, context.config.image(tag_name), fetcher, with_text=context.project.with_text,
                        trusts_known=trusts_known and tag_name not in in_pixels,
                    )  # fmt: skip
                except (BadInputError, NotFoundError, LabelStudioError) as error:
                    files[tag_name] = error  # the others are used without it
            return files

        pool = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")
        try:
            ahead = begin_ahead(
                tasks, lambda task: (task, pool.submit(fetch, task)), count=_FETCHED_AHEAD, should_stop=should_stop
            )
            for task, files in ahead:
                cancellation.check()
                yield (
                    task,
                    partial(self._predict_task, context, task, fetcher, files.result, is_matched_again=trusts_known),
                )
        finally:
            # A download that hangs must not hold up a worker that is asked to end.
            pool.shutdown(wait=False, cancel_futures=True)

    def _predict_task(
        self,
        context: PredictionContext,
        task: Json,
        fetcher: ImageFiles,
        fetched: Callable[[], _Files],
        *,
        is_open: bool = False,
        is_matched_again: bool = False,
    ) -> TaskPrediction:
        """Predict one task from references, with those of its images that can be had.

        Args:
            context: what it is predicted with.
            task: as Label Studio gives it.
            fetcher: of the project.
            fetched: returns the files that were fetched before.
            is_open: it is open on somebody's screen, so it takes precedence over batches.
            is_matched_again: see `Softmatcher.plan`.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: no image can be had or used; the message says why.
            ModelUnavailableError: no models.
        """
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        files = fetched()
        found: dict[str, FoundMasks] = {}
        versions: dict[str, ImageVersion] = {}
        failures: dict[str, SoftmatcherError] = {}
        sketch: bytes | None = None
        for tag_name in context.tags:
            file = files.get(tag_name)
            try:
                if isinstance(file, SoftmatcherError):
                    raise file
                tag = context.config.image(tag_name)
                image = self._images.load(
                    task, tag, fetcher, is_interactive=is_open, file=file, with_text=context.project.with_text,
                    with_pixels=context.needs_pixels_on(tag_name),
                )  # fmt: skip
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                failures[tag_name] = error
                continue
            versions[tag_name] = image.version
            with self._models.scheduler.slot(is_interactive=is_open):
                plan = softmatcher.plan(
                    image.encoded, context.banks.get(tag_name, {}), context.options,
                    is_matched_again=is_matched_again, **context.further_on(tag_name, image.pixels),
                )  # fmt: skip
                found[tag_name] = softmatcher.find_planned([plan])[0]()
            if not is_open and sketch is None:
                sketch = pack_sketch(image.encoded)
        if failures and not versions:
            raise next(iter(failures.values()))
        masks = self._task_masks(context, found, sketch, is_drawn=not is_open)
        return TaskPrediction(masks.prediction, versions, failures, masks.drawn, masks.absence)

    def _predict_batches(
        self,
        context: PredictionContext,
        tasks: Sequence[Json],
        fetcher: ImageFiles,
        should_stop: Callable[[], bool],
        *,
        trusts_known: bool,
    ) -> Iterator[Predicted]:
        """Predict tasks as `_predict_task` does, several images at a time."""
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)

        def plan(encoded: Mapping[str, EncodedImage]) -> tuple[bytes, dict[str, SegmentationPlan]]:
            return pack_sketch(next(iter(encoded.values()))), {
                tag: softmatcher.plan(image, context.banks.get(tag, {}), context.options, **context.sources_on(tag))
                for tag, image in encoded.items()
            }

        def segment(planned: Sequence[tuple[bytes, dict[str, SegmentationPlan]]]) -> list[Callable[[], TaskMasks]]:
            masks = iter(softmatcher.find_planned([one for _, plans in planned for one in plans.values()]))
            return [partial(finish, sketch, {tag: next(masks) for tag in plans}) for sketch, plans in planned]

        def finish(sketch: bytes, masks: Mapping[str, Callable[[], FoundMasks]]) -> TaskMasks:
            return self._task_masks(context, {tag: found() for tag, found in masks.items()}, sketch, is_drawn=True)

        tags = [context.config.image(tag_name) for tag_name in context.tags]
        pipeline = BatchPipeline(self._models, self._images)
        yield from pipeline.run(
            tasks, tags, fetcher, BatchStages(plan, segment), should_stop, with_text=context.project.with_text,
            trusts_known=trusts_known,
        )  # fmt: skip

    def _task_masks(
        self, context: PredictionContext, found: Mapping[str, FoundMasks], sketch: bytes | None, *, is_drawn: bool
    ) -> TaskMasks:
        masks = {tag: one.masks for tag, one in found.items()}
        absence = min((one.absence for one in found.values()), default=1.0)
        regions = [one for tag, of_tag in masks.items() for one in self._regions(context.config, tag, of_tag)]
        drawn = replace(draw_masks(masks, absence=absence), sketch=sketch) if is_drawn else DrawnMasks()
        return TaskMasks(prediction_of(regions, context.version) if regions else None, drawn, absence)

    def _regions(self, config: LabelConfig, tag_name: str, found: Sequence[LabelMask]) -> list[Json]:
        with self._metrics.stage("rle"):
            return [
                mask_to_region(
                    item.boxed, brush=config.brush_for(tag_name, item.label), label=item.label, score=item.score
                )
                for item in found
            ]

    def _wait_for_references(self, project_key: ProjectKey) -> None:
        """Give the annotation just made the time to count: after «submit» the next task opens within milliseconds."""
        wait_s = self._settings.reference_wait_s
        deadline = time.monotonic() + wait_s
        with self._metrics.stage("wait_for_reference"):
            while time.monotonic() < deadline and self._store.has_pending(project_key, wait_s + 1):
                time.sleep(_PENDING_POLL_S)


def _is_past(deadline: float) -> bool:
    return time.monotonic() > deadline
