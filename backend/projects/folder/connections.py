"""Connects a backend to a folder in place of Label Studio."""

from collections.abc import Sequence

from backend.errors import ConfigurationError, ConflictError
from backend.labelstudio.client import LabelStudioClient
from backend.projects.folder.images import FolderFiles
from backend.projects.folder.tasks import PROJECT_ID, FolderTasks
from backend.projects.options import read_extra_params, received_on_setup
from backend.projects.task_source import Place
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey


class FolderConnections:
    """The one project of a folder; what changes on its page changes in the store, too.

    Args:
        store: of the references.
        tasks: the folder's.
        files: the folder's.
        notes: what the page says of the place, a sentence each.
    """

    def __init__(self, store: Store, tasks: FolderTasks, files: FolderFiles, notes: Sequence[str]) -> None:
        self._store = store
        self._tasks = tasks
        self._files = files
        self._place = Place(
            f"Folder {tasks.title}",
            editor=None,
            has_runs=False,
            has_own_labels=True,
            options_from="this page",
            notes=tuple(notes),
        )
        tasks.on_options = self._update_store
        self._update_store()

    @property
    def project_key(self) -> ProjectKey:
        """Return the name of the project in the store."""
        return f"{PROJECT_ID}.{int(self._tasks.created_at.timestamp())}"

    def client(self, project_key: ProjectKey) -> FolderTasks:
        """Return the folder's tasks.

        Raises:
            ConfigurationError: it is another project's.
        """
        if project_key != self.project_key:
            raise ConfigurationError(f"project {project_key} is not that of the folder")
        return self._tasks

    def fetcher(self, project_key: ProjectKey) -> FolderFiles:
        """Return the folder's files."""
        return self._files

    def label_studio(self, project_key: ProjectKey) -> LabelStudioClient:
        """Refuse: there is none.

        Raises:
            ConflictError: always.
        """
        raise ConflictError("this needs Label Studio, and the tasks are those of a folder")

    def place(self, project: ProjectRecord) -> Place:
        """Return what the page says of the folder."""
        return self._place

    def names(self, project: ProjectRecord, task_ids: Sequence[int]) -> dict[int, str]:
        """Return the paths of images, relative to the folder."""
        return {task_id: name for task_id in task_ids if (name := self._tasks.name(task_id)) is not None}

    def add_label(self, project: ProjectRecord, label: str) -> None:
        """Add a label to the project.

        Raises:
            BadInputError: it cannot be used.
            ConflictError: it is there already.
        """
        self._tasks.add_label(label)
        self._update_store()

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _update_store(self) -> None:
        options = received_on_setup(read_extra_params(self._tasks.extra_params), None)
        self._store.save_project(
            self.project_key,
            title=self._tasks.title,
            label_config=self._tasks.label_config,
            settings=options,
        )
