"""Masks into a project over fakes: what fits, what does not, and nothing twice."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from backend.errors import BadInputError
from backend.exports.importing import ImportReport, import_masks
from backend.exports.mask_files import find_masks
from backend.labelstudio.codec import read_regions
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.label_prompts import group_annotation
from testing.fakes import Backend, FakeLabelStudio, make_backend
from tests.exports.scene import MASKS, box, brush, export, files, fill, opened, picture


@pytest.fixture
def filled(backend: Backend) -> Backend:
    fill(backend.label_studio)
    return backend


def _import(backend: Backend, folder: Path) -> ImportReport:
    project = opened(backend)
    return import_masks(project, find_masks(folder, project.config), on_task=lambda: None)


def _new_tasks(backend: Backend, *names: str) -> None:
    for number, name in enumerate(names, start=500):
        content = picture(number)
        address = f"/data/upload/1/{number:08x}-{name}"
        backend.label_studio.add_task(number, content)["data"]["image"] = address
        backend.label_studio.images[address] = content


def _png(path: Path, indices: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(indices.astype(np.uint8)).save(path)


def _labels(folder: Path) -> None:
    entries = [{"index": 0, "label": None}, {"index": 1, "label": "Cat"}, {"index": 2, "label": "Dog"}]
    (folder / "labels.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("images", ["include", "path"])
def test_coco_comes_back_as_it_was_and_a_second_run_adds_nothing(filled: Backend, tmp_path: Path, images: str) -> None:
    export(filled, tmp_path / "out", images=images)
    other = make_backend(tmp_path / "other", FakeLabelStudio())
    fill(other.label_studio)
    other.label_studio.annotations.clear()
    report = _import(other, tmp_path / "out")
    assert (report.imported, report.objects, report.problems) == (5, 5, [])
    config = opened(other).config
    for annotation in other.label_studio.annotations.values():
        regions = read_regions(annotation["result"], config).regions
        expected = MASKS[annotation["task"]]
        assert [region.label for region in regions] == [label for label, _ in expected]
        for region, (_, mask) in zip(regions, expected, strict=True):
            assert np.array_equal(np.asarray(region.mask), np.asarray(mask))
        for mark in group_annotation(regions):
            assert mark.complete_masks, "a mask, not a scribble for the segmenter"
    before = dict(other.label_studio.annotations)
    again = _import(other, tmp_path / "out")
    assert (again.imported, again.already, again.kept, again.problems) == (0, 5, [], [])
    assert other.label_studio.annotations == before
    other.projects.close()


def _saved(number: int, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    upright = PillowImage.fromarray(decode_image(picture(number)))
    upright.save(buffer, kind, **more)
    return buffer.getvalue()


@pytest.mark.parametrize("format_", ["coco", "png"])
@pytest.mark.parametrize("uploads", ["the exported files", "the originals"])
def test_an_export_finds_the_tasks_of_a_project_of_uploaded_images(
    filled: Backend, tmp_path: Path, format_: str, uploads: str
) -> None:
    """Also where the export holds another file than Label Studio: turned photographs, GIF."""
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    for number, content in ((50, _saved(50, "WEBP", exif=exif)), (51, _saved(51, "GIF"))):
        address = f"/data/upload/1/{number:08x}-\u00fc ({number}).png"
        filled.label_studio.add_task(number, content)["data"]["image"] = address
        filled.label_studio.images[address] = content
        filled.label_studio.annotate(number, number, [brush(box(number - 48, 1, 9, 9), "Cat")])
    out = tmp_path / "out"
    assert export(filled, out, format=format_).images == 7
    entries = [json.loads(line) for line in (out / "objects.jsonl").read_text().splitlines()]
    other = make_backend(tmp_path / "other", FakeLabelStudio())
    label_studio = other.label_studio
    expected = {}
    for number, (task, entry) in enumerate({each["task"]: each for each in entries}.items(), start=900):
        original = filled.label_studio.images[filled.label_studio.tasks[task]["data"]["image"]]
        stored = (out / "images" / entry["split"] / entry["image"]).read_bytes()
        assert (original == stored) == (task not in (5, 50, 51))
        address = f"/data/upload/2/{number:08x}-{number}.png"
        label_studio.add_task(number, None)["data"]["image"] = address
        label_studio.images[address] = stored if uploads == "the exported files" else original
        expected[number] = [
            (region.label, region.mask)
            for annotation in filled.label_studio.annotations.values()
            if annotation["task"] == task
            for region in read_regions(annotation["result"], opened(filled).config).regions
        ]
    report = _import(other, out)
    assert (report.imported, report.problems) == (7, [])
    for annotation in label_studio.annotations.values():
        regions = read_regions(annotation["result"], opened(other).config).regions
        assert len(regions) == len(expected[annotation["task"]])
        if format_ == "coco":
            for region, (label, mask) in zip(regions, expected[annotation["task"]], strict=True):
                assert region.label == label
                assert np.array_equal(np.asarray(region.mask), np.asarray(mask))
    other.projects.close()


def test_export_import_export_of_index_masks_is_the_same(filled: Backend, tmp_path: Path) -> None:
    export(filled, tmp_path / "out", format="png")
    filled.label_studio.annotations.clear()
    report = _import(filled, tmp_path / "out")
    assert (report.imported, report.problems) == (5, [])
    export(filled, tmp_path / "again", format="png")
    masks = {path: content for path, content in files(tmp_path / "out").items() if path.startswith("masks/")}
    assert masks == {path: content for path, content in files(tmp_path / "again").items() if path.startswith("masks/")}


def test_nothing_of_others_is_overwritten(filled: Backend, tmp_path: Path) -> None:
    export(filled, tmp_path / "out")
    filled.label_studio.annotations[11]["result"] = [brush(box(0, 0, 5, 5), "Dog")]
    before = json.dumps(filled.label_studio.annotations, sort_keys=True)
    report = _import(filled, tmp_path / "out")
    assert report.imported == 0
    assert len(report.kept) == 4
    assert report.already == 1, "that there is nothing was said already"
    assert json.dumps(filled.label_studio.annotations, sort_keys=True) == before


def test_png_masks_are_matched_by_name_and_what_is_not_is_told(backend: Backend, tmp_path: Path) -> None:
    _new_tasks(backend, "one.png", "two.jpg", "same.png", "same.png", "small.png", "horse.png")
    _labels(tmp_path)
    for name in ("one", "two", "same", "gone"):
        _png(tmp_path / f"{name}.png", box(3, 3, 9, 9) * 1 + box(20, 20, 30, 30) * 2)
    _png(tmp_path / "small.png", box(1, 1, 3, 3, (10, 10)))
    _png(tmp_path / "horse.png", box(3, 3, 9, 9) * 7)
    report = _import(backend, tmp_path)
    assert (report.imported, report.objects) == (2, 4)
    told = "\n".join(report.problems)
    assert "2 tasks and 1 mask files are called 'same'" in told
    assert "gone.png: no task of project 1 shows this image" in told
    assert "must be of the image's size 64 x 48 px, got 10 x 10" in told
    assert "number 7 is not in labels.json, which has [1, 2]" in told


def test_content_decides_where_names_do_not(backend: Backend, tmp_path: Path) -> None:
    _new_tasks(backend, "same.png", "same.png")
    coco = {
        "categories": [{"id": 5, "name": "Dog"}],
        "images": [{"id": 1, "file_name": "renamed.png", "height": 48, "width": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "segmentation": [[4, 4, 20, 4, 20, 12, 4, 12]]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    (tmp_path / "renamed.png").write_bytes(picture(501))
    report = _import(backend, tmp_path)
    assert (report.imported, report.problems) == (1, [])
    (annotation,) = backend.label_studio.annotations.values()
    assert annotation["task"] == 501
    (region,) = read_regions(annotation["result"], opened(backend).config).regions
    assert region.label == "Dog"
    assert np.array_equal(np.asarray(region.mask), box(4, 4, 20, 12))


def test_one_label_needs_no_list_and_several_do(backend: Backend, tmp_path: Path) -> None:
    _new_tasks(backend, "one.png")
    _png(tmp_path / "one.png", box(3, 3, 9, 9) * 255)
    with pytest.raises(BadInputError, match=r"2 labels need labels.json"):
        _import(backend, tmp_path)
    backend.label_studio.label_config = backend.label_studio.label_config.replace('<Label value="Dog"/>', "")
    assert _import(backend, tmp_path).objects == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [{"id": 5, "name": "Horse"}]}, "label 'Horse' is not in the label config"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}]}, "it has a box only"),
        (
            {"images": [{"id": 1, "file_name": "one.png", "height": 9, "width": 9}]},
            "image's size 64 x 48 px, got 9 x 9",
        ),
    ],
)
def test_coco_that_does_not_fit_is_told_and_imports_nothing_by_halves(
    backend: Backend, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    _new_tasks(backend, "one.png")
    coco = {
        "categories": [{"id": 5, "name": "Dog"}],
        "images": [{"id": 1, "file_name": "one.png", "height": 48, "width": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "segmentation": [[4, 4, 20, 4, 20, 12, 4, 12]]}],
        **change,
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    report = _import(backend, tmp_path)
    assert report.imported == 0
    assert message in report.problems[0]
    assert not backend.label_studio.annotations


def test_a_folder_without_masks_is_refused(backend: Backend, tmp_path: Path) -> None:
    backend.label_studio.add_task(1, picture(1))
    with pytest.raises(BadInputError, match="got neither"):
        _import(backend, tmp_path)
    with pytest.raises(BadInputError, match="it is none"):
        _import(backend, tmp_path / "nowhere")


def test_an_image_of_several_documents_has_the_objects_of_all(backend: Backend, tmp_path: Path) -> None:
    _new_tasks(backend, "one.png")
    folder = tmp_path / "masks"
    folder.mkdir()
    for number, label in enumerate(("Cat", "Dog", "Dog")):
        left = 4 + 20 * (label == "Dog")
        coco = {
            "categories": [{"id": 5, "name": label}],
            "images": [{"id": 1, "file_name": "one.png", "height": 48, "width": 64}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 5, "segmentation": [[left, 4, left + 9, 4, left + 9, 12]]},
                {"id": 2, "image_id": 7, "category_id": 5, "segmentation": [[4, 4, 20, 4, 20, 12]]},
            ],
        }
        (folder / f"{number}-{label}.json").write_text(json.dumps(coco))
    report = _import(backend, folder)
    assert (report.imported, report.objects) == (1, 2), "the third says what the second said"
    assert len(report.problems) == 3
    assert "0-Cat.json: 1 objects of image_id 7, which is not among its images" in report.problems[0]


def test_a_category_that_the_file_does_not_have_is_told(backend: Backend, tmp_path: Path) -> None:
    _new_tasks(backend, "one.png")
    coco = {
        "categories": [{"id": 5, "name": "Dog"}],
        "images": [{"id": 1, "file_name": "one.png", "height": 48, "width": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 6, "segmentation": [[4, 4, 20, 4, 20, 12]]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    report = _import(backend, tmp_path)
    assert report.imported == 0
    assert "must be of one of the file's categories [5], got 6" in report.problems[0]
