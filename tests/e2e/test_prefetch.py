"""Opening a task in Label Studio encodes the images of those that follow it."""

import numpy as np
import pytest

from backend.cli.demo.coins import COIN
from backend.cli.demo.label_studio_server import TOKEN, LabelStudio, key_point
from backend.core.types import Image
from backend.labelstudio.client import LabelStudioClient
from tests.e2e.conftest import NewProject
from tests.e2e.scene import Backend, Project, wait_until

SIZE_HW = (48, 64)


def _images(*names: str) -> dict[str, Image]:
    """Noise that no other test has: nothing of it is cached."""
    return {
        name: np.random.default_rng(list(name.encode())).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
        for name in names
    }


@pytest.fixture
def ahead(new_project: NewProject, backend: Backend) -> Project:
    """Tasks first to fifth, those of another project between the second and the third."""
    project = new_project(backend, _images("first", "second"))
    new_project(backend, _images("stranger"))
    later = project.label_studio.upload_images(project.id, _images("third", "fourth", "fifth"))
    project.tasks.update(later)
    project.label_studio.update_project(project.id, show_collab_predictions=True)
    return project


def test_label_studio_lists_the_tasks_after_one(ahead: Project, label_studio: LabelStudio) -> None:
    client = LabelStudioClient(label_studio.url, TOKEN)

    def after(name: str, count: int) -> list[int]:
        return [task["id"] for task in client.tasks_after(ahead.id, ahead.tasks[name], count)]

    first, second, third, fourth, fifth = ahead.tasks.values()
    assert first < second < third - 1, "the other project's task must be between"
    assert after("first", 2) == [second, third]
    assert after("first", 50) == [second, third, fourth, fifth]
    assert after("fourth", 2) == [fifth]
    assert after("fifth", 2) == []
    assert after("first", 0) == []
    (task,) = client.tasks_after(ahead.id, second, 1)
    assert task["data"] == client.task(third, ahead.id)["data"]


def test_opening_a_task_encodes_the_next_two_and_no_others(ahead: Project) -> None:
    backend = ahead.backend

    def encoded() -> float:
        return backend.figure("softmatcher_stage_seconds_count", stage="encode")

    def looked_ahead(outcome: str) -> float:
        return backend.figure("softmatcher_prefetched_total", outcome=outcome)

    def click(name: str) -> None:
        ahead.interact(name, key_point((30, 20), SIZE_HW, COIN))

    before, failed, known = looked_ahead("encoded"), looked_ahead("failed"), looked_ahead("known")
    ahead.label_studio.task(ahead.tasks["first"])
    wait_until(lambda: looked_ahead("encoded") == before + 2, "two images encoded ahead")

    counted = encoded()
    click("second")
    click("third")
    assert encoded() == counted, "what was encoded ahead was encoded again"
    click("fourth")
    assert encoded() == counted + 1, "more than two were encoded ahead"

    # The last one has none after it; the one before it has, and says when both are through.
    ahead.label_studio.task(ahead.tasks["fifth"])
    ahead.label_studio.task(ahead.tasks["third"])
    wait_until(lambda: looked_ahead("encoded") + looked_ahead("known") == before + 2 + known + 2, "two more looked at")
    assert looked_ahead("encoded") == before + 3
    assert looked_ahead("failed") == failed
