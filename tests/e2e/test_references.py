import numpy as np
import pytest

from backend.cli.demo.coins import COIN
from backend.cli.demo.label_studio_server import key_point
from backend.core.types import Json
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, Project, coin_mask, point_on, wait_until

TARGET = TARGETS[0]


def test_one_key_point_on_one_coin_finds_the_coins_of_all_other_tiles(project: Project) -> None:
    project.mark_one_coin()
    project.retrieve()
    assert all(len(project.predictions(name)) == 1 for name in TARGETS)
    assert project.mean_iou() > 0.8
    for name in TARGETS:
        (prediction,) = project.predictions(name)
        assert 0 < prediction["score"] <= 1
        for region in prediction["result"]:
            assert region["from_name"] == "brush"
            assert region.get("origin") != "manual"
            assert (region["original_height"], region["original_width"]) == SAMPLES[name].size_hw


def test_predictions_have_the_version_of_setup_and_are_not_made_twice(small_project: Project) -> None:
    before = small_project.version()
    small_project.mark_one_coin()
    small_project.retrieve(TARGET)
    (prediction,) = small_project.predictions(TARGET)
    assert prediction["model_version"] == small_project.version() != before
    small_project.retrieve(TARGET)
    small_project.label_studio.task(small_project.tasks[TARGET])
    assert len(small_project.predictions(TARGET)) == 1


def test_opening_the_next_task_predicts_it(small_project: Project) -> None:
    """No «retrieve»: the annotation was submitted a moment ago, and the next task opens."""
    small_project.label_studio.update_project(small_project.id, show_collab_predictions=True)
    small_project.annotate(MARKED, point_on(MARKED, 2))
    task = small_project.label_studio.task(small_project.tasks[TARGET])
    assert task["predictions"], small_project.backend.log()[-3000:]
    assert small_project.iou(TARGET) > 0.5


def test_updating_an_annotation_replaces_its_reference(small_project: Project) -> None:
    annotation = small_project.mark_one_coin()
    first = small_project.version()
    small_project.label_studio.update_annotation(annotation, [point_on(MARKED, 1)])
    wait_until(lambda: small_project.version() != first, "another model_version")
    assert small_project.references() == 1
    small_project.retrieve(TARGET)
    assert small_project.iou(TARGET) > 0.5

    small_project.label_studio.update_annotation(annotation, [])
    small_project.wait_for_references(0)


def test_deleting_the_annotation_removes_its_reference(small_project: Project) -> None:
    annotation = small_project.mark_one_coin()
    small_project.label_studio.delete_annotation(annotation)
    small_project.wait_for_references(0)
    small_project.retrieve(TARGET)
    assert small_project.predictions(TARGET) == []


def test_deleting_the_task_removes_its_reference(small_project: Project) -> None:
    small_project.mark_one_coin()
    small_project.label_studio.delete_task(small_project.tasks[MARKED])
    small_project.wait_for_references(0)
    small_project.retrieve(TARGET)
    assert small_project.predictions(TARGET) == []


@pytest.mark.parametrize(("regions", "is_skipped"), [([], False), ([point_on(MARKED, 2)], True)])
def test_a_skipped_or_empty_annotation_leaves_no_reference(
    small_project: Project, regions: list[Json], is_skipped: bool
) -> None:
    seen = small_project.backend.log().count("job=ingest_annotation")
    small_project.annotate(MARKED, *regions, was_cancelled=is_skipped)
    wait_until(lambda: small_project.backend.log().count("job=ingest_annotation") > seen, "annotation looked at")
    assert small_project.references() == 0


def test_an_accepted_prediction_is_a_finished_mask(small_project: Project) -> None:
    """«Create annotations from predictions»: the reference is the predicted mask itself, however odd."""
    project = small_project
    project.mark_one_coin()
    project.retrieve(TARGET)
    project.label_studio.call(
        "POST",
        f"/api/dm/actions?id=predictions_to_annotations&project={project.id}",
        json={"selectedItems": {"all": False, "included": [project.tasks[TARGET]]}},
    )
    project.wait_for_references(2)


def test_projects_never_see_each_others_references(new_project: NewProject, backend: Backend) -> None:
    images = {name: SAMPLES[name].image for name in (MARKED, TARGET)}
    one, other = new_project(backend, images), new_project(backend, images)
    one.mark_one_coin()
    other.retrieve(TARGET)
    assert other.references() == 0
    assert other.predictions(TARGET) == []
    one.retrieve(TARGET)
    assert one.iou(TARGET) > 0.5
    # Label Studio asks every connected project's /setup in turn; neither changes the other.
    assert one.version() != other.version()


def test_references_survive_a_restart(start_other_backend: StartBackend, new_project: NewProject) -> None:
    backend = start_other_backend("restarted")
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, TARGET)})
    project.mark_one_coin()
    version = project.version()
    project.retrieve(TARGET)
    mask = project.predicted_mask(TARGET)
    backend.restart()
    assert project.references() == 1
    assert project.version() == version
    project.label_studio.delete_predictions(project.id, [project.tasks[TARGET]])
    project.retrieve(TARGET)
    assert np.array_equal(project.predicted_mask(TARGET), mask)


def imported(label_studio_project: Project) -> None:
    """Import the marked tile once more, with its annotation: Label Studio doesn't announce the annotation."""
    image = label_studio_project.label_studio.task(label_studio_project.tasks[MARKED])["data"]["image"]
    task = {"data": {"image": image}, "annotations": [{"result": [point_on(MARKED, 2)]}]}
    label_studio_project.label_studio.import_tasks(label_studio_project.id, [task])


def test_start_training_brings_in_imported_annotations(small_project: Project) -> None:
    # The first look-through of a new project is over when the second one is asked for.
    small_project.mark_one_coin()
    imported(small_project)
    small_project.label_studio.train(small_project.connection)
    small_project.wait_for_references(2)


def test_a_start_brings_in_what_happened_meanwhile(start_other_backend: StartBackend, new_project: NewProject) -> None:
    """Made, imported and deleted while service and worker were down."""
    backend = start_other_backend("away")
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, TARGET, "coins-4")})
    deleted = project.mark_one_coin()
    backend.stop()
    imported(project)
    kept = project.annotate("coins-4", point_on("coins-4", 1))
    project.label_studio.delete_annotation(deleted)
    backend.start()
    project.wait_for_references(2)
    project.label_studio.delete_annotation(kept)
    project.wait_for_references(1)
    project.retrieve(TARGET)
    assert project.iou(TARGET) > 0.5


def test_connecting_a_project_that_has_annotations_brings_them_in(new_project: NewProject, backend: Backend) -> None:
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, TARGET)}, is_connected=False)
    project.annotate(MARKED, point_on(MARKED, 2))
    project.connection = project.label_studio.connect_backend(project.id, backend.url)
    project.wait_for_references(1)


def test_a_renamed_label_has_no_references(small_project: Project) -> None:
    small_project.mark_one_coin()
    config = small_project.label_studio.project(small_project.id)["label_config"]
    small_project.label_studio.delete_annotation(
        small_project.label_studio.task(small_project.tasks[MARKED])["annotations"][0]["id"]
    )
    small_project.wait_for_references(0)
    small_project.label_studio.update_project(small_project.id, label_config=config.replace(COIN, "Medal"))
    assert small_project.label_studio.backend(small_project.connection)["state"] == "CO"
    middle = key_point((24, 51), SAMPLES[MARKED].size_hw, "Medal")
    small_project.annotate(MARKED, middle)
    small_project.wait_for_references(1)
    small_project.retrieve(TARGET)
    (region,) = small_project.predictions(TARGET)[-1]["result"]
    assert region["value"]["brushlabels"] == ["Medal"]


def test_nothing_is_predicted_where_there_is_no_coin(new_project: NewProject, backend: Backend) -> None:
    from skimage import data

    images = {MARKED: SAMPLES[MARKED].image, "cat": data.chelsea(), "lawn": np.repeat(data.grass()[..., None], 3, 2)}
    project = new_project(backend, images)
    project.mark_one_coin()
    project.retrieve("cat", "lawn")
    assert {name: project.predictions(name) for name in ("cat", "lawn")} == {"cat": [], "lawn": []}


def test_a_stroke_marks_as_a_key_point_does(small_project: Project) -> None:
    from label_studio_sdk.converter.brush import mask2rle

    coin = coin_mask(MARKED, 2)
    rows, columns = np.nonzero(coin)
    stroke = np.zeros_like(coin)
    middle = int(rows.mean())
    stroke[middle - 2 : middle + 3, int(columns.mean()) - 10 : int(columns.mean()) + 10] = True
    region = {
        "id": "stroke",
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "origin": "manual",
        "original_width": coin.shape[1],
        "original_height": coin.shape[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": mask2rle(stroke.astype(np.uint8) * 255), "brushlabels": [COIN]},
    }
    small_project.annotate(MARKED, region)
    small_project.wait_for_references(1)
    small_project.retrieve(TARGET)
    assert small_project.iou(TARGET) > 0.5
