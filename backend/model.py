"""The same engine under `label-studio-ml start`: a thin adapter for teams that run that server.

label-studio-ml 1.0.9 (PyPI) makes a model anew on every /setup, runs `fit` in another process, and knows one project at
a time; so nothing lives on the model, and the project is read from the tasks. Our own service has none of these limits.
"""

import threading
from collections.abc import Mapping
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from backend.errors import BadInputError
from backend.projects.composition import Projects, key_of_project, open_projects
from backend.settings import load_settings

_lock = threading.Lock()
_projects: Projects | None = None


def _engine() -> Projects:
    """The projects of this process, opened by the first request."""
    global _projects
    with _lock:
        if _projects is None:
            _projects = open_projects(load_settings())
        return _projects


class SoftmatcherBackend(LabelStudioMLBase):  # type: ignore[misc]
    """Softmatcher as a model of label-studio-ml 1.0.9, and of its 2.x line."""

    def predict(self, tasks: list[dict[str, Any]], context: Mapping[str, Any] | None = None, **_: Any) -> list[Any]:
        """Return predictions in the order of the tasks; [] for a task without any.

        Raises:
            BadInputError: the tasks name no project, or label config or scribble cannot be used.
        """
        if not tasks:
            return []
        projects = _engine()
        project_id = tasks[0].get("project")
        if not isinstance(project_id, int):
            raise BadInputError(f'expected tasks with "project" (an id), got {project_id!r}')
        project_key, label_config = self._project(projects, project_id)
        if context and context.get("result"):
            return [_unversioned(projects.interactive.predict(project_key, label_config, tasks[0], context["result"]))]
        answer = projects.predictions.predict(project_key, label_config, tasks)
        return [_unversioned(item) if isinstance(item, dict) else item for item in answer.results]

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Take a webhook of Label Studio: 2.x gives `fit(event, data)`, 1.0.9 `fit((), event=..., data=...)`."""
        body = kwargs.get("data") if "data" in kwargs else (args[1] if len(args) > 1 else None)
        if not isinstance(body, Mapping) or not isinstance(body.get("project"), Mapping):
            return {"status": "nothing to do"}
        projects = _engine()
        project_key = projects.note_project(body["project"])
        annotation = body.get("annotation")
        if isinstance(annotation, Mapping) and isinstance(annotation.get("id"), int):
            return {"outcome": projects.references.ingest(project_key, annotation["id"])}
        return projects.references.reconcile(project_key)

    @staticmethod
    def _project(projects: Projects, project_id: int) -> tuple[str, str]:
        """Key and label config, from the store or the API: those that 1.0.9 passes may be another project's."""
        known = projects.store.project_by_id(project_id)
        if known is not None and known.label_config:
            return known.key, known.label_config
        project = projects.client_for("").project(project_id)
        return key_of_project(project), str(project["label_config"])


def _unversioned(prediction: dict[str, Any]) -> dict[str, Any]:
    """label-studio-ml names the version in /setup: with another in a prediction Label Studio predicts without end."""
    return {name: value for name, value in prediction.items() if name != "model_version"}
