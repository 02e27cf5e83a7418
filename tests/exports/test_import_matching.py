"""Masks get to the image that they are of, or nowhere: content first, then names that only one image has."""

import hashlib
import json
import re
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from backend.errors import BadInputError
from backend.exports.image_names import name_in_file, name_in_label_studio
from backend.exports.importing import ImportReport, import_masks
from backend.exports.mask_files import find_masks
from backend.labelstudio.codec import read_regions
from testing.fakes import Backend, png
from tests.exports.scene import box, opened, picture

Json = dict[str, Any]
POLYGON = [[4, 4, 20, 4, 20, 12, 4, 12]]


def import_folder(backend: Backend, folder: Path) -> ImportReport:
    project = opened(backend)
    return import_masks(project, find_masks(folder, project.config))


def add(backend: Backend, number: int, address: str, content: bytes | None = None) -> None:
    backend.label_studio.add_task(number, None)["data"]["image"] = address
    backend.label_studio.images[address] = picture(number) if content is None else content


def image(number: int, name: str, **more: Any) -> Json:
    return {"id": number, "file_name": name, "height": 48, "width": 64, **more}


def thing(number: int, image_id: Any, **more: Any) -> Json:
    return {"id": number, "image_id": image_id, "category_id": 5, "segmentation": POLYGON, **more}


def coco(path: Path, images: list[Json], annotations: list[Json] | None = None, **more: Any) -> None:
    if annotations is None:
        annotations = [thing(number, each["id"]) for number, each in enumerate(images, start=1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"categories": [{"id": 5, "name": "Dog"}], "images": images, "annotations": annotations, **more}
    path.write_text(json.dumps(document))


def save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def mask_png(path: Path, indices: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(np.asarray(indices).astype(np.uint8)).save(path, "PNG")


def annotated(backend: Backend) -> list[int]:
    return sorted(each["task"] for each in backend.label_studio.annotations.values())


def one_label(backend: Backend) -> None:
    backend.label_studio.label_config = backend.label_studio.label_config.replace('<Label value="Dog"/>', "")


# -- names


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("one.png", "/data/upload/1/1a2b3c4d-one.png"),
        ("images\\one.png", "/data/upload/1/1a2b3c4d-one.png"),
        ("C:\\data\\images\\one.png", "/data/local-files/?d=images/one.png"),
        ("image (1).png", "/data/upload/1/1a2b3c4d-image_1.png"),
        ("\u00fc one.png", "/data/upload/1/1a2b3c4d-%C3%BC_one.png"),
        (unicodedata.normalize("NFD", "\u00fc.png"), "/data/upload/1/1a2b3c4d-%C3%BC.png"),
        ("\u00fc.png", "/data/upload/1/1a2b3c4d-u.png"),  # what Label Studio makes of the name in NFD
        ("\u00fc.png", "/data/local-files/?d=a/u%CC%88.png"),
        ("1a2b3c4d-one.png", "/data/upload/1/1a2b3c4d-one.png"),  # Label Studio's own COCO names it so
        ("ONE.PNG", "s3://bucket/images/one.png"),
        ("1a2b3c4d-one.png", "http://host/images/1a2b3c4d-one.png"),
    ],
)
def test_a_name_is_known_however_it_was_written(backend: Backend, tmp_path: Path, written: str, address: str) -> None:
    add(backend, 1, address)
    add(backend, 2, "/data/upload/1/1a2b3c4d-other.png")
    coco(tmp_path / "coco.json", [image(1, written)])
    report = import_folder(backend, tmp_path)
    assert (annotated(backend), report.problems) == ([1], [])


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("2023-01-15.png", "/data/upload/1/1a2b3c4d-2024-01-15.png"),
        ("01-15.png", "/data/upload/1/1a2b3c4d-2024-01-15.png"),
        ("2024-01-15.png", "/data/upload/1/1a2b3c4d-01-15.png"),
        ("12-coin.png", "/data/upload/1/1a2b3c4d-13-coin.png"),
        ("12-coin.png", "/data/upload/1/1a2b3c4d-coin.png"),
        ("deadbeef-scan.png", "/data/upload/1/1a2b3c4d-scan.png"),
        ("scan.png", "http://host/images/deadbeef-scan.png"),  # no upload: the digits are its own
        ("scan.png", "/data/local-files/?d=deadbeef-scan.png"),
        ("u.png", "/data/upload/1/1a2b3c4d-%C3%BC.png"),
        ("one.png", "/data/upload/1/1a2b3c4d-one.jpg"),
        ("seq01/0001.png", "/data/local-files/?d=seq02/0001.png"),
        ("train/images/0001.png", "/data/local-files/?d=val/images/0001.png"),
    ],
)
def test_another_name_is_another_image(backend: Backend, tmp_path: Path, written: str, address: str) -> None:
    add(backend, 1, address)
    coco(tmp_path / "coco.json", [image(1, written)])
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == []
    (problem,) = report.problems
    assert written in problem


@pytest.mark.parametrize(
    ("names", "addresses"),
    [
        (["a/1.png"], ["/data/upload/1/1a2b3c4d-1.png", "/data/upload/1/2a2b3c4d-1.png"]),
        (["a/1.png", "b/1.png"], ["/data/upload/1/1a2b3c4d-1.png"]),
        (["a/1.png", "b/1.png"], ["/data/upload/1/1a2b3c4d-1.png", "/data/upload/1/2a2b3c4d-1.png"]),
        (["image (1).png", "image_1.png"], ["/data/upload/1/1a2b3c4d-image_1.png"]),
        (["\u00fc.png", "u.png"], ["/data/upload/1/1a2b3c4d-u.png"]),
        (["1a2b3c4d-x.png", "x.png"], ["/data/upload/1/1a2b3c4d-x.png"]),
        (["1.png"], ["/data/local-files/?d=a/1.png", "/data/local-files/?d=b/1.png"]),
    ],
)
def test_a_name_that_several_images_have_means_none(
    backend: Backend, tmp_path: Path, names: list[str], addresses: list[str]
) -> None:
    for number, address in enumerate(addresses, start=1):
        add(backend, number, address)
    coco(tmp_path / "coco.json", [image(number, name) for number, name in enumerate(names, start=1)])
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == []
    assert len(report.problems) == len(names)
    assert all(f"{len(addresses)} tasks and {len(names)} mask files" in problem for problem in report.problems)


def test_folders_tell_equal_names_apart_where_both_sides_have_them(backend: Backend, tmp_path: Path) -> None:
    for number, folder in enumerate(("left", "right", "top"), start=1):
        add(backend, number, f"/data/local-files/?d=project/{folder}/1.png")
    coco(tmp_path / "coco.json", [image(1, "right/1.png"), image(2, "left\\1.png"), image(3, "bottom/1.png")])
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [1, 2]
    assert ["bottom/1.png" in problem for problem in report.problems] == [True]


def test_keys_of_names() -> None:
    assert name_in_file("a\\b.png", is_stem=True).keys == {("plain", True, "b"), ("upload", True, "b")}
    assert not name_in_file("", is_stem=False).keys
    for address in ("data:image/png;base64,AAAA", "http://[::1", ""):
        assert not name_in_label_studio(address).keys


# -- content


def test_equal_names_of_different_pictures_are_told_apart_by_their_paths(backend: Backend, tmp_path: Path) -> None:
    for number, folder in ((1, "a"), (2, "b")):
        add(backend, number, f"/data/upload/1/{number:08x}-0001.png")
        save(tmp_path / folder / "0001.png", picture(number))
    coco(
        tmp_path / "coco.json",
        [image(1, "a/0001.png"), image(2, "b\\0001.png")],
        [thing(1, 1), thing(2, 2, segmentation=[[30, 30, 50, 30, 50, 40]])],
    )
    assert import_folder(backend, tmp_path).problems == []
    regions = {each["task"]: each["result"][0]["id"] for each in backend.label_studio.annotations.values()}
    assert set(regions) == {1, 2}
    # The other way round, by content alone, it is the same.
    backend.label_studio.annotations.clear()
    for first, second in ((1, 2), (2, 1)):
        backend.label_studio.images[f"/data/upload/1/{first:08x}-0001.png"] = picture(second)
    assert import_folder(backend, tmp_path).problems == []
    turned = {each["task"]: each["result"][0]["id"] for each in backend.label_studio.annotations.values()}
    assert turned == {1: regions[2], 2: regions[1]}


def test_a_picture_of_another_folder_is_not_taken_for_the_one_that_is_missing(backend: Backend, tmp_path: Path) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-0001.png")
    save(tmp_path / "a" / "0001.png", picture(1))
    coco(tmp_path / "coco.json", [image(1, "b/0001.png")])
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == []
    assert "the folder has a/0001.png" in report.problems[0]


def test_a_name_does_not_overrule_content(backend: Backend, tmp_path: Path) -> None:
    """Task 1 is called like b.png and shows a.png."""
    add(backend, 1, "/data/upload/1/1a2b3c4d-b.png", picture(7))
    save(tmp_path / "a.png", picture(7))
    coco(tmp_path / "coco.json", [image(1, "a.png"), image(2, "b.png")])
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [1]
    assert report.problems == ["b.png: task 1 has this name, but shows the picture of a.png, by its content"]
    save(tmp_path / "b.png", picture(8))
    assert "b.png: no task of project 1 shows this image; of its name, but with another content: task 1" in (
        import_folder(backend, tmp_path).problems
    )


def test_a_document_that_claims_another_content_than_its_file_is_named(backend: Backend, tmp_path: Path) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-a.png")
    add(backend, 2, "/data/upload/1/1a2b3c4d-b.png")
    save(tmp_path / "a.png", picture(1))
    coco(tmp_path / "coco.json", [image(1, "a.png", sha256=hashlib.sha256(picture(2)).hexdigest())])
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == []
    assert "not the picture that the document means" in report.problems[0]


def test_two_entries_of_one_picture_are_told_apart_by_name_or_not_at_all(backend: Backend, tmp_path: Path) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-d.png", picture(7))
    names = ("a.png", "b.png", "d.png")
    for name in names[:2]:
        save(tmp_path / name, picture(7))
    coco(tmp_path / "coco.json", [image(1, "a.png"), image(2, "b.png")])
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == []
    assert ["2 entries have the picture of task 1" in problem for problem in report.problems] == [True, True]
    save(tmp_path / "d.png", picture(7))
    coco(
        tmp_path / "coco.json",
        [image(number, name) for number, name in enumerate(names)],
        [thing(number, number, segmentation=[[number, 1, 9, 1, 9, 9]]) for number in range(3)],
    )
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [1]
    assert ["which gets the masks of d.png" in problem for problem in report.problems] == [True, True]
    # As many tasks as entries: all of them show the picture.
    backend.label_studio.annotations.clear()
    for number in (2, 3):
        add(backend, number, f"/data/upload/1/1a2b3c4d-{number}.png", picture(7))
    assert import_folder(backend, tmp_path).problems == []
    assert annotated(backend) == [1, 2, 3]
    assert len({each["result"][0]["id"] for each in backend.label_studio.annotations.values()}) == 3


def test_copies_of_an_image_all_get_its_masks(backend: Backend, tmp_path: Path) -> None:
    for number in (1, 2):
        add(backend, number, f"/data/upload/1/{number:08x}-a.png", picture(7))
    save(tmp_path / "a.png", picture(7))
    coco(tmp_path / "coco.json", [image(1, "a.png")])
    assert import_folder(backend, tmp_path).problems == []
    assert annotated(backend) == [1, 2]


# -- documents


def test_ids_and_names_that_repeat_are_named_and_the_others_imported(backend: Backend, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "c", "d", "e"), start=1):
        add(backend, number, f"/data/upload/1/{number:08x}-{name}.png")
    images = [
        image(1, "a.png"), image(1, "b.png"), image(3, "c.png"), image(4, "c.png"), image(5, "d.png"),
        image(6, "e.png"), image(6, "e.png"),
    ]  # fmt: skip
    coco(tmp_path / "coco.json", images, [thing(1, 1), thing(2, 3), thing(3, 4), thing(4, 5), thing(5, 6)])
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [4, 5]
    told = "\n".join(report.problems)
    assert "a.png: coco.json gives image id 1 more than once (a.png, b.png)" in told
    assert "c.png: coco.json has this name with the ids 3, 4" in told


def test_an_object_of_no_image_makes_no_other_image_empty(backend: Backend, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b"), start=1):
        add(backend, number, f"/data/upload/1/{number:08x}-{name}.png")
    coco(tmp_path / "coco.json", [image(1, "a.png"), image(2, "b.png")], [thing(1, "1"), thing(2, 2)])
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [2]
    told = "\n".join(report.problems)
    assert "1 objects of image_id '1', which is not among its images" in told
    assert "a.png: coco.json has objects of unknown images" in told


def test_what_identifies_no_image_never_says_that_there_is_nothing(backend: Backend, tmp_path: Path) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-a.png")
    coco(tmp_path / "coco.json", [image(1, "x/a.png"), image(2, "y/a.png")], [])
    assert len(import_folder(backend, tmp_path).problems) == 2
    assert annotated(backend) == []


def test_masks_without_a_pixel_do_not_say_that_there_is_nothing(backend: Backend, tmp_path: Path) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-a.png")
    empty = {"size": [48, 64], "counts": [48 * 64]}
    coco(tmp_path / "coco.json", [image(1, "a.png")], [thing(1, 1, segmentation=empty)])
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == []
    assert "no pixel" in report.problems[0]


def test_repeated_ids_of_objects_are_named_and_go_where_they_say(backend: Backend, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b"), start=1):
        add(backend, number, f"/data/upload/1/{number:08x}-{name}.png")
    objects = [thing(1, 1), thing(1, 1), thing(1, 2, segmentation=[[1, 1, 9, 1, 9, 9]])]
    coco(tmp_path / "coco.json", [image(1, "a.png"), image(2, "b.png")], objects)
    report = import_folder(backend, tmp_path)
    assert (annotated(backend), report.objects) == ([1, 2], 2)
    assert "1 ids of objects are given more than once (1)" in report.problems[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [{"id": 5, "name": "Dog"}, {"id": 5, "name": "Cat"}]}, "category id 5 must have one name"),
        ({"categories": [{"id": 5, "name": None}]}, "category 1 must have a name"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 48}]}, "must have height and width"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 48, "width": -64}]}, "must have height and width"),
        ({"images": [{"id": None, "file_name": "a.png", "height": 48, "width": 64}]}, "must have an id"),
        ({"images": [{"id": [1], "file_name": "a.png", "height": 48, "width": 64}]}, "must have an id"),
        ({"images": [{"id": True, "file_name": "a.png", "height": 48, "width": 64}]}, "must have an id"),
        ({"images": [{"id": 1, "file_name": "", "height": 48, "width": 64}]}, "must have a file_name"),
        ({"images": {"1": "a.png"}}, "must be a list of objects"),
        ({"annotations": [7]}, "must be a list of objects"),
    ],
)
def test_documents_that_are_no_coco_are_refused(backend: Backend, tmp_path: Path, change: Json, message: str) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-a.png")
    coco(tmp_path / "coco.json", [image(1, "a.png")])
    document = json.loads((tmp_path / "coco.json").read_text())
    (tmp_path / "coco.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(BadInputError, match=message):
        import_folder(backend, tmp_path)
    assert annotated(backend) == []


def test_documents_of_two_folders_mean_the_pictures_beside_them(backend: Backend, tmp_path: Path) -> None:
    for number, folder in ((1, "a"), (2, "b")):
        add(backend, number, f"/data/upload/1/{number:08x}-1.png")
        save(tmp_path / folder / "1.png", picture(number))
        coco(tmp_path / folder / "coco.json", [image(1, "1.png")])
    assert import_folder(backend, tmp_path).problems == []
    assert annotated(backend) == [1, 2]


def test_documents_of_two_folders_without_pictures_are_not_joined(backend: Backend, tmp_path: Path) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-1.png")
    for folder in ("a", "b"):
        coco(tmp_path / folder / "coco.json", [image(1, "1.png")])
    assert len(import_folder(backend, tmp_path).problems) == 2
    assert annotated(backend) == []


@pytest.mark.parametrize(
    "content", [b'{"images": [], "ann', b'{"images": [], "images": [1]}', b"[" * 100_000, b"\xff\xfe", b""]
)
def test_a_json_file_that_cannot_be_read_is_told(backend: Backend, tmp_path: Path, content: bytes) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-a.png")
    coco(tmp_path / "coco.json", [image(1, "a.png")])
    save(tmp_path / "broken.JSON", content)
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [1]
    assert "broken.JSON: a JSON file that cannot be read, nothing of it was imported" in report.problems[0]


def test_a_document_is_left_out_with_a_word_only(backend: Backend, tmp_path: Path) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-a.png")
    coco(tmp_path / "x.json", [image(1, "a.png")])
    coco(tmp_path / "x_polygons.json", [image(1, "a.png")])
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "half.json").write_text('{"images": [], "annotations": []}')
    report = import_folder(backend, tmp_path)
    assert (annotated(backend), report.objects) == ([1], 1)
    assert report.problems == ["half.json: a COCO document must have categories too, nothing was imported"]
    assert [note.partition(":")[0] for note in report.notes] == ["settings.json", "x_polygons.json"]
    # One of that name with other objects is a document like any other.
    add(backend, 2, "/data/upload/1/1a2b3c4d-b.png")
    coco(tmp_path / "x_polygons.json", [image(9, "b.png")])
    import_folder(backend, tmp_path)
    assert annotated(backend) == [1, 2]


# -- PNG


def test_a_gray_picture_is_no_mask(backend: Backend, tmp_path: Path) -> None:
    one_label(backend)
    ramp = np.arange(48 * 64).reshape(48, 64) % 251
    gray = tmp_path / "photo.png"
    mask_png(gray, ramp)
    add(backend, 1, "/data/upload/1/1a2b3c4d-photo.png", picture(1))  # as another program wrote it
    add(backend, 2, "/data/upload/1/1a2b3c4d-mask.png")
    mask_png(tmp_path / "mask.png", box(3, 3, 9, 9) * 255)
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [2]
    assert "must have one number beside 0" in report.problems[0]
    # The very file that the task shows.
    backend.label_studio.images["/data/upload/1/1a2b3c4d-photo.png"] = gray.read_bytes()
    report = import_folder(backend, tmp_path)
    assert (annotated(backend), report.problems) == ([2], [])
    assert "photo.png: is the picture of task 1 itself, no mask" in report.notes


def test_a_black_and_white_picture_of_a_task_is_no_mask(backend: Backend, tmp_path: Path) -> None:
    one_label(backend)
    mask_png(tmp_path / "scan.png", box(3, 3, 9, 9) * 255)
    add(backend, 1, "/data/upload/1/1a2b3c4d-scan.png", (tmp_path / "scan.png").read_bytes())
    import_folder(backend, tmp_path)
    assert annotated(backend) == []


def test_masks_beside_gray_pictures_are_told_from_them(backend: Backend, tmp_path: Path) -> None:
    one_label(backend)
    for number in (1, 2):
        mask_png(tmp_path / "images" / f"{number}.png", np.full((48, 64), 40) + box(number, 3, 9, 9) * 100)
        mask_png(tmp_path / "labels" / f"{number}.PNG", box(number, 3, 9, 9) * 255)
        content = (tmp_path / "images" / f"{number}.png").read_bytes()
        add(backend, number, f"/data/upload/1/{number:08x}-{number}.png", content)
    report = import_folder(backend, tmp_path)
    assert (annotated(backend), report.problems) == ([1, 2], [])


def test_masks_of_two_folders_are_of_the_pictures_that_correspond(backend: Backend, tmp_path: Path) -> None:
    one_label(backend)
    for number, folder in ((1, "a"), (2, "b")):
        add(backend, number, f"/data/upload/1/{number:08x}-1.jpg")
        save(tmp_path / "images" / folder / "1.jpg", picture(number))
        mask_png(tmp_path / "masks" / folder / "1.png", box(number, 3, 9, 9) * 255)
    report = import_folder(backend, tmp_path)
    assert (annotated(backend), report.problems) == ([1, 2], [])
    # Of a picture that is not there, none of the others is it.
    (tmp_path / "images" / "b" / "1.jpg").unlink()
    backend.label_studio.annotations.clear()
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [1]
    assert "masks/b/1.png: the folder has images/a/1.jpg" in report.problems[0]


def test_pictures_of_one_stem_are_not_mixed_up(backend: Backend, tmp_path: Path) -> None:
    one_label(backend)
    add(backend, 1, "/data/upload/1/1a2b3c4d-1.jpg")
    add(backend, 2, "/data/upload/1/1a2b3c4d-1.png")
    save(tmp_path / "images" / "1.jpg", picture(1))
    save(tmp_path / "images" / "1.webp", picture(2))
    mask_png(tmp_path / "masks" / "1.png", box(1, 3, 9, 9) * 255)
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == []
    assert "which picture it is of cannot be told" in report.problems[0]


def test_a_picture_of_another_named_folder_is_not_taken_for_a_masks_own(backend: Backend, tmp_path: Path) -> None:
    one_label(backend)
    add(backend, 1, "/data/upload/1/1a2b3c4d-1.jpg")
    save(tmp_path / "cam1" / "1.jpg", picture(1))
    mask_png(tmp_path / "cam2" / "1.png", box(1, 3, 9, 9) * 255)
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == []
    assert "cam2/1.png: the folder has cam1/1.jpg" in report.problems[0]


# -- what is read and downloaded


def test_images_of_other_names_are_downloaded_only_while_something_is_missing(backend: Backend, tmp_path: Path) -> None:
    for number in range(1, 60):
        add(backend, number, f"/data/upload/1/{number:08x}-{number}.png")
    save(tmp_path / "7.png", picture(7))
    coco(tmp_path / "coco.json", [image(1, "7.png")])
    assert import_folder(backend, tmp_path).problems == []
    assert (annotated(backend), backend.label_studio.fetches) == ([7], 1)
    # Only its content tells which it is: until then those of its size are downloaded, and not one more.
    (tmp_path / "7.png").rename(tmp_path / "renamed.png")
    coco(tmp_path / "coco.json", [image(1, "renamed.png")])
    for number in (1, 2, 3):
        backend.label_studio.images[f"/data/upload/1/{number:08x}-{number}.png"] += b"longer"
    backend.label_studio.annotations.clear()
    same = sum(len(picture(number)) == len(picture(7)) for number in range(4, 8))
    assert import_folder(backend, tmp_path).problems == []
    assert (annotated(backend), backend.label_studio.fetches) == ([7], 1 + same)
    # A document that says the content only says no size.
    (tmp_path / "renamed.png").unlink()
    digest = hashlib.sha256(picture(7)).hexdigest()
    coco(tmp_path / "coco.json", [image(1, "renamed.png", sha256=digest)])
    backend.label_studio.annotations.clear()
    assert import_folder(backend, tmp_path).problems == []
    assert (annotated(backend), backend.label_studio.fetches) == ([7], 1 + same + 7)


@pytest.mark.slow
def test_300_objects_are_never_in_memory_together(backend: Backend, tmp_path: Path) -> None:
    """Here 40 on 3 megapixels; 300 on 12 take 110 MB more than the program, 20 s."""
    size = {"height": 1500, "width": 2000}
    add(backend, 1, "/data/upload/1/1a2b3c4d-1.png", png(np.zeros((1500, 2000, 3), np.uint8)))
    polygons = [[[4, 4, 1990, 4, 1990, 700 + number, 4, 900]] for number in range(40)]
    objects = [thing(number, 1, segmentation=polygon) for number, polygon in enumerate(polygons)]
    coco(tmp_path / "coco.json", [image(1, "1.png", **size)], objects)
    tracemalloc.start()
    try:
        assert import_folder(backend, tmp_path).objects == 40
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_a_dry_run_says_what_would_be_and_writes_nothing(backend: Backend, tmp_path: Path) -> None:
    for number in (1, 2):
        add(backend, number, f"/data/upload/1/{number:08x}-{number}.png")
    coco(tmp_path / "coco.json", [image(1, "1.png"), image(2, "2.png"), image(3, "3.png")])
    project = opened(backend)
    report = import_masks(project, find_masks(tmp_path, project.config), is_dry_run=True)
    assert (report.imported, report.objects, report.annotations, len(report.problems)) == (2, 2, [], 1)
    assert annotated(backend) == []


def test_an_annotation_made_meanwhile_is_kept(backend: Backend, tmp_path: Path) -> None:
    for number in (1, 2):
        add(backend, number, f"/data/upload/1/{number:08x}-{number}.png")
    coco(tmp_path / "coco.json", [image(1, "1.png"), image(2, "2.png")])
    create = backend.label_studio.create_annotation

    def create_while_others_work(task_id: int, result: Any) -> Json:
        backend.label_studio.annotate(50, 2, [])
        return create(task_id, result)

    backend.label_studio.create_annotation = create_while_others_work  # type: ignore[method-assign, assignment]
    report = import_folder(backend, tmp_path)
    assert (report.imported, len(report.kept)) == (1, 1)
    assert annotated(backend) == [1, 2]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [48, 64], "counts": [5]}, "must fill the 64 x 48 px of the image exactly"),
        ([[1, 1, float("nan"), 4, 5, 6]], "got a coordinate of nan"),
        ([[1, 1, 1e18, 4, 5, 6]], r"got a coordinate of 1e\+18"),
    ],
)
def test_a_wrong_object_is_named_and_its_image_not_imported_by_halves(
    backend: Backend, tmp_path: Path, segmentation: Any, message: str
) -> None:
    for number in (1, 2):
        add(backend, number, f"/data/upload/1/{number:08x}-{number}.png")
    objects = [thing(1, 1), thing(77, 1, segmentation=segmentation), thing(3, 2)]
    coco(tmp_path / "coco.json", [image(1, "1.png"), image(2, "2.png")], objects)
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [2]
    (problem,) = report.problems
    assert problem.startswith("1.png, task 1: object 77 must have a mask")
    assert re.search(message, problem)


def test_an_image_that_claims_another_size_is_not_decoded(backend: Backend, tmp_path: Path) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-1.png")
    size = {"height": 10**9, "width": 10**9}
    coco(tmp_path / "coco.json", [image(1, "1.png", **size)], [thing(1, 1, segmentation={"size": [10**9] * 2})])
    assert "got 1000000000 x 1000000000" in import_folder(backend, tmp_path).problems[0]


# -- PNG numbers


def _labels(folder: Path, *entries: tuple[Any, Any]) -> None:
    (folder / "labels.json").write_text(json.dumps([{"index": index, "label": label} for index, label in entries]))


def _regions(backend: Backend, task: int) -> dict[str, NDArray[Any]]:
    (found,) = [each for each in backend.label_studio.annotations.values() if each["task"] == task]
    read = read_regions(found["result"], opened(backend).config).regions
    return {region.label: region.mask for region in read if region.mask is not None}


def test_numbers_to_ignore_are_no_label(backend: Backend, tmp_path: Path) -> None:
    """255 as PASCAL VOC has it around objects, and what `labels.json` gives null."""
    add(backend, 1, "/data/upload/1/1a2b3c4d-1.png")
    rim = box(2, 2, 30, 30) & ~box(4, 4, 28, 28)
    mask_png(tmp_path / "1.PNG", box(4, 4, 28, 28) * 1 + rim * 255 + box(40, 2, 50, 9) * 3 + box(40, 20, 50, 29) * 2)
    _labels(tmp_path, (0, None), (1, "Cat"), (2, "Dog"), (3, None))
    assert import_folder(backend, tmp_path).problems == []
    found = _regions(backend, 1)
    assert found.keys() == {"Cat", "Dog"}
    assert np.array_equal(found["Cat"], box(4, 4, 28, 28))


@pytest.mark.parametrize("number", [255, 3])
def test_only_pixels_to_ignore_do_not_say_that_there_is_nothing(backend: Backend, tmp_path: Path, number: int) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-1.png")
    add(backend, 2, "/data/upload/1/1a2b3c4d-2.png")
    mask_png(tmp_path / "1.png", box(4, 4, 28, 28) * number)
    mask_png(tmp_path / "2.png", box(4, 4, 28, 28) * 0)
    _labels(tmp_path, (0, None), (1, "Cat"), (3, None))
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [2], "that one says that there is nothing"
    assert "pixels to ignore and no label" in report.problems[0]


def test_labels_json_may_give_255_a_label(backend: Backend, tmp_path: Path) -> None:
    add(backend, 1, "/data/upload/1/1a2b3c4d-1.png")
    mask_png(tmp_path / "1.png", box(4, 4, 28, 28) * 255)
    _labels(tmp_path, (255, "Cat"))
    import_folder(backend, tmp_path)
    assert np.array_equal(_regions(backend, 1)["Cat"], box(4, 4, 28, 28))


@pytest.mark.parametrize(("inner", "rim"), [(255, 0), (1, 255), (7, 0), (1, 0)])
def test_masks_of_one_label_need_no_list(backend: Backend, tmp_path: Path, inner: int, rim: int) -> None:
    one_label(backend)
    add(backend, 1, "/data/upload/1/1a2b3c4d-1.png")
    mask_png(tmp_path / "1.png", box(4, 4, 28, 28) * inner + (box(2, 2, 30, 30) & ~box(4, 4, 28, 28)) * rim)
    assert import_folder(backend, tmp_path).problems == []
    assert np.array_equal(_regions(backend, 1)["Cat"], box(4, 4, 28, 28))


@pytest.mark.parametrize(
    "entries",
    [
        [(1, "Cat"), (1, "Dog")],
        [(1, "Cat"), (1, None)],
        [(True, "Cat")],
        [(-1, "Cat")],
        [("1", "Cat")],
        [(1, 7)],
        [(1, "")],
    ],
)
def test_a_list_of_labels_that_contradicts_itself_is_refused(
    backend: Backend, tmp_path: Path, entries: list[tuple[Any, Any]]
) -> None:
    mask_png(tmp_path / "1.png", box(4, 4, 28, 28) * 1)
    _labels(tmp_path, *entries)
    with pytest.raises(BadInputError, match=r"labels.json must be a list"):
        import_folder(backend, tmp_path)


def test_colour_pictures_alone_are_no_masks(backend: Backend, tmp_path: Path) -> None:
    save(tmp_path / "1.png", picture(1))
    with pytest.raises(BadInputError, match=r"got neither.*1 PNG files in colours"):
        import_folder(backend, tmp_path)


def test_a_broken_png_is_named(backend: Backend, tmp_path: Path) -> None:
    one_label(backend)
    for number in (1, 2, 3):
        add(backend, number, f"/data/upload/1/{number:08x}-{number}.png")
        mask_png(tmp_path / f"{number}.png", np.random.default_rng(1).integers(0, 2, (48, 64)))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:90])
    (tmp_path / "2.png").write_bytes(b"no png")
    report = import_folder(backend, tmp_path)
    assert annotated(backend) == [3]
    assert [problem[:5] for problem in report.problems] == ["1.png", "2.png"]


def test_other_json_beside_png_masks_is_told(backend: Backend, tmp_path: Path) -> None:
    one_label(backend)
    add(backend, 1, "/data/upload/1/1a2b3c4d-1.png")
    mask_png(tmp_path / "1.png", box(4, 4, 28, 28) * 1)
    (tmp_path / "shapes.json").write_text('{"shapes": []}')
    report = import_folder(backend, tmp_path)
    assert (annotated(backend), report.problems) == ([1], [])
    assert report.notes == ["shapes.json: no COCO document (images, annotations, categories), left out"]
