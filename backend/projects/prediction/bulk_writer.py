"""Predicts a batch of tasks and writes the predictions to Label Studio: exactly one of this backend per task.

May run twice for the same tasks, be killed anywhere and run again: what Label Studio has decides what is left to do.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from backend.core.types import Json
from backend.errors import (
    BadInputError,
    LabelStudioError,
    LabelStudioUnavailableError,
    NotFoundError,
    SoftmatcherError,
)
from backend.metrics import Metrics
from backend.projects.connections import Connections
from backend.projects.images import ImageVersion, TaskImages, versions_to_json
from backend.projects.prediction.batch_pipeline import TaskPrediction
from backend.projects.prediction.prediction_writer import (
    PredictionWriter,
    failed_outcome,
    own_predictions,
    score_of,
)
from backend.projects.prediction.predictor import Predictions
from backend.projects.prediction.reference_banks import PredictionContext
from backend.projects.task_source import ImageFiles, TaskSource
from backend.projects.tiles import Tiles
from backend.store.records import TaskOutcome, TilePrediction, UnwrittenPrediction

logger = logging.getLogger(__name__)


_TASKS_A_BATCH = 24
_TURNS_A_BATCH = 6
"""If the device encodes several images at a time: with fewer, it has no work too often at a batch's ends."""
_ASKERS = 8
"""Images that are asked at a time whether they changed; most answers are a few bytes."""
_ALIKE_FAILURES = 5
"""Tasks in a row whose images fail alike: from then on it is a server's trouble, not the images'."""
_FEWEST_ALIKE = 3
_SEEN_AT_MOST = 500
"""Tasks that are remembered as Label Studio gave them last."""


@dataclass(frozen=True)
class Batch:
    """Tasks to predict, and what they are predicted with.

    Attributes:
        context: what the tasks are predicted with.
        task_ids: of the tasks.
        made_of: task id -> image tag -> the content that its prediction of this version was made of, as far as noted.
        predicted: task id -> its prediction of this version that Label Studio does not have yet; it is made again if
            its images are others by now than `made_of` says.
    """

    context: PredictionContext
    task_ids: Sequence[int]
    made_of: Mapping[int, Mapping[str, ImageVersion]] = field(default_factory=dict)
    predicted: Mapping[int, TaskPrediction] = field(default_factory=dict)


class BulkPredictions:
    """Takes batches of tasks through download, prediction, import and removal of what is replaced."""

    def __init__(
        self,
        metrics: Metrics,
        connections: Connections,
        images: TaskImages,
        predictions: Predictions,
        tiles: Tiles,
    ) -> None:
        self._metrics = metrics
        self._connections = connections
        self._images = images
        self._predictions = predictions
        self._tiles = tiles
        self._writer = PredictionWriter(metrics)
        self._seen_failing: set[tuple[str, int]] = set()
        self._seen: OrderedDict[tuple[str, int], Json] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def preferred_batch_size(self) -> int:
        """Return how many tasks are worth giving `run`.

        Raises:
            ModelUnavailableError: no models.
        """
        return max(_TASKS_A_BATCH, _TURNS_A_BATCH * self._images.preferred_batch_size)

    def run(
        self,
        batch: Batch,
        *,
        should_stop: Callable[[], bool],
        still_wanted: Callable[[], set[int]],
        on_lost_answer: Callable[[], None] = lambda: None,
        on_other_config: Callable[[str], None] = lambda _: None,
        waits_for_images: bool = False,
        may_leave_older: bool = False,
    ) -> list[TaskOutcome]:
        """Predict the batch and write it. Old predictions are deleted once the new ones were seen in Label Studio.

        Args:
            batch: the tasks, at most 100.
            should_stop: asked before each task; True leaves the rest.
            still_wanted: asked once before writing: the tasks whose predictions may still be written.
            on_lost_answer: called if Label Studio did not answer an import, which it may still do.
            on_other_config: called with the project's label config if it changed meanwhile, and Label Studio refused
                predictions for the former one; their tasks are left.
            waits_for_images: several images in a row that fail alike are taken for a server that is away; a task whose
                image fails is left the first time.
            may_leave_older: `should_stop` is also asked before older predictions of a task are deleted; then the task
                is left.

        Returns:
            Outcomes of the tasks that were finished; those left are not among them.

        Raises:
            LabelStudioUnavailableError: Label Studio does not answer; nothing is half done that a second run would not
                see.
            LabelStudioError, ConfigurationError, ModelUnavailableError: no task can be predicted.
        """
        client = self._connections.client(batch.context.project.key)
        tasks = {int(task["id"]): task for task in client.tasks_of(batch.context.project.project_id, batch.task_ids)}
        outcomes = [
            failed_outcome(
                self._metrics, batch.context, task_id, "task_gone", "the task is not in the project any more"
            )
            for task_id in batch.task_ids
            if task_id not in tasks
        ]
        replaced: dict[int, list[int]] = {}
        to_predict: list[Json] = []
        fetcher = self._connections.fetcher(batch.context.project.key)
        self._remember(batch.context.project.key, tasks)
        own = {task_id: own_predictions(task, batch.context.version) for task_id, task in tasks.items()}
        known = [task for task_id, task in tasks.items() if own[task_id][0] or task_id in batch.predicted]
        unchanged = self._unchanged(batch, known, fetcher)
        ahead: dict[int, TaskPrediction] = {}
        for task in tasks.values():
            current, old = own[task["id"]]
            if task["id"] in unchanged and current:
                state = "done" if current[-1].get("result") else "empty"
                kept = TaskOutcome(task["id"], state, score_of(current[-1]), batch.context.version, is_kept=True)
                outcomes.append(replace(kept, images=versions_to_json(batch.made_of[task["id"]])))
                current = current[:-1]
            elif task["id"] in unchanged:
                ahead[task["id"]] = batch.predicted[task["id"]]
            else:
                to_predict.append(task)
            old = [each for each in old if each["model_version"] != batch.context.shown_version]
            replaced[task["id"]] = [int(each["id"]) for each in (*old, *current)]
        self._tiles.note_kept(
            batch.context.project.key, batch.context.config, batch.context.version,
            {task_id: own[task_id][0][-1] for task_id in unchanged if task_id not in ahead},
        )  # fmt: skip
        had_one = {outcome.task_id for outcome in outcomes if outcome.is_kept}
        found = ahead | self._predict(batch, to_predict, client, should_stop, outcomes, waits_for_images)
        wanted = still_wanted()
        outcomes = [outcome for outcome in outcomes if outcome.task_id in wanted]
        to_write = {id_: one for id_, one in found.items() if id_ in wanted}
        try:
            written = self._writer.write(client, batch.context, to_write, outcomes, replaced, on_other_config)
        except LabelStudioUnavailableError:
            on_lost_answer()
            raise
        self._tiles.note_written(batch.context.project.key, batch.context.version, written)
        for outcome in outcomes:
            if outcome.state == "failed" and outcome.task_id in batch.predicted:
                reason = outcome.reason or ""
                self._tiles.note_failure(batch.context.project.key, batch.context.version, outcome.task_id, reason)
        left = set()
        for task_id in (*written, *(had_one & wanted)):
            for prediction_id in replaced.get(task_id, ()):
                if may_leave_older and should_stop():
                    left.add(task_id)
                    break
                client.delete_prediction(prediction_id)
        return [outcome for outcome in outcomes if outcome.task_id not in left]

    def predict(self, context: PredictionContext, task_ids: Sequence[int], *, should_stop: Callable[[], bool]) -> int:
        """Predict tasks that somebody looks at, and keep the predictions for `run`; return how many were finished.

        Label Studio is asked for those that were not seen before. Whether tasks and images are what they were is asked
        when the predictions are written.

        Raises:
            LabelStudioUnavailableError: Label Studio does not answer.
            LabelStudioError, ConfigurationError, ModelUnavailableError: no task can be predicted.
        """
        key = context.project.key
        client = self._connections.client(key)
        with self._lock:
            seen = {task_id: self._seen[key, task_id] for task_id in task_ids if (key, task_id) in self._seen}
        unseen = _without(task_ids, seen)
        listed = client.tasks_of(context.project.project_id, unseen) if unseen else []
        new = {int(one["id"]): one for one in listed}
        self._remember(key, new)
        tasks = {**seen, **new}
        outcomes = [
            failed_outcome(self._metrics, context, task_id, "task_gone", "the task is not in the project any more")
            for task_id in _without(task_ids, tasks)
        ]
        for one in outcomes:
            self._tiles.note_failure(key, context.version, one.task_id, one.reason or "")
        some = [tasks[task_id] for task_id in task_ids if task_id in tasks]
        found = self._predict(
            Batch(context, task_ids), some, client, should_stop, outcomes, waits_for_images=False, is_shown_first=True
        )
        return len(found) + len(outcomes)

    def _remember(self, project_key: str, tasks: Mapping[int, Json]) -> None:
        with self._lock:
            for task_id, task in tasks.items():
                self._seen[project_key, task_id] = _shortened(task)
                self._seen.move_to_end((project_key, task_id))
            while len(self._seen) > _SEEN_AT_MOST:
                self._seen.popitem(last=False)

    def _unchanged(self, batch: Batch, tasks: Sequence[Json], fetcher: ImageFiles) -> set[int]:
        """Return the tasks whose prediction is still that of their images: no image was replaced since.

        A prediction of which nobody noted what it was made of (Label Studio retrieved it) is made again, once.
        """

        def is_unchanged(task: Json) -> bool:
            made_of = batch.made_of.get(task["id"], {})
            try:
                return all(
                    self._images.is_unchanged(task, batch.context.config.image(tag), fetcher, made_of.get(tag))
                    for tag in batch.context.tags
                    if batch.context.config.image(tag).is_in(task["data"])
                )
            except SoftmatcherError:
                return False  # predicting it says what is wrong with its image, and leaves the old prediction

        with ThreadPoolExecutor(_ASKERS, thread_name_prefix="unchanged") as pool:
            return {task["id"] for task, holds in zip(tasks, pool.map(is_unchanged, tasks), strict=True) if holds}

    def _predict(
        self,
        batch: Batch,
        tasks: Sequence[Json],
        client: TaskSource,
        should_stop: Callable[[], bool],
        outcomes: list[TaskOutcome],
        waits_for_images: bool,
        *,
        is_shown_first: bool = False,
    ) -> dict[int, TaskPrediction]:
        """Predict tasks, and return task id -> prediction; failures go to the outcomes.

        With `is_shown_first` nobody is asked whether images are still the same, and predictions are kept to be written.
        """
        found: dict[int, TaskPrediction] = {}
        alike: deque[str] = deque(maxlen=max(_FEWEST_ALIKE, min(_ALIKE_FAILURES, len(tasks))))

        def fail(task_id: int, kind: str, reason: str) -> None:
            # At the edges of a time in which images fail there are too few in a row: a second try decides.
            if not waits_for_images or self._was_seen_failing(batch, task_id):
                outcomes.append(failed_outcome(self._metrics, batch.context, task_id, kind, reason))
                self._tiles.note_failure(batch.context.project.key, batch.context.version, task_id, reason)
            alike.append(kind)
            if waits_for_images and len(alike) == alike.maxlen and len(set(alike)) == 1:
                self._seen_failing -= {(batch.context.project.key, each) for each in batch.task_ids}
                raise LabelStudioUnavailableError(
                    f"{len(alike)} images in a row could not be read, the last one since: {reason}"
                )

        predicted = self._predictions.predict_each(batch.context, tasks, should_stop, trusts_known=is_shown_first)
        known = self._tiles.of_tasks(batch.context.project.key, batch.task_ids) if is_shown_first else None
        for task, predict in predicted:
            task_id = int(task["id"])
            try:
                one = predict()
                if any(isinstance(error, LabelStudioUnavailableError) for error in one.failures.values()):
                    client.version()  # raises if it is all of Label Studio: then the task waits
            except LabelStudioUnavailableError as error:
                # Is it all of Label Studio, or one image on a host that is down?
                client.version()
                fail(task_id, "image_host_away", str(error))
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                client.version()  # a proxy that answers in Label Studio's place has a 404 for its images too
                fail(task_id, _kind(error), str(error))
            except SoftmatcherError:
                raise
            except Exception as error:
                logger.exception("project=%s task=%s", batch.context.project.key, task_id)
                reason = f"internal error ({type(error).__name__}); the worker's log has the details"
                outcomes.append(failed_outcome(self._metrics, batch.context, task_id, "internal", reason))
            else:
                unseen = [
                    error for tag, error in one.failures.items() if batch.context.config.image(tag).is_in(task["data"])
                ]
                if one.prediction is None and unseen:
                    # Nobody knows whether the object is absent: it may be on the image that cannot be had.
                    client.version()
                    fail(task_id, _kind(unseen[0]), str(one.problem))
                    continue
                alike.clear()
                self._seen_failing.discard((batch.context.project.key, task_id))
                if one.problem:
                    logger.warning("project=%s task=%d: %s", batch.context.project.key, task_id, one.problem)
                found[task_id] = one
                self._note(batch.context, task_id, one, known)
        return found

    def _note(
        self,
        context: PredictionContext,
        task_id: int,
        found: TaskPrediction,
        known: Mapping[int, TilePrediction] | None,
    ) -> None:
        """Note the prediction of a task for its tile; with the tiles that are `known`, keep it to be written."""
        score = score_of(found.prediction) if found.prediction else None
        kept = None
        if known is not None:
            images = versions_to_json(found.images)
            kept = UnwrittenPrediction(task_id, context.version, found.prediction, images, found.absence)
        self._tiles.note(context.project.key, context.version, task_id, found.drawn, score, kept, known)
        self._metrics.tasks.labels("found" if found.prediction else "empty").inc()

    def _was_seen_failing(self, batch: Batch, task_id: int) -> bool:
        """Return whether this is the second time; the first time it is noted, and the task left for another batch."""
        seen = (batch.context.project.key, task_id)
        if seen in self._seen_failing:
            self._seen_failing.discard(seen)
            return True
        self._seen_failing.add(seen)
        return False


def _without(task_ids: Sequence[int], known: Collection[int]) -> list[int]:
    return [task_id for task_id in task_ids if task_id not in known]


def _shortened(task: Json) -> Json:
    """Return what a prediction depends on of a task."""
    return {"id": int(task["id"]), "data": task["data"]}


def _kind(error: SoftmatcherError) -> str:
    """Return the kind of a failure for /metrics: few kinds, whatever the addresses and files in the reasons."""
    if isinstance(error, NotFoundError):
        return "image_missing"
    return "image_unusable" if isinstance(error, BadInputError) else "image_refused"
