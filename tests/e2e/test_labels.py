"""Several marks in one annotation, and one name in two brushes, in the real Label Studio."""

import numpy as np

from backend.cli.demo.coins import COIN, LABEL_CONFIG
from backend.cli.demo.label_studio_server import mask_of_regions
from backend.core.types import Json
from tests.e2e.conftest import NewProject
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, Project, box_around, coin_mask, point_on, wait_until

TARGET = TARGETS[0]
TWO_BRUSHES = f"""<View><Image name="image" value="$image"/>
  <BrushLabels name="material" toName="image"><Label value="{COIN}"/><Label value="Wood"/></BrushLabels>
  <BrushLabels name="defect" toName="image"><Label value="{COIN}"/><Label value="Crack"/></BrushLabels>
  <KeyPointLabels name="on_defect" toName="image" smart="true"><Label value="{COIN}"/><Label value="Crack"/>
  </KeyPointLabels></View>"""
WITH_POLYGONS = LABEL_CONFIG.replace(
    "</View>", f'<PolygonLabels name="polygon" toName="image"><Label value="{COIN}"/></PolygonLabels></View>', 1
)


def covered(regions: list[Json], task: str, number: int) -> float:
    coin = coin_mask(task, number)
    return float(np.mean(mask_of_regions(regions, COIN, (coin.shape[0], coin.shape[1]))[coin]))


def test_a_click_and_a_box_on_two_coins_mark_both(small_project: Project) -> None:
    marks = [point_on(MARKED, 1), box_around(MARKED, 2)]
    shown = small_project.interact(MARKED, *marks)
    assert min(covered(shown, MARKED, number) for number in (1, 2)) > 0.9
    alone = small_project.interact(MARKED, point_on(MARKED, 1))
    assert covered(alone, MARKED, 2) < 0.1
    small_project.annotate(MARKED, *marks)
    small_project.wait_for_references(1)
    small_project.retrieve(TARGET)
    assert small_project.iou(TARGET) > 0.8


def test_a_label_of_two_brushes_comes_back_in_its_own(new_project: NewProject, backend: Backend) -> None:
    images = {name: SAMPLES[name].image for name in (MARKED, TARGET)}
    project = new_project(backend, images, label_config=TWO_BRUSHES)
    point = point_on(MARKED, 2) | {"from_name": "on_defect"}
    project.annotate(MARKED, point)
    project.wait_for_references(1)
    project.retrieve(TARGET)
    wait_until(lambda: bool(project.predictions(TARGET)), "a prediction")
    (prediction,) = project.predictions(TARGET)
    assert {region["from_name"] for region in prediction["result"]} == {"defect"}
    assert {label for region in prediction["result"] for label in region["value"]["brushlabels"]} == {COIN}
    assert f"{COIN} (defect)" in backend.get(f"/projects/{project.id}").text


def test_a_polygon_is_a_reference_as_it_is_drawn(new_project: NewProject, backend: Backend) -> None:
    images = {name: SAMPLES[name].image for name in (MARKED, TARGET)}
    project = new_project(backend, images, label_config=WITH_POLYGONS)
    rows, columns = np.nonzero(coin_mask(MARKED, 2))
    height, width = SAMPLES[MARKED].size_hw
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius = (np.ptp(rows) + np.ptp(columns)) / 4
    corners = [
        [100 * (columns.mean() + radius * np.cos(turn)) / width, 100 * (rows.mean() + radius * np.sin(turn)) / height]
        for turn in turns
    ]
    region = point_on(MARKED, 2) | {
        "type": "polygonlabels", "from_name": "polygon",
        "value": {"points": corners, "closed": True, "polygonlabels": [COIN]},
    }  # fmt: skip
    project.annotate(MARKED, region)
    project.wait_for_references(1)
    project.retrieve(TARGET)
    assert project.iou(TARGET) > 0.8


def test_a_config_that_cannot_work_is_refused_by_label_studio_with_the_reason(
    new_project: NewProject, backend: Backend
) -> None:
    project = new_project(backend, {MARKED: SAMPLES[MARKED].image}, is_connected=False)
    repeater = f'<View><Repeater on="$pages"></Repeater>{LABEL_CONFIG}</View>'
    answer = backend.post("/setup", {"project": project.key, "schema": repeater})
    assert answer.status_code == 422
    assert "make each of its pages a task of its own" in answer.text
