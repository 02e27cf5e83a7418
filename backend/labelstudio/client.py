"""Label Studio's API, as far as this project needs it.

Over requests, not over label_studio_sdk: a client of the SDK costs each process 1.1 s and 107 MB (1,400 modules, pandas
among them; requests: 0.1 s and 16 MB), its task listing makes Label Studio ask our own backend for predictions while it
reads, and its errors hold whole responses.
"""

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import requests
from pydantic import SecretStr

from backend.core.types import Json
from backend.errors import (
    BadInputError,
    LabelStudioUnavailableError,
    NotFoundError,
)
from backend.labelstudio.api_answers import items_of, object_of, read_answer
from backend.labelstudio.api_token import ApiToken
from backend.labelstudio.transport import is_transient, keep_headers, network_errors, retry_after_s, retry_transient
from backend.own_http import Session, proxy_advice

logger = logging.getLogger(__name__)

_PAGE = 25
_LEAN_PAGE = 100


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
        """Connect to nothing yet.

        Args:
            url: Label Studio's address as it is reached from here, with its path if it has one.
            api_key: a legacy token or a personal access token.
            timeout_s: for one request, each for connecting and for the answer.

        Raises:
            ConfigurationError: an empty token, or a personal access token that has expired.
        """
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._token = ApiToken(self._url, api_key, timeout_s)
        self._local = threading.local()

    def auth_headers(self, *, renew: bool = False) -> dict[str, str]:
        """Return the Authorization header for Label Studio.

        Args:
            renew: get a new access token first: the last one was answered with 401. Nothing changes for a legacy token.
        """
        return self._token.headers(refused=self._token.headers() if renew else None)

    def version(self) -> str:
        """Return Label Studio's release, like "1.23.2"."""
        return str(self._get("/api/version").get("release", "unknown"))

    def whoami(self) -> str:
        """Return the e-mail address of the token's user."""
        return str(self._get("/api/current-user/whoami").get("email", "unknown"))

    def project(self, project_id: int) -> Json:
        """Return a project, with its `label_config`, `title` and `created_at`.

        Raises:
            NotFoundError: Label Studio does not have it, or not for this token, while it knows the token.
        """
        try:
            return self._get(f"/api/projects/{project_id}/")
        except NotFoundError:
            self.whoami()  # of a Label Studio that does not know us, "not found" means nothing
            raise

    def annotation(self, annotation_id: int) -> Json:
        """Return an annotation, with its `result`, `task` and `project`."""
        return self._get(f"/api/annotations/{annotation_id}/")

    def task(self, task_id: int, project_id: int | None = None) -> Json:
        """Return a task, with its annotations and its `data` as imported (addresses of cloud storages unresolved).

        Args:
            task_id: of the task.
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
        """Yield a project's tasks in the order of their ids, with annotations and predictions; read page by page."""
        return self._pages(project_id, [_HAS_ANNOTATIONS] if only_annotated else [])

    def tasks_after(self, project_id: int, task_id: int, count: int) -> list[Json]:
        """Return the tasks that follow one in the order of their ids, up to `count`; [] after the last."""
        if count < 1:
            return []
        query = {
            "filters": {"conjunction": "and", "items": [_filter("id", "greater", task_id)]},
            "ordering": ["tasks:id"],
        }
        return self._tasks(project_id, query, page_size=count)

    def annotated_tasks(self, project_id: int) -> Iterator[tuple[Json, list[Json]]]:
        """Yield the tasks of a project that have annotations, and these, in the order of ids; read page by page."""
        for task in self.all_tasks(project_id, only_annotated=True):
            yield task, list(task.get("annotations") or [])

    def tasks_of(self, project_id: int, task_ids: Sequence[int]) -> list[Json]:
        """Return the tasks of these ids that the project has, with annotations and predictions, in one request.

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
        """Return the ids of a project's tasks in their order, page by page, without what the tasks contain.

        Args:
            project_id: of the project.
            after: only ids above this one.
            only_unlabeled: leave out tasks that have annotations.
            more_predictions_than: only tasks with more predictions than this.
        """
        filters = _task_filters(only_unlabeled=only_unlabeled, more_predictions_than=more_predictions_than)
        while True:
            answer = self._list(project_id, [*filters, _filter("id", "greater", after)], page_size=_LEAN_PAGE)
            ids = [int(task["id"]) for task in items_of(answer.get("tasks"))]
            if ids:
                yield ids
            if len(ids) < _LEAN_PAGE:
                return
            after = ids[-1]

    def count_tasks(self, project_id: int, *, only_unlabeled: bool = False) -> int:
        """Return how many tasks a project has."""
        answer = self._list(project_id, _task_filters(only_unlabeled=only_unlabeled), page_size=1)
        return int(answer.get("total", 0))

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete one prediction; one that is gone already is no error."""
        try:
            self._request("DELETE", f"/api/predictions/{prediction_id}/")
        except NotFoundError:
            logger.debug("prediction %d was gone already", prediction_id)

    def create_annotation(
        self, task_id: int, result: Sequence[Mapping[str, Any]], *, prediction_id: int | None = None
    ) -> Json:
        """Add an annotation to a task, as the token's user; those that are there already stay.

        Args:
            task_id: of the task.
            result: its regions.
            prediction_id: of the prediction that it was made of, if it was.
        """
        made_of = {} if prediction_id is None else {"parent_prediction": prediction_id}
        return self._send("POST", f"/api/tasks/{task_id}/annotations/", body={"result": list(result), **made_of})

    def delete_annotation(self, annotation_id: int) -> None:
        """Delete one annotation; one that is gone already is no error."""
        try:
            self._request("DELETE", f"/api/annotations/{annotation_id}/")
        except NotFoundError:
            logger.debug("annotation %d was gone already", annotation_id)

    def page_of_tasks(self, project_id: int, *, after: int = 0, count: int = 25) -> tuple[list[int], int]:
        """Return the ids of the tasks that follow one in the order of their ids, and how many follow it in all."""
        answer = self._list(project_id, [_filter("id", "greater", after)], page_size=count)
        return [int(task["id"]) for task in items_of(answer.get("tasks"))], int(answer.get("total", 0))

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Add predictions, all in one request; those that are there already stay.

        Args:
            project_id: of the tasks.
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

    def set_cluster(self, prediction_id: int, cluster: int | None) -> None:
        """Set the cluster of a prediction, by which Label Studio orders tasks; an import of predictions drops it."""
        self._send("PATCH", f"/api/predictions/{prediction_id}/", body={"cluster": cluster})

    def change_project(self, project_id: int, **changes: Any) -> Json:
        """Change fields of a project, such as `sampling` and `model_version`."""
        return self._send("PATCH", f"/api/projects/{project_id}/", body=changes)

    def create_view(self, project_id: int, title: str, ordering: str) -> int:
        """Add a view of the tasks without an annotation to the project's Data Manager; return its id.

        Args:
            project_id: of the project.
            title: of the view.
            ordering: a column of the Data Manager, as "tasks:predictions_score"; "-" before it turns it round.
        """
        filters = {"conjunction": "and", "items": [_filter("total_annotations", "equal", 0)]}
        view = {"type": "list", "target": "tasks", "title": title, "ordering": [ordering], "filters": filters}
        return int(self._send("POST", "/api/dm/views/", body={"project": project_id, "data": view})["id"])

    def delete_view(self, view_id: int) -> None:
        """Delete a view of the Data Manager; one that is gone already is no error."""
        try:
            self._request("DELETE", f"/api/dm/views/{view_id}/")
        except NotFoundError:
            logger.debug("view %d was gone already", view_id)

    def delete_predictions(self, project_id: int, model_version: str) -> None:
        """Delete all of a project's predictions of one model version."""
        self._send("DELETE", f"/api/projects/{project_id}/model-versions/", body={"model_version": model_version})

    def ml_backends(self, project_id: int) -> list[Json]:
        """Return a project's ML backends (`id`, `url`, `title`, `state`). Label Studio calls their /setup for it."""
        return items_of(self._request("GET", "/api/ml", params={"project": project_id}))

    def set_extra_params(self, ml_backend: Mapping[str, Any], extra_params: Mapping[str, Any]) -> Json:
        """Change the extra params of an ML backend; Label Studio then calls its /setup with them.

        Args:
            ml_backend: as `ml_backends` gives it.
            extra_params: all of them; those it has and that are not here are lost.
        """
        body = {"url": ml_backend["url"], "project": ml_backend["project"], "extra_params": dict(extra_params)}
        if ml_backend.get("auth_method") == "BASIC_AUTH":
            # Label Studio checks the connection with what is sent; an empty password stands for the one it has.
            user = ml_backend.get("basic_auth_user")
            body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": ""}
        return self._send("PATCH", f"/api/ml/{ml_backend['id']}", body=body)

    def webhooks(self, project_id: int) -> list[Json]:
        """Return a project's webhooks, with `id`, `url`, `headers`, `is_active`."""
        try:
            return items_of(self._request("GET", "/api/webhooks/", params={"project": project_id}))
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
        """Create a webhook for all actions of a project, with their payload."""
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
        return items_of(self._get("/api/tasks", params=params).get("tasks"))

    def _list(self, project_id: int, filters: Sequence[Json], *, page_size: int) -> Json:
        query = {"filters": {"conjunction": "and", "items": list(filters)}, "ordering": ["tasks:id"]}
        listing = {"resolve_uri": "false", "review": "true", "page": 1, "page_size": page_size}
        return self._get("/api/tasks", params={"project": project_id, "query": json.dumps(query), **listing})

    def _get(self, path: str, params: Mapping[str, Any] | None = None) -> Json:
        return object_of(self._request("GET", path, params=params))

    def _send(self, method: str, path: str, *, body: object) -> Json:
        answer = self._request(method, path, body=body)
        return object_of({} if answer is None else answer)

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
        return read_answer(response, f"{method} {path}")

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


def _task_filters(*, only_unlabeled: bool = False, more_predictions_than: int | None = None) -> list[Json]:
    filters = [_filter("total_annotations", "equal", 0)] if only_unlabeled else []
    if more_predictions_than is not None:
        filters.append(_filter("total_predictions", "greater", more_predictions_than))
    return filters


def _filter(column: str, operator: str, value: int) -> Json:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": "Number", "value": value}


_HAS_ANNOTATIONS = _filter("total_annotations", "greater", 0)
