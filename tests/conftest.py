"""Fixtures that many tests share: a backend over fakes, in a folder of its own."""

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from backend.jobs import tasks
from testing.fakes import Backend, FakeLabelStudio, make_backend
from tests import postgres

_NOT_FOR_WANT_OF_A_PACKAGE = ("data sets", "this machine does not allow", "SOFTMATCHER_TEST_FULL_SAM", "no CUDA device")
"""What CI may skip: what no package brings, what a sandbox forbids, minutes of full-size models, a GPU."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What importing leaves is there to stay: the garbage collector looks at it neither meanwhile nor in the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI a test that is skipped for want of something that can be installed has failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("SOFTMATCHER_REQUIRE_ALL"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in _NOT_FOR_WANT_OF_A_PACKAGE):
            report.outcome = "failed"
            report.longrepr = f"SOFTMATCHER_REQUIRE_ALL is set, so nothing may be skipped. {reason}"
    return report


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell and `.env` set does not reach the tests."""
    for name in list(os.environ):
        if name.startswith("SOFTMATCHER_") and not name.startswith(("SOFTMATCHER_TEST_", "SOFTMATCHER_REQUIRE_")):
            monkeypatch.delenv(name)
    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY", "REDIS_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SOFTMATCHER_ENV_FILE", os.devnull)


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """RQ's workers leave their handlers behind: a later test's signal would be theirs."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The evaluation data sets, which no package brings and no clone has."""
    beside = Path(__file__).parents[2] / "shared" / "datasets"
    folder = Path(os.environ.get("SOFTMATCHER_TEST_DATASETS", beside))
    if not folder.is_dir():
        pytest.skip("the evaluation data sets are not here; name their folder in SOFTMATCHER_TEST_DATASETS")
    return folder


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL database: the one that the variable names, else one of a server of our own."""
    if url := os.environ.get(postgres.VARIABLE):
        yield url
        return
    bin_folder = postgres.programs()
    if bin_folder is None:
        pytest.skip(f"PostgreSQL is not installed, and {postgres.VARIABLE} names none: apt-get install postgresql")
    with postgres.running_server(bin_folder) as url:
        yield url


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    made = make_backend(tmp_path / "data", FakeLabelStudio())
    tasks.use_projects(made.projects, made.queue)  # type: ignore[arg-type]
    yield made
    tasks.use_projects(None)
    made.projects.close()
