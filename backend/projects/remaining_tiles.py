"""Predicts the tasks that nobody looks at, a few at a time, where no propagation is asked for."""

from collections.abc import Callable

from backend.errors import ModelUnavailableError
from backend.projects.connections import Connections
from backend.projects.gallery import Gallery
from backend.projects.prediction.reference_banks import ReferenceBanks
from backend.store import Store
from backend.store.records import ProjectKey

_TASKS_AT_A_TIME = 8
_MODEL_WAIT_S = 0.5


class RemainingTiles:
    """Brings the tiles of all tasks of a project up to date, each once for every change of the references.

    Args:
        store: of the project.
        connections: to its tasks.
        gallery: predicts them.
        banks: say what predictions depend on.
        project_key: of the tasks.
        should_stop: asked before each task; True leaves the rest for the next call.
    """

    def __init__(
        self,
        store: Store,
        connections: Connections,
        gallery: Gallery,
        banks: ReferenceBanks,
        project_key: ProjectKey,
        should_stop: Callable[[], bool],
    ) -> None:
        self._store = store
        self._connections = connections
        self._gallery = gallery
        self._banks = banks
        self._project_key = project_key
        self._should_stop = should_stop
        self._version: str | None = None
        self._tried: set[int] = set()
        self._is_done = False
        self._done_to = 0

    def __call__(self) -> bool:
        """Predict up to eight tasks, or write what was predicted; return whether there were any."""
        project = self._store.project(self._project_key)
        if project is None:
            return False
        try:
            version = self._banks.model_version(self._project_key, wait_s=_MODEL_WAIT_S)
        except ModelUnavailableError:
            return False
        if version != self._version:
            self._version, self._is_done, self._done_to = version, False, 0
            self._tried.clear()
        if self._is_done and not self._store.unwritten.count(self._project_key):
            return False
        if self._gallery.write(self._project_key, should_stop=self._should_stop)["written"]:
            return True
        client = self._connections.client(self._project_key)
        # With an annotation left, references may only be late: what was found by them stays.
        is_bare = not self._store.list_references(self._project_key)
        if is_bare and next(iter(client.annotated_tasks(project.project_id)), None) is None:
            self._forget_all(project.project_id)
        for ids in client.task_ids(project.project_id, after=self._done_to):
            # One that fails for a reason that its tile does not have is not tried for ever.
            due = [task_id for task_id in self._gallery.outdated(project, ids) if task_id not in self._tried]
            if due:
                some = due[:_TASKS_AT_A_TIME]
                left = self._gallery.refresh(self._project_key, some, should_stop=self._should_stop)["left"]
                if not left:
                    self._tried.update(some)
                return True
            self._done_to = ids[-1]
        self._is_done = True
        return False

    def _forget_all(self, project_id: int) -> None:
        """Remove the tiles and predictions that references gave which are gone."""
        client = self._connections.client(self._project_key)
        for ids in client.task_ids(project_id):
            known = sorted(self._store.tiles.of_tasks(self._project_key, ids))
            for task in client.tasks_of(project_id, known):
                for prediction in task["predictions"]:
                    client.delete_prediction(int(prediction["id"]))
            if known:
                self._store.tiles.forget(self._project_key, known)


__all__ = ["RemainingTiles"]
