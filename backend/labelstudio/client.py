"""Label Studio's API, as far as this project needs it.

Over requests, not over label_studio_sdk: a client of the SDK costs each process 1.1 s and 107 MB (1,400 modules, pandas
among them; requests: 0.1 s and 16 MB), its task listing makes Label Studio ask our own backend for predictions while it
reads, and its errors hold whole responses.
"""

import base64
import binascii
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import requests
from pydantic import SecretStr

from backend.core.types import Json
from backend.errors import (
    BadInputError,
    ConfigurationError,
    LabelStudioError,
    LabelStudioUnavailableError,
    NotFoundError,
    TooLargeError,
)
from backend.labelstudio.transport import is_transient, keep_headers, network_errors, retry_after_s, retry_transient
from backend.own_http import Session, proxy_advice

logger = logging.getLogger(__name__)

_RENEW_BEFORE_S = 30.0
"""Access tokens live 300 s; one that ends while a request is on its way would cost a 401 and another request."""
_PAGE = 25
_LEAN_PAGE = 100
_SHOWN_CHARACTERS = 300


class LabelStudioClient:
    """One Label Studio with one token; threads share one.

    All methods raise:
        NotFoundError: what was asked for does not exist (any more), in Label Studio's own words. A 404 of anything
            else, a proxy for one, says nothing about it and is a LabelStudioUnavailableError.
        LabelStudioError: Label Studio refused the token (401, 403) or answered what nobody expected.
        LabelStudioUnavailableError: no answer in time, 429 or 5xx; reading was tried three times.
        BadInputError: Label Studio found fault with what was sent (400).
        TooLargeError: more was sent than Label Studio, or a proxy before it, takes at a time (413).
    """

    def __init__(self, url: str, api_key: SecretStr | str, *, timeout_s: float = 30.0) -> None:
        """Connects to nothing yet.

        Args:
            url: Label Studio's address as it is reached from here, with its path if it has one.
            api_key: a legacy token or a personal access token.
            timeout_s: for one request, each for connecting and for the answer.

        Raises:
            ConfigurationError: an empty token, or a personal access token that has expired.
        """
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._token = _Token(self._url, api_key, timeout_s)
        self._local = threading.local()

    def auth_headers(self, *, renew: bool = False) -> dict[str, str]:
        """The Authorization header for Label Studio.

        Args:
            renew: get a new access token first: the last one was answered with 401. Nothing changes for a legacy token.
        """
        return self._token.headers(refused=self._token.headers() if renew else None)

    def version(self) -> str:
        """Label Studio's release, like "1.23.2"."""
        return str(self._get("/api/version").get("release", "unknown"))

    def whoami(self) -> str:
        """The e-mail address of the token's user."""
        return str(self._get("/api/current-user/whoami").get("email", "unknown"))

    def project(self, project_id: int) -> Json:
        """A project, with its `label_config`, `title` and `created_at`.

        Raises:
            NotFoundError: Label Studio does not have it, or not for this token, while it knows the token.
        """
        try:
            return self._get(f"/api/projects/{project_id}/")
        except NotFoundError:
            self.whoami()  # of a Label Studio that does not know us, "not found" means nothing
            raise

    def annotation(self, annotation_id: int) -> Json:
        """An annotation, with its `result`, `task` and `project`."""
        return self._get(f"/api/annotations/{annotation_id}/")

    def task(self, task_id: int, project_id: int | None = None) -> Json:
        """A task, with its `data` as it was imported (addresses of cloud storages unresolved) and its annotations.

        Args:
            project_id: give it wherever it is known: without it Label Studio is asked as its editor does, and asks the
                project's ML backend (this one, that is) for predictions of the task before it answers.
        """
        if project_id is None:
            return self._get(f"/api/tasks/{task_id}/", params={"resolve_uri": "false"})
        query = {"selectedItems": {"all": False, "included": [task_id]}}
        tasks = self._tasks(project_id, query, page_size=1)
        if not tasks:
            raise NotFoundError(f"task {task_id} is not in project {project_id} of Label Studio (any more)")
        return tasks[0]

    def all_tasks(self, project_id: int, *, only_annotated: bool = False) -> Iterator[Json]:
        """All tasks of a project in the order of their ids, read page by page, with annotations and predictions."""
        return self._pages(project_id, [_HAS_ANNOTATIONS] if only_annotated else [])

    def tasks_after(self, project_id: int, task_id: int, count: int) -> list[Json]:
        """The tasks that follow one in the order of their ids, at most `count`; [] after the last."""
        if count < 1:
            return []
        query = {
            "filters": {"conjunction": "and", "items": [_filter("id", "greater", task_id)]},
            "ordering": ["tasks:id"],
        }
        return self._tasks(project_id, query, page_size=count)

    def annotated_tasks(self, project_id: int) -> Iterator[tuple[Json, list[Json]]]:
        """All tasks of a project that have annotations, in the order of their ids, read page by page; with these."""
        for task in self.all_tasks(project_id, only_annotated=True):
            yield task, list(task.get("annotations") or [])

    def tasks_of(self, project_id: int, task_ids: Sequence[int]) -> list[Json]:
        """The tasks of these ids that the project has, with annotations and predictions, in one request.

        Args:
            project_id: of the project.
            task_ids: at most 100: they travel in the address.
        """
        if not task_ids:
            return []
        query = {"selectedItems": {"all": False, "included": list(task_ids)}}
        return self._tasks(project_id, query, page_size=len(task_ids))

    def task_ids(
        self, project_id: int, *, after: int = 0, only_unlabeled: bool = False, more_predictions_than: int | None = None
    ) -> Iterator[list[int]]:
        """The ids of a project's tasks in their order, page by page, without what the tasks contain.

        Args:
            project_id: of the project.
            after: only ids above this one.
            only_unlabeled: leave out tasks that have annotations.
            more_predictions_than: only tasks with more predictions than this.
        """
        filters = _task_filters(only_unlabeled=only_unlabeled, more_predictions_than=more_predictions_than)
        while True:
            answer = self._list(project_id, [*filters, _filter("id", "greater", after)], page_size=_LEAN_PAGE)
            ids = [int(task["id"]) for task in _items(answer.get("tasks"))]
            if ids:
                yield ids
            if len(ids) < _LEAN_PAGE:
                return
            after = ids[-1]

    def count_tasks(self, project_id: int, *, only_unlabeled: bool = False) -> int:
        """How many tasks a project has."""
        answer = self._list(project_id, _task_filters(only_unlabeled=only_unlabeled), page_size=1)
        return int(answer.get("total", 0))

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete one prediction; one that is gone already is no error."""
        try:
            self._request("DELETE", f"/api/predictions/{prediction_id}/")
        except NotFoundError:
            logger.debug("prediction %d was gone already", prediction_id)

    def create_annotation(self, task_id: int, result: Sequence[Mapping[str, Any]]) -> Json:
        """Add an annotation to a task, as the token's user; those that are there already stay."""
        return self._send("POST", f"/api/tasks/{task_id}/annotations/", body={"result": list(result)})

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Add predictions, all in one request; those that are there already stay.

        Args:
            predictions: each with `task` (id), `result`, `score` and `model_version`.

        Returns:
            How many Label Studio created: fewer where its validation refuses some, of which only its log tells.
        """
        if not predictions:
            return 0
        created = self._send("POST", f"/api/projects/{project_id}/import/predictions", body=list(predictions))
        return int(created.get("created", 0))

    def create_prediction(self, prediction: Mapping[str, Any]) -> Json:
        """Add one prediction, with Label Studio's reason if it refuses.

        Args:
            prediction: with `task` (id), `result`, `score` and `model_version`.
        """
        return self._send("POST", "/api/predictions/", body=dict(prediction))

    def delete_predictions(self, project_id: int, model_version: str) -> None:
        """Delete all of a project's predictions of one model version."""
        self._send("DELETE", f"/api/projects/{project_id}/model-versions/", body={"model_version": model_version})

    def ml_backends(self, project_id: int) -> list[Json]:
        """A project's ML backends, with `id`, `url`, `title`, `state`. Label Studio calls their /setup for it."""
        return _items(self._request("GET", "/api/ml", params={"project": project_id}))

    def webhooks(self, project_id: int) -> list[Json]:
        """A project's webhooks, with `id`, `url`, `headers`, `is_active`."""
        try:
            return _items(self._request("GET", "/api/webhooks/", params={"project": project_id}))
        except BadInputError as error:  # the id is a filter here: Label Studio calls an unknown one an invalid choice
            raise NotFoundError(f"Label Studio does not have project {project_id} (any more)") from error

    def set_webhook_headers(self, webhook: Mapping[str, Any], headers: Mapping[str, str]) -> Json:
        """Change the headers that a webhook sends: it carries no credentials of the ML backend, even behind basic auth.

        Args:
            webhook: as `webhooks` gives it.
            headers: all of them; those it has and that are not here are lost.
        """
        body = {"url": webhook["url"], "headers": dict(headers)}
        return self._send("PATCH", f"/api/webhooks/{webhook['id']}/", body=body)

    def create_webhook(self, project_id: int, url: str, headers: Mapping[str, str]) -> Json:
        """A new webhook for all actions of a project, with their payload."""
        body = {
            "project": project_id,
            "url": url,
            "headers": dict(headers),
            "send_payload": True,
            "send_for_all_actions": True,
            "is_active": True,
        }
        return self._send("POST", "/api/webhooks/", body=body)

    def _pages(self, project_id: int, filters: Sequence[Json]) -> Iterator[Json]:
        # By the last id seen, not by page number: tasks added or deleted meanwhile would shift the pages.
        last_id = 0
        while True:
            items = [*filters, _filter("id", "greater", last_id)]
            query = {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}
            page = self._tasks(project_id, query, page_size=_PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            last_id = int(page[-1]["id"])

    def _tasks(self, project_id: int, query: Mapping[str, Any], *, page_size: int) -> list[Json]:
        # "review" is the one way to list tasks without Label Studio asking the ML backend for predictions meanwhile.
        listing = {"fields": "all", "resolve_uri": "false", "review": "true", "page": 1, "page_size": page_size}
        params = {"project": project_id, "query": json.dumps(query), **listing}
        return _items(self._get("/api/tasks", params=params).get("tasks"))

    def _list(self, project_id: int, filters: Sequence[Json], *, page_size: int) -> Json:
        query = {"filters": {"conjunction": "and", "items": list(filters)}, "ordering": ["tasks:id"]}
        listing = {"resolve_uri": "false", "review": "true", "page": 1, "page_size": page_size}
        return self._get("/api/tasks", params={"project": project_id, "query": json.dumps(query), **listing})

    def _get(self, path: str, params: Mapping[str, Any] | None = None) -> Json:
        return _object(self._request("GET", path, params=params))

    def _send(self, method: str, path: str, *, body: object) -> Json:
        answer = self._request(method, path, body=body)
        return _object({} if answer is None else answer)

    def _request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: object = None
    ) -> object:
        def once() -> requests.Response:
            headers = self._token.headers()
            response = self._ask(method, path, params, body, headers)
            if response.status_code == 401 and self._token.can_renew:
                response = self._ask(method, path, params, body, self._token.headers(refused=headers))
            if is_transient(response.status_code):
                raise LabelStudioUnavailableError(
                    f"Label Studio answered {response.status_code} to {method} {path}: try again later"
                    f"{proxy_advice(self._url)}",
                    retry_after_s=retry_after_s(response.headers),
                )
            return response

        # What changes something is sent once: an answer that got lost does not say that nothing was done.
        response = retry_transient(once, timeout_s=self._timeout_s) if method == "GET" else once()
        return _read_answer(response, f"{method} {path}")

    def _ask(
        self, method: str, path: str, params: Mapping[str, Any] | None, body: object, headers: Mapping[str, str]
    ) -> requests.Response:
        with network_errors(f"Label Studio at {self._url} ({method} {path})", self._url):
            return self._session().request(
                method,
                self._url + path,
                params=params,
                json=body,
                headers=headers,
                auth=keep_headers,
                timeout=self._timeout_s,
                allow_redirects=False,
            )

    def _session(self) -> requests.Session:
        # One a thread: requests does not promise that threads can share one.
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = Session()
        return session


class _Token:
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
        """The Authorization header; a new one if the last one ends soon or is the one that was refused."""
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
        access = _object(_read_answer(response, "POST /api/token/refresh/")).get("access")
        if not isinstance(access, str):
            raise LabelStudioError(f"{where} must answer with an access token, got none: check LABEL_STUDIO_URL")
        return SecretStr(access)


def _jwt_claims(token: str) -> Mapping[str, Any] | None:
    """The claims of a JWT, unverified; None for any other token."""
    parts = token.strip().split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None


def _read_answer(response: requests.Response, what: str) -> object:
    status = response.status_code
    if status == 204 or (status < 300 and not response.content):
        return None
    if status < 300:
        try:
            return response.json()
        except ValueError as error:
            raise LabelStudioError(
                f"Label Studio must answer {what} with JSON, got {response.headers.get('Content-Type')}: check that "
                f"LABEL_STUDIO_URL is its address{proxy_advice(response.url)}"
            ) from error
    if status == 404:
        if not _is_label_studios_own(response):
            raise LabelStudioUnavailableError(
                f"{what} was answered with 404 by something else than Label Studio "
                f"({response.headers.get('Content-Type')}): check that it runs, and that LABEL_STUDIO_URL and the "
                f"proxies before it lead there{proxy_advice(response.url)}"
            )
        raise NotFoundError(f"Label Studio does not have it (any more): {what} was answered with 404")
    if status in (401, 403):
        raise LabelStudioError(
            f"Label Studio refused {what} ({status}: {_detail(response)}): set LABEL_STUDIO_API_KEY to a token of one "
            "who may see the project (Account & Settings > Personal Access Token; a Legacy Token only where the "
            "organisation allows them)"
        )
    if status == 413:
        raise TooLargeError(f"{what} was too large for Label Studio or a proxy before it (413)")
    if status == 400:
        raise BadInputError(f"Label Studio found fault with {what}: {_detail(response)}")
    if 300 <= status < 400:
        raise LabelStudioError(
            f"Label Studio redirects {what} ({status}): set LABEL_STUDIO_URL to the address that it redirects to, with "
            "https where that is the difference"
        )
    raise LabelStudioError(f"Label Studio answered {what} with {status}: {_detail(response)}")


def _is_label_studios_own(response: requests.Response) -> bool:
    """Whether Label Studio 1.23.2 wrote an error itself: its API's errors name their status and its version."""
    try:
        answer = response.json()
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("status_code") == response.status_code and "version" in answer


def _detail(response: requests.Response) -> str:
    try:
        answer = response.json()
    except ValueError:
        return f"no JSON but {response.headers.get('Content-Type')}"
    if isinstance(answer, dict):
        answer = answer.get("validation_errors") or answer.get("detail") or "no detail"
    return str(answer)[:_SHOWN_CHARACTERS]


def _task_filters(*, only_unlabeled: bool = False, more_predictions_than: int | None = None) -> list[Json]:
    filters = [_filter("total_annotations", "equal", 0)] if only_unlabeled else []
    if more_predictions_than is not None:
        filters.append(_filter("total_predictions", "greater", more_predictions_than))
    return filters


def _filter(column: str, operator: str, value: int) -> Json:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": "Number", "value": value}


_HAS_ANNOTATIONS = _filter("total_annotations", "greater", 0)


def _object(answer: object) -> Json:
    if not isinstance(answer, dict):
        raise LabelStudioError(
            f"Label Studio must answer with an object, got {type(answer).__name__}: check its version"
        )
    return answer


def _items(answer: object) -> list[Json]:
    if not isinstance(answer, list) or not all(isinstance(item, dict) for item in answer):
        raise LabelStudioError(f"Label Studio must answer with a list, got {type(answer).__name__}: check it")
    return answer
