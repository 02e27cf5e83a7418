"""Opening a task encodes the next ones, and holds nobody up."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.core import cancellation
from backend.core.types import EncodedImage, Image
from backend.projects.composition import Projects
from testing.fakes import LABEL_CONFIG, Backend, ColourSoftmatcher, FakeLabelStudio, draw, make_backend, png


class SlowSoftmatcher(ColourSoftmatcher):
    """Encodes in many small steps, as a network does in layers."""

    def __init__(self) -> None:
        super().__init__()
        self.step_s = 0.0
        self.finished = 0

    def encode(self, image: Image, *, size_hw: tuple[int, int] | None = None, with_text: bool = False) -> EncodedImage:
        for _ in range(20):
            cancellation.check()
            time.sleep(self.step_s)
        self.finished += 1
        return super().encode(image)


@pytest.fixture
def slow() -> SlowSoftmatcher:
    return SlowSoftmatcher()


@pytest.fixture
def project(tmp_path: Path, slow: SlowSoftmatcher) -> Iterator[Backend]:
    label_studio = FakeLabelStudio()
    rng = np.random.default_rng(0)
    for task_id in range(1, 7):
        label_studio.add_task(task_id, png(draw(red=(int(rng.integers(1, 9)), task_id, 40, 40))))
    made = make_backend(tmp_path / "data", label_studio, softmatcher=lambda _: slow, prefetch_tasks=2)
    yield made
    made.projects.close()


def _open(backend: Backend, task_id: int) -> Any:
    body = {
        "tasks": [backend.label_studio.tasks[task_id]], "project": backend.label_studio.key,
        "label_config": LABEL_CONFIG, "params": {},
    }  # fmt: skip
    return backend.client.post("/predict", json=body)


def _click(backend: Backend, task_id: int) -> Any:
    value = {"x": 40.0, "y": 50.0, "width": 0.5, "keypointlabels": ["Cat"]}
    point = {
        "id": "p", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "origin": "manual",
        "original_width": 64, "original_height": 48, "image_rotation": 0, "value": value,
    }  # fmt: skip
    body = {
        "tasks": [backend.label_studio.tasks[task_id]], "project": backend.label_studio.key,
        "label_config": LABEL_CONFIG, "params": {"context": {"result": [point]}},
    }  # fmt: skip
    return backend.client.post("/predict", json=body)


def _within(seconds: float, is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.02)
    return False


def _count(projects: Projects, outcome: str) -> float:
    return float(projects.metrics.prefetched.labels(outcome)._value.get())


@pytest.mark.slow
def test_the_next_tasks_are_encoded_and_opening_them_encodes_nothing(project: Backend, slow: SlowSoftmatcher) -> None:
    assert _open(project, 2).status_code == 200
    assert _within(5, lambda: _count(project.projects, "encoded") == 2)
    assert slow.finished == 2
    for task_id in (3, 4):
        assert _click(project, task_id).json["results"][0]["result"]
    assert slow.finished == 2
    _click(project, 5)
    assert slow.finished == 3


def test_the_last_task_has_none_after_it(project: Backend, slow: SlowSoftmatcher) -> None:
    assert _open(project, 6).status_code == 200
    time.sleep(0.2)
    assert slow.finished == 0


def test_batches_look_ahead_at_nothing(project: Backend, slow: SlowSoftmatcher) -> None:
    tasks = [project.label_studio.tasks[number] for number in (1, 2)]
    body = {"tasks": tasks, "project": project.label_studio.key, "label_config": LABEL_CONFIG, "params": {}}
    assert project.client.post("/predict", json=body).status_code == 200
    time.sleep(0.2)
    assert slow.finished == 0


@pytest.mark.slow
def test_a_click_is_not_held_up_by_a_prefetch(project: Backend, slow: SlowSoftmatcher) -> None:
    _click(project, 1)
    slow.step_s = 0.1
    _open(project, 2)
    assert _within(5, lambda: project.projects.models.scheduler.is_full)
    slow.step_s = 0.01
    assert _click(project, 1).status_code == 200
    assert _count(project.projects, "interrupted") >= 1
    assert _within(10, lambda: _count(project.projects, "encoded") == 2)  # it comes back to them


@pytest.mark.slow
def test_a_click_on_the_very_image_takes_what_the_prefetch_makes(project: Backend, slow: SlowSoftmatcher) -> None:
    slow.step_s = 0.02
    _open(project, 2)
    sha_is_made = lambda: bool(project.projects.models.get(0)[1]._in_flight)  # noqa: E731
    assert _within(5, sha_is_made)
    assert _click(project, 3).status_code == 200
    assert _within(5, lambda: _count(project.projects, "encoded") == 2)
    assert slow.finished == 2  # tasks 3 and 4, each once


def test_label_studio_down_is_only_noted(project: Backend) -> None:
    _click(project, 1)
    tasks_after = project.label_studio.tasks_after
    is_asked = threading.Event()

    def fail(*args: int) -> list[dict[str, Any]]:
        is_asked.set()
        project.label_studio.is_down = True
        try:
            return tasks_after(*args)
        finally:
            project.label_studio.is_down = False

    project.label_studio.tasks_after = fail  # type: ignore[method-assign, assignment]
    assert _open(project, 1).status_code == 200
    assert is_asked.wait(5)
    assert _within(5, lambda: _count(project.projects, "failed") == 1)
    assert _click(project, 2).status_code == 200
