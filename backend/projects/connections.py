"""Connects to a project's Label Studio: whose token, which address."""

import threading

from pydantic import SecretStr

from backend.errors import ConfigurationError
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.images import ImageFetcher
from backend.projects.options import known_hostnames
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey


class Connections:
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
