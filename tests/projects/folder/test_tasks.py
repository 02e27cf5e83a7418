"""A folder's tasks: what is kept, what survives a restart, what is wrong with files that others changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.errors import BadInputError, ConfigurationError, ConflictError, NotFoundError, OutputError
from backend.labelstudio.label_config import parse_label_config
from backend.projects.folder.annotation_files import AnnotationFiles
from backend.projects.folder.images import FolderFiles, find_images
from backend.projects.folder.tasks import FolderTasks

REGION: dict[str, Any] = {"id": "r1", "type": "brushlabels", "value": {"brushlabels": ["Cat"]}}


class Opened:
    """A folder whose tasks are opened again and again."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder, self.kept_at = tmp_path / "photos", tmp_path / "kept"
        self.files: AnnotationFiles | None = None

    def images(self, *names: str) -> None:
        for name in names:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(b"x")

    def open(self, *labels: str) -> FolderTasks:
        self.close()
        self.files = AnnotationFiles(self.kept_at)
        served = FolderFiles(self.folder, 1000)
        return FolderTasks(self.folder, find_images(self.folder), self.files, served, labels=labels)

    def close(self) -> None:
        if self.files is not None:
            self.files.close()
            self.files = None


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    made = Opened(tmp_path)
    made.images("a.png", "b.png", "c.png")
    yield made
    made.close()


def test_ids_stay_with_their_images(opened: Opened) -> None:
    tasks = opened.open("Cat")
    assert [tasks.name(each) for each in (1, 2, 3)] == ["a.png", "b.png", "c.png"]
    (opened.folder / "b.png").unlink()
    opened.images("aa.png")
    again = opened.open()
    assert again.page_of_tasks(1) == ([1, 3, 4], 3)
    assert again.name(4) == "aa.png"
    assert again.created_at == tasks.created_at
    with pytest.raises(NotFoundError):
        again.task(2)


def test_annotations_survive_a_restart_as_tasks_that_label_studio_imports(opened: Opened) -> None:
    tasks = opened.open("Cat")
    made = tasks.create_annotation(2, [REGION])
    (file,) = (opened.kept_at / "annotations").iterdir()
    document = json.loads(file.read_text())
    assert document["data"] == {"image": "/data/local-files/?d=photos/b.png"}
    assert document["annotations"][0]["result"] == [REGION]
    again = opened.open()
    assert again.annotation(made["id"]) == made
    assert again.tasks_of(1, [2])[0]["annotations"] == [made]
    assert again.count_tasks(1, only_unlabeled=True) == 2
    again.delete_annotation(made["id"])
    again.delete_annotation(made["id"])
    assert not list((opened.kept_at / "annotations").iterdir())
    assert (opened.kept_at / "removed" / file.name).exists(), "nothing is lost"
    assert opened.open().count_tasks(1, only_unlabeled=True) == 3


def test_an_image_that_is_gone_stays_while_it_is_annotated(opened: Opened) -> None:
    opened.open("Cat").create_annotation(2, [REGION])
    (opened.folder / "b.png").unlink()
    assert opened.open().page_of_tasks(1)[0] == [1, 2, 3]


def test_a_task_has_one_prediction_and_a_new_one_replaces_it(opened: Opened) -> None:
    tasks = opened.open("Cat")
    for score in (0.5, 0.7):
        assert tasks.import_predictions(1, [{"task": 1, "result": [], "score": score, "model_version": "v"}]) == 1
    (prediction,) = tasks.tasks_of(1, [1])[0]["predictions"]
    assert prediction["score"] == 0.7
    again = opened.open()
    assert again.tasks_of(1, [1])[0]["predictions"] == [prediction]
    again.delete_prediction(prediction["id"] - 1)
    assert again.tasks_of(1, [1])[0]["predictions"] == [prediction], "another one's id"
    again.delete_prediction(prediction["id"])
    assert again.tasks_of(1, [1])[0]["predictions"] == []
    (opened.kept_at / "predictions" / "1.json").write_text("{")
    assert again.tasks_of(1, [1])[0]["predictions"] == [], "it is made again"


def test_labels_are_joined_and_added(opened: Opened) -> None:
    opened.open("Cat")
    tasks = opened.open("Dog", "cat")
    assert tasks.labels == ("Cat", "Dog")
    with_bird = ("Cat", "Dog", "Bird <&>")
    tasks.add_label(" Bird <&> ")
    assert parse_label_config(tasks.label_config).labels == with_bird
    assert list(opened.open().labels) == list(with_bird)
    for label, error in (
        ("dog", ConflictError),
        ("", BadInputError),
        ("x" * 101, BadInputError),
        ("$x", BadInputError),
    ):
        with pytest.raises(error):
            tasks.add_label(label)
    assert list(tasks.labels) == list(with_bird)


def test_options_are_kept(opened: Opened) -> None:
    tasks = opened.open("Cat")
    told: list[bool] = []
    tasks.on_options = lambda: told.append(True)
    tasks.set_extra_params(tasks.ml_backends(1)[0], {"min_score": 0.4})
    assert told == [True]
    assert opened.open().extra_params == {"min_score": 0.4}


def test_a_store_of_another_folder_is_refused(opened: Opened, tmp_path: Path) -> None:
    opened.open("Cat")
    opened.folder = tmp_path / "others"
    opened.images("a.png")
    with pytest.raises(
        ConfigurationError, match=r"holds annotations of .*photos, not of .*others: name another --store"
    ):
        opened.open()


def test_one_process_at_a_time(opened: Opened) -> None:
    opened.open("Cat")
    with pytest.raises(ConfigurationError, match="open in another process"):
        AnnotationFiles(opened.kept_at)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"annotations": []}', '{"annotations": [{"id": 3}]}', "\x00\xff", "[" * 10_000]
)
def test_a_damaged_annotation_is_left_as_it_is(opened: Opened, content: str) -> None:
    tasks = opened.open("Cat")
    good, bad = tasks.create_annotation(1, [REGION]), tasks.create_annotation(2, [REGION])
    path = opened.kept_at / "annotations" / f"{bad['id']}.json"
    path.write_text(content)
    again = opened.open()
    assert opened.files is not None
    assert [str(path) in problem for problem in opened.files.problems] == [True]
    assert again.annotation(good["id"]) == good
    assert again.create_annotation(2, [REGION])["id"] > bad["id"], "nothing takes its name"
    assert path.read_text() == content


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1, "folder": 3, "created_at": "x"}'])
def test_a_damaged_state_stops_with_a_clear_word(opened: Opened, content: str) -> None:
    opened.open("Cat")
    (opened.kept_at / "project.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"project\.json cannot be read"):
        opened.open()
    assert (opened.kept_at / "project.json").read_text() == content


def test_what_cannot_be_written_is_said(opened: Opened, tmp_path: Path) -> None:
    tasks = opened.open("Cat")
    (opened.kept_at / "annotations").rename(opened.kept_at / "moved")
    (opened.kept_at / "annotations").write_text("a file in its place")
    with pytest.raises(OutputError, match="cannot be written"):
        tasks.create_annotation(1, [REGION])
    assert tasks.task(1)["annotations"] == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        AnnotationFiles(tmp_path / "file" / "kept")
