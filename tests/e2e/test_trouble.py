"""What goes wrong around the backend: nothing is lost, and one bad task never spoils the others."""

import io
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import requests
from PIL import Image

from backend.cli.demo.label_studio_server import LabelStudio
from backend.cli.process.supervisor import free_port
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.flaky_proxy import FlakyProxy
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, Project, point_on, wait_until

TARGET = TARGETS[0]


@pytest.fixture
def flaky_proxy(label_studio: LabelStudio) -> Iterator[FlakyProxy]:
    proxy = FlakyProxy(label_studio.url, free_port())
    yield proxy
    proxy.close()


def predict_body(project: Project, names: tuple[str, ...]) -> dict[str, object]:
    """A /predict of several tasks, as Label Studio sends it."""
    tasks = [project.label_studio.task(project.tasks[name]) for name in names]
    return {
        "tasks": tasks,
        "project": project.key,
        "label_config": project.label_studio.project(project.id)["label_config"],
        "params": {"login": None, "password": None, "context": None},
    }


def test_label_studio_goes_away_in_the_middle_of_a_batch(
    start_other_backend: StartBackend, new_project: NewProject, flaky_proxy: FlakyProxy
) -> None:
    """What was done is kept, the rest is «not yet», and comes when Label Studio is back."""
    backend = start_other_backend("cut-off", LABEL_STUDIO_URL=flaky_proxy.url)
    project = new_project(backend)
    project.mark_one_coin()
    version = project.version()
    flaky_proxy.images_left = 2
    project.retrieve()
    stored = [name for name in TARGETS if project.predictions(name)]
    assert 1 <= len(stored) <= 2  # an image that was asked for twice counts twice
    assert project.version() == version

    flaky_proxy.images_left = None
    project.retrieve()
    assert all(len(project.predictions(name)) == 1 for name in TARGETS)
    assert project.mean_iou() > 0.5


def test_an_annotation_submitted_while_label_studio_is_away_is_taken_in_later(
    start_other_backend: StartBackend, new_project: NewProject, flaky_proxy: FlakyProxy
) -> None:
    backend = start_other_backend("late", LABEL_STUDIO_URL=flaky_proxy.url)
    project = new_project(backend, {MARKED: SAMPLES[MARKED].image})
    flaky_proxy.images_left = 0
    project.annotate(MARKED, point_on(MARKED, 2))
    wait_until(lambda: "waits_for_label_studio=" in backend.log(), "worker tried")
    assert project.references() == 0
    flaky_proxy.images_left = None
    project.wait_for_references(1)


def test_broken_images_do_not_spoil_the_others(new_project: NewProject, backend: Backend) -> None:
    truncated = io.BytesIO()
    Image.fromarray(SAMPLES[TARGET].image).save(truncated, "JPEG")
    project = new_project(
        backend,
        {
            MARKED: SAMPLES[MARKED].image,
            "truncated": truncated.getvalue()[: len(truncated.getvalue()) // 3],
            "text": b"this is no image",
            TARGET: SAMPLES[TARGET].image,
            "pixel": SAMPLES[TARGET].image[:1, :1],
        },
    )
    uploaded = project.label_studio.task(project.tasks[TARGET])["data"]["image"]
    missing, local, empty, foreign = project.label_studio.import_tasks(
        project.id,
        [
            {"data": {"image": f"{uploaded}.gone.png"}},
            {"data": {"image": "/data/local-files/?d=../../etc/passwd"}},
            {"data": {"image": ""}},
            {"data": {"image": "http://127.0.0.1:9/private.png"}},
        ],
    )
    project.tasks |= {"missing": missing, "local": local, "empty": empty, "foreign": foreign}
    project.mark_one_coin()
    project.retrieve(*(name for name in project.tasks if name != MARKED))
    with_predictions = {name for name in project.tasks if project.predictions(name)}
    assert with_predictions - {"truncated"} == {TARGET}
    assert project.iou(TARGET) > 0.5
    log = backend.log()
    for name in ("text", "missing", "local", "empty", "foreign"):
        assert f"task={project.tasks[name]}:" in log, name
    assert "Traceback" not in log.split(f"project={project.key}", 1)[1]


def test_an_annotation_on_a_broken_image_is_reported_and_the_next_one_works(
    new_project: NewProject, backend: Backend
) -> None:
    project = new_project(backend, {"text": b"this is no image", MARKED: SAMPLES[MARKED].image})
    annotation = project.annotate("text", point_on(MARKED, 2))
    wait_until(lambda: f"annotation={annotation}" in backend.log(), "annotation looked at")
    project.mark_one_coin()


def test_a_batch_longer_than_the_budget_is_finished_by_the_worker(
    start_other_backend: StartBackend, new_project: NewProject
) -> None:
    """«Retrieve» answers in time with what is done; the worker writes the rest through the API."""
    backend = start_other_backend("hurried", SOFTMATCHER_PREDICT_BUDGET_S="0.05")
    project = new_project(backend)
    project.mark_one_coin()
    project.retrieve()
    wait_until(lambda: all(project.predictions(name) for name in TARGETS), "predictions written by the worker")
    assert "handed_on=0" not in next(line for line in backend.log().splitlines() if "tasks=5" in line)
    assert all(len(project.predictions(name)) == 1 for name in TARGETS)
    assert project.mean_iou() > 0.5
    project.retrieve()
    assert all(len(project.predictions(name)) == 1 for name in TARGETS)


def test_health_setup_and_webhook_answer_while_a_batch_is_predicted(project: Project) -> None:
    project.mark_one_coin()
    backend = project.backend
    body = predict_body(project, TARGETS)
    body["tasks"] = [dict(task, id=task["id"]) for task in body["tasks"] for _ in range(4)]  # type: ignore[attr-defined]
    config = body["label_config"]
    finished = threading.Event()
    answers: list[requests.Response] = []

    def predict() -> None:
        answers.append(backend.post("/predict", body))
        finished.set()

    thread = threading.Thread(target=predict)
    thread.start()
    times_ms: dict[str, list[float]] = {"health": [], "setup": [], "webhook": []}
    setup = {"project": project.key, "schema": config, "hostname": "", "access_token": "", "extra_params": None}
    event = {"action": "TASKS_CREATED", "tasks": [], "project": project.label_studio.project(project.id)}
    calls: dict[str, Callable[[], requests.Response]] = {
        "health": lambda: backend.get("/health"),
        "setup": lambda: backend.post("/setup", setup),
        "webhook": lambda: backend.post("/webhook", event),
    }
    while not finished.is_set():
        for name, call in calls.items():
            started = time.perf_counter()
            assert call().ok
            times_ms[name].append(1000 * (time.perf_counter() - started))
        time.sleep(0.05)
    thread.join()
    assert len(answers[0].json()["results"]) == 20
    medians = {name: sorted(values)[len(values) // 2] for name, values in times_ms.items()}
    assert len(times_ms["health"]) > 5
    assert medians["health"] < 50, medians
    assert medians["setup"] < 200, medians
    assert medians["webhook"] < 300, medians


@pytest.mark.parametrize("part", ["service", "worker"])
def test_a_crash_loses_nothing(start_other_backend: StartBackend, new_project: NewProject, part: str) -> None:
    backend = start_other_backend(f"crashed-{part}")
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, TARGET)})
    project.mark_one_coin()
    backend.processes.kill(f"{backend.name}-{part}")
    project.annotate(TARGET, point_on(TARGET, 1))
    backend.restart()
    project.wait_for_references(2)
