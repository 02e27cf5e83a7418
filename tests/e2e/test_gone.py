"""What seems gone and what is gone: nothing is lost on a proxy's word, a webhook's, or a user's who sees less."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from backend.cli.demo.label_studio_server import LabelStudio
from backend.cli.process.supervisor import free_port
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.flaky_proxy import FlakyProxy
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, Project, point_on, wait_until


@pytest.fixture
def proxy(label_studio: LabelStudio) -> Iterator[FlakyProxy]:
    proxy = FlakyProxy(label_studio.url, free_port())
    yield proxy
    proxy.close()


def test_a_404_of_a_proxy_loses_nothing(
    start_other_backend: StartBackend, new_project: NewProject, proxy: FlakyProxy
) -> None:
    """Label Studio is away, its ingress answers 404, and worker and service start anew meanwhile."""
    backend = start_other_backend("ingress", LABEL_STUDIO_URL=proxy.url)
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, TARGETS[0])})
    project.mark_one_coin()
    proxy.answers_itself = True
    backend.restart()
    started = backend.post(f"/projects/{project.id}/propagations", {})
    assert started.status_code == 202
    backend.post("/webhook", {"action": "PROJECT_UPDATED", "project": project.label_studio.project(project.id)})
    project.annotate(MARKED, point_on(MARKED, 3))
    wait_until(lambda: "something else than Label Studio" in backend.log(), "worker asked")
    shown = backend.get(f"/projects/{project.id}/propagations/{started.json()['id']}").json()
    assert shown["state"] == "planning"
    assert project.references() == 1
    proxy.answers_itself = False
    project.wait_for_references(2)
    wait_until(lambda: bool(project.predictions(TARGETS[0])), "propagation went on", 120)


def test_forged_webhooks_of_a_real_project_change_nothing(small_project: Project) -> None:
    small_project.mark_one_coin()
    backend, shown = small_project.backend, small_project.label_studio.project(small_project.id)
    task = {"id": small_project.tasks[MARKED]}
    for body in (
        {
            "action": "PROJECT_UPDATED",
            "project": {**shown, "created_at": "2036-01-01T00:00:00Z", "label_config": "<View/>"},
        },
        {"action": "TASKS_DELETED", "project": shown, "tasks": [task]},
        {
            "action": "ANNOTATIONS_DELETED",
            "project": shown,
            "annotations": [{"id": number} for number in range(1, 400)],
        },
    ):
        assert backend.post("/webhook", body).status_code == 201
    small_project.annotate(TARGETS[0], point_on(TARGETS[0], 1))
    small_project.wait_for_references(2)
    small_project.label_studio.call("DELETE", f"/api/tasks/{small_project.tasks[TARGETS[0]]}/")
    small_project.wait_for_references(1)


def test_a_project_deleted_in_label_studio_ends_its_propagation_and_is_forgotten(
    start_other_backend: StartBackend, new_project: NewProject
) -> None:
    backend = start_other_backend("forgetful", SOFTMATCHER_GONE_PROJECT_DAYS="0")
    kept = new_project(backend, {MARKED: SAMPLES[MARKED].image})
    kept.mark_one_coin()
    doomed = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, TARGETS[0])})
    doomed.mark_one_coin()
    doomed.label_studio.call("DELETE", f"/api/projects/{doomed.id}/")
    started = backend.post(f"/projects/{doomed.id}/propagations", {}).json()["id"]
    address = f"/projects/{doomed.id}/propagations/{started}"

    def has_ended() -> bool:
        answer = backend.get(address)
        return answer.status_code == 404 or answer.json()["state"] == "failed"

    wait_until(has_ended, "propagation ended")
    backend.restart()  # it looks for deleted projects soon after its start, then every few hours
    wait_until(lambda: backend.get(f"/projects/{doomed.id}").status_code == 404, "its data is deleted", 90)
    assert kept.references() == 1
    told = _forget(backend, kept.id)
    assert "1 references" in told
    assert kept.references() == 1
    assert "deleted" in _forget(backend, kept.id, "--yes")
    assert backend.get(f"/projects/{kept.id}").status_code == 404


def _forget(backend: Backend, project: int, *more: str) -> str:
    command = [sys.executable, "-m", "backend", "forget", "--project", str(project), *more]
    return subprocess.run(
        command, env={**os.environ, **backend.environment}, capture_output=True, text=True, check=True
    ).stdout
