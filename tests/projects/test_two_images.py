"""Tasks that show two images: each stands alone, and a mark on one counts for all that its brush is for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.core.types import Image
from backend.jobs import tasks
from backend.store.records import PropagationFilter
from testing.fakes import Backend, ColourSoftmatcher, FakeLabelStudio, draw, make_backend, png, stored_masks

RED_BOX, BLUE_BOX = (10, 10, 30, 30), (40, 5, 60, 20)
ONE_BRUSH = """<View><Image name="left" value="$image1"/><Image name="right" value="$image2"/>
  <BrushLabels name="brush" toName="left,right"><Label value="Coin"/></BrushLabels>
  <KeyPointLabels name="point" toName="left,right"><Label value="Coin"/></KeyPointLabels></View>"""
TWO_BRUSHES = """<View><Image name="left" value="$image1"/><Image name="right" value="$image2"/>
  <BrushLabels name="brush" toName="left"><Label value="Coin"/></BrushLabels>
  <BrushLabels name="other" toName="right"><Label value="Coin"/></BrushLabels>
  <KeyPointLabels name="point" toName="left"><Label value="Coin"/></KeyPointLabels></View>"""


class OneByOne(ColourSoftmatcher):
    """As on a processor."""


class InBatches(ColourSoftmatcher):
    """As on a GPU."""

    preferred_batch_size = 3


@pytest.fixture(params=[OneByOne, InBatches])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    backend = make_backend(tmp_path / "data", FakeLabelStudio(label_config=ONE_BRUSH), softmatcher=request.param)
    tasks.use_projects(backend.projects, backend.queue)  # type: ignore[arg-type]
    yield backend
    tasks.use_projects(None)
    backend.projects.close()


def add(backend: Backend, task_id: int, left: Image | None, right: Image | str | None) -> dict[str, Any]:
    """A task; None: the image is gone; text: its address."""
    data = {"image1": f"/data/upload/1/{task_id}-left.png", "image2": f"/data/upload/1/{task_id}-right.png"}
    for url, image in zip(data.values(), (left, right), strict=True):
        if image is not None and not isinstance(image, str):
            backend.label_studio.images[url] = png(image)
    if isinstance(right, str):
        data["image2"] = right
    return backend.label_studio.add_task(task_id, None, data=data)


def point(to_name: str, x: int, y: int) -> dict[str, Any]:
    value = {"x": 100 * x / 64, "y": 100 * y / 48, "width": 1, "keypointlabels": ["Coin"]}
    return {
        "id": f"point-{to_name}", "type": "keypointlabels", "from_name": "point", "to_name": to_name,
        "original_width": 64, "original_height": 48, "value": value,
    }  # fmt: skip


def mark_left(backend: Backend) -> str:
    add(backend, 1, draw(red=RED_BOX), draw())
    backend.label_studio.annotate(10, 1, [point("left", 20, 20)])
    key = backend.projects.note_project(backend.label_studio.project(1))
    backend.projects.references.reconcile(key)
    return key


def predict(backend: Backend, tasks: list[dict[str, Any]], **more: Any) -> Any:
    config = backend.label_studio.label_config
    body = {"tasks": tasks, "project": backend.label_studio.key, "label_config": config, "params": {}, **more}
    answer = backend.client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.get_json()["results"]


def images_of(result: Any) -> list[str]:
    return [region["to_name"] for region in result["result"]] if result else []


def test_a_mark_on_one_image_is_looked_for_on_all_that_its_brush_is_for(pair: Backend) -> None:
    mark_left(pair)
    both = add(pair, 2, draw(red=BLUE_BOX), draw(red=RED_BOX))
    (result,) = predict(pair, [both])
    assert images_of(result) == ["left", "right"]


def test_a_mark_on_one_image_is_not_looked_for_on_another_brushs(pair: Backend) -> None:
    pair.label_studio.label_config = TWO_BRUSHES
    mark_left(pair)
    (result,) = predict(pair, [add(pair, 2, draw(red=BLUE_BOX), draw(red=RED_BOX))])
    assert images_of(result) == ["left"]


@pytest.mark.parametrize("right", [None, ""], ids=["gone", "empty"])
def test_one_image_that_cannot_be_had_leaves_the_other_its_prediction(pair: Backend, right: str | None) -> None:
    mark_left(pair)
    tasks = [add(pair, 2, draw(red=RED_BOX), right), add(pair, 3, draw(red=RED_BOX), draw(red=BLUE_BOX))]
    assert [images_of(result) for result in predict(pair, tasks)] == [["left"], ["left", "right"]]
    assert [images_of(result) for result in predict(pair, tasks[:1])] == [["left"]]


@pytest.mark.slow
def test_a_propagation_predicts_what_can_be_had_and_says_what_is_missing(pair: Backend) -> None:
    key = mark_left(pair)
    add(pair, 2, draw(red=RED_BOX), None)
    add(pair, 3, draw(red=RED_BOX), "")
    add(pair, 4, draw(), None)
    add(pair, 5, draw(), "")
    record = pair.projects.propagations.start(key, PropagationFilter(), "test", supersede=False)
    pair.queue.plan_propagation(key, record.id)
    pair.work()

    states = {number: pair.projects.store.propagation_tasks.task(record.id, number) for number in range(1, 6)}
    assert {number: row.state for number, row in states.items() if row} == {
        1: "done", 2: "done", 3: "done", 4: "failed", 5: "empty",
    }, "where the object may be on the image that is gone, nobody knows that it is absent"  # fmt: skip
    status = pair.projects.propagations.status(pair.projects.store.propagations.get(record.id))
    reasons = {failure["first_task"]: failure["reason"] for failure in status["failures"]}
    assert "without image 'right'" in reasons[2]
    assert "404" in reasons[2]
    assert set(reasons) == {2, 3, 4}  # the reason of task 5 is that of task 3
    assert "without image &#39;right&#39;" in pair.client.get("/projects/1").text

    # The image comes back: the next propagation makes what was made without it anew.
    pair.label_studio.images["/data/upload/1/2-right.png"] = png(draw(red=BLUE_BOX))
    before = len(pair.label_studio.imported)
    record = pair.projects.propagations.start(key, PropagationFilter(), "test", supersede=False)
    pair.queue.plan_propagation(key, record.id)
    pair.work()
    assert [one["task"] for one in pair.label_studio.imported[before:]] == [2]
    assert [images_of(each) for each in pair.label_studio.tasks[2]["predictions"]] == [["left", "right"]]


def test_references_of_one_image_stand_where_the_other_is_gone(pair: Backend) -> None:
    key = mark_left(pair)
    add(pair, 2, draw(red=RED_BOX), None)
    pair.label_studio.annotate(11, 2, [point("left", 20, 20), point("right", 50, 10)])
    assert pair.projects.references.ingest(key, 11) == "references"
    stored = stored_masks(pair.projects.store, key)
    assert [(one.annotation_id, one.image_tag) for one in stored if one.annotation_id == 11] == [(11, "left")]
    problem = next(one.problem for one in pair.projects.store.annotations(key) if one.annotation_id == 11)
    assert "image 'right'" in str(problem)
    assert "404" in str(problem)

    pair.label_studio.images["/data/upload/1/2-right.png"] = png(draw(blue=BLUE_BOX))
    pair.projects.references.reconcile(key)
    assert pair.projects.count_references() == {"1": 3}

    # And if it goes again, what was made of it stays, whatever is read anew meanwhile.
    del pair.label_studio.images["/data/upload/1/2-right.png"]
    assert pair.projects.references.reconcile(key)["image_missing"] == 1
    assert pair.projects.references.reconcile(key)["references"] == 1
    assert pair.projects.count_references() == {"1": 3}


def test_a_click_on_one_image_needs_no_other(pair: Backend) -> None:
    task = add(pair, 1, draw(red=RED_BOX), None)
    (result,) = predict(pair, [task], params={"context": {"result": [point("left", 20, 20)]}})
    assert images_of(result) == ["left"]
    both = [point("right", 20, 20), point("left", 20, 20)]
    (result,) = predict(pair, [task], params={"context": {"result": both}})
    assert images_of(result) == ["left"]


def test_an_explanation_shows_the_images_that_can_be_had(pair: Backend) -> None:
    mark_left(pair)
    add(pair, 2, draw(red=RED_BOX), None)
    assert pair.client.get("/projects/1/tasks/2/explain.png").status_code == 200
    add(pair, 3, None, None)
    assert pair.client.get("/projects/1/tasks/3/explain.png").status_code == 404
