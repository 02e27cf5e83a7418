"""What was made of an annotation, or of an image, is made again when its reading or the image changes."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from backend.cli.demo.coins import COIN, LABEL_CONFIG
from backend.cli.demo.label_studio_server import key_point, mask_of_regions
from backend.core.types import Image
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.label_config import parse_label_config
from tests.e2e.conftest import NewProject
from tests.e2e.propagation_scene import newest, wait_for_end
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, Project, centre_of, coin_mask, point_on, wait_until

TARGET, OTHER = TARGETS[:2]


def png(image: Image) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shelf(local_files: Path) -> Path:
    """A folder of Label Studio's local files."""
    folder = local_files / "coins"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def project(new_project: NewProject, backend: Backend, shelf: Path) -> Project:
    """Three tiles of coins, of which the second lies in the folder of local files."""
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, OTHER)})
    (shelf / f"{TARGET}.png").write_bytes(png(SAMPLES[TARGET].image))
    storage = {"project": project.id, "path": str(shelf), "title": "shelf", "use_blob_urls": True}
    project.label_studio.call("POST", "/api/storages/localfiles", json=storage)
    task = {"data": {"image": f"/data/local-files/?d=coins/{TARGET}.png"}}
    (project.tasks[TARGET],) = project.label_studio.import_tasks(project.id, [task])
    return project


def train(project: Project) -> None:
    before = project.backend.get(f"/projects/{project.id}/propagations").json()["propagations"]
    project.label_studio.train(project.connection)
    wait_until(
        lambda: len(project.backend.get(f"/projects/{project.id}/propagations").json()["propagations"]) > len(before),
        "a propagation",
    )
    ended = wait_for_end(project, newest(project)["id"])
    assert (ended["state"], ended["counts"]["failed"]) == ("done", 0), ended


def page(project: Project) -> str:
    return project.backend.get(f"/projects/{project.id}?tab=references").text


def test_start_training_reads_annotations_with_the_settings_of_now(project: Project) -> None:
    (brush,) = parse_label_config(LABEL_CONFIG).brushes
    project.annotate(MARKED, mask_to_region(coin_mask(MARKED, 2), brush=brush, label=COIN, score=1.0))
    project.wait_for_references(1)
    before = project.version()
    changed = {"project": project.id, "url": project.backend.url, "extra_params": {"complete_annotations": True}}
    project.label_studio.call("PATCH", f"/api/ml/{project.connection}", json=changed)
    wait_until(lambda: "1 reference was made with other settings" in page(project), "a word on the page")
    train(project)
    assert "made with other settings" not in page(project)
    assert project.version() != before
    assert project.references() == 1


def test_an_image_replaced_on_disk_is_seen_by_the_next_click_and_the_next_propagation(
    project: Project, shelf: Path
) -> None:
    project.mark_one_coin()
    train(project)
    kept = project.predictions(OTHER)
    old = project.predictions(TARGET)
    coin = coin_mask(TARGET, 1)
    assert project.interact(TARGET, point_on(TARGET, 1))

    (shelf / f"{TARGET}.png").write_bytes(png(np.ascontiguousarray(SAMPLES[TARGET].image[:, ::-1])))
    mirrored = np.ascontiguousarray(coin[:, ::-1])
    shown = project.interact(TARGET, key_point(centre_of(mirrored), (coin.shape[0], coin.shape[1]), COIN))
    mask = mask_of_regions(shown, COIN, (coin.shape[0], coin.shape[1]))
    assert np.count_nonzero(mask & mirrored) / np.count_nonzero(mask | mirrored) > 0.5

    train(project)
    assert [each["id"] for each in project.predictions(OTHER)] == [each["id"] for each in kept], "uploads are compared"
    assert [each["id"] for each in project.predictions(TARGET)] != [each["id"] for each in old]
    (new,) = project.predictions(TARGET)
    assert new["model_version"] == old[0]["model_version"]
    before, after = (mask_of_regions(each["result"], COIN, (coin.shape[0], coin.shape[1])) for each in (old[0], new))
    flipped = before[:, ::-1]
    assert np.count_nonzero(after & flipped) / np.count_nonzero(after | flipped) > 0.7


def test_an_annotation_that_gave_no_reference_is_on_the_page_and_tried_again(project: Project, shelf: Path) -> None:
    content = (shelf / f"{TARGET}.png").read_bytes()
    (shelf / f"{TARGET}.png").unlink()
    project.annotate(TARGET, point_on(TARGET, 1))
    wait_until(lambda: "1 annotation gave no reference" in page(project), "the card on the page")
    assert f"data?task={project.tasks[TARGET]}" in page(project)
    assert project.references() == 0

    (shelf / f"{TARGET}.png").write_bytes(content)
    assert project.backend.post(f"/projects/{project.id}/reconcile", {}).status_code == 202
    project.wait_for_references(1)
    assert "gave no reference" not in page(project)
