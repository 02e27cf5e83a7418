"""Data sets of a project over fakes: what is in them, what is not, and that they come whole or not at all."""

import hashlib
import io
import itertools
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from backend.errors import BadInputError, ConflictError, LabelStudioUnavailableError
from backend.exports.exporter import export_to_zip
from backend.exports.folder_sink import FolderSink
from backend.exports.options import options_from_texts
from backend.labelstudio.image_decoding import decode_image
from testing.fakes import Backend
from tests.exports.scene import MASKS, box, brush, export, files, fill, key_point, opened, picture

FORMATS = ["coco", "yolo-seg", "png", "parquet", "label-studio"]


@pytest.fixture
def filled(backend: Backend) -> Backend:
    fill(backend.label_studio)
    return backend


def _objects(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "objects.jsonl").read_text().splitlines()]


def _left_out(out: Path) -> dict[int, str]:
    return {
        entry["task"]: entry["kind"] for entry in map(json.loads, (out / "left-out.jsonl").read_text().splitlines())
    }


def test_annotations_are_exported_with_where_they_come_from(filled: Backend, tmp_path: Path) -> None:
    report = export(filled, tmp_path / "out")
    assert (report.images, report.objects, report.left_out) == (5, 5, {})
    first = _objects(tmp_path / "out")[0]
    assert (first["task"], first["label"], first["source"], first["source_id"]) == (1, "Cat", "annotation", 11)
    assert (first["annotator"], first["score"], first["model_version"]) == (7, None, None)
    assert (first["created_at"], first["updated_at"]) == ("2026-01-02T03:04:05Z", "2026-01-01T00:00:00Z")
    assert [entry["object"] for entry in _objects(tmp_path / "out") if entry["task"] == 4] == [None]


def test_predictions_above_a_score(filled: Backend, tmp_path: Path) -> None:
    report = export(filled, tmp_path / "out", source="predictions", min_score="0.5")
    assert (report.images, report.objects) == (1, 1)
    (only,) = _objects(tmp_path / "out")
    assert (only["task"], only["score"], only["model_version"]) == (6, 0.9, "some-model")
    assert _left_out(tmp_path / "out") == {7: "prediction below the score"}


def test_both_takes_predictions_where_no_annotation_has_masks(filled: Backend, tmp_path: Path) -> None:
    filled.label_studio.annotate(30, 6, [key_point()])
    report = export(filled, tmp_path / "out", source="both")
    assert report.images == 7
    sources = {entry["task"]: entry.get("source") for entry in _objects(tmp_path / "out")}
    assert sources == {1: "annotation", 2: "annotation", 3: "annotation", 4: None, 5: "annotation", 6: "prediction",
                       7: "prediction"}  # fmt: skip


def test_references_of_this_backend_are_named(filled: Backend, tmp_path: Path) -> None:
    projects, key = filled.projects, filled.label_studio.key
    projects.note_project(filled.label_studio.project(1))
    projects.references.ingest(key, 11)
    made = {one.label: one.id for one in projects.store.list_references(key)}
    version = projects.banks.model_version(key)
    filled.label_studio.tasks[6]["predictions"][0]["model_version"] = version
    export(filled, tmp_path / "out", source="both")
    named = {(entry["task"], entry["label"]): entry["reference_ids"] for entry in _objects(tmp_path / "out")
             if entry["object"]}  # fmt: skip
    assert named[1, "Cat"] == [made["Cat"]]
    assert named[1, "Dog"] == [made["Dog"]]
    assert named[6, "Cat"] == [made["Cat"]], "predicted with exactly the references that are there"
    assert named[7, "Cat"] == [], "of another model version: not known"
    assert named[2, "Dog"] == []


def test_of_several_annotations_the_newest_or_all(filled: Backend, tmp_path: Path) -> None:
    filled.label_studio.annotate(40, 1, [brush(box(0, 0, 5, 5), "Dog")], updated_at="2026-02-01T00:00:00Z")
    filled.label_studio.annotate(41, 1, [], was_cancelled=True, updated_at="2026-03-01T00:00:00Z")
    export(filled, tmp_path / "newest")
    assert [entry["source_id"] for entry in _objects(tmp_path / "newest") if entry["task"] == 1] == [40]
    assert _left_out(tmp_path / "newest")[1] == "further annotation of the same task"
    export(filled, tmp_path / "all", annotators="all")
    assert [entry["source_id"] for entry in _objects(tmp_path / "all") if entry["task"] == 1] == [11, 11, 40]
    filled.label_studio.annotations[11]["ground_truth"] = True
    export(filled, tmp_path / "truth")
    assert [entry["source_id"] for entry in _objects(tmp_path / "truth") if entry["task"] == 1] == [11, 11]


def test_what_is_broken_is_left_out_with_its_reason(filled: Backend, tmp_path: Path) -> None:
    label_studio = filled.label_studio
    label_studio.add_task(20, None)
    label_studio.add_task(21, b"no image at all")
    label_studio.add_task(22, picture(22)[:60])
    label_studio.add_task(23, picture(23))
    label_studio.add_task(24, picture(24))
    label_studio.add_task(25, picture(25))
    for number in (20, 21, 22):
        label_studio.annotate(100 + number, number, [brush(box(1, 1, 9, 9), "Cat")])
    label_studio.annotate(123, 23, [brush(box(1, 1, 9, 9), "Horse")])
    label_studio.annotate(124, 24, [brush(box(0, 0, 0, 0), "Cat"), brush(box(1, 1, 9, 9), "Dog", 2)])
    label_studio.annotate(125, 25, [key_point()])
    report = export(filled, tmp_path / "out")
    assert report.images == 6
    assert report.problems == 6
    reasons = (tmp_path / "out" / "left-out.jsonl").read_text()
    assert _left_out(tmp_path / "out") == {
        20: "image missing", 21: "image that cannot be read", 22: "image that cannot be read",
        23: "image without its masks", 24: "mask without a pixel", 25: "annotation without a mask",
    }  # fmt: skip
    assert "'Horse'" in reasons
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"task {number}:" in card for number in range(20, 26))


def test_nothing_to_export_says_so_and_leaves_nothing_behind(backend: Backend, tmp_path: Path) -> None:
    backend.label_studio.add_task(1, picture(1))
    backend.label_studio.annotate(2, 1, [key_point()])
    with pytest.raises(BadInputError, match=r"no annotations with masks .*1 x annotation without a mask.*submit some"):
        export(backend, tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == list(tmp_path.glob(".*out*")) == []


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"format": "voc"}, "format must be one of coco, yolo-seg, png, parquet, label-studio, got 'voc'"),
        ({"source": "all"}, "source must be one of"),
        ({"min_score": "1.5"}, "min_score must be between 0 and 1"),
        ({"min_score": "high"}, "min_score must be a number"),
        ({"tolerance_px": "-1"}, "tolerance_px must be between"),
        ({"split": "0.5,0.5"}, "three shares"),
        ({"split": "0.5,0.5,0.5"}, "add up to 1"),
        ({"images": "maybe"}, "images must be one of"),
        ({"leave_out_unreachable": "perhaps"}, "must be true or false"),
        ({"split": "nan,0,1"}, "split must be a number"),
        ({"size": "3"}, "unknown option 'size'"),
    ],
)
def test_options_that_mean_nothing_are_refused(told: dict[str, str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        options_from_texts({"format": "coco", **told})


def test_a_folder_with_other_files_is_left_alone(filled: Backend, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInputError, match="got other files"):
        export(filled, out)
    (out / "thesis.tex").unlink()
    export(filled, out)
    with pytest.raises(BadInputError, match="holds an export of project 1 as coco, not of project 1 as png"):
        export(filled, out, format="png")
    (out / "labels").mkdir()
    (out / "labels" / "train.cache").write_text("Ultralytics leaves it there")
    export(filled, out)
    assert not (out / "labels").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadInputError, match=r"holds notes.txt"):
        export(filled, out)
    assert (out / "notes.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="got the file"):
        export(filled, tmp_path / "file")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_second_export_of_an_unchanged_project_is_byte_identical(
    filled: Backend, tmp_path: Path, format_: str
) -> None:
    for name in ("one", "two"):
        export(filled, tmp_path / name, format=format_, source="both")
    export(filled, tmp_path / "two", format=format_, source="both")
    first, second = files(tmp_path / "one"), files(tmp_path / "two")
    assert first == second
    lines = [line.split("  ") for line in first.pop("SHA256SUMS").decode().splitlines()]
    sums = {path: digest for digest, path in lines}
    assert sums == {path: hashlib.sha256(content).hexdigest() for path, content in first.items()}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_a_zip_holds_the_same_and_is_byte_identical(filled: Backend, tmp_path: Path, format_: str) -> None:
    options = options_from_texts({"format": format_, "source": "both"})
    zips = [io.BytesIO(), io.BytesIO()]
    for stream in zips:
        export_to_zip(opened(filled), options, filled.settings, stream, threads=2, on_task=lambda: None)
    assert zips[0].getvalue() == zips[1].getvalue()
    export(filled, tmp_path / "out", format=format_, source="both")
    with zipfile.ZipFile(zips[0]) as archive:
        assert archive.testzip() is None
        inside = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert inside == files(tmp_path / "out")


def test_an_interrupted_export_leaves_no_folder_and_goes_on_without_fetching_again(
    filled: Backend, tmp_path: Path
) -> None:
    label_studio, out = filled.label_studio, tmp_path / "out"
    export(filled, tmp_path / "whole", source="both")
    address = label_studio.tasks[4]["data"]["image"]
    label_studio.away.add(address)
    with pytest.raises(LabelStudioUnavailableError, match=r"image of task 4: .*Run the same command again"):
        export(filled, out, source="both")
    assert not out.exists()
    label_studio.away.clear()
    label_studio.fetches = 0
    report = export(filled, out, source="both")
    assert report.has_resumed
    assert label_studio.fetches == 4, "of seven images three were there"
    assert files(out) == files(tmp_path / "whole")


def test_what_changed_meanwhile_is_in_an_export_that_goes_on(filled: Backend, tmp_path: Path) -> None:
    label_studio, out = filled.label_studio, tmp_path / "out"
    label_studio.away.add(label_studio.tasks[4]["data"]["image"])
    with pytest.raises(LabelStudioUnavailableError):
        export(filled, out)
    label_studio.away.clear()
    del label_studio.annotations[12]
    label_studio.annotations[11]["result"] = [brush(box(0, 0, 9, 9), "Dog")]
    export(filled, out)
    export(filled, tmp_path / "anew")
    assert files(out) == files(tmp_path / "anew"), "nor is the image of the task there that has no annotation now"


def test_an_export_interrupted_twice_and_with_half_a_line_in_its_journal(
    filled: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_studio, out = filled.label_studio, tmp_path / "out"
    export(filled, tmp_path / "whole")
    label_studio.away = {label_studio.tasks[5]["data"]["image"]}
    with pytest.raises(LabelStudioUnavailableError):
        export(filled, out)
    whole = label_studio.all_tasks

    def two_tasks(project_id: int, **more: bool) -> Iterator[dict[str, object]]:
        yield from itertools.islice(whole(project_id, **more), 2)
        raise LabelStudioUnavailableError("it went away")

    with monkeypatch.context() as patched:
        patched.setattr(label_studio, "all_tasks", two_tasks)
        with pytest.raises(LabelStudioUnavailableError):
            export(filled, out)
    with (tmp_path / ".out.partial" / ".journal.jsonl").open("a") as journal:
        journal.write('{"task": 5, "ta')
    label_studio.away = set()
    label_studio.fetches = 0
    export(filled, out)
    assert label_studio.fetches == 1, "the first run came as far as task 4"
    assert files(out) == files(tmp_path / "whole")


def test_other_options_start_over(filled: Backend, tmp_path: Path) -> None:
    filled.label_studio.away.add(filled.label_studio.tasks[4]["data"]["image"])
    with pytest.raises(LabelStudioUnavailableError):
        export(filled, tmp_path / "out")
    filled.label_studio.away.clear()
    report = export(filled, tmp_path / "out", split="0,0,1")
    assert not report.has_resumed
    assert report.empty_splits == ()


def test_parquet_with_images_starts_over_and_by_path_goes_on(filled: Backend, tmp_path: Path) -> None:
    for images, is_resumed in (("include", False), ("path", True)):
        filled.label_studio.away.add(filled.label_studio.tasks[4]["data"]["image"])
        with pytest.raises(LabelStudioUnavailableError):
            export(filled, tmp_path / images, format="parquet", images=images)
        filled.label_studio.away.clear()
        assert export(filled, tmp_path / images, format="parquet", images=images).has_resumed is is_resumed


def test_other_masks_of_the_same_images_go_on(filled: Backend, tmp_path: Path) -> None:
    address = filled.label_studio.tasks[4]["data"]["image"]
    filled.label_studio.away.add(address)
    with pytest.raises(LabelStudioUnavailableError):
        export(filled, tmp_path / "out")
    filled.label_studio.fetches = 0
    report = export(filled, tmp_path / "out", leave_out_unreachable="true", tolerance_px="0")
    assert report.has_resumed
    assert filled.label_studio.fetches == 2, "the one that is away, and the one after it"
    export(filled, tmp_path / "anew", leave_out_unreachable="true", tolerance_px="0")
    assert files(tmp_path / "out") == files(tmp_path / "anew")


def test_splits_without_images_are_named(filled: Backend, tmp_path: Path) -> None:
    for number in range(2, 9):
        filled.label_studio.annotations.pop(10 + number, None)
    report = export(filled, tmp_path / "out", split="0.5,0.25,0.25")
    assert len(report.empty_splits) == 2
    assert f"No image fell into {' and '.join(report.empty_splits)}" in (tmp_path / "out" / "README.md").read_text()


def test_unreachable_images_can_be_left_out(filled: Backend, tmp_path: Path) -> None:
    filled.label_studio.away.add(filled.label_studio.tasks[2]["data"]["image"])
    report = export(filled, tmp_path / "out", leave_out_unreachable="true")
    assert (report.images, report.left_out) == (4, {"image out of reach": 1})


def test_an_image_that_comes_at_the_second_try_is_no_end(
    filled: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_studio, fetch = filled.label_studio, filled.label_studio.fetch
    seen: set[str] = set()

    def busy_at_first(url: str, task_id: int | None) -> bytes:
        if url not in seen:
            seen.add(url)
            raise LabelStudioUnavailableError("busy")
        return fetch(url, task_id)

    monkeypatch.setattr(label_studio, "fetch", busy_at_first)
    monkeypatch.setattr("backend.exports.reading.IMAGE_PAUSES_S", (0.0,))
    assert export(filled, tmp_path / "out").images == 5


def test_one_process_at_a_time_writes_a_folder(filled: Backend, tmp_path: Path) -> None:
    with FolderSink(tmp_path / "out", {"project": 1}), pytest.raises(ConflictError, match="another process"):
        export(filled, tmp_path / "out")


def test_a_run_killed_between_its_last_steps_loses_no_data_set(filled: Backend, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(filled, out)
    before = files(out)
    out.rename(tmp_path / ".out.old")
    shutil.copytree(tmp_path / ".out.old", tmp_path / ".out.partial")
    filled.label_studio.is_down = True
    with pytest.raises(LabelStudioUnavailableError):
        export(filled, out)
    filled.label_studio.is_down = False
    export(filled, out)
    assert files(out) == before
    assert not list(tmp_path.glob(".*"))


def test_a_run_killed_before_it_has_swept_up_stops_no_later_one(filled: Backend, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(filled, out)
    before = files(out)
    shutil.copytree(out, tmp_path / ".out.old")
    export(filled, out)
    assert files(out) == before
    assert not list(tmp_path.glob(".*"))


def test_the_folder_behind_a_link_is_replaced_and_an_empty_one_stays_when_it_fails(
    filled: Backend, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "set").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "set")
    with pytest.raises(BadInputError, match="no predictions"):
        export(filled, link, source="predictions", min_score="1")
    assert (tmp_path / "disk" / "set").is_dir()
    for _ in range(2):
        export(filled, link)
        assert link.is_symlink()
        assert (tmp_path / "disk" / "set" / "export.json").exists()
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["set"]


@pytest.mark.slow
def test_copies_of_an_image_are_in_one_split_and_more_tasks_move_none(filled: Backend, tmp_path: Path) -> None:
    label_studio = filled.label_studio
    for number in range(100, 160):
        label_studio.add_task(number, picture(number // 2))
        label_studio.annotate(number, number, [brush(box(1, 1, 9, 9), "Cat")])
    export(filled, tmp_path / "less", split="0.4,0.3,0.3")
    for number in range(200, 230):
        label_studio.add_task(number, picture(number))
        label_studio.annotate(number, number, [brush(box(1, 1, 9, 9), "Cat")])
    export(filled, tmp_path / "more", split="0.4,0.3,0.3")
    less, more = ({each["task"]: each for each in _objects(tmp_path / name)} for name in ("less", "more"))
    assert all(less[number]["split"] == less[number + 1]["split"] for number in range(100, 160, 2))
    assert all(more[number]["split"] == entry["split"] for number, entry in less.items())
    assert {entry["split"] for entry in more.values()} == {"train", "val", "test"}


def test_names_are_safe_and_images_upright(filled: Backend, tmp_path: Path) -> None:
    label_studio = filled.label_studio
    nasty = {"/data/upload/1/1a2b3c4d-../../etc/passwd": 50, "/data/local-files/?d=a/b/%C3%BC b;c.PNG": 51,
             "s3://bucket/dir/CON.jpeg": 52, f"https://h/{'x' * 300}.png?token=secret": 53}  # fmt: skip
    for address, number in nasty.items():
        label_studio.add_task(number, picture(number))["data"]["image"] = address
        label_studio.images[address] = picture(number)
        label_studio.annotate(number, number, [brush(box(1, 1, 9, 9), "Cat")])
    export(filled, tmp_path / "out", split="1,0,0")
    names = {path.name for path in (tmp_path / "out" / "images" / "train").iterdir()}
    assert {"50-passwd.png", "51-u-b-c.png", "52-CON.png", f"53-{'x' * 60}.png"} <= names
    assert not any(b"secret" in content for content in files(tmp_path / "out").values())
    with PillowImage.open(tmp_path / "out" / "images" / "train" / "5-5.png") as turned:
        assert turned.size == (48, 64)
        original = label_studio.images[label_studio.tasks[5]["data"]["image"]]
        assert np.array_equal(np.asarray(turned), decode_image(original))
    untouched = tmp_path / "out" / "images" / "train" / "1-1.png"
    assert untouched.read_bytes() == label_studio.images[label_studio.tasks[1]["data"]["image"]]


def test_images_by_path_are_not_in_the_data_set(filled: Backend, tmp_path: Path) -> None:
    export(filled, tmp_path / "out", images="path")
    assert not (tmp_path / "out" / "images").exists()
    assert _objects(tmp_path / "out")[0]["address"] == "/data/upload/1/1.png"
    assert (tmp_path / "out" / "card" / "1-1.png").exists()


def test_the_card_counts_and_claims_nothing_that_nobody_said(filled: Backend, tmp_path: Path) -> None:
    export(filled, tmp_path / "out", source="both", split="1,0,0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# Animals\n\n7 images, 7 objects" in card
    assert "| train | 100% | 7 | 1 | 7 |" in card
    cats = [mask for masks in MASKS.values() for label, mask in masks if label == "Cat"]
    pixels = sum(int(mask.sum()) for mask in cats) + 14 * 12 + 13 * 12
    assert f"| Cat | 5 | 5 | 5 | {pixels} |" in card
    assert "| from annotations | 5 |\n| from predictions | 2 |" in card
    assert "| user of Label Studio, id 7 | 5 |\n| model version some-model | 2 |" in card
    shown = [path.name for path in (tmp_path / "out" / "card").iterdir()]
    assert shown
    assert all(f"](card/{name})" in card for name in shown)
    for word in ("licen", "author", "2026", "copyright"):
        assert word not in card.lower()
    sample = np.asarray(PillowImage.open(tmp_path / "out" / "card" / "2-2.png")).astype(int)
    plain = decode_image(filled.label_studio.images["/data/upload/1/2.png"]).astype(int)
    changed = (sample != plain).any(axis=2)
    assert np.array_equal(changed, MASKS[2][0][1])


BACKGROUND_CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Background"/><Label value="Dog"/>
</BrushLabels>
<KeyPointLabels name="kp" toName="image"><Label value="Cat"/></KeyPointLabels></View>"""


@pytest.mark.parametrize("format_", FORMATS)
def test_the_background_label_is_no_class_and_its_masks_are_counted(
    filled: Backend, tmp_path: Path, format_: str
) -> None:
    label_studio, out = filled.label_studio, tmp_path / "out"
    label_studio.label_config = BACKGROUND_CONFIG
    label_studio.annotations[11]["result"].append(brush(box(50, 0, 60, 9), "Background", 9))
    label_studio.annotate(30, 7, [brush(box(0, 0, 9, 9), "Background")])
    report = export(filled, out, format=format_, split="1,0,0")
    assert (report.images, report.objects, report.problems) == (5, 5, 0)
    assert report.left_out == {"background only": 1, "background region": 1}
    assert _left_out(out) == {1: "background region", 7: "background only"}
    assert {entry["label"] for entry in _objects(out) if entry["object"]} == {"Cat", "Dog"}
    assert json.loads((out / "export.json").read_text())["labels"] == ["Cat", "Dog"]
    if format_ == "coco":
        document = json.loads((out / "annotations" / "instances_train.json").read_text())
        assert [each["name"] for each in document["categories"]] == ["Cat", "Dog"]
    if format_ == "yolo-seg":
        assert "Background" not in (out / "data.yaml").read_text()
        assert {line[0] for line in (out / "labels/train/1-1.txt").read_text().splitlines()} == {"0", "1"}
    if format_ == "png":
        assert [each["label"] for each in json.loads((out / "labels.json").read_text())] == [None, "Cat", "Dog"]
        with PillowImage.open(out / "masks" / "train" / "1-1.png") as indices:
            assert not np.asarray(indices)[0:9, 50:60].any()
    assert "Background |" not in (out / "README.md").read_text()


def test_an_annotation_of_background_only_leaves_the_task_to_older_ones_and_predictions(
    filled: Backend, tmp_path: Path
) -> None:
    label_studio = filled.label_studio
    label_studio.label_config = BACKGROUND_CONFIG
    for number, task in ((40, 1), (41, 6)):
        label_studio.annotate(
            number, task, [brush(box(0, 0, 9, 9), "Background")], updated_at="2026-05-01T00:00:00Z"
        )  # fmt: skip
    export(filled, tmp_path / "out", source="both")
    sources = {entry["task"]: entry["source_id"] for entry in _objects(tmp_path / "out") if entry["object"]}
    assert sources[1] == 11
    assert sources[6] == label_studio.tasks[6]["predictions"][0]["id"]


def test_formats_that_readers_do_not_agree_about(filled: Backend, tmp_path: Path) -> None:
    label_studio = filled.label_studio
    upright = PillowImage.fromarray(decode_image(picture(50)))
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    for number, kind, more in (
        (50, "WEBP", {"exif": exif}), (51, "GIF", {}), (52, "MPO", {"save_all": True, "append_images": [upright]}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        upright.save(buffer, kind, **more)
        label_studio.add_task(number, buffer.getvalue())
        label_studio.annotate(number, number, [brush(box(1, 1, 9, 9), "Cat")])
    export(filled, tmp_path / "out", split="1,0,0")
    names = {path.name for path in (tmp_path / "out" / "images" / "train").iterdir()}
    assert {"50-50.png", "51-51.png", "52-52.jpg"} <= names
    for number, entry in {each["task"]: each for each in _objects(tmp_path / "out")}.items():
        content = label_studio.images[label_studio.tasks[number]["data"]["image"]]
        assert entry["sha256"] == hashlib.sha256(content).hexdigest(), "of the file in Label Studio"
