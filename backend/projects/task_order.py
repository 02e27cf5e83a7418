"""Label Studio's own order of tasks: the least certain first, and all of it taken back.

Label Studio's uncertainty sampling serves, of the tasks with a prediction of `project.model_version`, those of the
cluster that the labeler solved least, and of these the one with the lowest score.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from backend.core.task_selection import cluster_images
from backend.core.types import Json
from backend.errors import BadInputError, ConflictError, LabelStudioError, NotFoundError, SoftmatcherError
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.label_config import parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImages
from backend.projects.model_host import Models
from backend.projects.prediction.prediction_writer import keep_one, own_predictions
from backend.projects.prediction.reference_banks import OWN_VERSIONS
from backend.projects.tiles import pack_sketch, unpack_sketch
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)

STARTED_BY: Final = "least certain first"
"""`started_by` of the propagation that writes the scores."""
UNCERTAINTY: Final = "Uncertainty sampling"
VIEW: Final = "Least certain first"
_BY_SCORE = "tasks:predictions_score"
MOST_CLUSTERED: Final = 1000
"""Tasks of a project that gets clusters: Label Studio takes them one request a task."""
_MOST_CLUSTERS = 30
_MODEL_WAIT_S = 60.0
_TASKS_A_PAGE = 24


class TaskOrder:
    """Sets the order in which Label Studio serves a project's tasks."""

    def __init__(self, store: Store, models: Models, connections: Connections, images: TaskImages) -> None:
        self._store = store
        self._models = models
        self._connections = connections
        self._images = images

    def begin(self, project: ProjectRecord) -> None:
        """Remember how the project is set, and add a view to its Data Manager; a propagation does the rest.

        Raises:
            ConflictError: there is nothing yet that tasks could be predicted from.
            LabelStudioError, ConfigurationError: Label Studio cannot be asked.
        """
        if project.task_order is not None:
            return
        if not self._store.list_references(project.key):
            raise ConflictError("there is no reference to predict from: mark an object on a task and submit it first")
        client = self._connections.label_studio(project.key)
        now = client.project(project.project_id)
        view = client.create_view(project.project_id, VIEW, _BY_SCORE)
        former = {"sampling": now.get("sampling"), "model_version": now.get("model_version") or ""}
        self._store.set_task_order(project.key, {"former": former, "view": view, "version": None})

    def follow(self, project_key: ProjectKey) -> bool:
        """Let Label Studio order by the predictions that most tasks have now; return whether it does.

        Raises:
            LabelStudioError, ConfigurationError: Label Studio cannot be asked.
        """
        project = self._store.project(project_key)
        if project is None or project.task_order is None:
            return False
        version = self._store.tiles.main_version(project_key)
        if version is None:
            return False
        client = self._connections.label_studio(project_key)
        try:
            client.change_project(project.project_id, sampling=UNCERTAINTY, model_version=version)
        except BadInputError as error:  # no prediction of it is there (any more)
            logger.warning("project=%s keeps its order of tasks: %s", project_key, error)
            return False
        self._store.set_task_order(project_key, {**project.task_order, "version": version})
        return True

    def set_clusters(self, project_key: ProjectKey, *, should_stop: Callable[[], bool]) -> int | None:
        """Give alike images the same cluster in Label Studio; those that have theirs are left as they are.

        Returns:
            How many predictions were changed; None if some are left since `should_stop` said so.

        Raises:
            LabelStudioError, ConfigurationError, ModelUnavailableError: what is needed cannot be had.
        """
        project = self._store.project(project_key)
        if project is None or project.task_order is None or not project.task_order.get("version"):
            return 0
        sketches = self._store.tiles.sketches(project_key, MOST_CLUSTERED + 1)
        if len(sketches) > MOST_CLUSTERED:
            return 0
        vectors = self._vectors(project, sketches)
        count = min(_MOST_CLUSTERS, max(2, round(sqrt(len(vectors) / 2))))
        clusters = cluster_images(np.stack([vectors[task_id] for task_id in sorted(vectors)]), count) if vectors else ()
        wanted = dict(zip(sorted(vectors), map(int, clusters), strict=True))
        changed = 0
        client = self._connections.label_studio(project_key)
        for task in _tasks(client, project, list(wanted)):
            for prediction in own_predictions(task, str(project.task_order["version"]))[0]:
                if prediction.get("cluster") == wanted[int(task["id"])]:
                    continue
                if should_stop():
                    return None
                client.set_cluster(int(prediction["id"]), wanted[int(task["id"])])
                changed += 1
        return changed

    def end(self, project: ProjectRecord) -> Json:
        """Restore how the project was set; what somebody changed since stays theirs.

        Returns:
            What the project has now: `sampling` and `model_version`.

        Raises:
            ConflictError: the order was not set.
            LabelStudioError, ConfigurationError: Label Studio cannot be asked; nothing is forgotten.
        """
        if project.task_order is None:
            raise ConflictError(f"project {project.project_id} has Label Studio's own order of tasks already")
        client, former = self._connections.label_studio(project.key), project.task_order["former"]
        now = client.project(project.project_id)
        changes: dict[str, Any] = {}
        if now.get("sampling") == UNCERTAINTY:
            changes["sampling"] = former["sampling"]
        if str(now.get("model_version") or "").startswith(OWN_VERSIONS):
            changes["model_version"] = former["model_version"]
        if changes:
            now = _restore(client, project.project_id, changes)
        client.delete_view(int(project.task_order["view"]))
        self._store.set_task_order(project.key, None)
        for record in self._store.propagations.active(project.key):
            if record.started_by == STARTED_BY:
                self._store.propagations.cancel(record.id)
        return {name: now.get(name) for name in ("sampling", "model_version")}

    def clear(self, project_key: ProjectKey) -> int:
        """Remove predictions without regions, surplus ones and clusters from Label Studio; return how many changed.

        Raises:
            LabelStudioError, ConfigurationError: Label Studio cannot be asked.
        """
        project = self._store.project(project_key)
        if project is None or project.task_order is not None:
            return 0
        client = self._connections.label_studio(project_key)
        changed = 0
        for page in client.task_ids(project.project_id, more_predictions_than=0):
            for task in _tasks(client, project, page):
                for prediction in _own(task):
                    if not prediction.get("result"):
                        client.delete_prediction(int(prediction["id"]))
                        changed += 1
                    elif prediction.get("cluster") is not None:
                        client.set_cluster(int(prediction["id"]), None)
                        changed += 1
            versions: dict[int, str | None] = dict.fromkeys(page)
            changed += keep_one(client, project.project_id, versions | self._store.tiles.versions(project_key, page))
        return changed

    def _vectors(self, project: ProjectRecord, sketches: Mapping[int, bytes | None]) -> dict[int, NDArray[np.float32]]:
        """Return task id -> sketch of its image; what no prediction left is made of its features."""
        signature = self._models.get(_MODEL_WAIT_S)[0].signature
        found: dict[int, NDArray[np.float32]] = {}
        missing = []
        for task_id, sketch in sketches.items():
            vector = unpack_sketch(sketch, signature)
            if vector is None:
                missing.append(task_id)
            else:
                found[task_id] = vector
        if not missing:
            return found
        client, fetcher = self._connections.label_studio(project.key), self._connections.fetcher(project.key)
        tag = parse_label_config(project.label_config).images[0]
        for task in _tasks(client, project, missing):
            try:
                image = self._images.load(task, tag, fetcher, is_interactive=False, with_text=project.with_text)
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                logger.info("project=%s task=%s gets no cluster: %s", project.key, task.get("id"), error)
                continue
            sketch = pack_sketch(image.encoded)
            self._store.tiles.save_sketch(project.key, int(task["id"]), sketch)
            vector = unpack_sketch(sketch, signature)
            if vector is not None:
                found[int(task["id"])] = vector
        return found


def _tasks(client: LabelStudioClient, project: ProjectRecord, task_ids: Sequence[int]) -> Iterator[Json]:
    for start in range(0, len(task_ids), _TASKS_A_PAGE):
        yield from client.tasks_of(project.project_id, task_ids[start : start + _TASKS_A_PAGE])


def _own(task: Json) -> list[Json]:
    return [each for several in own_predictions(task, "") for each in several]


def _restore(client: LabelStudioClient, project_id: int, changes: dict[str, Any]) -> Json:
    try:
        return client.change_project(project_id, **changes)
    except SoftmatcherError:
        if not changes.get("model_version"):
            raise
        # What the project showed before is gone: Label Studio refuses its name.
        return client.change_project(project_id, **{**changes, "model_version": ""})


__all__ = ["MOST_CLUSTERED", "STARTED_BY", "UNCERTAINTY", "VIEW", "TaskOrder"]
