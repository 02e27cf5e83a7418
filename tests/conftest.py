"""Fixtures that many tests share: a backend over fakes, in a folder of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend import jobs
from tests.fakes import Backend, FakeLabelStudio, make_backend


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell sets does not reach the tests."""
    for name in list(os.environ):
        if name.startswith("SOFTMATCHER_") and not name.startswith(("SOFTMATCHER_TEST_", "SOFTMATCHER_REQUIRE_")):
            monkeypatch.delenv(name)
    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY", "REDIS_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    made = make_backend(tmp_path / "data", FakeLabelStudio())
    jobs.use_projects(made.projects, made.queue)  # type: ignore[arg-type]
    yield made
    jobs.use_projects(None)
    made.projects.close()
