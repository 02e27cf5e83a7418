"""Connects a project to the place where its tasks are; here Label Studio: whose token, which address."""

import threading
from collections.abc import Sequence
from typing import Protocol

from pydantic import SecretStr

from backend.errors import BadInputError, ConfigurationError
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.images import ImageFetcher
from backend.projects.options import known_hostnames
from backend.projects.task_source import ImageFiles, Place, TaskSource
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey


class Connections(Protocol):
    """Where the tasks of projects and their images are."""

    def client(self, project_key: ProjectKey) -> TaskSource:
        """Return the tasks of a project.

        Raises:
            ConfigurationError: there is no token.
        """
        ...

    def fetcher(self, project_key: ProjectKey) -> ImageFiles:
        """Return the files of a project's images.

        Raises:
            ConfigurationError: there is no token.
        """
        ...

    def label_studio(self, project_key: ProjectKey) -> LabelStudioClient:
        """Return the API client for what only Label Studio has.

        Raises:
            ConfigurationError: there is no token.
            ConflictError: the tasks are not in Label Studio.
        """
        ...

    def place(self, project: ProjectRecord) -> Place:
        """Return what the project's page says of the place."""
        ...

    def names(self, project: ProjectRecord, task_ids: Sequence[int]) -> dict[int, str]:
        """Return names of tasks that say more than their ids, as far as there are any."""
        ...

    def add_label(self, project: ProjectRecord, label: str) -> None:
        """Add a label to a project.

        Raises:
            BadInputError: not here, or not this one.
        """
        ...

    def close(self) -> None:
        """Close idle connections."""
        ...


class LabelStudioConnections:
    """API clients and image fetchers, one for each token.

    The operator's token takes precedence over the one that Label Studio sent to /setup. Both go to LABEL_STUDIO_URL
    only: an address in a request never decides where a token is sent.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._clients: dict[str, LabelStudioClient] = {}
        self._lock = threading.Lock()

    def client(self, project_key: ProjectKey) -> LabelStudioClient:
        """Return the API client for a project.

        Raises:
            ConfigurationError: there is no token.
        """
        return self._client(self._store.project(project_key))

    label_studio = client

    def fetcher(self, project_key: ProjectKey) -> ImageFetcher:
        """Return the image fetcher for a project.

        Raises:
            ConfigurationError: there is no token.
        """
        settings = self._settings
        project = self._store.project(project_key)
        return ImageFetcher(
            settings.label_studio_url,
            self._client(project).auth_headers,
            allowed_hosts=settings.allowed_image_hosts,
            label_studio_aliases=known_hostnames(project),
            max_bytes=int(settings.max_image_mb * 1e6),
            timeout_s=settings.download_timeout_s,
        )

    def place(self, project: ProjectRecord) -> Place:
        """Return how people reach Label Studio."""
        return label_studio_place(project, self._settings.label_studio_url)

    def names(self, project: ProjectRecord, task_ids: Sequence[int]) -> dict[int, str]:
        """Return {}: Label Studio shows ids."""
        return {}

    def add_label(self, project: ProjectRecord, label: str) -> None:
        """Refuse: labels are changed in Label Studio.

        Raises:
            BadInputError: always.
        """
        raise BadInputError("labels are added in Label Studio: Settings > Labeling Interface")

    def _client(self, project: ProjectRecord | None) -> LabelStudioClient:
        settings = self._settings
        token = settings.label_studio_api_key
        if token is None:
            if project is None or not project.setup_token:
                raise ConfigurationError(
                    f"no token for Label Studio at {settings.label_studio_url}: set LABEL_STUDIO_API_KEY to a token of "
                    "its Account & Settings page"
                )
            token = SecretStr(project.setup_token)
        with self._lock:
            secret = token.get_secret_value()
            if secret not in self._clients:
                self._clients[secret] = LabelStudioClient(settings.label_studio_url, token)
            return self._clients[secret]

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            self._clients.clear()


def label_studio_place(project: ProjectRecord, fallback: str) -> Place:
    """Return how people's browsers reach a project in Label Studio: at the address that it calls its own.

    Args:
        project: of Label Studio.
        fallback: address of Label Studio, if it named none.
    """
    hostname = (project.settings or {}).get("hostname")
    is_address = isinstance(hostname, str) and hostname.startswith(("http://", "https://"))
    url = str(hostname).rstrip("/") if is_address else fallback
    return Place(
        "Label Studio",
        f"{url}/projects/{project.project_id}/data",
        has_runs=True,
        has_own_labels=False,
        options_from="Label Studio, extra params",
    )
