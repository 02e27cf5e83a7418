"""The gallery over fakes: tiles, filters, what is visible, what people decide on tiles."""

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from backend.core.masks import iou
from backend.drawing.label_colours import shown_colour
from backend.drawing.outline_path import path_to_mask
from backend.jobs import tasks as jobs
from backend.jobs.queue import JobQueue
from backend.store.records import PropagationFilter, TilePrediction
from backend.web import gallery_routes
from backend.web.maintenance import Maintenance
from testing.fakes import Backend, draw, png

POINT: dict[str, Any] = {
    "id": "a", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
    "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": ["Cat"]},
}  # fmt: skip
BLUE_POINT = {**POINT, "id": "b", "value": {"x": 80, "y": 80, "width": 1, "keypointlabels": ["Dog"]}}
EVERY = [1, 2, 3, 4]


@pytest.fixture
def ready(backend: Backend) -> Backend:
    """Four tasks: three show a red object, the last one nothing. Nothing is annotated yet."""
    for number in range(1, 4):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30 + number, 30), blue=(45, 30, 60, 45))))
    backend.label_studio.add_task(4, png(draw()))
    backend.projects.note_project(backend.label_studio.project(1))
    return backend


def annotate(backend: Backend, annotation_id: int, task_id: int, *regions: Any) -> None:
    backend.label_studio.annotate(annotation_id, task_id, list(regions))
    backend.queue.ingest_annotation(backend.label_studio.key, annotation_id)
    backend.work()


def see(backend: Backend, *task_ids: int) -> Any:
    return backend.client.post("/projects/1/gallery/visible", json={"ids": list(task_ids)}).get_json()


def tiles(backend: Backend, *task_ids: int, since: int = 0) -> dict[int, Any]:
    ids = ",".join(map(str, task_ids))
    answer = backend.client.get(f"/projects/1/gallery/tiles?ids={ids}&since={since}")
    assert answer.status_code == 200, answer.text
    return {one["id"]: one for one in answer.get_json()["tiles"]}


def counter(backend: Backend) -> int:
    return int(backend.client.get("/projects/1/gallery/changes").get_json()["counter"])


def test_a_new_reference_changes_visible_tiles_and_label_studio(ready: Backend) -> None:
    see(ready, *EVERY)
    assert {one["state"] for one in tiles(ready, *EVERY).values()} == {"unknown"}
    annotate(ready, 10, 1, POINT)
    found = tiles(ready, *EVERY)
    assert [found[number]["state"] for number in EVERY] == ["masks", "masks", "masks", "empty"]
    (region,) = found[2]["regions"]
    true = np.zeros((240, 320), bool)
    true[50:150, 50:160] = True
    assert iou(path_to_mask(region["path"], (48, 64)), true) > 0.97
    assert region["colour"] == shown_colour("Cat", None)
    assert len(ready.label_studio.versions_of(2)) == 1
    assert found[1]["is_annotated"]
    assert found[1]["references"] == ["Cat"]
    assert 'data-act="accept"' in found[2]["html"]
    assert 'data-act="accept"' not in found[1]["html"]


def test_a_page_asks_quickly_while_few_do(ready: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(gallery_routes, "time", SimpleNamespace(monotonic=lambda: now[0]))
    status = gallery_routes.GalleryStatus(ready.projects, cast(JobQueue, ready.queue))

    def again_ms(asked_every_s: float) -> int:
        for _ in range(50):
            now[0] += asked_every_s
            answer = status.of(ready.label_studio.key)
        return int(answer["again_ms"])

    assert again_ms(0.1) == 150
    assert again_ms(0.01) == 250
    assert again_ms(0.1) == 150


def test_a_page_sees_a_change_within_a_tenth_of_a_second(ready: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(gallery_routes, "time", SimpleNamespace(monotonic=lambda: now[0]))
    status = gallery_routes.GalleryStatus(ready.projects, cast(JobQueue, ready.queue))
    key = ready.label_studio.key
    before = status.of(key)["counter"]
    ready.projects.store.tiles.touch(key)
    now[0] += 0.05
    assert status.of(key)["counter"] == before
    now[0] += 0.06
    assert status.of(key)["counter"] == before + 1


def test_only_targets_that_somebody_looks_at_are_kept_for_the_next_match(
    ready: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = type(ready.projects.models.get(1)[0])
    asked: list[bool] = []
    plan = engine.plan

    def noting(self: Any, *args: Any, is_matched_again: bool = False, **further: Any) -> Any:
        asked.append(is_matched_again)
        return plan(self, *args, is_matched_again=is_matched_again, **further)

    monkeypatch.setattr(engine, "plan", noting)
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    assert asked == [True] * len(EVERY)
    asked.clear()
    project = ready.projects.store.project(ready.label_studio.key)
    assert project is not None
    ready.projects.predictions.predict(project.key, project.label_config, [ready.label_studio.task(2, 1)])
    assert asked == [False]


def test_only_what_is_visible_is_predicted(ready: Backend) -> None:
    see(ready, 3)
    annotate(ready, 10, 1, POINT)
    assert {one["id"] for one in tiles(ready, *EVERY).values() if one["state"] != "unknown"} == {3}
    assert ready.label_studio.versions_of(2) == []


def test_a_change_says_by_how_much_and_keeps_what_was_before(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    before = counter(ready)
    annotate(ready, 11, 2, BLUE_POINT)
    found = tiles(ready, *EVERY, since=before)
    assert found[3]["is_new"]
    assert found[3]["change"] == pytest.approx(0.5, abs=0.01), "Cat as before, Dog new"
    assert [one["label"] for one in found[3]["before"]] == ["Cat"]
    assert "changed 50 %" in found[3]["html"]
    assert not found[4]["is_new"]
    assert len(ready.label_studio.versions_of(3)) == 1, "the older prediction is gone"


def test_an_outdated_tile_is_predicted_when_somebody_looks(ready: Backend) -> None:
    annotate(ready, 10, 1, POINT)
    assert see(ready, *EVERY)["outdated"] == EVERY
    ready.work()
    assert see(ready, *EVERY)["outdated"] == []
    assert tiles(ready, 2)[2]["state"] == "masks"


@pytest.mark.slow
def test_a_propagation_fills_tiles(ready: Backend) -> None:
    annotate(ready, 10, 1, POINT)
    ready.client.post("/projects/1/propagations", json={})
    ready.work()
    assert tiles(ready, 3)[3]["state"] == "masks"
    ready.client.post("/projects/1/propagations", json={})
    ready.projects.store.tiles.forget(ready.label_studio.key, [3])
    ready.work()
    kept = tiles(ready, 3)[3]
    assert (kept["state"], kept["score"]) == ("masks", 0.8)


def test_a_task_that_fails_says_why(ready: Backend) -> None:
    del ready.label_studio.images["/data/upload/1/3.png"]
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    failed = tiles(ready, 3)[3]
    assert failed["state"] == "failed"
    assert "404" in failed["reason"]
    assert "failed: " in failed["html"]


@pytest.mark.slow
def test_tiles_go_with_the_last_reference(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    ready.label_studio.delete_annotation(10)
    ready.queue.ingest_annotation(ready.label_studio.key, 10)
    ready.work()
    assert {one["state"] for one in tiles(ready, *EVERY).values()} == {"unknown"}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", [1, 2, 3, 4]),
        ("sort=score", [3, 2, 1, 4]),
        ("state=empty", [4]),
        ("state=annotated&sort=score", [1]),
        ("state=reference", [1]),
        ("label=Cat", [1, 2, 3]),
        ("label=Cat&sort=score", [3, 2, 1]),
        ("label=Dog&sort=certainty", []),
        ("sort=nonsense&state=nonsense&label=nonsense&count=7&after=x", [1, 2, 3, 4]),
        ("after=0:2", [3, 4]),
        ("sort=score&after=0.8:2", [1, 4]),
    ],
)
def test_filters_and_orders(ready: Backend, address: str, expected: list[int]) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    page = ready.client.get(f"/projects/1?{address}").text
    assert [int(part.split('"')[0]) for part in page.split('data-task="')[1:]] == expected


@pytest.mark.slow
def test_page_without_label_studio_shows_what_is_known(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    ready.label_studio.is_down = True
    page = ready.client.get("/projects/1").text
    assert "Label Studio does not answer" in page
    assert 'id="task-3"' in page


def test_accept_makes_an_annotation_that_can_be_undone(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    made = ready.client.post("/projects/1/tasks/2/accept", json={}).get_json()
    ready.work()
    annotation = ready.label_studio.annotations[made["annotation"]]
    assert (annotation["task"], annotation["parent_prediction"]) == (2, 2)
    assert tiles(ready, 2)[2]["references"] == ["Cat"]
    assert ready.client.post("/projects/1/tasks/2/accept", json={}).status_code == 409
    assert ready.client.post("/projects/1/gallery/undo", json={"batch": made["batch"]}).get_json() == {
        "tasks": [2],
        "changed": [],
    }
    assert made["annotation"] not in ready.label_studio.annotations
    assert not tiles(ready, 2)[2]["is_annotated"]
    assert ready.client.post("/projects/1/gallery/undo", json={"batch": made["batch"]}).status_code == 404


def test_undo_keeps_what_somebody_changed_since(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    done = ready.client.post("/projects/1/gallery/accept", json={"min_score": 0.7}).get_json()
    ready.work()
    of_task = {one["task"]: one for one in ready.label_studio.annotations.values()}
    later = (datetime.fromisoformat(of_task[2]["created_at"]) + timedelta(seconds=5)).isoformat()
    of_task[2]["updated_at"] = later
    undone = ready.client.post("/projects/1/gallery/undo", json={"batch": done["batch"]})
    assert undone.get_json() == {"tasks": [3], "changed": [2]}
    assert sorted(one["task"] for one in ready.label_studio.annotations.values()) == [1, 2]
    again = ready.client.post("/projects/1/gallery/undo", json={"batch": done["batch"]})
    assert again.status_code == 409
    assert "somebody changed what this action made (task 2)" in again.text
    assert of_task[2]["id"] in ready.label_studio.annotations


@pytest.mark.slow
def test_undo_forgets_nothing_if_label_studio_hides_the_project(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    made = ready.client.post("/projects/1/tasks/2/accept", json={}).get_json()
    ready.work()
    before = ready.projects.store.list_references(ready.label_studio.key)
    hidden = ready.label_studio.annotations.pop(made["annotation"])
    ready.label_studio.has_project = False
    assert ready.client.post("/projects/1/gallery/undo", json={"batch": made["batch"]}).status_code == 404
    assert ready.projects.store.list_references(ready.label_studio.key) == before
    ready.label_studio.annotations[made["annotation"]] = hidden
    ready.label_studio.has_project = True
    assert ready.client.post("/projects/1/gallery/undo", json={"batch": made["batch"]}).status_code == 200


def test_accept_all_above_a_score_says_the_number_first(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    planned = ready.client.post("/projects/1/gallery/accept", json={"min_score": 0.7, "dry_run": True}).get_json()
    assert (planned["count"], planned["batch"]) == (2, None)
    assert (
        ready.client.post("/projects/1/gallery/accept", json={"min_score": 0.9, "dry_run": True}).get_json()["count"]
        == 0
    )
    done = ready.client.post("/projects/1/gallery/accept", json={"min_score": 0.7}).get_json()
    ready.work()
    assert sorted(one["task"] for one in ready.label_studio.annotations.values()) == [1, 2, 3]
    undone = ready.client.post("/projects/1/gallery/undo", json={"batch": done["batch"]}).get_json()
    assert sorted(undone["tasks"]) == [2, 3]


@pytest.mark.slow
def test_wrong_makes_the_image_background_of_the_label(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT, {**BLUE_POINT, "value": {**BLUE_POINT["value"], "keypointlabels": ["Cat"]}})
    assert len(tiles(ready, 3)[3]["regions"]) == 1
    ready.label_studio.add_task(5, png(draw(blue=(45, 30, 60, 45))))
    see(ready, 5)
    ready.work()
    assert tiles(ready, 5)[5]["state"] == "masks", "blue counts as Cat"
    made = ready.client.post("/projects/1/tasks/5/wrong", json={"label": "Cat"}).get_json()
    ready.work()
    assert ready.label_studio.annotations[made["annotation"]]["result"] == []
    assert tiles(ready, 5)[5]["references"] == ["Cat"]
    assert tiles(ready, 5)[5]["state"] == "empty"
    assert tiles(ready, 3)[3]["state"] == "masks"
    area = path_to_mask(tiles(ready, 3)[3]["regions"][0]["path"], (48, 64))
    assert area[100, 100]
    assert not area[190, 260], "the blue part is background by now"
    assert ready.client.post("/projects/1/tasks/3/wrong", json={"label": "Elephant"}).status_code == 404


def test_min_score_is_saved_where_label_studio_keeps_it(ready: Backend) -> None:
    assert ready.client.post("/projects/1/gallery/min-score", json={"min_score": 0.5}).status_code == 404
    ready.label_studio.backends = [{"id": 7, "extra_params": {"instances": True}}]
    assert ready.client.post("/projects/1/gallery/min-score", json={"min_score": 0.5}).get_json() == {"min_score": 0.5}
    assert ready.label_studio.backends[0]["extra_params"] == {"instances": True, "min_score": 0.5}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("gallery/visible", {"ids": list(range(200))}),
        ("gallery/visible", {"ids": ["x"]}),
        ("gallery/visible", {"ids": {"a": 1}}),
        ("gallery/accept", {"min_score": "nan"}),
        ("gallery/accept", {"min_score": 2}),
        ("gallery/min-score", {}),
        ("gallery/undo", {"batch": 5}),
        ("gallery/undo", {"batch": "x" * 100}),
        ("tasks/1/wrong", {"label": ["Cat"]}),
    ],
)
def test_what_cannot_be_meant_is_refused(ready: Backend, path: str, body: Any) -> None:
    assert ready.client.post(f"/projects/1/{path}", json=body).status_code == 422


@pytest.mark.parametrize(
    "path", ["gallery/visible", "gallery/accept", "gallery/undo", "tasks/1/accept", "tasks/1/wrong"]
)
def test_other_sites_cannot_decide(ready: Backend, path: str) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert ready.client.post(f"/projects/1/{path}", json={}, headers=headers).status_code == 403


def test_photographs_are_small_and_kept(ready: Backend) -> None:
    answer = ready.client.get("/projects/1/tasks/2/photo.jpg")
    assert (answer.status_code, answer.content_type) == (200, "image/jpeg")
    fetches = ready.label_studio.fetches
    assert ready.client.get("/projects/1/tasks/2/photo.jpg").status_code == 200
    assert ready.label_studio.fetches == fetches
    assert ready.client.get("/projects/1/tasks/99/photo.jpg").status_code == 404


def test_browsers_get_pages_for_errors_and_programs_get_json(ready: Backend) -> None:
    chromium = (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
        "application/signed-exchange;v=b3;q=0.7"
    )
    page = ready.client.get("/projects/77", headers={"Accept": chromium})
    assert (page.status_code, page.content_type) == (404, "text/html; charset=utf-8")
    assert "All projects" in page.text
    assert ready.client.get("/projects/77").is_json
    assert ready.client.get("/projects/1?tab=nonsense").status_code == 404


def test_label_colours_are_label_studios_own() -> None:
    seeds = {
        "Cat": "#bf8d72", "Dog": "#bf8072", "Coin": "#bfb272", "corrosion": "#bf7286", "\u00c4pfel": "#72b1bf",
        "\u72ac": "#72bf78", "\U0001f34e apple": "#bf7272",
    }  # fmt: skip
    assert {name: shown_colour(name, None) for name in seeds} == seeds, "as pleasejs makes them"
    assert shown_colour("Cat", "#FFA39E") == "#ffa39e"
    assert shown_colour("Cat", "Red") == "red"
    assert shown_colour("Cat", "url(//evil.example)") == "#bf8d72"


@pytest.mark.slow
def test_a_drawn_point_shows_what_would_change_and_is_kept_on_request(ready: Backend) -> None:
    drawn = {"label": "Cat", "strokes": [{"points": [[0.3, 0.4]], "is_positive": True}]}
    made = ready.client.post("/projects/1/tasks/1/preview", json=drawn).get_json()
    assert [one["label"] for one in made["regions"]] == ["Cat"]
    body = {"name": made["name"], "ids": EVERY}
    shown = ready.client.post("/projects/1/gallery/preview", json=body).get_json()["tiles"]
    assert {one["id"]: len(one["regions"]) for one in shown} == {1: 1, 2: 1, 3: 1, 4: 0}
    assert ready.label_studio.annotations == {}
    assert ready.projects.store.list_references(ready.label_studio.key) == []
    see(ready, *EVERY)
    kept = ready.client.post("/projects/1/gallery/keep", json={"name": made["name"]}).get_json()
    ready.work()
    assert ready.label_studio.annotations[kept["annotation"]]["task"] == 1
    assert tiles(ready, 3)[3]["state"] == "masks"


def test_a_drawn_stroke_and_a_negative_point(ready: Backend) -> None:
    strokes = [
        {"points": [[0.2, 0.3], [0.4, 0.5]], "is_positive": True},
        {"points": [[0.9, 0.05]], "is_positive": False},
    ]
    made = ready.client.post("/projects/1/tasks/1/preview", json={"label": "Cat", "strokes": strokes}).get_json()
    area = path_to_mask(made["regions"][0]["path"], (48, 64))
    assert area[100, 100]
    assert not area[20, 290]


@pytest.mark.parametrize(
    "strokes",
    [
        None, [], [{}], [{"points": []}], [{"points": [[0.1]]}], [{"points": [["a", 0]]}], [{"points": [[2, 0]]}],
        [{"points": [[0.5, 0.5]], "is_positive": False}], [{"points": [[0.5, 0.5]] * 3000}],
        [{"points": [[0.5, 0.5]]}] * 60,
    ],
)  # fmt: skip
def test_what_was_not_drawn_is_refused(ready: Backend, strokes: Any) -> None:
    answer = ready.client.post("/projects/1/tasks/1/preview", json={"label": "Cat", "strokes": strokes})
    assert answer.status_code == 422


def test_a_forgotten_preview_is_not_found(ready: Backend) -> None:
    for path in ("gallery/preview", "gallery/keep"):
        assert ready.client.post(f"/projects/1/{path}", json={"name": "x", "ids": [1]}).status_code == 404
    drawn = {"label": "Elephant", "strokes": [{"points": [[0.3, 0.4]]}]}
    assert ready.client.post("/projects/1/tasks/1/preview", json=drawn).status_code == 422


@pytest.mark.slow
def test_tasks_seen_before_are_shown_before_label_studio_is_asked(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    ready.label_studio.annotate(11, 2, [BLUE_POINT])
    jobs.ingest_annotation(ready.label_studio.key, 11)
    ready.label_studio.is_down = True
    ready.work()
    assert [one["label"] for one in tiles(ready, 3)[3]["regions"]] == ["Cat", "Dog"]
    (written,) = ready.label_studio.tasks[3]["predictions"]
    assert len(written["result"]) == 1, "Label Studio has the former one"
    ready.label_studio.is_down = False
    assert see(ready, *EVERY)["outdated"] == [], "predictions are kept"
    Maintenance(ready.projects, ready.queue).write_due()  # type: ignore[arg-type]
    ready.work()
    (written,) = ready.label_studio.tasks[3]["predictions"]
    assert len(written["result"]) == 2
    assert ready.projects.store.unwritten.projects() == []


def shown_and_not_written(ready: Backend) -> None:
    """Let the tiles have predictions of two references, of which Label Studio has those of one."""
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    ready.label_studio.annotate(11, 2, [BLUE_POINT])
    jobs.ingest_annotation(ready.label_studio.key, 11)
    jobs.refresh_tiles(ready.label_studio.key)
    assert len(ready.label_studio.tasks[3]["predictions"][0]["result"]) == 1


def test_accept_takes_what_the_tile_shows_also_before_label_studio_has_it(ready: Backend) -> None:
    shown_and_not_written(ready)
    made = ready.client.post("/projects/1/tasks/3/accept", json={}).get_json()
    annotation = ready.label_studio.annotations[made["annotation"]]
    assert len(annotation["result"]) == 2
    assert annotation["parent_prediction"] is None


def test_predictions_of_former_references_are_not_written_after_newer_ones(ready: Backend) -> None:
    shown_and_not_written(ready)
    key = ready.label_studio.key
    outdated = ready.projects.store.unwritten.of_task(key, 3)
    assert outdated is not None
    one = reference_of(ready, 2)
    ready.client.post(f"/projects/1/references/{one.id}/disable", json={})
    jobs.refresh_tiles(key)
    ready.projects.store.unwritten.delete(key, [outdated])
    assert ready.projects.store.unwritten.of_task(key, 3) is not None, "another one by now"
    ready.work()
    (written,) = ready.label_studio.tasks[3]["predictions"]
    assert len(written["result"]) == 1
    assert written["model_version"] == ready.projects.banks.model_version(key)


def test_a_propagation_replaces_what_waits_to_be_written(ready: Backend) -> None:
    shown_and_not_written(ready)
    ready.queue.jobs.clear()
    ready.client.post("/projects/1/propagations", json={})
    ready.work()
    assert ready.projects.store.unwritten.projects() == []
    (written,) = ready.label_studio.tasks[3]["predictions"]
    assert len(written["result"]) == 2


def test_writing_makes_way_for_labelers_and_goes_on_where_it_was(
    ready: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown_and_not_written(ready)
    deleted: list[int] = []
    delete = ready.label_studio.delete_prediction

    def count(prediction_id: int) -> None:
        deleted.append(prediction_id)
        delete(prediction_id)

    monkeypatch.setattr(ready.label_studio, "delete_prediction", count)
    monkeypatch.setattr(ready.queue, "has_labelers_waiting", lambda: len(deleted) == 1)
    ready.queue.jobs.clear()
    outcome = jobs.write_tiles(ready.label_studio.key)
    assert outcome["left"] > 0
    assert [name for name, _ in ready.queue.jobs] == ["write_tiles"]
    deleted.append(0)
    ready.work()
    for number in (1, 2, 3):
        assert len(ready.label_studio.tasks[number]["predictions"]) == 1, number
    assert len(deleted) == len(set(deleted)), "nothing was imported twice"


def test_one_process_at_a_time_writes_and_another_takes_over_when_it_is_gone(ready: Backend) -> None:
    shown_and_not_written(ready)
    key, unwritten = ready.label_studio.key, ready.projects.store.unwritten
    name = unwritten.begin_writing(key, 60.0)
    assert name is not None
    assert unwritten.begin_writing(key, 60.0) is None
    assert jobs.write_tiles(key)["written"] == 0
    assert unwritten.go_on_writing(key, name, -1.0)
    assert jobs.write_tiles(key)["written"] == 4
    assert not unwritten.go_on_writing(key, name, 60.0)
    assert len(ready.label_studio.tasks[3]["predictions"][0]["result"]) == 2


@pytest.mark.slow
def test_an_image_replaced_meanwhile_is_predicted_again_before_anything_is_written(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    ready.label_studio.images["/data/upload/1/3.png"] = png(draw())
    ready.label_studio.tasks[2]["data"] = {"image": "/data/upload/1/4.png"}
    annotate(ready, 11, 1, POINT, BLUE_POINT)
    assert [tiles(ready, number)[number]["state"] for number in EVERY] == ["masks", "empty", "empty", "empty"]
    assert ready.label_studio.tasks[3]["predictions"] == []
    assert ready.label_studio.tasks[2]["predictions"] == []


@pytest.mark.slow
def test_progress_counts_tasks_that_are_predicted_before_their_batch_is_written(ready: Backend) -> None:
    annotate(ready, 10, 1, POINT)
    key, store = ready.label_studio.key, ready.projects.store
    record = ready.projects.propagations.start(key, PropagationFilter(), "test", supersede=False)
    ready.projects.propagation_plans.plan(record.id)
    assert store.propagation_tasks.lease(record.id, "w:1", 24) == EVERY
    version = ready.projects.banks.model_version(key)
    store.tiles.save(key, [TilePrediction(2, "empty", version), TilePrediction(3, "empty", version)])
    status = ready.client.get("/projects/1/gallery/changes").get_json()["propagation"]
    assert (status["finished"], status["total"]) == (2, 4)


def reference_of(backend: Backend, task_id: int) -> Any:
    found = backend.projects.store.list_references(backend.label_studio.key)
    return next((one for one in found if one.task_id == task_id), None)


@pytest.mark.slow
def test_a_disabled_reference_takes_no_part_until_it_is_enabled(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    banks, key = ready.projects.banks, ready.label_studio.key
    before = banks.model_version(key)
    annotate(ready, 11, 2, BLUE_POINT)
    both = banks.model_version(key)
    one = reference_of(ready, 2)
    assert ready.client.post(f"/projects/1/references/{one.id}/disable", json={}).status_code == 200
    ready.work()
    assert banks.model_version(key) == before
    assert [region["label"] for region in tiles(ready, 3)[3]["regions"]] == ["Cat"]
    page = ready.client.get("/projects/1?tab=references").text
    assert "disabled</b>" in page
    annotate(ready, 11, 2, BLUE_POINT)
    assert reference_of(ready, 2).is_disabled, "its annotation was read again"
    assert ready.client.post(f"/projects/1/references/{reference_of(ready, 2).id}/enable", data={}).status_code == 200
    ready.work()
    assert banks.model_version(key) == both
    assert [region["label"] for region in tiles(ready, 3)[3]["regions"]] == ["Cat", "Dog"]


@pytest.mark.slow
def test_a_deleted_reference_stays_away_until_its_annotation_changes(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    annotate(ready, 11, 2, BLUE_POINT)
    one = reference_of(ready, 2)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert ready.client.post(f"/projects/1/references/{one.id}/delete", headers=form).status_code == 303
    assert ready.client.post(f"/projects/1/references/{one.id}/delete", json={}).status_code == 404
    assert ready.client.post(f"/projects/1/references/{one.id}/nonsense", json={}).status_code == 404
    ready.work()
    assert 11 in ready.label_studio.annotations
    assert [region["label"] for region in tiles(ready, 3)[3]["regions"]] == ["Cat"]
    annotate(ready, 11, 2, BLUE_POINT)
    assert reference_of(ready, 2) is None
    annotate(ready, 11, 2, BLUE_POINT, {**POINT, "id": "c"})
    assert reference_of(ready, 2) is not None
    assert [region["label"] for region in tiles(ready, 3)[3]["regions"]] == ["Cat", "Dog"]


def test_without_an_enabled_reference_tiles_have_no_prediction_and_label_studio_keeps_its_own(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    written = ready.label_studio.versions_of(2)
    one = reference_of(ready, 1)
    assert ready.client.post(f"/projects/1/references/{one.id}/disable", json={}).status_code == 200
    ready.work()
    found = tiles(ready, *EVERY)
    assert {each["state"] for each in found.values()} == {"unknown"}
    assert "all references are disabled" in found[2]["html"]
    assert ready.label_studio.versions_of(2) == written
    assert see(ready, *EVERY)["outdated"] == []
    ready.client.post(f"/projects/1/references/{one.id}/enable", json={})
    ready.work()
    assert tiles(ready, 2)[2]["state"] == "masks"
    assert ready.label_studio.versions_of(2) == written, "the same references give the same prediction"


def test_a_tile_that_nobody_saw_meanwhile_loses_its_prediction_when_somebody_looks(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT)
    ready.queue.seen.clear()
    one = reference_of(ready, 1)
    ready.client.post(f"/projects/1/references/{one.id}/delete", json={})
    ready.work()
    assert tiles(ready, 3)[3]["state"] == "masks", "nobody looks at it"
    assert see(ready, 3)["outdated"] == [3]
    ready.work()
    assert tiles(ready, 3)[3]["state"] == "unknown"
    assert "not predicted yet" in tiles(ready, 3)[3]["html"]


def test_the_badge_of_a_reference_does_not_count_disabled_ones(ready: Backend) -> None:
    see(ready, *EVERY)
    annotate(ready, 10, 1, POINT, BLUE_POINT)
    key, store = ready.label_studio.key, ready.projects.store
    cat, dog = (one for one in store.list_references(key))
    ready.client.post(f"/projects/1/references/{cat.id}/disable", json={})
    shown = tiles(ready, 1)[1]
    assert (shown["references"], shown["disabled"]) == ([dog.label], [cat.label])
    assert "badge reference" in shown["html"]
    ready.client.post(f"/projects/1/references/{dog.id}/disable", json={})
    shown = tiles(ready, 1)[1]
    assert "badge reference" not in shown["html"]
    assert "badge disabled" in shown["html"]
    page = ready.client.get("/projects/1?state=reference").text
    assert 'id="task-1"' not in page
