"""Clicks on a label whose references show thin lines follow the line; of other labels they do not."""

from typing import Any

import pytest

from testing.fakes import Backend, draw, png

SIZE_HW = (200, 320)
CONFIG = """<View><Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Crack"/><Label value="Coin"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Crack"/><Label value="Coin"/></KeyPointLabels>
</View>"""
UPPER, LOWER, DISC = (20, 50, 300, 54), (20, 150, 300, 154), (200, 80, 250, 120)


def point(label: str, x: int, y: int) -> dict[str, Any]:
    value = {"x": 100 * x / SIZE_HW[1], "y": 100 * y / SIZE_HW[0], "width": 1, "keypointlabels": [label]}
    return {
        "id": f"{label}-{x}-{y}", "type": "keypointlabels", "from_name": "point", "to_name": "image",
        "original_width": SIZE_HW[1], "original_height": SIZE_HW[0], "value": value,
    }  # fmt: skip


def add(backend: Backend, task_id: int, **boxes: tuple[int, int, int, int]) -> dict[str, Any]:
    url = f"/data/upload/1/{task_id}.png"
    backend.label_studio.images[url] = png(draw(SIZE_HW, **boxes))
    return backend.label_studio.add_task(task_id, None, data={"image": url})


@pytest.fixture
def key(backend: Backend) -> str:
    """A project with a reference of a crack and one of a coin."""
    backend.label_studio.label_config = CONFIG
    add(backend, 1, red=UPPER, blue=DISC)
    backend.label_studio.annotate(10, 1, [point("Crack", 100, 52), point("Coin", 220, 100)])
    made = backend.projects.note_project(backend.label_studio.project(1))
    backend.projects.references.reconcile(made)
    return made


def score_of(backend: Backend, task: dict[str, Any], *clicks: dict[str, Any]) -> list[float]:
    """The scores of what clicks give: of a line it is always the same, and never that of the fake's cut, 0.9."""
    body = {
        "tasks": [task], "project": backend.label_studio.key, "label_config": CONFIG,
        "params": {"context": {"result": list(clicks)}},
    }  # fmt: skip
    answer = backend.client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    return [round(one["score"], 2) for one in answer.get_json()["results"][0]["result"]]


def test_two_clicks_follow_the_line_that_references_show(backend: Backend, key: str) -> None:
    task = add(backend, 2, red=UPPER)
    assert score_of(backend, task, point("Crack", 30, 52), point("Crack", 290, 52)) == [0.45]
    assert score_of(backend, task, point("Crack", 30, 52)) == [0.9]


def test_clicks_on_another_label_are_cut_as_ever(backend: Backend, key: str) -> None:
    task = add(backend, 2, red=UPPER, blue=DISC)
    assert score_of(backend, task, point("Coin", 210, 100), point("Coin", 230, 100)) == [0.9]


@pytest.mark.slow
def test_clicks_that_were_submitted_follow_it_too(backend: Backend, key: str) -> None:
    add(backend, 3, red=UPPER, blue=LOWER)
    backend.label_studio.annotate(11, 3, [point("Crack", 30, 52), point("Crack", 290, 52)])
    backend.projects.references.reconcile(key)
    softmatcher, _ = backend.projects.models.get(5)
    stored = backend.projects.store.references(key, labels=["Crack"], signature=softmatcher.signature)
    (mask,) = [one.mask for one in stored if one.annotation_id == 11]
    assert mask[50:54, 40:280].mean() > 0.7
    assert not mask[:, :24].any()  # the whole line begins at 20, the first click is at 30
