"""Fixtures that many tests share: a backend over fakes, in a folder of its own."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from backend import jobs
from backend.metrics import Metrics
from backend.projects import Projects
from backend.projects.models import Models
from backend.service import create_app
from backend.settings import Settings, load_settings
from backend.store import Store
from tests.fakes import ColourSoftmatcher, FakeConnections, FakeLabelStudio, PatientQueue


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell sets does not reach the tests."""
    for name in list(os.environ):
        if name.startswith("SOFTMATCHER_") and not name.startswith(("SOFTMATCHER_TEST_", "SOFTMATCHER_REQUIRE_")):
            monkeypatch.delenv(name)
    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY", "REDIS_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Backend:
    """A whole backend over fakes."""

    settings: Settings
    label_studio: FakeLabelStudio
    queue: PatientQueue
    projects: Projects
    client: FlaskClient

    def work(self) -> int:
        """Run the jobs that wait, and those that they enqueue; returns how many."""
        count = 0
        while self.queue.jobs:
            name, args = self.queue.jobs.pop(0)
            getattr(jobs, name)(*args)
            count += 1
        return count


def make_backend(folder: Path, label_studio: FakeLabelStudio, **settings: object) -> Backend:
    """A backend whose data lie in `folder`: a second one there sees what the first left."""
    made = load_settings(data_dir=folder, **settings)
    folder.mkdir(exist_ok=True)
    store, metrics, queue = Store(made.store_url), Metrics(), PatientQueue()
    store.create_tables()
    models = Models(made, metrics, load=lambda profile, on_stage: ColourSoftmatcher(on_stage))  # type: ignore[arg-type,return-value]
    projects = Projects(made, store, metrics, models, FakeConnections(label_studio))  # type: ignore[arg-type]
    models.get(10)
    app = create_app(projects, queue)  # type: ignore[arg-type]
    metrics.read_from(references=projects.count_references, cache=models.cache_figures, queue=queue.waiting)
    return Backend(made, label_studio, queue, projects, app.test_client())


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    made = make_backend(tmp_path / "data", FakeLabelStudio())
    jobs.use_projects(made.projects)
    yield made
    jobs.use_projects(None)
    made.projects.close()
