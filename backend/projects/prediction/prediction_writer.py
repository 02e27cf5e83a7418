"""Predictions written to Label Studio: exactly one of this backend per task."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from backend.core.types import Json
from backend.errors import BadInputError, LabelStudioError, LabelStudioUnavailableError, NotFoundError, TooLargeError
from backend.metrics import Metrics
from backend.projects.images import versions_to_json
from backend.projects.prediction.batch_pipeline import TaskPrediction
from backend.projects.prediction.reference_banks import OWN_VERSIONS, PredictionContext
from backend.projects.prediction.results import prediction_of
from backend.projects.task_source import TaskSource
from backend.store.records import TaskOutcome

logger = logging.getLogger(__name__)


class PredictionWriter:
    """Imports predictions, and finds out which of them Label Studio has."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def write(
        self,
        client: TaskSource,
        context: PredictionContext,
        found: Mapping[int, TaskPrediction],
        outcomes: list[TaskOutcome],
        replaced: Mapping[int, Sequence[int]],
        on_other_config: Callable[[str], None],
    ) -> list[int]:
        """Import predictions, and return the tasks that are as they should be now, with and without one.

        Args:
            client: of the project's Label Studio.
            context: what the tasks were predicted with.
            found: task id -> what was predicted.
            outcomes: those of these tasks are added to it.
            replaced: task id -> ids of predictions that Label Studio has already.
            on_other_config: called with the project's label config if it changed meanwhile, and Label Studio refused
                predictions for the former one; their tasks are left.

        Raises:
            LabelStudioUnavailableError: Label Studio does not answer; it may still do what it was asked for.
        """
        written = [task_id for task_id, one in found.items() if one.prediction is None and not context.writes_absence]
        outcomes += [
            TaskOutcome(task_id, "empty", model_version=context.version, images=versions_to_json(found[task_id].images))
            for task_id in written
        ]
        predictions = [
            {"task": task_id, **(one.prediction or _absence_of(one, context))}
            for task_id, one in found.items()
            if one.prediction or context.writes_absence
        ]
        refused, is_sure = self._import(client, context.project.project_id, predictions)
        left = [one for one in predictions if one["task"] not in refused]
        if not is_sure or any(replaced.get(one["task"]) for one in left):
            seen = _with_new(client, context, [one["task"] for one in left], replaced)
            unseen = [one for one in left if one["task"] not in seen]
        else:
            unseen = []
        if unseen or refused:
            label_config = str(client.project(context.project.project_id).get("label_config", ""))
            if label_config != context.project.label_config:
                on_other_config(label_config)
                left, refused, unseen = [one for one in left if one not in unseen], {}, []
        for one in unseen:
            try:
                client.create_prediction(one)  # alone, since then Label Studio says what it finds fault with
            except LabelStudioUnavailableError:
                raise  # that says nothing against the prediction
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                refused[one["task"]] = f"Label Studio does not take the prediction: {error}"
        for one in predictions:
            if one["task"] in refused:
                outcomes.append(
                    failed_outcome(self._metrics, context, one["task"], "import_refused", refused[one["task"]])
                )
            elif one in left:
                written.append(one["task"])
                made = found[one["task"]]
                state = "done" if made.prediction else "empty"
                done = TaskOutcome(one["task"], state, score_of(one), context.version, _shortened(made.problem))
                outcomes.append(replace(done, images=versions_to_json(made.images)))
        return written

    def _import(self, client: TaskSource, project_id: int, predictions: Sequence[Json]) -> tuple[dict[int, str], bool]:
        """Import predictions; return those that were refused, with the reason, and whether all others were created."""
        if not predictions:
            return {}, True
        try:
            with self._metrics.stage("import"):
                created = client.import_predictions(project_id, predictions)
        except BadInputError as error:
            if len(predictions) == 1:
                return {predictions[0]["task"]: str(error)}, True
            # Label Studio refuses all of them for one, for example if a task was deleted a moment ago; a proxy takes
            # only so much at a time.
            half = len(predictions) // 2 if isinstance(error, TooLargeError) else 1
            refused: dict[int, str] = {}
            is_sure = True
            for start in range(0, len(predictions), half):
                some, is_some_sure = self._import(client, project_id, predictions[start : start + half])
                refused |= some
                is_sure &= is_some_sure
            return refused, is_sure
        return {}, created == len(predictions)


def _absence_of(found: TaskPrediction, context: PredictionContext) -> Json:
    return {**prediction_of([], context.version), "score": found.absence}


def failed_outcome(metrics: Metrics, context: PredictionContext, task_id: int, kind: str, reason: str) -> TaskOutcome:
    """Count and log the failure of a task, and return its outcome."""
    metrics.tasks.labels("failed").inc()
    metrics.failures.labels(kind).inc()
    logger.warning("project=%s task=%d: %s", context.project.key, task_id, reason)
    return TaskOutcome(task_id, "failed", model_version=context.version, reason=_shortened(reason))


def keep_one(client: TaskSource, project_id: int, versions: Mapping[int, str | None]) -> int:
    """Remove all but one prediction of this backend from each of the tasks, and return how many were removed.

    Args:
        client: of the project's Label Studio.
        project_id: of the tasks.
        versions: task id -> the model_version whose newest prediction stays; the newest of any, if it has none of it.

    Raises:
        LabelStudioError: Label Studio cannot be used.
    """
    removed = 0
    for task in client.tasks_of(project_id, list(versions)):
        wanted = versions[int(task["id"])]
        ranked = sorted((each.get("model_version") == wanted, int(each["id"])) for each in _own(task))
        for _, prediction_id in ranked[:-1]:
            client.delete_prediction(prediction_id)
            removed += 1
    return removed


def _shortened(reason: str | None) -> str | None:
    return reason[:500] if reason else None


def _with_new(
    client: TaskSource,
    context: PredictionContext,
    task_ids: Sequence[int],
    replaced: Mapping[int, Sequence[int]],
) -> set[int]:
    """Return the tasks that have a prediction of the batch's version in Label Studio other than those replaced."""
    listed = client.tasks_of(context.project.project_id, task_ids)
    return {
        int(task["id"])
        for task in listed
        if any(
            int(each["id"]) not in replaced.get(task["id"], ()) for each in own_predictions(task, context.version)[0]
        )
    }


def _own(task: Json) -> list[Json]:
    return [
        each for each in task.get("predictions") or () if str(each.get("model_version") or "").startswith(OWN_VERSIONS)
    ]


def own_predictions(task: Json, version: str) -> tuple[list[Json], list[Json]]:
    """Return this backend's predictions of a task: those of the version, oldest first, and the others."""
    own = sorted(_own(task), key=lambda each: int(each.get("id") or 0))
    return (
        [each for each in own if each["model_version"] == version],
        [each for each in own if each["model_version"] != version],
    )


def score_of(prediction: Json) -> float | None:
    """Return a prediction's score; None if it has none."""
    score = prediction.get("score")
    return float(score) if isinstance(score, int | float) else None
