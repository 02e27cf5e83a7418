"""Projects as commands open them that neither match nor train: the store, and the places where tasks are."""

from backend.projects.connections import Connections, LabelStudioConnections
from backend.projects.task_source import ImageFiles, TaskSource
from backend.settings import Settings
from backend.store import Store
from backend.store.records import ProjectKey


class StoredProjects:
    """All projects of one backend, without what predicts: that takes a tenth of a second to import.

    Attributes:
        settings: of this process.
        store: of the projects.
        connections: to the places where tasks are.
    """

    def __init__(self, settings: Settings, store: Store, connections: Connections) -> None:
        self.settings = settings
        self.store = store
        self.connections = connections

    def tasks_for(self, project_key: ProjectKey) -> TaskSource:
        """Return the tasks of a project.

        Raises:
            ConfigurationError: there is no token.
        """
        return self.connections.client(project_key)

    def fetcher_for(self, project_key: ProjectKey) -> ImageFiles:
        """Return the files of a project's images.

        Raises:
            ConfigurationError: there is no token.
        """
        return self.connections.fetcher(project_key)

    def close(self) -> None:
        """Close connections and the store."""
        self.connections.close()
        self.store.close()


def open_stored_projects(settings: Settings) -> StoredProjects:
    """Open the store (make its tables), without models.

    Raises:
        ConfigurationError, StoreUnavailableError: the store cannot be opened.
    """
    store = open_store(settings)
    return StoredProjects(settings, store, LabelStudioConnections(settings, store))


def open_store(settings: Settings) -> Store:
    """Open the store, and make its tables.

    Raises:
        ConfigurationError, StoreUnavailableError: it cannot be opened.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    store = Store(settings.store_url)
    store.create_tables()
    return store
