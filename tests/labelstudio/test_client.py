"""The API client against a real HTTP server that answers as Label Studio does."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import SecretStr

from backend.errors import (
    BadInputError,
    ConfigurationError,
    LabelStudioError,
    LabelStudioUnavailableError,
    NotFoundError,
    SoftmatcherError,
    TooLargeError,
)
from backend.labelstudio.api_token import ApiToken
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.transport import retry_after_s

from .web import Answer, Request, Web, serve

LEGACY = "f" * 40


def jwt(lives_s: float, **claims: Any) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part({'exp': int(time.time() + lives_s), **claims})}.c2lnbmF0dXJl"


PAT = jwt(6e9, token_type="refresh")


def answer(value: object, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as started:
        yield started


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


class Tokens:
    """Label Studio's exchange of a personal access token for access tokens; each new one makes the last one invalid."""

    def __init__(self, web: Web, lives_s: float = 300) -> None:
        self.given: list[str] = []
        self.lives_s = lives_s
        web.routes["/api/token/refresh/"] = self.exchange
        web.routes["/api/version"] = self.version

    def exchange(self, request: Request) -> Answer:
        if json.loads(request.body) != {"refresh": PAT}:
            return answer({"detail": "Token is invalid"}, 401)
        time.sleep(0.02)
        self.given.append(jwt(self.lives_s, number=len(self.given)))
        return answer({"access": self.given[-1]})

    def version(self, request: Request) -> Answer:
        is_valid = request.headers["authorization"] == f"Bearer {self.given[-1]}"
        return answer({"release": "1.23.2"}) if is_valid else answer({"detail": "expired"}, 401)


def test_a_legacy_token_is_sent_as_it_is(web: Web) -> None:
    web.always("/api/version", answer({"release": "1.23.2"}))
    web.always("/api/current-user/whoami", answer({"email": "a@example.com", "id": 1}))
    client = LabelStudioClient(f"{web.url}/", SecretStr(LEGACY))

    assert (client.version(), client.whoami()) == ("1.23.2", "a@example.com")
    assert {request.headers["authorization"] for request in web.requests} == {f"Token {LEGACY}"}
    assert client.auth_headers() == client.auth_headers(renew=True) == {"Authorization": f"Token {LEGACY}"}


def test_a_personal_access_token_is_exchanged_once_for_many_requests(web: Web) -> None:
    tokens = Tokens(web)
    client = LabelStudioClient(web.url, PAT)

    assert [client.version() for _ in range(3)] == ["1.23.2"] * 3
    assert len(tokens.given) == 1


def test_an_access_token_is_renewed_before_it_ends(web: Web) -> None:
    tokens = Tokens(web, lives_s=20)
    client = LabelStudioClient(web.url, PAT)

    client.auth_headers()
    client.auth_headers()
    assert len(tokens.given) == 2


def test_a_401_renews_the_access_token_and_asks_again(web: Web) -> None:
    tokens = Tokens(web)
    client = LabelStudioClient(web.url, PAT)
    client.version()
    tokens.given.append("revoked all before")

    assert client.version() == "1.23.2"
    assert len(tokens.given) == 3


def test_threads_share_one_exchange(web: Web) -> None:
    tokens = Tokens(web)
    client = LabelStudioClient(web.url, PAT)
    barrier = threading.Barrier(6)

    def ask(_: int) -> str:
        barrier.wait()
        return client.version()

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, range(6))) == {"1.23.2"}
    assert len(tokens.given) == 1


def test_threads_that_get_401_together_renew_once(web: Web) -> None:
    tokens = Tokens(web)
    client = LabelStudioClient(web.url, PAT)
    client.version()
    tokens.given.append("revoked")
    barrier = threading.Barrier(4)
    web.routes["/api/version"] = lambda request: _wait_if_old(request, tokens, barrier)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: client.version(), range(4))) == {"1.23.2"}
    assert len([token for token in tokens.given if token != "revoked"]) <= 2


def _wait_if_old(request: Request, tokens: Tokens, barrier: threading.Barrier) -> Answer:
    if request.headers["authorization"] == f"Bearer {tokens.given[0]}":
        barrier.wait(5)
    return tokens.version(request)


@pytest.mark.parametrize(
    ("token", "message"),
    [("", "got an empty one"), ("  ", "got an empty one"), (jwt(-10, token_type="refresh"), "got an expired one")],
    ids=["empty", "blank", "expired"],
)
def test_an_unusable_token_is_told_at_once(token: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"LABEL_STUDIO_API_KEY.*{message}"):
        LabelStudioClient("http://127.0.0.1:1", token)


def test_a_refused_personal_access_token_says_which_setting_to_change(web: Web) -> None:
    Tokens(web)
    client = LabelStudioClient(web.url, jwt(1000))

    with pytest.raises(LabelStudioError, match=r"personal access token \(401\): set LABEL_STUDIO_API_KEY"):
        client.version()


OWN_404 = answer({"id": "5c", "status_code": 404, "version": "1.23.2", "detail": "Not found.", "exc_info": None}, 404)
ANSWERS: list[tuple[Answer, type[SoftmatcherError], str]] = [
    (OWN_404, NotFoundError, r"GET /api/projects/1/ was answered with 404"),
    (
        answer({"detail": "Invalid token."}, 401),
        LabelStudioError,
        r"\(401: Invalid token\.\): set LABEL_STUDIO_API_KEY",
    ),
    (answer({"detail": "no"}, 403), LabelStudioError, r"\(403: no\)"),
    (
        answer({"validation_errors": {"title": ["short"]}}, 400),
        BadInputError,
        r"found fault with .*'title': \['short'\]",
    ),
    (Answer(b"<html>too large</html>", 413), TooLargeError, r"was too large for Label Studio or a proxy"),
    (answer({"detail": "x"}, 409), LabelStudioError, r"with 409: x"),
    (Answer(status=301, headers={"Location": "https://x"}), LabelStudioError, r"redirects .*set LABEL_STUDIO_URL"),
    (Answer(b"<html>", headers={"Content-Type": "text/html"}), LabelStudioError, r"with JSON, got text/html"),
    (answer([1]), LabelStudioError, r"must answer with an object, got list"),
]


@pytest.mark.parametrize(
    "given",
    [
        Answer(b"default backend - 404", 404, {"Content-Type": "text/plain"}),
        Answer(b"<html>Not Found</html>", 404, {"Content-Type": "text/html"}),
        Answer(b"", 404),
        answer({"detail": "Not found."}, 404),
        answer({"status_code": 404}, 404),
        answer([404], 404),
        Answer(b"x" * 100_000, 404),
    ],
)
def test_a_404_of_something_else_says_nothing_about_a_project(web: Web, given: Answer) -> None:
    """An ingress without its Label Studio, another server: nothing may be taken for gone."""
    web.always("/api/projects/1/", given)
    web.always("/api/annotations/1/", given)
    client = LabelStudioClient(web.url, LEGACY)
    for ask in (client.project, client.annotation):
        with pytest.raises(LabelStudioUnavailableError, match="something else than Label Studio"):
            ask(1)


def test_a_project_is_gone_only_for_a_label_studio_that_knows_the_token(web: Web) -> None:
    web.always("/api/projects/1/", OWN_404)
    web.always("/api/current-user/whoami", answer({"detail": "no"}, 401))
    client = LabelStudioClient(web.url, LEGACY)
    with pytest.raises(LabelStudioError, match="refused"):
        client.project(1)
    web.always("/api/current-user/whoami", answer({"email": "me@example.com"}))
    with pytest.raises(NotFoundError):
        client.project(1)


@pytest.mark.parametrize(("given", "error", "message"), ANSWERS)
def test_final_answers_become_errors_at_once(
    web: Web, given: Answer, error: type[SoftmatcherError], message: str
) -> None:
    web.always("/api/projects/1/", given)
    web.always("/api/current-user/whoami", answer({"email": "me@example.com"}))

    with pytest.raises(error, match=message) as caught:
        LabelStudioClient(web.url, LEGACY).project(1)
    assert type(caught.value) is error
    assert [request.path for request in web.requests].count("/api/projects/1/") == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_reading_is_tried_again(web: Web, status: int) -> None:
    web.always("/api/projects/1/", Answer(status=status), Answer(status=status), answer({"id": 1}))
    web.always("/api/projects/2/", Answer(status=status))
    client = LabelStudioClient(web.url, LEGACY)

    assert client.project(1) == {"id": 1}
    with pytest.raises(
        LabelStudioUnavailableError, match=f"answered {status} to GET /api/projects/2/: try again later"
    ):
        client.project(2)
    assert len(web.requests) == 6


def test_a_server_that_says_when_to_come_back_is_not_asked_before(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    busy = Answer(status=429, headers={"Retry-After": "1"})
    web.always("/api/projects/1/", busy, answer({"id": 1}))
    web.always("/api/projects/2/", Answer(status=503, headers={"Retry-After": "600"}))
    web.always("/api/projects/1/import/predictions", Answer(status=429, headers={"Retry-After": "90"}))
    client = LabelStudioClient(web.url, LEGACY)

    assert client.project(1) == {"id": 1}
    assert max(waits) >= 1
    # Ten minutes are for the caller to wait: asking again in between would be what it asked us not to do.
    with pytest.raises(LabelStudioUnavailableError) as caught:
        client.project(2)
    assert caught.value.retry_after_s == 600
    with pytest.raises(LabelStudioUnavailableError) as caught:
        client.import_predictions(1, [{"task": 1, "result": []}])
    assert caught.value.retry_after_s == 90
    assert len(web.requests) == 4


@pytest.mark.parametrize(
    ("told", "expected_s"),
    [("7", 7.0), (format_datetime(datetime.now(UTC) - timedelta(hours=1)), 0.0), ("soon", None), ("", None)],
    ids=["seconds", "date", "neither", "empty"],
)
def test_retry_after_is_seconds_or_a_date(told: str, expected_s: float | None) -> None:
    assert retry_after_s({"Retry-After": told}) == expected_s
    later = format_datetime(datetime.now(UTC) + timedelta(minutes=2))
    assert 100 < (retry_after_s({"Retry-After": later}) or 0) <= 120


def test_what_changes_something_is_sent_once(web: Web) -> None:
    web.always("/api/projects/1/import/predictions", Answer(status=502))

    with pytest.raises(LabelStudioUnavailableError):
        LabelStudioClient(web.url, LEGACY).import_predictions(1, [{"task": 1, "result": []}])
    assert len(web.requests) == 1


def test_a_label_studio_that_is_down_or_silent_is_unavailable(web: Web) -> None:
    silence = threading.Event()
    web.routes["/api/version"] = lambda _: Answer(stream=lambda _: silence.wait(30))
    begun = time.monotonic()
    with pytest.raises(LabelStudioUnavailableError, match=r"GET /api/version\) did not answer \(ReadTimeout\)"):
        LabelStudioClient(web.url, LEGACY, timeout_s=0.2).version()
    silence.set()
    assert time.monotonic() - begun < 15
    with serve() as gone:
        client = LabelStudioClient(gone.url, LEGACY)
    with pytest.raises(LabelStudioUnavailableError, match=r"did not answer \(ConnectionError\): check that it runs"):
        client.version()


@pytest.mark.parametrize("token", [LEGACY, PAT], ids=["legacy", "personal"])
def test_no_token_is_in_any_message_or_log(web: Web, token: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    client = LabelStudioClient(web.url, token)
    web.always("/api/token/refresh/", answer({"access": jwt(300)}))
    calls: list[Callable[[], object]] = [client.version, lambda: client.import_predictions(1, [{"task": 1}])]
    for status in (400, 401, 403, 404, 409, 500):
        for path in ("/api/version", "/api/projects/1/import/predictions", "/api/token/refresh/"):
            web.always(path, answer({"detail": "no"}, status))
        for call in calls:
            with pytest.raises(SoftmatcherError) as caught:
                call()
            chain = [caught.value, caught.value.__cause__]
            assert token not in "".join(f"{error!r}" for error in chain)
    assert token not in caplog.text
    assert token not in repr(vars(client)) + repr(vars(ApiToken(web.url, token, 1.0)))


def test_a_task_of_a_known_project_is_listed_without_predictions_being_made(web: Web) -> None:
    web.always("/api/tasks", answer({"tasks": [{"id": 7, "data": {"image": "s3://b/a.jpg"}}]}), answer({"tasks": []}))
    client = LabelStudioClient(web.url, LEGACY)

    assert client.task(7, 3)["data"] == {"image": "s3://b/a.jpg"}
    with pytest.raises(NotFoundError, match="task 8 is not in project 3"):
        client.task(8, 3)
    query = web.requests[0].query
    assert json.loads(query["query"][0]) == {"selectedItems": {"all": False, "included": [7]}}
    assert (query["project"], query["review"], query["resolve_uri"]) == (["3"], ["true"], ["false"])


def test_annotated_tasks_are_paged_by_id_so_that_changes_meanwhile_skip_none(web: Web) -> None:
    tasks = {number: {"id": number, "annotations": [{"id": number * 10}]} for number in range(1, 61)}

    def listing(request: Request) -> Answer:
        filters = {item["filter"]: item for item in json.loads(request.query["query"][0])["filters"]["items"]}
        assert filters["filter:tasks:total_annotations"]["value"] == 0
        after = filters["filter:tasks:id"]["value"]
        page = [task for number, task in tasks.items() if number > after][: int(request.query["page_size"][0])]
        for gone in range(1, 11):  # tasks deleted between two pages shift all later ones
            tasks.pop(gone, None)
        return answer({"tasks": page})

    web.routes["/api/tasks"] = listing
    found = list(LabelStudioClient(web.url, LEGACY).annotated_tasks(5))

    assert [task["id"] for task, _ in found] == list(range(1, 61))
    assert found[0][1] == [{"id": 10}]


def test_ids_of_tasks_are_paged_without_what_the_tasks_contain(web: Web) -> None:
    def listing(request: Request) -> Answer:
        filters = {item["filter"]: item for item in json.loads(request.query["query"][0])["filters"]["items"]}
        after = filters["filter:tasks:id"]["value"]
        page = [{"id": number} for number in range(after + 1, 251)][: int(request.query["page_size"][0])]
        return answer({"tasks": page, "total": 250})

    web.routes["/api/tasks"] = listing
    client = LabelStudioClient(web.url, LEGACY)
    pages = list(client.task_ids(3, after=20, only_unlabeled=True, more_predictions_than=1))
    assert [number for page in pages for number in page] == list(range(21, 251))
    assert len(web.requests) == 3
    query = web.requests[0].query
    assert "fields" not in query, "annotations and predictions stay where they are"
    assert query["review"] == ["true"], "Label Studio must not ask its ML backends while it lists"
    items = json.loads(query["query"][0])["filters"]["items"]
    assert [(item["filter"], item["operator"], item["value"]) for item in items] == [
        ("filter:tasks:total_annotations", "equal", 0),
        ("filter:tasks:total_predictions", "greater", 1),
        ("filter:tasks:id", "greater", 20),
    ]


def test_tasks_are_counted_with_one_small_request(web: Web) -> None:
    web.always("/api/tasks", answer({"tasks": [{"id": 1}], "total": 12345}))
    assert LabelStudioClient(web.url, LEGACY).count_tasks(3) == 12345
    assert web.requests[0].query["page_size"] == ["1"]


def test_some_tasks_come_in_one_request(web: Web) -> None:
    web.always("/api/tasks", answer({"tasks": [{"id": 7}, {"id": 9}], "total": 2}))
    client = LabelStudioClient(web.url, LEGACY)
    assert [task["id"] for task in client.tasks_of(3, [7, 8, 9])] == [7, 9]
    assert client.tasks_of(3, []) == []
    assert len(web.requests) == 1
    assert web.requests[0].query["fields"] == ["all"]


def test_prediction_that_is_gone_needs_no_deleting(web: Web) -> None:
    web.always("/api/predictions/5/", Answer(status=204), OWN_404)
    client = LabelStudioClient(web.url, LEGACY)
    client.delete_prediction(5)
    client.delete_prediction(5)
    assert [request.method for request in web.requests] == ["DELETE", "DELETE"]


def test_predictions_go_in_one_request(web: Web) -> None:
    web.always("/api/projects/4/import/predictions", answer({"created": 2}, 201))
    client = LabelStudioClient(web.url, LEGACY)
    predictions: list[dict[str, Any]] = [
        {"task": task, "result": [], "score": 0.5, "model_version": "v"} for task in (1, 2)
    ]

    assert client.import_predictions(4, predictions) == 2
    assert json.loads(web.requests[0].body) == predictions
    assert client.import_predictions(4, []) == 0
    assert len(web.requests) == 1


def test_predictions_of_a_version_are_deleted(web: Web) -> None:
    web.always("/api/projects/4/model-versions/", Answer(status=204))
    LabelStudioClient(web.url, LEGACY).delete_predictions(4, "v")

    assert (web.requests[0].method, json.loads(web.requests[0].body)) == ("DELETE", {"model_version": "v"})


def test_webhooks_are_listed_made_and_given_headers(web: Web) -> None:
    web.always("/api/webhooks/", answer([{"id": 9, "url": "http://b/webhook", "headers": {}}]))
    client = LabelStudioClient(web.url, LEGACY)
    (webhook,) = client.webhooks(4)
    web.always("/api/webhooks/9/", answer({"id": 9}))
    client.set_webhook_headers(webhook, {"Authorization": "Basic eA=="})
    web.always("/api/webhooks/", answer({"id": 10}, 201))
    client.create_webhook(4, "http://b/webhook", {"A": "b"})

    listed, changed, made = web.requests
    assert listed.query == {"project": ["4"]}
    assert changed.method == "PATCH"
    assert json.loads(changed.body) == {"url": "http://b/webhook", "headers": {"Authorization": "Basic eA=="}}
    assert json.loads(made.body)["send_for_all_actions"] is True


def test_webhooks_of_a_deleted_project_are_not_found(web: Web) -> None:
    web.always("/api/webhooks/", answer({"validation_errors": {"project": ["Select a valid choice."]}}, 400))

    with pytest.raises(NotFoundError, match=r"does not have project 4 \(any more\)"):
        LabelStudioClient(web.url, LEGACY).webhooks(4)


def test_ml_backends_are_listed(web: Web) -> None:
    web.always("/api/ml", answer([{"id": 1, "url": "http://b"}]), answer({"detail": "x"}))
    client = LabelStudioClient(web.url, LEGACY)

    assert client.ml_backends(4) == [{"id": 1, "url": "http://b"}]
    with pytest.raises(LabelStudioError, match="must answer with a list, got dict"):
        client.ml_backends(4)
