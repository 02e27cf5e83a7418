"""No request makes an error of ours, or hangs: changed recordings, and what the OpenAPI description allows and forbids.

1,000 requests; SOFTMATCHER_TEST_FUZZ_CASES=20000 for more.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from sqlalchemy import make_url

from backend.jobs import tasks
from testing.fakes import Backend, FakeLabelStudio, make_backend
from tests import fuzzing

CASES = fuzzing.CASES
FRESH_AFTER = 500
"""Requests after which a new backend begins: one that knows thousands of invented projects gets slow."""

quick = {
    "deadline": None,
    "database": None,
    "derandomize": CASES <= 1000,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate, Phase.shrink],
}


class Backends:
    """The backend to ask, a new one now and then."""

    def __init__(self, make: Callable[[FakeLabelStudio], Backend]) -> None:
        self._make = make
        self._asked = FRESH_AFTER
        self._backend: Backend | None = None

    def next(self) -> Backend:
        self._asked += 1
        if self._backend is None or self._asked > FRESH_AFTER:
            self.close()
            self._backend, self._asked = fuzzing.scene(self._make), 0
            tasks.use_projects(self._backend.projects, self._backend.queue)  # type: ignore[arg-type]
        self._backend.queue.jobs.clear()
        return self._backend

    def close(self) -> None:
        tasks.use_projects(None)
        if self._backend is not None:
            self._backend.projects.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def backends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backends]:
    count = iter(range(10**9))
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None

    def make(label_studio: FakeLabelStudio) -> Backend:
        number = next(count)
        return make_backend(tmp_path / str(number), label_studio, database_url=url and _own_schema(url, number))

    made = Backends(make)
    yield made
    made.close()


def _own_schema(url: str, number: int) -> str:
    import psycopg

    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS fuzz_{number}")
    return make_url(url).update_query_dict({"options": f"-csearch_path=fuzz_{number}"}).render_as_string(False)


@pytest.mark.slow
def test_changed_recorded_requests(backends: Backends, request: pytest.FixtureRequest) -> None:
    share = 0.45 if "sqlite" in request.node.name else 0.15

    @settings(max_examples=max(1, int(CASES * share)), **quick)  # type: ignore[arg-type]
    @given(fuzzing.sent())
    def run(case: fuzzing.Sent) -> None:
        with fuzzing.no_hang():
            answer = backends.next().client.open(
                case.path, method=case.method, data=case.body, content_type=case.content_type
            )
            fuzzing.check(answer, case.method)

    run()


@pytest.mark.slow
def test_annotations_of_any_content_do_not_break_a_worker(backends: Backends, request: pytest.FixtureRequest) -> None:
    results = [
        one["body"]["annotation"]["result"]
        for one in fuzzing.RECORDED
        if isinstance((one["body"] or {}).get("annotation"), dict)
    ]
    seeds = [(number, place) for number, result in enumerate(results) for place in fuzzing.places(result) if place]

    @settings(max_examples=max(1, CASES // 20), **quick)  # type: ignore[arg-type]
    @given(st.sampled_from(seeds), fuzzing.replacements)
    def run(seed: tuple[int, tuple[Any, ...]], value: Any) -> None:
        result = json.loads(json.dumps(results[seed[0]]))
        holder = result
        for key in seed[1][:-1]:
            holder = holder[key]
        holder[seed[1][-1]] = value
        backend = backends.next()
        backend.label_studio.annotate(10, 1, result)
        with fuzzing.no_hang():
            tasks.ingest_annotation(backend.label_studio.key, 10)

    run()


@pytest.mark.slow
def test_requests_that_the_description_allows_and_forbids(tmp_path: Path) -> None:
    backends = Backends(lambda label_studio: make_backend(tmp_path, label_studio))
    backend = backends.next()
    schema = schemathesis.openapi.from_wsgi("/openapi.json", backend.client.application)
    operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    both = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    count = max(1, int(CASES * 0.3) // (len(operations) * len(both)))
    for operation in operations:
        for mode in both:
            _fuzz_operation(backends, operation, mode, count)
    backends.close()


def _fuzz_operation(backends: Backends, operation: Any, mode: Any, count: int) -> None:
    try:
        cases = operation.as_strategy(generation_mode=mode)
    except Exception as error:
        pytest.fail(f"{operation.label}: {error}")

    @settings(max_examples=count, **quick)  # type: ignore[arg-type]
    @given(cases)
    def run(case: Any) -> None:
        backend = backends.next()
        with fuzzing.no_hang():
            response = case.call(app=backend.client.application)
        assert response.status_code < 500, f"{case.as_curl_command()}: {response.text[:500]}"

    try:
        run()
    except Unsatisfiable:
        # A route without parameters has nothing that could be wrong.
        assert mode == schemathesis.GenerationMode.NEGATIVE
        assert not operation.body
        assert not operation.path_parameters


def test_the_description_names_every_route_and_no_other(backend: Backend) -> None:
    described = backend.client.get("/openapi.json").get_json()["paths"]
    told = {(path, method.upper()) for path, methods in described.items() for method in methods}
    routes = {
        (re.sub(r"<(?:\w+(?:\([^)]*\))?:)?(\w+)>", r"{\1}", rule.rule), method)
        for rule in backend.client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert told == routes
