"""Data sets of a real Label Studio: equal to its own exports, and back again."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from label_studio_sdk.converter.brush import encode_rle
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from backend.cli.demo.coins import sample_tasks
from backend.cli.demo.label_studio_server import TOKEN, LabelStudio
from backend.core.types import Json, Mask
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.rle import encode_mask
from tests.e2e.scene import Backend, own_environment

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="Coin"/><Label value="Chip"/></BrushLabels></View>"""
IMAGES = {sample.name: sample for sample in sample_tasks()[:3]}

NewProject = Callable[[str], tuple[int, dict[str, int]]]
Run = Callable[..., str]


def _alpha(mask: Mask) -> NDArray[Any]:
    """What the editor's canvas makes of a mask: a rim that is half transparent."""
    return np.asarray(cv2.GaussianBlur(mask.astype(np.uint8) * 255, (5, 5), 0))


def _region(number: int, label: str, alpha: NDArray[Any]) -> Json:
    """A region of any alpha, encoded by Label Studio's own converter."""
    height, width = alpha.shape
    is_mask = set(np.unique(alpha)) <= {0, 255}
    rle = encode_mask(alpha > 0) if is_mask else encode_rle(np.repeat(alpha.ravel(), 4).astype(int))
    return {
        "id": f"r{number}", "type": "brushlabels", "from_name": "brush", "to_name": "image", "origin": "manual",
        "original_width": width, "original_height": height, "image_rotation": 0,
        "value": {"format": "rle", "rle": rle, "brushlabels": [label]},
    }  # fmt: skip


def _drawn() -> dict[str, list[tuple[str, NDArray[Any]]]]:
    """Image -> its regions: coins, two of them as one object, one with a hole, one with a soft rim."""
    drawn: dict[str, list[tuple[str, NDArray[Any]]]] = {}
    for name, sample in IMAGES.items():
        coins = [sample.objects == number for number in np.unique(sample.objects) if number]
        soft = _alpha(coins[0])
        holed = coins[1].copy()
        rows, columns = np.nonzero(holed)
        holed[int(rows.mean()) - 4 : int(rows.mean()) + 4, int(columns.mean()) - 4 : int(columns.mean()) + 4] = False
        both = np.logical_or.reduce(coins[2:]) if len(coins) > 2 else coins[0]
        drawn[name] = [("Coin", soft), ("Chip", holed.astype(np.uint8) * 255), ("Coin", both.astype(np.uint8) * 255)]
    return drawn


DRAWN = _drawn()


@pytest.fixture(scope="module")
def new_project(label_studio: LabelStudio) -> Iterator[NewProject]:
    made: list[int] = []

    def make(title: str) -> tuple[int, dict[str, int]]:
        made.append(label_studio.create_project(title, CONFIG))
        return made[-1], label_studio.upload_images(made[-1], {name: one.image for name, one in IMAGES.items()})

    yield make
    for project in made:
        label_studio.call("DELETE", f"/api/projects/{project}/")


@pytest.fixture(scope="module")
def drawn(label_studio: LabelStudio, new_project: NewProject) -> int:
    """A project whose tasks have one annotation each."""
    project, tasks = new_project("drawn")
    for name, regions in DRAWN.items():
        label_studio.annotate(tasks[name], [_region(n, *region) for n, region in enumerate(regions)])
    return project


@pytest.fixture(scope="module")
def run(label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command of this backend, as a shell does; what it printed."""
    data = tmp_path_factory.mktemp("data")
    environment = own_environment(
        LABEL_STUDIO_URL=label_studio.url, LABEL_STUDIO_API_KEY=TOKEN, SOFTMATCHER_DATA_DIR=str(data)
    )

    def command(*arguments: object, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "backend", *map(str, arguments)], env=environment, cwd=os.getcwd(),
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return command


@pytest.fixture(scope="module")
def exported(drawn: int, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as COCO, all in one split."""
    out = tmp_path_factory.mktemp("exported") / "coco"
    run("export", "--project", drawn, "--format", "coco", "--out", out, "--split", "1,0,0", "--tolerance", 0)
    return out


def _own_export(label_studio: LabelStudio, project: int, kind: str) -> zipfile.ZipFile:
    answer = label_studio.session.get(f"{label_studio.url}/api/projects/{project}/export?exportType={kind}")
    assert answer.ok, answer.text
    return zipfile.ZipFile(io.BytesIO(answer.content))


def _masks(out: Path) -> dict[str, list[tuple[str, Mask, Json]]]:
    """Original name of the image -> its objects, read by pycocotools."""
    coco = COCO(str(out / "annotations" / "instances_train.json"))
    names = {each["id"]: each["name"] for each in coco.loadCats(coco.getCatIds())}
    return {
        image["file_name"].partition("-")[2].rpartition(".")[0]: [
            (names[one["category_id"]], coco.annToMask(one) > 0, one)
            for one in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        ]
        for image in coco.loadImgs(coco.getImgIds())
    }


def test_masks_are_those_that_were_drawn(exported: Path) -> None:
    found = _masks(exported)
    assert found.keys() == DRAWN.keys()
    for name, regions in DRAWN.items():
        assert [label for label, _, _ in found[name]] == [label for label, _ in regions]
        for (_, mask, _), (_, alpha) in zip(found[name], regions, strict=True):
            assert np.array_equal(mask, alpha > 127)


def test_every_object_equals_label_studios_own_png(label_studio: LabelStudio, drawn: int, exported: Path) -> None:
    own: dict[tuple[int, str, int], Mask] = {}
    with _own_export(label_studio, drawn, "BRUSH_TO_PNG") as archive:
        for name in archive.namelist():
            parts = name.removesuffix(".png").split("-")  # task-1-annotation-1-by-1-brush-Coin-0
            with PillowImage.open(io.BytesIO(archive.read(name))) as picture:
                own[int(parts[1]), parts[-2], int(parts[-1])] = np.asarray(picture) > 127
    ours: dict[tuple[int, str, int], Mask] = {}
    coco = json.loads((exported / "annotations" / "instances_train.json").read_text())
    tasks = {image["id"]: image["task"] for image in coco["images"]}
    names = {each["id"]: each["name"] for each in coco["categories"]}
    for one in coco["annotations"]:
        task, label = tasks[one["image_id"]], names[one["category_id"]]
        number = sum(key[:2] == (task, label) for key in ours)
        ours[task, label, number] = coco_mask.decode(one["segmentation"]) > 0
    assert ours.keys() == own.keys()
    assert len(own) == 9
    for key, mask in ours.items():
        assert np.array_equal(mask, own[key]), key


def test_every_object_equals_label_studios_own_coco_but_for_what_that_loses(
    label_studio: LabelStudio, drawn: int, exported: Path
) -> None:
    """Label Studio writes an entry for each component, without holes, of all pixels that are not transparent."""
    with _own_export(label_studio, drawn, "BRUSH_TO_COCO") as archive:
        document = json.loads(archive.read("result_coco.json"))
    ours = json.loads((exported / "annotations" / "instances_train.json").read_text())
    own_names = {each["id"]: each["name"] for each in document["categories"]}
    assert set(own_names.values()) == {each["name"] for each in ours["categories"]}
    own_images = {image["id"]: image["file_name"].partition("-")[2].rpartition(".")[0] for image in document["images"]}
    compared = 0
    for name, found in _masks(exported).items():
        entries = [each for each in document["annotations"] if own_images[each["image_id"]] == name]
        for (label, mask, _), (_, alpha) in zip(found, DRAWN[name], strict=True):
            contours, _ = cv2.findContours(alpha, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            contours = [contour for contour in contours if len(contour) >= 3]
            own = np.zeros(mask.shape, np.uint8)
            for _ in contours:
                entry = entries.pop(0)
                assert own_names[entry["category_id"]] == label
                points = np.array(entry["segmentation"][0], np.int32).reshape(-1, 2)
                cv2.fillPoly(own, [points], color=1)
            filled = np.zeros(mask.shape, np.uint8)
            whole = (alpha > 0).astype(np.uint8)
            outer, _ = cv2.findContours(whole, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(filled, [each for each in outer if len(each) >= 3], -1, color=1, thickness=-1)
            assert np.array_equal(own, filled)
            assert not (mask & (own == 0)).any(), "what we have, it has too"
            if set(np.unique(alpha)) <= {0, 255} and label == "Coin":
                assert np.array_equal(own > 0, mask), "without a soft rim or a hole they are the same"
                compared += 1
        assert not entries
    assert compared == 3


def test_round_trip_through_a_second_project(
    label_studio: LabelStudio, new_project: NewProject, run: Run, exported: Path, tmp_path: Path
) -> None:
    other, _ = new_project("imported")
    assert "3 annotations with 9 masks added" in run("import-masks", exported, "--project", other)
    assert "0 annotations with 0 masks added; 3 tasks had them" in run("import-masks", exported, "--project", other)
    run("export", "--project", other, "--format", "coco", "--out", tmp_path / "again", "--split", "1,0,0")
    before, after = _masks(exported), _masks(tmp_path / "again")
    assert before.keys() == after.keys()
    for name, objects in before.items():
        assert [label for label, _, _ in objects] == [label for label, _, _ in after[name]]
        for (_, first, _), (_, second, _) in zip(objects, after[name], strict=True):
            assert np.array_equal(first, second)


def test_round_trip_of_index_masks(new_project: NewProject, run: Run, drawn: int, tmp_path: Path) -> None:
    other, _ = new_project("imported from png")
    run("export", "--project", drawn, "--format", "png", "--out", tmp_path / "first", "--split", "1,0,0")
    run("import-masks", tmp_path / "first", "--project", other)
    run("export", "--project", other, "--format", "png", "--out", tmp_path / "second", "--split", "1,0,0")
    first, second = (
        {path.name.partition("-")[2]: path.read_bytes() for path in (tmp_path / name / "masks" / "train").iterdir()}
        for name in ("first", "second")
    )
    assert len(first) == 3
    assert first == second


def _saved(image: NDArray[Any], kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, kind, **more)
    return buffer.getvalue()


def test_images_that_readers_disagree_about_come_out_upright_and_back_in_when_uploaded(
    label_studio: LabelStudio, run: Run, tmp_path: Path
) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    kinds: dict[str, dict[str, Any]] = {"JPEG": {"exif": exif}, "WEBP": {"exif": exif}, "GIF": {}, "MPO": {}}
    shown = next(iter(IMAGES.values())).image[:60, :90]
    files = {f"{kind} {number}": _saved(shown, kind, **more) for number, (kind, more) in enumerate(kinds.items())}
    projects = [label_studio.create_project(f"uploaded {number}", CONFIG) for number in range(2)]
    try:
        tasks = label_studio.upload_images(projects[0], files)
        for name, task in tasks.items():
            alpha = np.zeros(decode_image(files[name]).shape[:2], np.uint8)
            alpha[5 : 20 + task % 7, 5:30] = 255
            label_studio.annotate(task, [_region(1, "Coin", alpha)])
        first, second = tmp_path / "first", tmp_path / "second"
        run("export", "--project", projects[0], "--format", "coco", "--out", first, "--split", "1,0,0")
        stored = {path.stem: path for path in (first / "images" / "train").iterdir()}
        assert sorted(path.suffix for path in stored.values()) == [".jpg", ".png", ".png", ".png"]
        for path in stored.values():
            with PillowImage.open(path) as image:
                assert image.getexif().get(0x0112, 1) == 1
            assert np.array_equal(np.asarray(cv2.imread(str(path)))[..., ::-1], decode_image(path.read_bytes()))
        label_studio.upload_images(projects[1], {name: path.read_bytes() for name, path in stored.items()})
        assert "4 annotations with 4 masks added" in run("import-masks", first, "--project", projects[1])
        run("export", "--project", projects[1], "--format", "coco", "--out", second, "--split", "1,0,0")
        before, after = (
            sorted((mask.shape, mask.tobytes()) for found in _masks(out).values() for _, mask, _ in found)
            for out in (first, second)
        )
        assert len(before) == 4
        assert before == after
    finally:
        for project in projects:
            label_studio.call("DELETE", f"/api/projects/{project}/")


def test_the_service_sends_the_same_as_a_zip(backend: Backend, drawn: int, exported: Path) -> None:
    answer = backend.get(f"/projects/{drawn}/export?format=coco&split=1,0,0&tolerance_px=0")
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        inside = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert inside.keys() == {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert all((exported / path).read_bytes() == content for path, content in inside.items())
    assert backend.get("/projects/987654/export?format=coco").status_code == 404


def test_masks_find_uploads_by_the_names_that_label_studio_gave_them(
    label_studio: LabelStudio, run: Run, tmp_path: Path
) -> None:
    """No image is in the folder: spaces, brackets, accents in both spellings, other scripts, digits like a prefix."""
    names = [
        "image (1)", "u\u0308ber", "\u00e9t\u00e9 2", "\u65e5\u672c\u8a9e", "a+b&c#d%20e", "2024-01-15",
        "deadbeef-scan", "Coin's.v2",
    ]  # fmt: skip
    shown = next(iter(IMAGES.values())).image[:60, :90]
    project = label_studio.create_project("named", CONFIG)
    try:
        pictures = {}
        for number, name in enumerate(names):
            pictures[name] = shown.copy()
            pictures[name][0, 0] = number
        tasks = label_studio.upload_images(project, pictures)
        polygons = [[[1, 1, 9 + number, 1, 9 + number, 20]] for number in range(len(names) + 2)]
        coco = {
            "categories": [{"id": 1, "name": "Coin"}],
            "images": [
                {"id": number, "file_name": f"C:\\data\\{name}.png", "height": 60, "width": 90}
                for number, name in enumerate([*names, "2023-01-15", "scan"])
            ],
            "annotations": [
                {"id": number, "image_id": number, "category_id": 1, "segmentation": polygon}
                for number, polygon in enumerate(polygons)
            ],
        }  # fmt: skip
        (tmp_path / "coco.json").write_text(json.dumps(coco))
        would = run("import-masks", tmp_path, "--project", project, "--dry-run", code=1)
        assert f"{len(names)} annotations with {len(names)} masks would be added" in would
        assert not any(label_studio.task(task)["annotations"] for task in tasks.values())
        said = run("import-masks", tmp_path, "--project", project, code=1)
        assert f"{len(names)} annotations with {len(names)} masks added" in said
        assert said.count("no task of project") == 2
        for number, name in enumerate(names):
            (annotation,) = label_studio.task(tasks[name])["annotations"]
            (region,) = annotation["result"]
            drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons[number], 60, 90)))
            assert region["value"]["rle"] == encode_mask(drawn > 0)
    finally:
        label_studio.call("DELETE", f"/api/projects/{project}/")
