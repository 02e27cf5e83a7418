"""A label is its control and its name; labels of the background and shapes mean what they say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.core.cancellation import TimeLimitError
from backend.core.types import EncodedImage
from backend.engine.softmatcher import Softmatcher
from backend.jobs import tasks
from backend.labelstudio.label_prompts import LabelPrompts
from backend.projects.prediction import interactive
from backend.projects.references import ingestion, reconciliation, reference_mask
from testing.fakes import Backend, FakeLabelStudio, draw, make_backend, png

BOX, ELSEWHERE = (10, 10, 30, 30), (40, 5, 60, 20)
TWO_BRUSHES = """<View><Image name="image" value="$image"/>
  <BrushLabels name="material" toName="image"><Label value="Other"/><Label value="Coin"/></BrushLabels>
  <BrushLabels name="defect" toName="image"><Label value="Other"/><Label value="Crack"/></BrushLabels>
  <KeyPointLabels name="on_material" toName="image" smart="true"><Label value="Other"/><Label value="Coin"/>
  </KeyPointLabels>
  <KeyPointLabels name="on_defect" toName="image" smart="true"><Label value="Other"/><Label value="Crack"/>
  </KeyPointLabels></View>"""
ONE_BRUSH = """<View><Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Coin"/></BrushLabels>
  <PolygonLabels name="polygon" toName="image"><Label value="Coin"/><Label value="Roof"/></PolygonLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Coin"/><Label value="Background"/>
  </KeyPointLabels></View>"""


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    made = make_backend(tmp_path / "data", FakeLabelStudio(label_config=TWO_BRUSHES))
    tasks.use_projects(made.projects, made.queue)  # type: ignore[arg-type]
    yield made
    tasks.use_projects(None)
    made.projects.close()


def add(backend: Backend, task_id: int, **boxes: tuple[int, int, int, int]) -> dict[str, Any]:
    url = f"/data/upload/1/{task_id}.png"
    backend.label_studio.images[url] = png(draw((48, 64), **boxes))
    return backend.label_studio.add_task(task_id, None, data={"image": url})


def point(control: str, label: str, x: int, y: int) -> dict[str, Any]:
    value = {"x": 100 * x / 64, "y": 100 * y / 48, "width": 1, "keypointlabels": [label]}
    return {
        "id": f"{control}-{label}-{x}", "type": "keypointlabels", "from_name": control, "to_name": "image",
        "original_width": 64, "original_height": 48, "value": value,
    }  # fmt: skip


def polygon(label: str) -> dict[str, Any]:
    corners = [[100 * x / 64, 100 * y / 48] for x, y in ((10, 10), (30, 10), (30, 30), (10, 30))]
    return {
        "id": "polygon", "type": "polygonlabels", "from_name": "polygon", "to_name": "image",
        "original_width": 64, "original_height": 48, "value": {"points": corners, "polygonlabels": [label]},
    }  # fmt: skip


def ingest(backend: Backend, *marks: dict[str, Any]) -> str:
    add(backend, 1, red=BOX, blue=ELSEWHERE)
    backend.label_studio.annotate(10, 1, list(marks))
    key = backend.projects.note_project(backend.label_studio.project(1))
    backend.projects.references.reconcile(key)
    return key


def regions_of(backend: Backend, task: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
    config = backend.label_studio.label_config
    body = {"tasks": [task], "project": backend.label_studio.key, "label_config": config, "params": {}, **more}
    answer = backend.client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    result = answer.get_json()["results"][0]
    return [(one["from_name"], *one["value"]["brushlabels"]) for one in result["result"]] if result else []


def test_a_label_of_two_brushes_comes_back_in_the_one_it_was_marked_in(backend: Backend) -> None:
    key = ingest(backend, point("on_defect", "Other", 20, 20))
    assert [one.label for one in backend.projects.store.list_references(key)] == ["Other (defect)"]
    assert regions_of(backend, add(backend, 2, red=ELSEWHERE)) == [("defect", "Other")]
    context = {"result": [point("on_material", "Other", 50, 10)]}
    assert regions_of(backend, add(backend, 3, red=ELSEWHERE), params={"context": context}) == [("material", "Other")]


def test_the_same_name_in_two_brushes_is_two_labels(backend: Backend) -> None:
    key = ingest(backend, point("on_defect", "Other", 20, 20), point("on_material", "Other", 50, 10))
    labels = [one.label for one in backend.projects.store.list_references(key)]
    assert sorted(labels) == ["Other (defect)", "Other (material)"]
    both = add(backend, 2, red=ELSEWHERE, blue=BOX)
    assert sorted(regions_of(backend, both)) == [("defect", "Other"), ("material", "Other")]


def test_a_background_label_of_the_prompts_alone_is_no_reference(backend: Backend) -> None:
    backend.label_studio.label_config = ONE_BRUSH
    key = ingest(backend, point("point", "Coin", 20, 20), point("point", "Background", 50, 10))
    assert [one.label for one in backend.projects.store.list_references(key)] == ["Coin"]


def test_a_polygon_is_a_reference_and_one_of_another_label_is_told(backend: Backend) -> None:
    backend.label_studio.label_config = ONE_BRUSH
    key = ingest(backend, polygon("Coin"))
    softmatcher, _ = backend.projects.models.get(5)
    (reference,) = backend.projects.store.references(key, labels=["Coin"], signature=softmatcher.signature)
    assert reference.mask.sum() == 400
    backend.label_studio.annotate(11, 1, [polygon("Roof")])
    backend.projects.references.reconcile(key)
    (record,) = [one for one in backend.projects.store.annotations(key) if one.annotation_id == 11]
    assert record.problem is not None
    assert "nothing in it is read: polygonlabels of polygon" in record.problem


def test_marks_that_take_too_long_are_their_annotations_problem(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ingest(backend, point("on_defect", "Other", 20, 20))
    backend.label_studio.annotate(11, 1, [point("on_material", "Coin", 50, 10)])
    monkeypatch.setattr(ingestion, "MOST_CUTTING_S", 0.0)
    assert backend.projects.references.reconcile(key) == {"seen": 2, "unchanged": 1, "failed": 1}
    store = backend.projects.store
    (problem,) = [one.problem for one in store.annotations(key) if one.annotation_id == 11]
    assert "'Coin'" in str(problem)
    assert "must be cut within 60 s" in str(problem)
    assert [one.label for one in store.list_references(key)] == ["Other (defect)"]
    monkeypatch.undo()
    assert backend.projects.references.reconcile(key) == {"seen": 2, "unchanged": 1, "references": 1}
    assert sorted(one.label for one in store.list_references(key)) == ["Coin", "Other (defect)"]


def test_marks_that_take_too_long_now_keep_the_reference_that_they_gave(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ingest(backend, point("on_defect", "Other", 20, 20), point("on_material", "Coin", 50, 10))
    store = backend.projects.store
    before = {one.label: one.id for one in store.list_references(key)}
    assert sorted(before) == ["Coin", "Other (defect)"]
    cut = reference_mask.reference_mask

    def cut_in_time(softmatcher: Softmatcher, encoded: EncodedImage, prompts: LabelPrompts, **more: Any) -> object:
        if prompts.label == "Coin":
            raise TimeLimitError("must be cut within 60 s")
        return cut(softmatcher, encoded, prompts, **more)

    monkeypatch.setattr(ingestion, "reference_mask", cut_in_time)
    # Another reading, as after a change of the settings, makes every reference again.
    monkeypatch.setattr(ingestion, "reading_of", lambda *_: "another")
    monkeypatch.setattr(reconciliation, "reading_of", lambda *_: "another")
    assert backend.projects.references.reconcile(key) == {"seen": 1, "unchanged": 0, "references": 1}
    after = {one.label: one.id for one in store.list_references(key)}
    assert sorted(after) == ["Coin", "Other (defect)"]
    assert after["Coin"] == before["Coin"]
    (record,) = store.annotations(key)
    assert "label 'Coin': must be cut within 60 s" in str(record.problem)
    # A changed annotation is another matter: its earlier marks may be gone.
    backend.label_studio.annotate(10, 1, [point("on_material", "Coin", 52, 12)])
    assert backend.projects.references.reconcile(key) == {"seen": 1, "unchanged": 0, "failed": 1}
    assert store.list_references(key) == []


def test_a_click_whose_marks_take_too_long_is_told(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive, "INTERACTIVE_CUTTING_S", 0.0)
    config = backend.label_studio.label_config
    context = {"result": [point("on_material", "Other", 50, 10)]}
    body = {"tasks": [add(backend, 3, red=ELSEWHERE)], "project": backend.label_studio.key, "label_config": config}
    answer = backend.client.post("/predict", json={**body, "params": {"context": context}})
    assert answer.status_code == 422
    assert "must be cut within 30 s" in answer.text


def test_configs_that_cannot_work_are_refused_when_they_connect(backend: Backend) -> None:
    schema = '<View><Repeater on="$pages"><Image name="i" value="$i"/></Repeater></View>'
    answer = backend.client.post("/setup", json={"project": backend.label_studio.key, "schema": schema})
    assert answer.status_code == 422
    assert "<Repeater>" in answer.text
