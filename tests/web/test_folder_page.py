"""The page of a folder over models that see colours only: draw, keep, see it elsewhere, accept, remove, export."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from backend.cli.try_folder import TriedFolder, open_folder, split_labels
from backend.jobs import tasks
from backend.metrics import Metrics
from backend.projects.folder.annotation_files import AnnotationFiles
from backend.projects.folder.images import find_images
from backend.projects.model_host import Models
from backend.settings import load_settings
from backend.web.app import create_app
from testing.fakes import ColourSoftmatcher, draw, png
from tests.e2e.scene import wait_until

pytestmark = pytest.mark.slow

ON_RED = [{"points": [[0.3, 0.4]]}]


class Folder:
    """A folder with a page; what the queue has is run by its own thread."""

    def __init__(self, tmp_path: Path) -> None:
        self.images, self.kept_at = tmp_path / "photos", tmp_path / "pets.db.annotations"
        self._data = tmp_path
        self.images.mkdir()
        for number in range(1, 4):
            self.add(f"cat-{number}.png", png(draw(red=(10, 10, 30 + number, 30), blue=(45, 30, 60, 45))))
        self.add("empty.png", png(draw()))
        self.add("broken.png", b"this is no image")

    def add(self, name: str, content: bytes) -> None:
        (self.images / name).write_bytes(content)

    def open(self, *labels: str) -> FlaskClient:
        settings = load_settings(data_dir=self._data, database_url=f"sqlite:///{self._data / 'pets.db'}")
        tried = TriedFolder(self.images, find_images(self.images), labels, settings, self.kept_at, is_lasting=True)
        self._files = AnnotationFiles(self.kept_at)
        load: Any = lambda profile, on_stage: ColourSoftmatcher(on_stage)  # noqa: E731 - stands in for a whole one
        self.projects, self.queue = open_folder(tried, self._files, Models(settings, Metrics(), load=load))
        self.projects.models.get(10)
        tasks.use_projects(self.projects, self.queue)
        self.queue.start()
        self.queue.reconcile(self.projects.store.projects()[0].key)
        return create_app(self.projects, self.queue, is_for_label_studio=False).test_client()

    def close(self) -> None:
        self.queue.close(10)
        tasks.use_projects(None)
        self.projects.close()
        self._files.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    made.close()


def post(client: FlaskClient, path: str, body: object) -> Any:
    answer = client.post(f"/projects/1{path}", json=body)
    assert answer.status_code < 300, answer.text
    return answer.get_json()


def tiles(client: FlaskClient) -> dict[str, Any]:
    answer = client.get("/projects/1/gallery/tiles?ids=1,2,3,4,5&since=0").get_json()
    return {one["name"]: one for one in answer["tiles"]}


def states(client: FlaskClient) -> dict[str, str]:
    return {name: one["state"] for name, one in tiles(client).items()}


def keep(client: FlaskClient, task_id: int, label: str = "Cat") -> Any:
    made = post(client, f"/tasks/{task_id}/preview", {"label": label, "strokes": ON_RED})
    return post(client, "/gallery/keep", {"name": made["name"]})


WITH_A_CAT = {"broken.png": "failed", "cat-1.png": "masks", "cat-2.png": "masks", "cat-3.png": "masks",
              "empty.png": "empty"}  # fmt: skip


def test_a_mask_that_is_kept_is_found_on_all_other_images(folder: Folder) -> None:
    client = folder.open("Cat", "Dog")
    assert set(states(client).values()) == {"unknown"}
    made = post(client, "/tasks/2/preview", {"label": "Cat", "strokes": ON_RED})
    assert made["regions"][0]["label"] == "Cat"
    (shown,) = post(client, "/gallery/preview", {"name": made["name"], "ids": [3]})["tiles"]
    assert shown["regions"]
    assert not list((folder.kept_at / "annotations").iterdir()), "nothing is kept yet"
    post(client, "/gallery/keep", {"name": made["name"]})
    # Nobody said what is visible: all images are predicted.
    wait_until(lambda: states(client) == WITH_A_CAT, "all are predicted")
    found = tiles(client)
    assert "broken.png" in found["broken.png"]["html"]
    assert "image must be one of" in found["broken.png"]["reason"]
    assert found["cat-1.png"]["is_annotated"]
    assert 'data-act="remove"' in found["cat-1.png"]["html"]
    assert 'data-act="remove"' not in found["cat-2.png"]["html"]


def test_what_needs_label_studio_is_not_there(folder: Folder) -> None:
    client = folder.open("Cat")
    keep(client, 2)
    wait_until(lambda: states(client) == WITH_A_CAT, "all are predicted")
    for tab in ("gallery", "references", "quality", "export", "settings"):
        page = client.get(f"/projects/1?tab={tab}")
        assert page.status_code == 200
        assert "in Label Studio" not in page.text.partition('id="place"')[0]
        assert 'class="open"' not in page.text
        assert "/data?task=" not in page.text
        assert "tab=runs" not in page.text
        assert "python -m backend export" not in page.text
    assert client.get("/projects/1?tab=runs").status_code == 404
    assert client.post("/setup", json={}).status_code == 404
    assert client.post("/projects/1/propagations", json={}).status_code in (404, 405)
    assert "Label Studio" in client.get("/projects/1").text, "where to go from here"


def test_accept_undo_wrong_and_remove_work_on_files(folder: Folder) -> None:
    client = folder.open("Cat")
    keep(client, 2)
    wait_until(lambda: states(client) == WITH_A_CAT, "all are predicted")
    annotations = folder.kept_at / "annotations"
    done = post(client, "/tasks/3/accept", {})
    assert len(list(annotations.iterdir())) == 2
    wait_until(lambda: tiles(client)["cat-2.png"]["references"] == ["Cat"], "it is a reference")
    assert post(client, "/gallery/undo", {"batch": done["batch"]})["tasks"] == [3]
    assert len(list(annotations.iterdir())) == 1
    post(client, "/tasks/3/wrong", {"label": "Cat"})
    wait_until(lambda: tiles(client)["cat-2.png"]["is_annotated"], "it says that there is none")
    assert len(post(client, "/tasks/2/remove", {})["annotations"]) == 1
    post(client, "/tasks/3/remove", {})
    wait_until(lambda: set(states(client).values()) <= {"unknown", "failed"}, "no reference, no mask")
    assert len(list((folder.kept_at / "removed").iterdir())) == 3
    assert client.post("/projects/1/tasks/2/remove", json={}).status_code == 404


def test_a_restart_has_everything_again_even_without_its_database(folder: Folder) -> None:
    client = folder.open("Cat")
    keep(client, 2)
    post(client, "/gallery/min-score", {"min_score": 0.4})
    wait_until(lambda: states(client) == WITH_A_CAT, "all are predicted")
    folder.close()
    client = folder.open()
    assert states(client) == WITH_A_CAT
    wait_until(lambda: tiles(client)["cat-1.png"]["references"] == ["Cat"], "its reference")
    post(client, "/tasks/3/accept", {})
    folder.close()
    for file in folder.images.parent.glob("pets.db*"):
        if file.is_file():
            file.unlink()
    client = folder.open()
    wait_until(lambda: states(client) == WITH_A_CAT, "made again of the annotations")
    assert {name for name, one in tiles(client).items() if one["is_annotated"]} == {"cat-1.png", "cat-2.png"}
    assert 'data-saved="0.4"' in client.get("/projects/1").text


def test_a_label_is_added_on_the_page(folder: Folder) -> None:
    client = folder.open("Cat")
    keep(client, 2)
    assert post(client, "/labels", {"label": "Dog"})["labels"] == ["Cat", "Dog"]
    page = client.post("/projects/1/labels", data={"label": "Bird"})
    assert (page.status_code, page.headers["Location"].endswith("/projects/1?tab=gallery")) == (303, True)
    assert "<option>Bird</option>" in client.get("/projects/1").text
    blue = [{"points": [[0.8, 0.8]]}]
    made = post(client, "/tasks/2/preview", {"label": "Dog", "strokes": blue})
    post(client, "/gallery/keep", {"name": made["name"]})
    wait_until(lambda: sorted(tiles(client)["cat-3.png"]["scores"]) == ["Cat", "Dog"], "both are found")
    for bad, status in (("cat", 409), ("", 422), ("\x00", 422), ("x" * 200, 422)):
        assert client.post("/projects/1/labels", json={"label": bad}).status_code == status
    assert client.post("/projects/1/labels", json={"label": 3}).status_code == 422


@pytest.mark.parametrize("form", ["coco", "png", "yolo-seg", "parquet", "label-studio"])
def test_exports_have_what_was_drawn_and_what_was_found(folder: Folder, form: str) -> None:
    client = folder.open("Cat", "Dog")
    keep(client, 2)
    keep(client, 2, "Dog")  # a second region of the same image
    wait_until(lambda: states(client) == WITH_A_CAT, "all are predicted")
    page = client.get("/projects/1?tab=export").text
    assert "<option selected>all</option>" in page
    assert "<option selected>both</option>" in page
    answer = client.get(f"/projects/1/export?format={form}&source=both&annotators=all")
    archive = zipfile.ZipFile(io.BytesIO(answer.data))
    (record,) = (name for name in archive.namelist() if name.endswith("objects.jsonl"))
    lines = [json.loads(line) for line in archive.read(record).splitlines()]
    assert {line["label"] for line in lines if line["task"] == 2} == {"Cat", "Dog"}
    assert {line["task"] for line in lines} >= {2, 3, 4}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "photos.example.com"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1.example.com"},
        {"Origin": "null"},
    ],
)
def test_other_sites_and_foreign_names_are_refused(folder: Folder, headers: dict[str, str]) -> None:
    client = folder.open("Cat")
    answer = client.post("/projects/1/labels", json={"label": "Dog"}, headers=headers)
    assert answer.status_code == 403
    if "Host" in headers:
        assert client.get("/projects/1", headers=headers).status_code == 403


def test_an_unknown_task_is_nothing_to_show(folder: Folder) -> None:
    client = folder.open("Cat")
    assert client.get("/projects/1/gallery/tiles?ids=5,99,123456789012345678&since=0").status_code == 200
    assert client.get("/projects/1/tasks/99/photo.jpg").status_code == 404
    assert client.post("/projects/1/tasks/0/preview", json={"label": "Cat", "strokes": ON_RED}).status_code == 404


def test_labels_are_split_at_commas() -> None:
    assert split_labels(" A, B b ,,") == ["A", "B b"]
    assert split_labels(None) == []
