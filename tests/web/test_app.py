"""The protocol, over fakes: every recorded request gets the right answer, every bad one a clear error."""

import base64
import json
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray

from backend.errors import LabelStudioUnavailableError, ModelUnavailableError, NotFoundError
from backend.labelstudio.codec import is_own_region_id, read_regions
from backend.labelstudio.rle import decode_mask, encode_mask
from backend.projects.composition import key_of_project, open_projects
from backend.projects.references import ingestion
from backend.settings import load_settings
from backend.store import tables
from backend.store.records import PropagationFilter
from backend.web.app import create_app
from backend.web.prediction_slots import client_is_gone
from testing.fakes import LABEL_CONFIG, Backend, FakeLabelStudio, PatientQueue, draw, make_backend, png, stored_masks

PAYLOADS = sorted((Path(__file__).parents[1] / "payloads").glob("*.json"))
RED_BOX = (10, 10, 30, 30)


def _keypoint(x: float, y: float, label: str = "Cat", **more: Any) -> dict[str, Any]:
    """A key point as Label Studio sends it: percent of a 64 x 48 image."""
    value = {"x": 100 * x / 64, "y": 100 * y / 48, "width": 0.5, "keypointlabels": [label]}
    return {
        "id": f"kp-{label}-{x}-{y}", "type": "keypointlabels", "from_name": "kp", "to_name": "image",
        "origin": "manual",
        "original_width": 64, "original_height": 48, "image_rotation": 0, "value": value, **more,
    }  # fmt: skip


def _brush(mask: NDArray[Any], label: str = "Cat", **more: Any) -> dict[str, Any]:
    value = {"format": "rle", "rle": encode_mask(mask), "brushlabels": [label]}
    return {
        "id": "brush-1", "type": "brushlabels", "from_name": "brush", "to_name": "image", "origin": "manual",
        "original_width": mask.shape[1], "original_height": mask.shape[0], "image_rotation": 0, "value": value, **more,
    }  # fmt: skip


def _predict(backend: Backend, tasks: list[dict[str, Any]], **more: Any) -> Any:
    body = {"tasks": tasks, "project": backend.label_studio.key, "label_config": LABEL_CONFIG, "params": {}, **more}
    return backend.client.post("/predict", json=body)


def _interact(backend: Backend, task: dict[str, Any], *context: dict[str, Any]) -> Any:
    return _predict(backend, [task], params={"context": {"result": list(context)}})


def _setup(backend: Backend, **more: Any) -> Any:
    body = {
        "project": backend.label_studio.key,
        "schema": LABEL_CONFIG,
        "hostname": "http://x",
        "access_token": "t" * 40,
    }
    return backend.client.post("/setup", json={**body, "extra_params": None, **more})


def _announce(backend: Backend, action: str, **more: Any) -> Any:
    project = backend.label_studio.project(1)
    return backend.client.post("/webhook", json={"action": action, "project": project, **more})


def _with_red_reference(backend: Backend) -> None:
    """Task 1 shows a red box, and its annotation 10 marks it."""
    backend.label_studio.add_task(1, png(draw(red=RED_BOX)))
    annotation = backend.label_studio.annotate(10, 1, [_keypoint(20, 20)])
    assert _announce(backend, "ANNOTATION_CREATED", annotation=annotation).status_code == 201
    assert backend.work() >= 1


def _mask_of(region: dict[str, Any]) -> NDArray[Any]:
    return decode_mask(region["value"]["rle"], (region["original_height"], region["original_width"]))


def test_there_are_recorded_requests() -> None:
    assert len(PAYLOADS) > 20


@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.stem)
def test_recorded_request_is_answered(backend: Backend, path: Path) -> None:
    recorded = json.loads(path.read_text())
    body = recorded["body"]
    answer = backend.client.open(recorded["path"].rstrip("?"), method=recorded["method"], json=body)
    if path.stem.startswith("predict_interactive"):
        # The recorded server's images are not here: the labeler is told so, with a status that Label Studio shows.
        assert answer.status_code == 404, answer.text
        assert "404" in answer.get_json()["error"]
    elif path.stem.startswith("predict"):
        assert answer.json == {"results": [[] for _ in body["tasks"]]}
    elif path.stem == "webhook_START_TRAINING":
        # Of a project that is not known: it is looked up first.
        assert answer.status_code == 404, answer.text
        assert [name for name, _ in backend.queue.jobs] == ["refresh_project"]
    else:
        assert answer.status_code == (201 if path.stem.startswith("webhook") else 200), answer.text
    if path.stem.startswith("webhook_ANNOTATION"):
        assert answer.get_json()["status"] == "queued"


@pytest.mark.parametrize("path", [p for p in PAYLOADS if "interactive" in p.stem], ids=lambda path: path.stem)
def test_recorded_scribble_gets_a_mask_of_the_image_size(backend: Backend, path: Path) -> None:
    body = json.loads(path.read_text())["body"]
    task = body["tasks"][0]
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    backend.label_studio.images[task["data"]["image"]] = png(noise)
    answer = backend.client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    (result,) = answer.get_json()["results"]
    (region,) = result["result"]
    assert (region["original_width"], region["original_height"]) == (640, 480)
    used = body["params"]["context"]["result"][0]
    assert region["value"]["brushlabels"] == used["value"][used["type"]]
    assert region["from_name"] == "brush"
    assert region["origin"] != "manual"
    assert is_own_region_id(region["id"])


def test_health_answers_before_anything_else(backend: Backend) -> None:
    answer = backend.client.get("/health")
    assert answer.get_json()["status"] == "UP"
    assert answer.get_json()["model"] == "ready"


def test_setup_and_predictions_carry_the_same_model_version(backend: Backend) -> None:
    before = _setup(backend).json["model_version"]
    _with_red_reference(backend)
    version = _setup(backend).json["model_version"]
    assert version != before
    task = backend.label_studio.add_task(2, png(draw(red=(40, 5, 60, 20))))
    (result,) = _predict(backend, [task]).json["results"]
    assert result["model_version"] == version
    assert backend.client.get("/versions").json == {"versions": [version]}


@pytest.mark.slow
def test_scribble_on_one_task_marks_the_object_on_the_others(backend: Backend) -> None:
    _with_red_reference(backend)
    there = backend.label_studio.add_task(2, png(draw((60, 80), red=(40, 5, 60, 20))))
    absent = backend.label_studio.add_task(3, png(draw(blue=(1, 1, 9, 9))))
    results = _predict(backend, [there, absent]).json["results"]
    assert results[1] == []
    (region,) = results[0]["result"]
    expected = np.zeros((60, 80), bool)
    expected[5:20, 40:60] = True
    np.testing.assert_array_equal(_mask_of(region), expected)
    assert 0 <= region["score"] <= 1


def test_a_bad_task_never_spoils_the_others(backend: Backend) -> None:
    _with_red_reference(backend)
    good = backend.label_studio.add_task(2, png(draw(red=(40, 5, 60, 20))))
    missing = backend.label_studio.add_task(3, None)
    broken = backend.label_studio.add_task(4, png(draw(red=RED_BOX))[:60])
    no_image = backend.label_studio.add_task(5, b"") | {"data": {"text": "hello"}}
    results = _predict(backend, [missing, broken, good, no_image, good]).json["results"]
    assert [bool(result) for result in results] == [False, False, True, False, True]
    assert 'softmatcher_tasks_total{outcome="failed"} 3.0' in backend.client.get("/metrics").text


@pytest.mark.slow
def test_batch_answers_within_its_budget_and_hands_on_the_rest(tmp_path: Path, backend: Backend) -> None:
    _with_red_reference(backend)
    tasks = [backend.label_studio.add_task(number, png(draw(red=RED_BOX))) for number in range(2, 7)]
    slow = make_backend(tmp_path / "data", backend.label_studio, predict_budget_s=1e-9)
    results = _predict(slow, tasks).json["results"]
    assert results == [[]] * 5
    (handed_on,) = slow.projects.store.propagations.active()
    assert slow.queue.jobs == [("propagate", (backend.label_studio.key, handed_on.id))]
    assert _predict(slow, tasks).json["results"] == [[]] * 5
    assert len(slow.queue.jobs) == 1
    assert slow.projects.store.propagation_tasks.counts(handed_on.id).pending == 5
    slow.work()
    assert sorted(item["task"] for item in backend.label_studio.imported) == [2, 3, 4, 5, 6]
    _predict(slow, tasks)
    slow.work()
    assert len(backend.label_studio.imported) == 5, "a second run adds no second prediction of the same version"


@pytest.mark.slow
def test_a_batch_that_gets_no_turn_on_the_models_is_handed_on_within_its_budget(
    tmp_path: Path, backend: Backend
) -> None:
    """Interactive calls go first: a batch must not wait behind them past the time that Label Studio waits for it."""
    _with_red_reference(backend)
    tasks = [backend.label_studio.add_task(number, png(draw(red=RED_BOX))) for number in range(2, 5)]
    hurried = make_backend(tmp_path / "data", backend.label_studio, predict_budget_s=0.3)
    with hurried.projects.models.scheduler.slot(is_interactive=True):
        answer = _predict(hurried, tasks)
    assert answer.json["results"] == [[]] * 3
    (handed_on,) = hurried.projects.store.propagations.active()
    assert hurried.projects.store.propagation_tasks.counts(handed_on.id).pending == 3
    assert [name for name, _ in hurried.queue.jobs] == ["propagate"]


def test_negative_point_takes_away(backend: Backend) -> None:
    task = backend.label_studio.add_task(1, png(draw(red=(5, 5, 25, 25), blue=(25, 5, 45, 25))))
    both = [_keypoint(10, 10), _keypoint(30, 10)]
    (result,) = _interact(backend, task, *both).json["results"]
    assert _mask_of(result["result"][0]).sum() == 800
    (result,) = _interact(backend, task, *both, _keypoint(40, 20, is_positive=False)).json["results"]
    assert _mask_of(result["result"][0]).sum() == 400


def test_a_click_after_the_image_was_replaced_is_cut_on_the_new_one(backend: Backend) -> None:
    task = backend.label_studio.add_task(1, png(draw(red=(5, 5, 25, 25))))
    (result,) = _interact(backend, task, _keypoint(10, 10)).json["results"]
    assert _mask_of(result["result"][0]).sum() == 400
    _interact(backend, task, _keypoint(10, 10))
    assert (backend.label_studio.fetches, backend.label_studio.revalidated) == (1, 1), "an unchanged image comes once"

    backend.label_studio.images["/data/upload/1/1.png"] = png(draw(red=(5, 5, 15, 15)))
    (result,) = _interact(backend, task, _keypoint(10, 10)).json["results"]
    assert _mask_of(result["result"][0]).sum() == 100


def test_strokes_of_the_draft_count_and_old_points_do_not(backend: Backend) -> None:
    task = backend.label_studio.add_task(1, png(draw(red=(5, 5, 25, 25), blue=(35, 5, 55, 25))))
    touch = {"id": "t", "type": "add", "relativePoints": [65.0, 30.0, 75.0, 30.0], "relativeStrokeWidth": 4.0}
    stroke: dict[str, Any] = {
        "id": "s", "type": "brushlabels", "from_name": "brush", "to_name": "image", "origin": "manual",
        "original_width": 64, "original_height": 48, "value": {"touches": [touch], "brushlabels": ["Cat"]},
    }  # fmt: skip
    other_label = {**stroke, "id": "o", "value": {**stroke["value"], "brushlabels": ["Dog"]}}
    draft = {"result": [stroke, other_label, _keypoint(60, 40)]}
    (result,) = _interact(backend, task | {"drafts": [draft]}, _keypoint(10, 10)).json["results"]
    (region,) = result["result"]
    mask = _mask_of(region)
    assert mask[5:25, 5:25].all()
    assert mask[5:25, 35:55].all()
    assert not mask[40:, :].any(), "a point that is only in the draft may be some seconds old"


def test_scribble_that_finds_nothing_gives_no_region(backend: Backend) -> None:
    task = backend.label_studio.add_task(1, png(draw()))
    same_place = [_keypoint(10, 10), _keypoint(10, 10, is_positive=False)]
    (result,) = _interact(backend, task, *same_place).json["results"]
    assert result["result"] == []
    assert result["score"] is None


_TEXT = {"id": "t", "type": "textarea", "from_name": "note", "to_name": "image", "value": {"text": ["rust"]}}
_CHOICE = {"id": "c", "type": "choices", "from_name": "quality", "to_name": "image", "value": {"choices": ["good"]}}


@pytest.mark.parametrize("context", [{}, {"result": []}, {"result": [_TEXT]}, {"result": [_CHOICE, _TEXT]}])
def test_a_click_without_marks_is_answered_before_any_image_is_loaded(
    backend: Backend, context: dict[str, Any]
) -> None:
    """Text submitted beside the brush, the last key point deleted: nothing is suggested, least of all the task's
    prediction."""
    _with_red_reference(backend)
    task = backend.label_studio.add_task(2, png(draw(red=RED_BOX)))
    fetches = backend.label_studio.fetches
    (result,) = _predict(backend, [task], params={"context": context}).json["results"]
    assert (result["result"], result["score"]) == ([], None)
    assert backend.label_studio.fetches == fetches
    assert _predict(backend, [task]).json["results"][0]["result"], "a batch has no context at all"


def test_an_annotation_of_text_and_choices_alone_loads_no_image(backend: Backend) -> None:
    task = backend.label_studio.add_task(1, png(draw(red=RED_BOX)))
    annotation = backend.label_studio.annotate(10, task["id"], [_TEXT, _CHOICE])
    assert _announce(backend, "ANNOTATION_CREATED", annotation=annotation).status_code == 201
    backend.work()
    assert backend.label_studio.fetches == 0
    (record,) = backend.projects.store.annotations(backend.label_studio.key)
    assert record.problem is None


def test_update_replaces_and_delete_removes(backend: Backend) -> None:
    _with_red_reference(backend)
    blue = backend.label_studio.add_task(2, png(draw(blue=(40, 5, 60, 20))))
    assert _predict(backend, [blue]).json["results"] == [[]]
    backend.label_studio.images["/data/upload/1/1.png"] = png(draw(red=RED_BOX, blue=(40, 30, 60, 40)))
    annotation = backend.label_studio.annotate(10, 1, [_keypoint(50, 35)])
    _announce(backend, "ANNOTATION_UPDATED", annotation=annotation)
    backend.work()
    assert _predict(backend, [blue]).json["results"][0]["result"]
    del backend.label_studio.annotations[10]
    _announce(backend, "ANNOTATIONS_DELETED", annotations=[{"id": 10}])
    backend.work()
    assert _predict(backend, [blue]).json["results"] == [[]]


def test_deleting_a_task_removes_its_references(backend: Backend) -> None:
    _with_red_reference(backend)
    del backend.label_studio.tasks[1], backend.label_studio.annotations[10]
    _announce(backend, "TASKS_DELETED", tasks=[{"id": 1}])
    backend.work()
    assert 'softmatcher_references{project="1"} 0.0' in backend.client.get("/metrics").text


FORGED: list[dict[str, Any]] = [
    {"action": "TASKS_DELETED", "tasks": [{"id": 1}]},
    {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 10}]},
    {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": number} for number in range(500)]},
    {"action": "ANNOTATION_UPDATED", "annotation": {"id": 10, "result": [], "task": 7}},
    {"action": "PROJECT_UPDATED"},
    {"action": "START_TRAINING"},
]


@pytest.mark.parametrize("body", FORGED, ids=lambda body: body["action"])
@pytest.mark.parametrize(
    "claim",
    [{}, {"created_at": "2036-01-01T00:00:00+00:00"}, {"label_config": "<View/>", "title": "forged"}],
    ids=["as it is", "later", "other config"],
)
@pytest.mark.slow
def test_a_forged_webhook_destroys_nothing(backend: Backend, body: dict[str, Any], claim: dict[str, Any]) -> None:
    """What it claims is looked up in Label Studio, where everything is as it was."""
    _setup(backend)
    _with_red_reference(backend)
    store, key = backend.projects.store, backend.label_studio.key
    before = store.project(key)
    assert before
    backend.client.post("/webhook", json={**body, "project": backend.label_studio.project(1) | claim})
    backend.work()
    assert store.projects() == [store.project(key)]
    after = store.project_by_id(1)
    assert after
    assert (after.key, after.label_config, after.title) == (key, before.label_config, before.title)
    assert (after.setup_token, after.settings, after.gone_since) == (before.setup_token, before.settings, None)
    assert backend.projects.count_references() == {"1": 1}
    annotation = backend.label_studio.annotate(11, 1, [_keypoint(20, 20)])
    _announce(backend, "ANNOTATION_CREATED", annotation=annotation)
    backend.work()
    assert backend.projects.count_references() == {"1": 2}, "no tombstone is left either"


def test_a_surprise_in_one_annotation_is_recorded_and_the_others_go_on(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_red_reference(backend)
    for number, task in ((11, 2), (12, 3)):
        backend.label_studio.add_task(task, png(draw(red=RED_BOX)))
        backend.label_studio.annotate(number, task, [_keypoint(20, 20)])
    read, broken = read_regions, backend.label_studio.annotations[11]["result"]

    def surprising(result: Any, *rest: Any, **options: Any) -> Any:
        if result is broken:
            raise ZeroDivisionError("a surprise")
        return read(result, *rest, **options)

    monkeypatch.setattr(ingestion, "read_regions", surprising)
    counts = backend.projects.references.reconcile(backend.label_studio.key)
    assert (counts["failed"], counts["references"]) == (1, 1)
    (record,) = [one for one in backend.projects.store.annotations(backend.label_studio.key) if one.problem]
    assert (record.annotation_id, "ZeroDivisionError" in str(record.problem)) == (11, True)
    assert backend.projects.count_references() == {"1": 2}


@pytest.mark.parametrize("error", [ZeroDivisionError("a surprise"), ModelUnavailableError("out of memory")])
def test_what_goes_wrong_with_the_machine_takes_no_reference_away(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _with_red_reference(backend)

    def failing(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(ingestion, "read_regions", failing)
        with suppress(ModelUnavailableError):
            backend.projects.references.ingest(backend.label_studio.key, 10)
    assert backend.projects.count_references() == {"1": 1}
    backend.projects.references.reconcile(backend.label_studio.key)
    (record,) = backend.projects.store.annotations(backend.label_studio.key)
    assert record.problem is None
    assert backend.projects.count_references() == {"1": 1}


@pytest.mark.slow
def test_an_annotation_nested_too_deeply_does_not_end_a_reconciliation(backend: Backend) -> None:
    _with_red_reference(backend)
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    backend.label_studio.add_task(2, png(draw(red=RED_BOX)))
    backend.label_studio.annotate(11, 2, [_keypoint(20, 20, meta=nested)])
    backend.label_studio.add_task(3, png(draw(red=RED_BOX)))
    backend.label_studio.annotate(12, 3, [_keypoint(20, 20)])
    backend.projects.references.reconcile(backend.label_studio.key)
    assert {one.annotation_id for one in backend.projects.store.annotations(backend.label_studio.key)} == {10, 11, 12}


@pytest.mark.slow
def test_a_project_that_label_studio_lacks_is_marked_and_comes_back(backend: Backend) -> None:
    _with_red_reference(backend)
    store, key = backend.projects.store, backend.label_studio.key
    running = store.propagations.create(key, PropagationFilter(), "me", supersede=False)
    backend.label_studio.has_project = False
    with pytest.raises(NotFoundError):
        backend.projects.references.reconcile(key)
    project = store.project(key)
    assert project
    assert project.gone_since is not None
    assert backend.projects.count_references() == {"1": 1}
    ended = store.propagations.get(running.id)
    assert (ended.state, "does not have the project" in str(ended.problem)) == ("failed", True)
    backend.label_studio.has_project = True
    backend.projects.references.reconcile(key)
    assert store.project(key).gone_since is None  # type: ignore[union-attr]


def test_an_annotation_of_a_project_that_is_not_answered_for_keeps_its_references(backend: Backend) -> None:
    _with_red_reference(backend)
    del backend.label_studio.annotations[10]
    backend.label_studio.has_project = False
    with pytest.raises(NotFoundError):
        backend.projects.references.ingest(backend.label_studio.key, 10)
    assert backend.projects.count_references() == {"1": 1}


def test_a_shorter_list_removes_nothing_that_is_there(backend: Backend) -> None:
    """A page that a proxy cut, or a user who sees less: each annotation that is missing is asked for."""
    _with_red_reference(backend)
    backend.label_studio.hidden_tasks.add(1)
    backend.projects.references.reconcile(backend.label_studio.key)
    assert backend.projects.count_references() == {"1": 1}
    del backend.label_studio.annotations[10]
    assert backend.projects.references.reconcile(backend.label_studio.key)["removed"] == 1


def test_another_project_of_the_same_id_is_not_this_one(backend: Backend) -> None:
    _with_red_reference(backend)
    store, key = backend.projects.store, backend.label_studio.key
    backend.label_studio.created_at = datetime(2027, 1, 1, tzinfo=UTC)
    with pytest.raises(NotFoundError, match="another project"):
        backend.projects.references.reconcile(key)
    assert store.project(key).gone_since is not None  # type: ignore[union-attr]
    assert backend.projects.count_references() == {"1": 1}
    newer = key_of_project(backend.label_studio.project(1))
    store.save_project(newer)
    assert store.project_by_id(1).key == newer  # type: ignore[union-attr]


def test_data_of_a_gone_project_is_deleted_late_and_only_if_it_is_still_gone(backend: Backend) -> None:
    _with_red_reference(backend)
    projects, store, key = backend.projects, backend.projects.store, backend.label_studio.key
    store.save_project("2.1795365300")
    backend.label_studio.has_project = False
    assert not projects.forget_gone(key), "marked just now"
    assert store.project(key)
    _make_gone_for(backend, key, days=15)
    backend.label_studio.is_down = True
    with pytest.raises(LabelStudioUnavailableError):
        projects.forget_gone(key)
    backend.label_studio.is_down, backend.label_studio.has_project = False, True
    assert not projects.forget_gone(key), "it is back"
    backend.label_studio.has_project = False
    projects.forget_gone(key)
    _make_gone_for(backend, key, days=15)
    store.mark_gone("2.1795365300", "gone")
    assert not projects.forget_gone(key), "all are gone: this may be another Label Studio"
    store.mark_present("2.1795365300")
    assert projects.forget_gone(key)
    assert store.project(key) is None
    assert projects.count_references() == {"2": 0}


def _make_gone_for(backend: Backend, key: str, *, days: int) -> None:
    with backend.projects.store.write() as connection:
        since = sa.update(tables.projects).where(tables.projects.c.key == key)
        connection.execute(since.values(gone_since=time.time() - 86400 * days))


@pytest.mark.parametrize(
    ("result", "more"), [([], {}), ([_keypoint(20, 20)], {"was_cancelled": True})], ids=["empty", "skipped"]
)
def test_skipped_or_empty_annotation_leaves_no_reference(
    backend: Backend, result: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    _with_red_reference(backend)
    annotation = backend.label_studio.annotate(10, 1, result, **more)
    _announce(backend, "ANNOTATION_UPDATED", annotation=annotation)
    backend.work()
    assert backend.projects.count_references() == {"1": 0}


def test_finished_mask_skips_the_segmenter(backend: Backend) -> None:
    """An accepted prediction is kept to the pixel, a manual stroke is grown to the object."""
    backend.label_studio.add_task(1, png(draw(red=RED_BOX)))
    half = np.zeros((48, 64), bool)
    half[10:20, 10:30] = True
    for origin, area in (("prediction", 200), ("prediction-changed", 200), ("manual", 400)):
        annotation = backend.label_studio.annotate(10, 1, [_brush(half, origin=origin)])
        _announce(backend, "ANNOTATION_UPDATED", annotation=annotation)
        backend.work()
        (stored,) = stored_masks(backend.projects.store, backend.label_studio.key)
        assert stored.mask.sum() == area, origin


def test_brush_that_agrees_with_the_object_is_kept_as_painted(backend: Backend) -> None:
    backend.label_studio.add_task(1, png(draw(red=RED_BOX)))
    nearly_all = np.zeros((48, 64), bool)
    nearly_all[11:30, 10:30] = True
    backend.label_studio.annotate(10, 1, [_brush(nearly_all)])
    backend.projects.references.reconcile(backend.label_studio.key) if _setup(backend) else None
    (stored,) = stored_masks(backend.projects.store, backend.label_studio.key)
    np.testing.assert_array_equal(stored.mask, nearly_all)


def test_two_projects_never_see_each_other(backend: Backend) -> None:
    _with_red_reference(backend)
    task = backend.label_studio.add_task(2, png(draw(red=RED_BOX)))
    assert _predict(backend, [task]).json["results"][0]
    assert _predict(backend, [task], project="2.1795365244").json["results"] == [[]]


@pytest.mark.slow
def test_restart_sees_the_same(backend: Backend, tmp_path: Path) -> None:
    _with_red_reference(backend)
    version = _setup(backend).json["model_version"]
    again = make_backend(tmp_path / "data", backend.label_studio)
    assert _setup(again).json["model_version"] == version
    task = backend.label_studio.add_task(2, png(draw(red=RED_BOX)))
    assert _predict(again, [task]).json["results"][0]["model_version"] == version


def test_label_removed_from_the_config_is_predicted_no_more(backend: Backend) -> None:
    _with_red_reference(backend)
    task = backend.label_studio.add_task(2, png(draw(red=RED_BOX)))
    renamed = LABEL_CONFIG.replace('"Cat"', '"Tiger"')
    assert _predict(backend, [task], label_config=renamed).json["results"] == [[]]
    assert _predict(backend, [task]).json["results"][0]["result"][0]["value"]["brushlabels"] == ["Cat"]


@pytest.mark.slow
def test_reconciliation_brings_in_what_was_not_announced_and_forgets_what_is_gone(backend: Backend) -> None:
    _with_red_reference(backend)
    backend.label_studio.add_task(2, png(draw(blue=RED_BOX)))
    backend.label_studio.annotate(11, 2, [_keypoint(20, 20, "Dog")])
    del backend.label_studio.annotations[10]
    answer = _announce(backend, "START_TRAINING")
    assert answer.json["job"]
    assert answer.json["propagation"]
    backend.work()
    assert {item["task"] for item in backend.label_studio.imported} == {2}, "only task 2 shows what is marked now"
    stored = stored_masks(backend.projects.store, backend.label_studio.key)
    assert [reference.annotation_id for reference in stored] == [11]
    outcome = backend.projects.references.reconcile(backend.label_studio.key)
    assert outcome == {"seen": 1, "unchanged": 1}


def test_annotation_that_failed_is_tried_again(backend: Backend) -> None:
    backend.label_studio.add_task(1, None)
    annotation = backend.label_studio.annotate(10, 1, [_keypoint(20, 20)])
    _announce(backend, "ANNOTATION_CREATED", annotation=annotation)
    backend.work()
    assert backend.projects.count_references() == {"1": 0}
    (record,) = backend.projects.store.annotations(backend.label_studio.key)
    assert "404" in str(record.problem)
    backend.label_studio.images["/data/upload/1/1.png"] = png(draw(red=RED_BOX))
    backend.projects.references.reconcile(backend.label_studio.key)
    assert backend.projects.count_references() == {"1": 1}


def test_label_studio_down_in_the_middle_loses_nothing(backend: Backend) -> None:
    _with_red_reference(backend)
    backend.label_studio.add_task(2, png(draw(blue=RED_BOX)))
    annotation = backend.label_studio.annotate(11, 2, [_keypoint(20, 20, "Dog")])
    _announce(backend, "ANNOTATION_CREATED", annotation=annotation)
    backend.label_studio.is_down = True
    backend.work()
    backend.label_studio.is_down = False
    project = backend.projects.store.project(backend.label_studio.key)
    assert project
    assert project.needs_reconcile
    assert backend.projects.count_references() == {"1": 1}
    backend.projects.references.reconcile(backend.label_studio.key)
    assert backend.projects.count_references() == {"1": 2}


def test_webhook_without_a_queue_is_made_up_for(backend: Backend) -> None:
    backend.queue.is_down = True
    answer = _announce(backend, "ANNOTATION_CREATED", annotation={"id": 10})
    assert answer.status_code == 201
    assert backend.projects.store.left_pending(0, 10) == [(backend.label_studio.key, 10)], "maintenance queues it"
    _setup(backend)
    _announce(backend, "ANNOTATION_CREATED", annotation={"id": 11})
    project = backend.projects.store.project(backend.label_studio.key)
    assert project
    assert project.needs_reconcile


def test_many_annotations_at_once_are_one_job(backend: Backend) -> None:
    _announce(backend, "ANNOTATIONS_CREATED", annotation=[{"id": number} for number in range(500)])
    assert [name for name, _ in backend.queue.jobs] == ["reconcile"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/predict", b"{", 422, "JSON"),
        ("/predict", b"[]", 422, "JSON object"),
        ("/setup", b'{"project": "1.1"}', 422, '"schema"'),
        ("/setup", json.dumps({"project": "1.1", "schema": "<View/>"}).encode(), 422, "Image"),
        ("/setup", json.dumps({"project": "one", "schema": LABEL_CONFIG}).encode(), 422, "one"),
        ("/predict", json.dumps({"tasks": {}, "label_config": LABEL_CONFIG}).encode(), 422, '"tasks"'),
        ("/predict", json.dumps({"tasks": [], "label_config": LABEL_CONFIG}).encode(), 422, '"project"'),
        ("/webhook", b"{}", 422, '"action"'),
        ("/webhook", b'{"action": "ANNOTATION_CREATED"}', 422, '"project"'),
        ("/nowhere", b"{}", 404, ""),
    ],
)
def test_bad_request_gets_a_clear_error(backend: Backend, path: str, body: bytes, status: int, message: str) -> None:
    answer = backend.client.post(path, data=body, content_type="application/json")
    assert answer.status_code == status, answer.text
    assert message in answer.get_json()["error"]
    assert "Traceback" not in answer.text


def test_unknown_label_in_a_scribble_says_what_to_do(backend: Backend) -> None:
    task = backend.label_studio.add_task(1, png(draw(red=RED_BOX)))
    answer = _interact(backend, task, _keypoint(20, 20, "Horse"))
    assert answer.status_code == 422
    assert "Horse" in answer.json["error"]


def test_extra_params_choose_the_matcher_and_wrong_ones_are_refused(backend: Backend) -> None:
    plain = _setup(backend).json["model_version"]
    assert _setup(backend, extra_params={"matcher": "softmatcher"}).json["model_version"] != plain
    assert _setup(backend, extra_params='{"matcher": "softmatcher"}').json["model_version"] != plain
    assert _setup(backend).json["model_version"] == plain
    answer = _setup(backend, extra_params={"matcher": "magic"})
    assert answer.status_code == 422
    assert "matcher" in answer.json["error"]


def test_basic_auth_guards_every_route(tmp_path: Path) -> None:
    backend = make_backend(tmp_path, FakeLabelStudio(), basic_auth_user="ls", basic_auth_pass="secret")
    for method, path in (("GET", "/health"), ("GET", "/metrics"), ("POST", "/webhook"), ("POST", "/predict")):
        assert backend.client.open(path, method=method).status_code == 401
    credentials = base64.b64encode(b"ls:secret").decode()
    assert backend.client.get("/health", headers={"Authorization": f"Basic {credentials}"}).status_code == 200
    assert backend.client.get("/health", headers={"Authorization": "Basic bm86bm8="}).status_code == 401


def test_metrics_count_what_happened(backend: Backend) -> None:
    _with_red_reference(backend)
    backend.client.get("/health")
    text = backend.client.get("/metrics").text
    assert 'softmatcher_requests_total{route="/health",status="200"} 1.0' in text
    assert 'softmatcher_references{project="1"} 1.0' in text
    assert 'softmatcher_annotations_total{outcome="references"} 1.0' in text
    assert "softmatcher_cache_misses" in text
    assert 'softmatcher_stage_seconds_count{stage="fetch"} 1.0' in text


def test_second_point_on_an_image_fetches_and_encodes_nothing(backend: Backend) -> None:
    task = backend.label_studio.add_task(1, png(draw(red=RED_BOX)))
    _interact(backend, task, _keypoint(20, 20))
    softmatcher, _ = backend.projects.models.get(1)
    before = backend.label_studio.fetches, softmatcher.encoded_images  # type: ignore[attr-defined]
    _interact(backend, task, _keypoint(20, 20), _keypoint(15, 15))
    assert (backend.label_studio.fetches, softmatcher.encoded_images) == before == (1, 1)  # type: ignore[attr-defined]


def test_secrets_are_in_no_log(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    _with_red_reference(backend)
    _setup(backend)
    assert "t" * 40 not in caplog.text
    assert "t" * 40 not in repr(backend.projects.store.projects())


class _Plug:
    """Both ends of a client's connection."""

    def __init__(self) -> None:
        self.server_end, self.client_end = socket.socketpair()

    def __enter__(self) -> "_Plug":
        return self

    def __exit__(self, *_: object) -> None:
        self.server_end.close()
        self.client_end.close()


def test_a_client_that_went_away_is_noticed_one_that_waits_is_not() -> None:
    with _Plug() as plug:
        environ = {"gunicorn.socket": plug.server_end}
        assert not client_is_gone(environ)
        plug.client_end.send(b"GET /next")  # pipelined: somebody is alive
        assert not client_is_gone(environ)
    with _Plug() as plug:
        plug.client_end.close()
        assert client_is_gone({"gunicorn.socket": plug.server_end})
        plug.server_end.close()
        assert client_is_gone({"gunicorn.socket": plug.server_end}) in (True, False)
    assert not client_is_gone({})


def test_nobody_is_encoded_for_who_went_away(backend: Backend) -> None:
    task = backend.label_studio.add_task(1, png(draw(red=RED_BOX)))
    body = {
        "tasks": [task], "project": backend.label_studio.key, "label_config": LABEL_CONFIG,
        "params": {"context": {"result": [_keypoint(20, 20)]}},
    }  # fmt: skip
    engine: Any = backend.projects.models.get(0)[0]
    with _Plug() as plug:
        plug.client_end.close()
        answer = backend.client.post("/predict", json=body, environ_overrides={"gunicorn.socket": plug.server_end})
    assert answer.status_code == 499
    assert engine.encoded_images == 0
    assert backend.client.post("/predict", json=body).status_code == 200
    assert engine.encoded_images == 1


def test_missing_weights_are_told_by_health_and_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(data_dir=tmp_path, profile="base")
    projects = open_projects(settings)
    projects.models.start()
    client = create_app(projects, PatientQueue()).test_client()  # type: ignore[arg-type]
    with pytest.raises(ModelUnavailableError):
        projects.models.get(60)
    assert client.get("/health").status_code == 200
    assert "python -m backend weights fetch base" in client.get("/health").get_json()["model"]
    body = {"project": "1.1795365244", "schema": LABEL_CONFIG, "hostname": "http://x", "extra_params": None}
    answer = client.post("/setup", json=body)
    assert answer.status_code == 503
    assert "weights fetch base" in answer.get_json()["error"]
    projects.close()


def test_a_busy_service_refuses_further_predictions_and_answers_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(tmp_path, FakeLabelStudio(), service_threads=4)
    task = backend.label_studio.add_task(1, png(draw(red=RED_BOX)))
    begun, go_on = threading.Barrier(4), threading.Event()

    def wait(*_: object) -> None:
        begun.wait(10)
        go_on.wait(10)
        raise ModelUnavailableError("over")

    monkeypatch.setattr(backend.projects.predictions, "predict", wait)
    app = backend.client.application
    body = {"tasks": [task], "project": backend.label_studio.key, "label_config": LABEL_CONFIG, "params": {}}
    threads = [threading.Thread(target=lambda: app.test_client().post("/predict", json=body)) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(10)
    assert "softmatcher_predictions_running 3.0" in backend.client.get("/metrics").text
    refused = backend.client.post("/predict", json=body)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert "3 requests for predictions" in refused.get_json()["error"]
    assert backend.client.get("/health").status_code == 200
    assert _setup(backend).status_code == 200
    go_on.set()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert _predict(backend, [task]).status_code == 200
    assert "softmatcher_predictions_running 0.0" in backend.client.get("/metrics").text


def test_metrics_show_propagations_and_what_workers_counted(backend: Backend) -> None:
    project = backend.projects.note_project(backend.label_studio.project(1))
    store = backend.projects.store.propagations
    record = store.create(project, PropagationFilter(), "test", supersede=False, planned_tasks=range(1, 6))
    backend.projects.store.propagation_tasks.lease(record.id, "worker:job", 4)
    backend.projects.metrics.failures.labels("image_missing").inc()
    backend.projects.metrics.on_stage("encode", 0.25)
    text = backend.client.get("/metrics").get_data(as_text=True)
    for line in (
        'softmatcher_propagations{state="running"} 1.0',
        'softmatcher_propagations{state="paused"} 0.0',
        'softmatcher_propagation_tasks{state="running"} 4.0',
        'softmatcher_propagation_tasks{state="pending"} 1.0',
        "softmatcher_propagation_tasks_per_second 0.0",
        "softmatcher_workers 1.0",
        'softmatcher_worker_failed_tasks_total{reason="image_missing"} 1.0',
        'softmatcher_worker_stage_seconds_sum{stage="encode"} 0.25',
        'softmatcher_worker_stage_seconds_count{stage="encode"} 1.0',
    ):
        assert line in text
