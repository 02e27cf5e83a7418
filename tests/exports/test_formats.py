"""What the formats' own readers see is what Label Studio had."""

import html
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from backend.core.types import Mask
from backend.errors import BadInputError
from backend.exports.index_png import palette_colour, to_legend, to_legend_page
from backend.exports.options import options_from_texts
from backend.labelstudio.codec import read_regions
from backend.labelstudio.label_config import parse_label_config
from testing.fakes import Backend
from tests.exports.scene import LABELS, MASKS, export, fill, opened

ONE_SPLIT = {"split": "1,0,0"}


@pytest.fixture
def filled(backend: Backend) -> Backend:
    fill(backend.label_studio)
    return backend


def _expected_index(number: int) -> NDArray[Any]:
    index = np.zeros((64, 48) if number == 5 else (48, 64), np.uint8)
    for value, label in enumerate(LABELS, start=1):
        for name, mask in MASKS[number]:
            if name == label:
                index[mask] = value
    return index


def _read_coco(path: Path) -> dict[int, list[tuple[str, Mask]]]:
    coco = COCO(str(path))
    names = {each["id"]: each["name"] for each in coco.loadCats(coco.getCatIds())}
    return {
        image["task"]: [
            (names[one["category_id"]], coco.annToMask(one) > 0)
            for one in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        ]
        for image in coco.loadImgs(coco.getImgIds())
    }


def _same(one: list[tuple[str, Mask]], other: list[tuple[str, Mask]]) -> bool:
    return [label for label, _ in one] == [label for label, _ in other] and all(
        np.array_equal(first, second) for (_, first), (_, second) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("file", ["instances_train.json", "instances_train_polygons.json"])
def test_coco_masks_are_those_of_label_studio(filled: Backend, tmp_path: Path, file: str) -> None:
    export(filled, tmp_path / "out", tolerance_px="0", **ONE_SPLIT)
    read = _read_coco(tmp_path / "out" / "annotations" / file)
    assert read.keys() == MASKS.keys()
    assert all(_same(read[number], MASKS[number]) for number in MASKS)


def test_coco_files_are_complete(filled: Backend, tmp_path: Path) -> None:
    export(filled, tmp_path / "out", **ONE_SPLIT)
    document = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert [each["name"] for each in document["categories"]] == list(LABELS)
    assert document["info"] == {"description": "Animals"}
    assert "licenses" not in document
    for image in document["images"]:
        with PillowImage.open(tmp_path / "out" / "images" / "train" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    for one in document["annotations"]:
        assert one["area"] == int(coco_mask.area(one["segmentation"]))
        assert one["bbox"] == coco_mask.toBbox(one["segmentation"]).astype(int).tolist()
        assert one["iscrowd"] == 0
    assert len({one["id"] for one in document["annotations"]}) == len(document["annotations"]) == 5


@pytest.mark.parametrize("source", ["annotations", "both"])
def test_label_studio_tasks_have_the_same_masks(filled: Backend, tmp_path: Path, source: str) -> None:
    out = tmp_path / "out"
    export(filled, out, format="label-studio", source=source, **ONE_SPLIT)
    tasks = json.loads((out / "tasks.json").read_text())
    config = parse_label_config((out / "label-config.xml").read_text())
    assert config.labels == LABELS
    assert len(tasks) == len(MASKS) + (2 if source == "both" else 0)
    for task, masks in zip(tasks, MASKS.values(), strict=False):
        (annotation,) = task["annotations"]
        read = read_regions(annotation["result"], config).regions
        assert _same([(one.label, one.mask) for one in read if one.mask is not None], masks)
        path = task["data"]["image"].removeprefix("/data/local-files/?d=")
        with PillowImage.open(out / path) as picture:
            assert all(mask.shape == (picture.height, picture.width) for _, mask in masks)
    for task in tasks[len(MASKS) :]:
        (prediction,) = task["predictions"]
        assert "annotations" not in task
        assert prediction["result"]
        assert 0 <= prediction["score"] <= 1


def test_yolo_is_read_as_ultralytics_does(filled: Backend, tmp_path: Path) -> None:
    export(filled, tmp_path / "out", format="yolo-seg", tolerance_px="0", **ONE_SPLIT)
    document = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert document == {"train": "images/train", "val": "images/train", "names": {0: "Cat", 1: "Dog"}}
    for number, masks in MASKS.items():
        stem = f"{number}-{number}"
        with PillowImage.open(tmp_path / "out" / "images" / "train" / f"{stem}.png") as picture:
            width, height = picture.size
        # As ultralytics.data.utils.verify_image_label and polygon2mask.
        lines = (tmp_path / "out" / "labels" / "train" / f"{stem}.txt").read_text().strip().splitlines()
        parts = [line.split() for line in lines]
        assert [LABELS[int(part[0])] for part in parts] == [label for label, _ in masks]
        for part, (_, mask) in zip(parts, masks, strict=True):
            assert len(part) > 6
            segment = np.array(part[1:], dtype=np.float32).reshape(-1, 2)
            assert 0 <= segment.min() <= segment.max() <= 1
            drawn = np.zeros((height, width), np.uint8)
            cv2.fillPoly(drawn, [np.asarray(segment * (width, height), np.int32)], color=1)
            assert not (mask & (drawn == 0)).any()
            assert np.count_nonzero(drawn) - np.count_nonzero(mask) <= 40, "but for the line between two parts"


def test_a_legend_has_every_label_in_its_own_letters(filled: Backend, tmp_path: Path) -> None:
    labels = ["\u91d1\u5c5e", "\u00c4pfel & <b>", "x" * 200]
    page = to_legend_page(labels).decode()
    for number, label in enumerate(["(nothing)", *labels]):
        assert f"<td>{number}</td><td>{html.escape(label)}</td>" in page
        assert "#{:02x}{:02x}{:02x}".format(*palette_colour(number)) in page
    assert to_legend(labels[:2]) == to_legend(["\u6728\u6750", "\u00fc"]), "no boxes: the page is named instead"
    export(filled, tmp_path / "out", format="png", **ONE_SPLIT)
    assert (tmp_path / "out" / "legend.html").read_bytes() == to_legend_page(LABELS)


@pytest.mark.parametrize("split", ["1,0,0", "0,1,0", "0,0,1", "0.5,0,0.5", "0.98,0.01,0.01", "0.01,0.98,0.01"])
def test_data_yaml_always_has_a_train_and_a_val_folder_that_are_there(
    filled: Backend, tmp_path: Path, split: str
) -> None:
    """As ultralytics.data.utils.check_det_dataset looks at them."""
    out = tmp_path / "out"
    export(filled, out, format="yolo-seg", split=split)
    text = (out / "data.yaml").read_text()
    document = yaml.safe_load(text)
    assert all((out / document[name]).is_dir() for name in ("train", "val"))
    assert ("test" in document) == (out / "images" / "test").is_dir()
    for name in ("train", "val"):
        is_said = f"This data set has no {name} images" in text
        assert is_said == (not (out / "images" / name).is_dir())
        assert is_said == (f"has no {name} images" in (out / "README.md").read_text())


def test_index_masks_have_the_labels_numbers_and_a_palette(filled: Backend, tmp_path: Path) -> None:
    export(filled, tmp_path / "out", format="png", **ONE_SPLIT)
    legend = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [(each["index"], each["label"]) for each in legend] == [(0, None), (1, "Cat"), (2, "Dog")]
    for number in MASKS:
        with PillowImage.open(tmp_path / "out" / "masks" / "train" / f"{number}-{number}.png") as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture), _expected_index(number))
            colours = np.asarray(picture.convert("RGB"))
        for index, entry in enumerate(legend):
            shown = colours[_expected_index(number) == index]
            assert {tuple(each) for each in shown} <= {tuple(bytes.fromhex(entry["colour"][1:]))}
    contested = int((MASKS[1][0][1] & MASKS[1][1][1]).sum())
    assert f"claim: {contested};" in (tmp_path / "out" / "README.md").read_text()
    with PillowImage.open(tmp_path / "out" / "legend.png") as picture:
        shown_colours: Any = picture.getcolors()
        assert {bytes.fromhex(each["colour"][1:]) for each in legend} <= {bytes(colour) for _, colour in shown_colours}


def test_more_labels_than_a_byte_has_numbers_are_refused(filled: Backend, tmp_path: Path) -> None:
    many = "".join(f'<Label value="label {number}"/>' for number in range(256))
    filled.label_studio.label_config = filled.label_studio.label_config.replace('<Label value="Cat"/>', many, 1)
    with pytest.raises(BadInputError, match="255 labels, got 257"):
        export(filled, tmp_path / "out", format="png")


def _decode(one: dict[str, object], size_hw: tuple[int, int]) -> Mask:
    mask: Mask = coco_mask.decode({"size": list(size_hw), "counts": str(one["rle_counts"]).encode()}) > 0
    return mask


def test_pandas_reads_parquet(filled: Backend, tmp_path: Path) -> None:
    export(filled, tmp_path / "out", format="parquet", source="both", **ONE_SPLIT)
    table = pd.read_parquet(tmp_path / "out" / "data" / "train-00000.parquet")
    assert list(table["task"]) == [1, 2, 3, 4, 5, 6, 7]
    for _, row in table[table["task"] <= 5].iterrows():
        masks = [(one["label"], _decode(one, (row["height"], row["width"]))) for one in row["objects"]]
        assert _same(masks, MASKS[row["task"]])
        assert [LABELS[one["label_id"]] for one in row["objects"]] == [one["label"] for one in row["objects"]]
    assert table["image"][0]["bytes"] == filled.label_studio.images["/data/upload/1/1.png"]
    assert table["objects"][6][0]["score"] == pytest.approx(0.4)
    assert table["objects"][0][0]["annotator"] == 7


@pytest.mark.slow
def test_hugging_face_datasets_reads_parquet(filled: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    export(filled, tmp_path / "out", format="parquet", split="0.5,0.5,0")
    found = sorted((tmp_path / "out" / "data").iterdir())
    splits = {path.name.partition("-")[0]: str(path) for path in found}
    loaded = datasets.load_dataset("parquet", data_files=splits, cache_dir=str(tmp_path / "cache"))
    rows = [row for split in loaded.values() for row in split]
    assert sorted(row["task"] for row in rows) == list(MASKS)
    for row in rows:
        assert row["image"].size == (row["width"], row["height"])
        assert _same(
            [(one["label"], _decode(one, (row["height"], row["width"]))) for one in row["objects"]], MASKS[row["task"]]
        )


def test_parquet_by_path_has_addresses(filled: Backend, tmp_path: Path) -> None:
    export(filled, tmp_path / "out", format="parquet", images="path", **ONE_SPLIT)
    table = pd.read_parquet(tmp_path / "out" / "data")
    assert list(table["address"])[:2] == ["/data/upload/1/1.png", "/data/upload/1/2.png"]
    assert "image" not in table


def test_labels_keep_the_order_of_the_label_config(filled: Backend) -> None:
    assert opened(filled).config.labels == LABELS
    assert options_from_texts({"format": "coco", "split": "0.9,0,0.1"}).splits == ("train", "test")
