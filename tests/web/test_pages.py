"""The project's page and the HTTP interface to propagations, over fakes."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from backend.errors import ModelUnavailableError
from backend.models.calibrations import read_calibration
from backend.web.pages import TABS
from testing.fakes import Backend, ColourSoftmatcher, FakeLabelStudio, draw, make_backend, png

RED_BOX = (10, 10, 30, 30)
BASE = "/projects/1/propagations"
POINT: dict[str, Any] = {
    "id": "a", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
    "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": ["Cat"]},
}  # fmt: skip


@pytest.fixture
def ready(backend: Backend) -> Backend:
    """A project with three tasks that show the object, the first of them annotated."""
    for number in range(1, 4):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30 + number, 30))))
    backend.label_studio.annotate(10, 1, [POINT])
    backend.projects.note_project(backend.label_studio.project(1))
    return backend


def _page(backend: Backend, tab: str = "runs") -> str:
    answer = backend.client.get(f"/projects/1?tab={tab}")
    assert answer.status_code == 200, answer.text
    return str(answer.text)


def _pixels(backend: Backend, path: str) -> NDArray[Any]:
    answer = backend.client.get(path)
    assert answer.status_code == 200, answer.text
    return np.asarray(PillowImage.open(io.BytesIO(answer.data))).astype(int)


def test_propagation_is_started_watched_and_done(ready: Backend) -> None:
    started = ready.client.post(BASE, json={})
    assert started.status_code == 202
    status = started.get_json()
    assert (status["state"], status["is_active"], status["started_by"]) == ("planning", True, "API")
    ready.work()
    status = ready.client.get(f"{BASE}/{status['id']}").get_json()
    assert status["state"] == "done"
    assert status["counts"] == {
        "pending": 0, "running": 0, "done": 3, "empty": 0, "failed": 0, "cancelled": 0, "total": 3, "finished": 3,
        "kept": 0, "made_anew": 3,
    }  # fmt: skip
    assert status["model_version"] == ready.projects.banks.model_version(ready.label_studio.key)
    assert [one["id"] for one in ready.client.get(BASE).get_json()["propagations"]] == [status["id"]]


def test_dry_run_counts_and_starts_nothing(ready: Backend) -> None:
    answer = ready.client.post(BASE, json={"dry_run": True, "only_unlabeled": True})
    assert answer.json == {"dry_run": True, "total": 2}
    assert ready.client.get(BASE).json == {"propagations": []}


def test_second_start_is_a_conflict_unless_it_replaces(ready: Backend) -> None:
    ready.client.post(BASE, json={})
    answer = ready.client.post(BASE, json={})
    assert answer.status_code == 409
    assert "supersede" in answer.get_json()["error"]
    assert ready.client.post(BASE, json={"supersede": True}).status_code == 202


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"limit": 0}, "1 or more"),
        ({"limit": "many"}, "whole number"),
        ({"labels": ["Elephant"]}, "Elephant"),
        ({"labels": "Cat"}, "list of texts"),
        ({"only_unlabeled": "perhaps"}, "true or false"),
        ([1], "JSON object"),
    ],
)
def test_what_cannot_be_meant_is_refused(ready: Backend, body: Any, words: str) -> None:
    answer = ready.client.post(BASE, json=body)
    assert answer.status_code == 422
    assert words in answer.get_json()["error"]


def test_unknown_projects_and_propagations_are_not_found(ready: Backend) -> None:
    identifier = ready.client.post(BASE, json={}).get_json()["id"]
    assert ready.client.get("/projects/7").status_code == 404
    assert ready.client.get(f"{BASE}/999").status_code == 404
    ready.projects.store.save_project("2.1795365244", title="Another")
    assert ready.client.get(f"/projects/2/propagations/{identifier}").status_code == 404
    assert ready.client.post(f"/projects/2/propagations/{identifier}/cancel").status_code == 404


@pytest.mark.slow
def test_start_without_a_queue_is_made_up_for(ready: Backend) -> None:
    from backend.web.maintenance import Maintenance

    ready.queue.is_down = True
    assert ready.client.post(BASE, json={}).status_code == 202
    ready.queue.is_down = False
    Maintenance(ready.projects, ready.queue).propagate_due()  # type: ignore[arg-type]
    ready.work()
    assert ready.client.get(BASE).get_json()["propagations"][0]["state"] == "done"


def test_cancel_and_go_on(ready: Backend) -> None:
    identifier = ready.client.post(BASE, json={}).get_json()["id"]
    status = ready.client.post(f"{BASE}/{identifier}/cancel").get_json()
    assert status["state"] == "cancelled"
    ready.work()
    assert ready.label_studio.imported == []
    retried = ready.client.post(f"{BASE}/{identifier}/retry", json={"what": "unfinished"}).get_json()
    assert retried["state"] == "planning"
    ready.work()
    assert ready.client.get(f"{BASE}/{identifier}").get_json()["counts"]["done"] == 3


@pytest.mark.slow
def test_page_shows_references_predictions_failures_and_buttons(ready: Backend) -> None:
    assert "None yet" in _page(ready)
    del ready.label_studio.images["/data/upload/1/3.png"]
    identifier = ready.client.post(BASE, json={}).get_json()["id"]
    assert 'id="cancel"' in _page(ready)
    ready.work()
    page = _page(ready)
    assert 'id="retry-failed"' in page
    assert "404" in page
    (reference,) = ready.projects.store.list_references(ready.label_studio.key)
    assert f"/projects/1/references/{reference.id}.jpg" in _page(ready, "references")
    assert "/projects/1/tasks/2/photo.jpg" in _page(ready, "gallery")
    assert f"/projects/1/propagations/{identifier}/retry" in page
    answer = ready.client.get("/projects/1")
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert "Animals" in ready.client.get("/projects").text


def test_page_says_when_nobody_works(ready: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    started = ready.client.post(BASE, json={}).get_json()
    hidden = 'data-field="no-workers" hidden>'
    assert hidden in _page(ready)
    monkeypatch.setattr(ready.queue, "workers_now", lambda: 0)
    assert hidden not in _page(ready)
    assert ready.client.get(f"{BASE}/{started['id']}").get_json()["workers"] == 0
    ready.client.post(f"{BASE}/{started['id']}/cancel")
    assert hidden in _page(ready), "nothing is to move any more"


def test_forms_lead_back_to_the_page(ready: Backend) -> None:
    form = {"only_unlabeled": "on", "labels": ["Cat"], "limit": ""}
    answer = ready.client.post(BASE, data=form, headers={"Sec-Fetch-Site": "same-origin"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/projects/1?tab=runs")
    (status,) = ready.client.get(BASE).get_json()["propagations"]
    assert status["filter"] == {"only_unlabeled": True, "labels": ["Cat"], "limit": None}


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_other_sites_cannot_press_the_buttons(ready: Backend, headers: dict[str, str]) -> None:
    assert ready.client.post(BASE, data={}, headers=headers).status_code == 403
    assert ready.client.get(BASE).json == {"propagations": []}


@pytest.mark.slow
def test_texts_of_others_are_shown_as_text(ready: Backend) -> None:
    ready.projects.store.save_project(
        ready.label_studio.key, title="<script>alert(1)</script>", settings={"hostname": "javascript:alert(1)"}
    )
    for tab in TABS:
        page = _page(ready, tab)
        assert "<script>alert" not in page
        assert "javascript:" not in page


def test_everything_is_behind_basic_auth(tmp_path: Path) -> None:
    backend = make_backend(tmp_path, FakeLabelStudio(), basic_auth_user="ls", basic_auth_pass="secret")
    backend.projects.note_project(backend.label_studio.project(1))
    for path in ("/projects", "/projects/1", BASE, "/projects/static/page.css", "/projects/1/references/1.jpg"):
        assert backend.client.get(path).status_code == 401, path
    assert backend.client.post(BASE, json={}).status_code == 401
    assert backend.client.get("/projects/1", auth=("ls", "secret")).status_code == 200


def test_reference_picture_tints_the_mask(ready: Backend) -> None:
    ready.projects.references.reconcile(ready.label_studio.key)
    (reference,) = ready.projects.store.list_references(ready.label_studio.key)
    pixels = _pixels(ready, f"/projects/1/references/{reference.id}.jpg")
    assert pixels.shape == (48, 64, 3)
    plain = draw(red=(10, 10, 31, 30)).astype(int)
    difference = np.abs(pixels - plain).sum(axis=2)
    assert difference[14:26, 14:26].mean() > 40
    assert difference[36:, 40:].mean() < 20
    assert ready.client.get("/projects/1/references/999.jpg").status_code == 404


def test_prediction_picture_is_of_the_newest_prediction(ready: Backend) -> None:
    assert ready.client.get("/projects/1/tasks/2.jpg").status_code == 404
    ready.client.post(BASE, json={})
    ready.work()
    answer = ready.client.get("/projects/1/tasks/2.jpg")
    assert answer.content_type == "image/jpeg"
    fetches = ready.label_studio.fetches
    again = ready.client.get("/projects/1/tasks/2.jpg", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
    assert ready.label_studio.fetches == fetches


def test_quality_is_measured_by_leaving_references_out(ready: Backend) -> None:
    assert ready.client.get("/projects/1/quality").get_json()["iou"] is None
    ready.projects.references.reconcile(ready.label_studio.key)
    assert ready.client.post("/projects/1/quality").status_code == 202
    ready.work()
    alone = ready.client.get("/projects/1/quality").get_json()
    assert alone["labels"]["Cat"]["iou"] is None
    assert alone["labels"]["Cat"]["word"] == "needs a second image"
    assert "needs a second image" in _page(ready, "quality")
    ready.label_studio.annotate(11, 2, [POINT])
    ready.projects.references.reconcile(ready.label_studio.key)
    ready.client.post("/projects/1/quality")
    ready.work()
    both = ready.client.get("/projects/1/quality").get_json()
    cat = both["labels"]["Cat"]
    assert (cat["references"], cat["images"], cat["tried"], cat["iou"]) == (2, 2, 2, 1.0)
    assert cat["growth"] == {"1": 1.0}
    assert "1.00" in _page(ready, "quality")


def test_page_works_without_models(ready: Backend) -> None:
    def fail(_: object) -> ColourSoftmatcher:
        raise ModelUnavailableError("weights are missing")

    ready.client.post(BASE, json={})
    without = make_backend(ready.projects.settings.data_dir, ready.label_studio, softmatcher=fail)
    assert without.projects.models.state != "ready"
    assert "Propagation" in _page(without)
    without.projects.close()


@pytest.mark.slow
def test_the_page_calls_scores_estimates_unless_they_were_fitted_on_the_profiles_own_masks(ready: Backend) -> None:
    own = ready.projects.settings.data_dir / "own.json"
    lite = read_calibration("lite.json")
    for fitted_for, said in ((ready.projects.settings.profile, False), ("another", True)):
        own.write_text(replace(lite, fitted_for=fitted_for).to_json())
        other = make_backend(ready.projects.settings.data_dir, ready.label_studio, calibration=own)
        assert ("Scores are estimates" in _page(other, "gallery")) == said
        other.projects.close()


@pytest.mark.slow
def test_annotations_that_gave_no_reference_are_on_the_page_and_tried_again(backend: Backend) -> None:
    point: dict[str, Any] = {
        "id": "p", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
        "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": ["Cat"]},
    }  # fmt: skip
    for number, content in ((1, png(draw(red=(10, 10, 30, 30)))), (2, None), (3, None), (4, b"no image <b>")):
        backend.label_studio.add_task(number, content)
        backend.label_studio.annotate(10 + number, number, [point])
    unknown = {**point, "id": "q", "value": {**point["value"], "keypointlabels": ["Horse"]}}
    backend.label_studio.add_task(5, png(draw(red=(10, 10, 30, 30))))
    backend.label_studio.annotate(15, 5, [point, unknown])
    key = backend.projects.note_project(backend.label_studio.project(1))
    backend.projects.references.reconcile(key)

    page = _page(backend, "references")
    assert "3 annotations gave no reference, 1 gave a part only" in page
    assert "/projects/1/data?task=4" in page
    assert "404" in page
    assert "Horse" in page
    assert "image must be one of" in page

    for number in (2, 3, 4):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30, 30))))
    assert backend.client.post("/projects/1/reconcile", data={"x": "1"}).status_code == 303
    backend.work()
    page = _page(backend, "references")
    assert "gave no reference" not in page
    assert "1 annotation gave a part only" in page


def test_trying_again_without_a_queue_is_made_up_for(backend: Backend) -> None:
    key = backend.projects.note_project(backend.label_studio.project(1))
    backend.projects.store.save_project(key, needs_reconcile=False)
    backend.queue.is_down = True
    assert backend.client.post("/projects/1/reconcile", json={}).json == {"job": None}
    project = backend.projects.store.project(key)
    assert project
    assert project.needs_reconcile


def test_the_page_says_how_a_label_that_pictures_cannot_show_is_called_in_them(backend: Backend) -> None:
    label_studio = backend.label_studio
    label_studio.label_config = label_studio.label_config.replace("Dog", "\u72ac")
    label_studio.add_task(1, png(draw(red=RED_BOX)))
    for number, label in ((10, "Cat"), (11, "\u72ac")):
        label_studio.annotate(number, 1, [{**POINT, "value": {**POINT["value"], "keypointlabels": [label]}}])
    backend.projects.note_project(label_studio.project(1))
    for number in (10, 11):
        assert backend.projects.references.ingest(label_studio.key, number) == "references"
    page = _page(backend, "references")
    assert "(label 2 in explanations)" in page
    assert "(label 1 in explanations)" not in page
