"""What was made of an annotation is made again when its reading changes, and nothing else is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from backend.jobs import tasks
from backend.labelstudio.rle import encode_mask
from backend.store import tables
from testing.fakes import LABEL_CONFIG, Backend, draw, make_backend, png

WITH_BACKGROUND = LABEL_CONFIG.replace("</BrushLabels>", '<Label value="Ground"/></BrushLabels>')


def brush(top: int, left: int, bottom: int, right: int, label: str = "Cat", **more: Any) -> dict[str, Any]:
    mask = np.zeros((48, 64), bool)
    mask[top:bottom, left:right] = True
    return {
        "id": f"brush-{label}", "type": "brushlabels", "from_name": "brush", "to_name": "image", "origin": "prediction",
        "original_width": 64, "original_height": 48,
        "value": {"format": "rle", "rle": encode_mask(mask), "brushlabels": [label]}, **more,
    }  # fmt: skip


def connect(backend: Backend, *, label_config: str = LABEL_CONFIG, **extra_params: Any) -> None:
    backend.label_studio.label_config = label_config
    body = {"project": backend.label_studio.key, "schema": label_config, "hostname": "http://x"}
    answer = backend.client.post("/setup", json={**body, "extra_params": extra_params})
    assert answer.status_code == 200, answer.text


def made_of(backend: Backend) -> list[tuple[Any, ...]]:
    """What the store's references are, without ids and times."""
    key = backend.label_studio.key
    found = backend.projects.store.references(key, labels=None, signature="colours-1")
    return [(one.annotation_id, one.label, one.image_tag, one.digest) for one in found]


def start_training(backend: Backend) -> None:
    created = backend.label_studio.created_at.isoformat()
    project = {"id": 1, "title": "Animals", "label_config": backend.label_studio.label_config, "created_at": created}
    assert backend.client.post("/webhook", json={"action": "START_TRAINING", "project": project}).status_code == 201
    backend.work()


@pytest.fixture
def annotated(backend: Backend) -> Backend:
    backend.label_studio.add_task(1, png(draw(red=(10, 10, 30, 30), blue=(40, 5, 60, 20))))
    backend.label_studio.annotate(
        10, 1, [brush(12, 12, 25, 25, origin="manual"), brush(5, 40, 20, 60, "Ground", id="ground")]
    )
    return backend


def fresh(tmp_path: Path, backend: Backend, label_config: str, params: dict[str, Any], **settings: Any) -> list[Any]:
    """The references of a backend that never saw the project before."""
    other = make_backend(tmp_path / "fresh", backend.label_studio, **settings)
    connect(other, label_config=label_config, **params)
    other.projects.references.reconcile(backend.label_studio.key)
    return made_of(other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "params", "settings"),
    [
        (WITH_BACKGROUND, {"complete_annotations": True}, {}),
        (WITH_BACKGROUND, {}, {"complete_annotations": True}),
        (WITH_BACKGROUND, {}, {"background_labels": frozenset({"ground"})}),
        (WITH_BACKGROUND, {}, {"mask_tags": frozenset({"brush"})}),
        (WITH_BACKGROUND.replace('"Ground"', '"Floor"'), {}, {}),
        (WITH_BACKGROUND.replace('value="Cat"', 'value="Cat" alias="c"'), {}, {}),
    ],
    ids=["complete by params", "complete by settings", "background", "mask tags", "label renamed", "alias"],
)
def test_start_training_gives_what_a_fresh_reading_gives(
    annotated: Backend, tmp_path: Path, config: str, params: dict[str, Any], settings: dict[str, Any]
) -> None:
    key = annotated.label_studio.key
    connect(annotated, label_config=WITH_BACKGROUND)
    annotated.projects.references.reconcile(key)
    before = made_of(annotated)
    assert before
    later = make_backend(tmp_path / "data", annotated.label_studio, **settings)
    tasks.use_projects(later.projects, later.queue)  # type: ignore[arg-type]
    connect(later, label_config=config, **params)

    page = later.client.get("/projects/1?tab=references").text
    assert f"{len(before)} references were made with other settings" in page
    assert f"{len(before)} made with other settings than now" in later.client.get("/projects/1").text
    start_training(later)

    assert made_of(later) == fresh(tmp_path, annotated, config, params, **settings)
    assert made_of(later) != before
    for tab in ("gallery", "references"):
        assert "made with other settings" not in later.client.get(f"/projects/1?tab={tab}").text


def test_what_no_reference_is_made_of_changes_nothing(annotated: Backend) -> None:
    """Another matcher, a title, the layout of the label config: the references stay."""
    connect(annotated, label_config=WITH_BACKGROUND)
    annotated.projects.references.reconcile(annotated.label_studio.key)
    connect(
        annotated, label_config=WITH_BACKGROUND.replace("<View>", '<View><Header value="Mark"/>'), matcher="sinkhorn"
    )
    outcome = annotated.projects.references.reconcile(annotated.label_studio.key)
    assert outcome == {"seen": 1, "unchanged": 1}


def test_records_of_an_older_release_are_read_again_once(annotated: Backend) -> None:
    key = annotated.label_studio.key
    connect(annotated, label_config=WITH_BACKGROUND)
    annotated.projects.references.reconcile(key)
    before = made_of(annotated)
    engine = sa.create_engine(annotated.settings.store_url)
    with engine.begin() as connection:
        connection.execute(sa.update(tables.annotations).values(reading=None))
    engine.dispose()

    annotated.label_studio.is_down = True
    start_training(annotated)
    annotated.label_studio.is_down = False
    assert made_of(annotated) == before, "nothing is lost while Label Studio is away"

    assert annotated.projects.references.reconcile(key)["unchanged"] == 0
    assert annotated.projects.references.reconcile(key)["unchanged"] == 1
    assert made_of(annotated) == before


@pytest.mark.slow
def test_the_page_renews_references_when_asked(annotated: Backend) -> None:
    connect(annotated, label_config=WITH_BACKGROUND)
    annotated.projects.references.reconcile(annotated.label_studio.key)
    before = made_of(annotated)
    connect(annotated, label_config=WITH_BACKGROUND, complete_annotations=True)
    assert annotated.client.post("/projects/1/reconcile", data={"x": "1"}).status_code == 303
    annotated.work()
    assert made_of(annotated) != before


@pytest.mark.slow
def test_a_reference_whose_image_was_replaced_is_taken_in_again(annotated: Backend, tmp_path: Path) -> None:
    key = annotated.label_studio.key
    connect(annotated, label_config=WITH_BACKGROUND)
    annotated.projects.references.reconcile(key)
    before = made_of(annotated)
    fetches = annotated.label_studio.fetches
    assert annotated.projects.references.reconcile(key)["unchanged"] == 1
    assert annotated.label_studio.fetches == fetches, "it is asked, and comes only if it changed"

    annotated.label_studio.images["/data/upload/1/1.png"] = png(draw(red=(10, 10, 28, 28), blue=(40, 5, 60, 20)))
    start_training(annotated)
    assert made_of(annotated) != before
    assert made_of(annotated) == fresh(tmp_path, annotated, WITH_BACKGROUND, {})


def test_references_stay_while_their_image_cannot_be_had(annotated: Backend) -> None:
    key = annotated.label_studio.key
    connect(annotated, label_config=WITH_BACKGROUND)
    annotated.projects.references.reconcile(key)
    before = made_of(annotated)
    content = annotated.label_studio.images.pop("/data/upload/1/1.png")
    assert annotated.projects.references.reconcile(key)["image_missing"] == 1
    connect(annotated, label_config=WITH_BACKGROUND, complete_annotations=True)
    annotated.projects.references.reconcile(key)
    assert made_of(annotated) == before
    (record,) = annotated.projects.store.annotations(key)
    assert "404" in str(record.problem)

    annotated.label_studio.images["/data/upload/1/1.png"] = content
    annotated.projects.references.reconcile(key)
    (record,) = annotated.projects.store.annotations(key)
    assert record.problem is None
    assert made_of(annotated) != before, "read with complete annotations now"


def test_an_image_host_that_is_down_ends_no_reconciliation(annotated: Backend) -> None:
    key = annotated.label_studio.key
    connect(annotated, label_config=WITH_BACKGROUND)
    annotated.label_studio.away.add("/data/upload/1/1.png")
    annotated.label_studio.add_task(2, png(draw(red=(10, 10, 30, 30))))
    annotated.label_studio.annotate(11, 2, [brush(10, 10, 30, 30)])
    assert annotated.projects.references.reconcile(key) == {"seen": 2, "unchanged": 0, "failed": 1, "references": 1}
    annotated.label_studio.away.clear()
    assert annotated.projects.references.reconcile(key) == {"seen": 2, "unchanged": 1, "references": 1}


def test_an_annotation_announced_while_its_image_host_is_down_is_tried_again(annotated: Backend) -> None:
    key = annotated.label_studio.key
    connect(annotated, label_config=WITH_BACKGROUND)
    annotated.projects.store.save_project(key, needs_reconcile=False)
    annotated.label_studio.away.add("/data/upload/1/1.png")
    assert annotated.projects.references.ingest(key, 10) == "failed"
    project = annotated.projects.store.project(key)
    assert project
    assert project.needs_reconcile
