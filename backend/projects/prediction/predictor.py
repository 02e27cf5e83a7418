"""Masks out: for the scribble on the screen, for tasks without context, and through the queue for the rest."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from backend.core import cancellation
from backend.core.cancellation import CancelledWorkError
from backend.core.types import EncodedImage, LabelMask
from backend.engine.softmatcher import SegmentationPlan
from backend.errors import BadInputError, LabelStudioError, NotFoundError, SoftmatcherError
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.images import ImageFetcher
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.metrics import Metrics
from backend.projects.connections import Connections
from backend.projects.images import ImageFile, ImageVersion, TaskImages
from backend.projects.model_host import Models
from backend.projects.options import match_options
from backend.projects.prediction.batch_pipeline import BatchPipeline, BatchStages, Predicted, TaskPrediction
from backend.projects.prediction.prefetch import Prefetch
from backend.projects.prediction.reference_banks import KnownReferences, ReferenceBanks
from backend.projects.prediction.results import prediction_of
from backend.projects.project_key import project_of_request
from backend.settings import Settings
from backend.store import ProjectRecord, Store

logger = logging.getLogger(__name__)

Json = dict[str, Any]

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
        project = project_of_request(self._store, project_key, label_config)
        is_open = len(tasks) == 1
        if is_open:
            self._wait_for_references(project_key)
        version, known = self._banks.references(project, config)
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
            known: as `ReferenceBanks.references` returns them.
            version: likewise.
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
        return TaskPrediction(prediction_of(regions, version) if regions else None, versions, failures)

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
            return prediction_of(regions, version) if regions else None

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

    def _wait_for_references(self, project_key: str) -> None:
        """After «submit» the next task opens within milliseconds: give the annotation just made the time to count."""
        wait_s = self._settings.reference_wait_s
        deadline = time.monotonic() + wait_s
        with self._metrics.stage("wait_for_reference"):
            while time.monotonic() < deadline and self._store.has_pending(project_key, wait_s + 1):
                time.sleep(_PENDING_POLL_S)


def _is_past(deadline: float) -> bool:
    return time.monotonic() > deadline
