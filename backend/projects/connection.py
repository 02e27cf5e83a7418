"""How a project's Label Studio is reached: whose token, which address."""

import threading

from pydantic import SecretStr

from backend.errors import ConfigurationError
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.images import ImageFetcher
from backend.settings import Settings
from backend.store import Store


class Connections:
    """API clients and image fetchers, one for each token.

    The operator's token goes before the one that Label Studio sent to /setup, and both go to LABEL_STUDIO_URL only:
    an address in a request never decides where a token is sent.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._clients: dict[str, tuple[LabelStudioClient, ImageFetcher]] = {}
        self._lock = threading.Lock()

    def client(self, project_key: str) -> LabelStudioClient:
        """The API client for a project.

        Raises:
            ConfigurationError: there is no token.
        """
        return self._pair(project_key)[0]

    def fetcher(self, project_key: str) -> ImageFetcher:
        """The image fetcher for a project.

        Raises:
            ConfigurationError: there is no token.
        """
        return self._pair(project_key)[1]

    def _pair(self, project_key: str) -> tuple[LabelStudioClient, ImageFetcher]:
        settings = self._settings
        token = settings.label_studio_api_key
        if token is None:
            project = self._store.project(project_key)
            if project is None or not project.setup_token:
                raise ConfigurationError(
                    f"no token for Label Studio at {settings.label_studio_url}: set LABEL_STUDIO_API_KEY to a token of "
                    "its Account & Settings page"
                )
            token = SecretStr(project.setup_token)
        secret = token.get_secret_value()
        with self._lock:
            if secret not in self._clients:
                client = LabelStudioClient(settings.label_studio_url, token)
                fetcher = ImageFetcher(
                    settings.label_studio_url,
                    client.auth_headers,
                    allowed_hosts=settings.allowed_image_hosts,
                    max_bytes=int(settings.max_image_mb * 1e6),
                    timeout_s=settings.download_timeout_s,
                )
                self._clients[secret] = (client, fetcher)
            return self._clients[secret]

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            self._clients.clear()
