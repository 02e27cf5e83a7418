"""A token of Label Studio, and the header that carries it."""

import base64
import binascii
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import requests
from pydantic import SecretStr

from backend.errors import ConfigurationError, LabelStudioError, LabelStudioUnavailableError
from backend.labelstudio.api_answers import object_of, read_answer
from backend.labelstudio.transport import is_transient, keep_headers, network_errors, retry_after_s, retry_transient
from backend.own_http import Session, proxy_advice

_RENEW_BEFORE_S = 30.0
"""Access tokens live 300 s; one that ends while a request is on its way would cost a 401 and another request."""


class ApiToken:
    """A legacy token, or a personal access token with the access token that it was last exchanged for."""

    def __init__(self, url: str, api_key: SecretStr | str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        claims = _jwt_claims(self._key.get_secret_value())
        if not self._key.get_secret_value().strip():
            raise ConfigurationError("LABEL_STUDIO_API_KEY must be a token of Label Studio, got an empty one: set it")
        if claims is not None and float(claims.get("exp", time.time() + 1)) < time.time():
            raise ConfigurationError("LABEL_STUDIO_API_KEY must be a valid token, got an expired one: make a new one")
        self.can_renew = claims is not None
        self._access: SecretStr | None = None
        self._renew_at = 0.0
        self._lock = threading.Lock()

    def headers(self, *, refused: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the Authorization header; a new one if the last one ends soon or is the one that was refused."""
        if not self.can_renew:
            return {"Authorization": f"Token {self._key.get_secret_value().strip()}"}
        with self._lock:
            # Of threads that were refused together the first renews: the others find another header than theirs.
            if self._access is None or time.time() >= self._renew_at or refused == self._bearer():
                self._access = self._exchange()
                claims = _jwt_claims(self._access.get_secret_value()) or {}
                self._renew_at = float(claims.get("exp", time.time() + 2 * _RENEW_BEFORE_S)) - _RENEW_BEFORE_S
            return self._bearer()

    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._access.get_secret_value()}"} if self._access else {}

    def _exchange(self) -> SecretStr:
        where = f"Label Studio at {self._url} (POST /api/token/refresh)"

        def once() -> requests.Response:
            with network_errors(where, self._url), Session() as session:
                response = session.post(
                    f"{self._url}/api/token/refresh/",
                    json={"refresh": self._key.get_secret_value()},
                    auth=keep_headers,
                    timeout=self._timeout_s,
                    allow_redirects=False,
                )
            if is_transient(response.status_code):
                raise LabelStudioUnavailableError(
                    f"{where} answered {response.status_code}: try again later{proxy_advice(self._url)}",
                    retry_after_s=retry_after_s(response.headers),
                )
            return response

        response = retry_transient(once, timeout_s=self._timeout_s)
        if response.status_code in (400, 401, 403):
            raise LabelStudioError(
                f"Label Studio refused the personal access token ({response.status_code}): set LABEL_STUDIO_API_KEY to "
                "a new one (Account & Settings > Personal Access Token)"
            )
        access = object_of(read_answer(response, "POST /api/token/refresh/")).get("access")
        if not isinstance(access, str):
            raise LabelStudioError(f"{where} must answer with an access token, got none: check LABEL_STUDIO_URL")
        return SecretStr(access)


def _jwt_claims(token: str) -> Mapping[str, Any] | None:
    """Return the claims of a JWT, unverified; None for any other token."""
    parts = token.strip().split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None
