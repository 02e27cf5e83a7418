"""Label Studio's own order of tasks, over fakes: set, renewed by a propagation, taken back."""

from typing import Any

import pytest

from testing.fakes import Backend, draw, png

POINT: dict[str, Any] = {
    "id": "a", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
    "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": ["Cat"]},
}  # fmt: skip
FORMER = {"sampling": "Sequential sampling", "model_version": "Softmatcher"}


@pytest.fixture
def ready(backend: Backend) -> Backend:
    """Four tasks: three show a red object, the last one nothing."""
    for number in range(1, 4):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30 + number, 30))))
    backend.label_studio.add_task(4, png(draw()))
    backend.projects.note_project(backend.label_studio.project(1))
    return backend


def annotate(backend: Backend, annotation_id: int, task_id: int) -> None:
    backend.label_studio.annotate(annotation_id, task_id, [POINT])
    backend.queue.ingest_annotation(backend.label_studio.key, annotation_id)
    backend.work()


def begin(backend: Backend) -> Any:
    answer = backend.client.post("/projects/1/next", json={})
    backend.work()
    return answer


def predictions(backend: Backend, task_id: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = backend.label_studio.tasks[task_id]["predictions"]
    return found


def test_every_task_gets_a_score_and_label_studio_its_order(ready: Backend) -> None:
    annotate(ready, 10, 1)
    assert begin(ready).status_code == 202
    (nothing,) = predictions(ready, 4)
    assert (nothing["result"], nothing["score"]) == ([], 0.7)
    assert all(len(predictions(ready, number)) == 1 for number in range(1, 5))
    assert {each["cluster"] for number in range(1, 5) for each in predictions(ready, number)} <= {0, 1}
    assert ready.label_studio.changed == {"sampling": "Uncertainty sampling", "model_version": nothing["model_version"]}
    assert ready.label_studio.views == {1: ("Least certain first", "tasks:predictions_score")}


def test_without_a_reference_nothing_is_set(ready: Backend) -> None:
    answer = ready.client.post("/projects/1/next", json={})
    assert answer.status_code == 409
    assert "no reference" in answer.text
    assert ready.label_studio.changed == FORMER
    assert ready.label_studio.views == {}


@pytest.mark.slow
def test_undo_restores_what_stood_there_before(ready: Backend) -> None:
    annotate(ready, 10, 1)
    begin(ready)
    assert ready.client.post("/projects/1/next", json={}).status_code == 202, "twice is no harm"
    ready.work()
    answer = ready.client.post("/projects/1/next/undo", json={})
    assert answer.get_json() == FORMER
    ready.work()
    assert ready.label_studio.changed == FORMER
    assert ready.label_studio.views == {}
    assert predictions(ready, 4) == []
    assert [each["cluster"] for each in predictions(ready, 2)] == [None]
    assert ready.client.post("/projects/1/next/undo", json={}).status_code == 409


def test_undo_leaves_what_somebody_set_since(ready: Backend) -> None:
    annotate(ready, 10, 1)
    begin(ready)
    ready.label_studio.changed |= {"sampling": "Uniform sampling", "model_version": ""}
    ready.client.post("/projects/1/next/undo", json={})
    assert ready.label_studio.changed == {"sampling": "Uniform sampling", "model_version": ""}


def test_undo_forgets_nothing_while_label_studio_is_away(ready: Backend) -> None:
    annotate(ready, 10, 1)
    begin(ready)
    ready.label_studio.is_down = True
    assert ready.client.post("/projects/1/next/undo", json={}).status_code >= 500
    ready.label_studio.is_down = False
    assert ready.client.post("/projects/1/next/undo", json={}).get_json() == FORMER


@pytest.mark.slow
def test_new_masks_stand_beside_those_that_label_studio_shows_until_a_propagation_renews_its_order(
    ready: Backend,
) -> None:
    annotate(ready, 10, 1)
    begin(ready)
    first = ready.label_studio.changed["model_version"]
    ready.queue.note_visible(ready.label_studio.key, [2])
    annotate(ready, 11, 3)
    assert ready.label_studio.changed["model_version"] == first
    assert ready.label_studio.versions_of(2)[0] == first
    assert len(predictions(ready, 2)) == 2
    ready.client.post("/projects/1/propagations", json={})
    ready.work()
    second = ready.label_studio.changed["model_version"]
    assert second != first
    for number in range(1, 5):
        (left,) = predictions(ready, number)
        assert left["model_version"] == second
        assert left["cluster"] is not None


@pytest.mark.slow
def test_a_second_propagation_keeps_predictions_without_regions(ready: Backend) -> None:
    annotate(ready, 10, 1)
    begin(ready)
    ids = [each["id"] for number in range(1, 5) for each in predictions(ready, number)]
    ready.client.post("/projects/1/propagations", json={})
    ready.work()
    assert [each["id"] for number in range(1, 5) for each in predictions(ready, number)] == ids
    newest = ready.projects.store.propagations.latest(ready.label_studio.key)[0]
    assert ready.projects.propagations.status(newest)["counts"]["kept"] == 3


@pytest.mark.slow
def test_what_to_label_next_and_what_to_confirm(ready: Backend) -> None:
    assert ready.client.get("/projects/1/next").get_json() == {"is_set": False, "label": [], "confirm": []}
    annotate(ready, 10, 1)
    begin(ready)
    found = ready.client.get("/projects/1/next").get_json()
    assert found["is_set"]
    assert [one["task"] for one in found["label"]] == [4, 2, 3]
    assert found["label"][0]["reason"].startswith("nothing is found, which is right with a probability of 0.70")
    assert [(one["label"], one["task"]) for one in found["confirm"]] == [("Cat", 2), ("Cat", 3)]
    page = ready.client.get("/projects/1?tab=next").text
    assert 'id="task-4"' in page
    assert "probability of 0.70" in page
    made = ready.client.post("/projects/1/tasks/2/accept", json={}).get_json()
    ready.work()
    assert made["annotation"] in ready.label_studio.annotations
    assert [one["task"] for one in ready.client.get("/projects/1/next").get_json()["confirm"]] == [3]
