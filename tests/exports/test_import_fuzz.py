"""Folders of any content are imported or refused: no crash, no hang, no mask that nobody wrote.

100 cases of each kind; SOFTMATCHER_TEST_FUZZ_CASES=200000 for 20,000.
"""

import copy
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask

from backend.errors import BadInputError
from backend.exports.importing import ImportReport, import_masks
from backend.exports.mask_files import find_masks
from backend.exports.reading import ExportedProject
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.rle import decode_mask
from testing.fakes import LABEL_CONFIG, FakeLabelStudio
from tests import fuzzing
from tests.exports.scene import SIZE_HW, box, picture

NAMES = ("a.png", "b.png", "sub/c.png")
MASKS = tuple(box(4 + 10 * number, 4, 12 + 10 * number, 12 + number) for number in range(3))
"""Of the three images, each its own."""
_WORDS: list[Any] = [
    *NAMES, "sub\\c.png", "../a.png", "/x/b.png", "image (1).png", "c.png",
    "", ".", "/", 1, 2, 3, "1", 1.0, 10**30, -1, True, None,
    float("nan"), float("inf"), 1e18, [], {}, [1], 0, 48, 64, 48 * 64, "Dog", "Horse",
]  # fmt: skip


def _rle(mask: NDArray[Any]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": list(SIZE_HW), "counts": encoded["counts"].decode()}


def _polygon(number: int) -> list[list[int]]:
    left = 4 + 10 * number
    return [[left, 4, left + 8, 4, left + 8, 12 + number, left, 12 + number]]


DOCUMENT = {
    "images": [{"id": number, "file_name": name, "height": 48, "width": 64} for number, name in enumerate(NAMES)],
    "categories": [{"id": 1, "name": "Dog"}, {"id": 2, "name": "Cat"}],
    "annotations": [
        {"id": 0, "image_id": 0, "category_id": 1, "segmentation": _polygon(0)},
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": _rle(MASKS[1])},
        {"id": 2, "image_id": 2, "category_id": 2, "segmentation": _rle(MASKS[2])},
    ],
}
PLACES = [place for place in fuzzing.places(DOCUMENT) if place]


def _run(write: Callable[[Path], object]) -> tuple[FakeLabelStudio, ImportReport | None]:
    label_studio: Any = FakeLabelStudio()
    for number, name in enumerate(NAMES, start=1):
        address = f"/data/local-files/?d=project/{name}"
        label_studio.add_task(number, None)["data"]["image"] = address
        label_studio.images[address] = picture(number)
    project = ExportedProject(
        id=1, key="1.1", title="", config=parse_label_config(LABEL_CONFIG), client=label_studio, fetcher=label_studio,
        references=None, max_pixels=10_000_000,  # type: ignore[arg-type]
    )  # fmt: skip
    report = ImportReport()
    with tempfile.TemporaryDirectory() as folder, fuzzing.no_hang(), fuzzing.bounded_memory():
        write(Path(folder))
        try:
            import_masks(project, find_masks(Path(folder), project.config), report=report)
        except BadInputError:
            return label_studio, None
    return label_studio, report


def _check(label_studio: FakeLabelStudio, report: ImportReport | None) -> None:
    """Every annotation is counted, and its masks are of the right size and not empty."""
    if report is None:
        assert not label_studio.annotations
        return
    assert len(label_studio.annotations) == report.imported
    for annotation in label_studio.annotations.values():
        for region in annotation["result"]:
            assert decode_mask(region["value"]["rle"], SIZE_HW).any()


@pytest.mark.slow
@settings(**fuzzing.FILES)
@given(
    st.lists(
        st.tuples(st.sampled_from(PLACES), st.sampled_from(_WORDS) | fuzzing.replacements, st.booleans()), max_size=4
    )
)
def test_changed_documents(changes: list[tuple[tuple[Any, ...], Any, bool]]) -> None:
    document = copy.deepcopy(DOCUMENT)
    for place, value, is_removed in changes:
        holder: Any = document
        try:
            for key in place[:-1]:
                holder = holder[key]
            if is_removed:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue
    text = json.dumps(document)
    label_studio, report = _run(lambda folder: (folder / "coco.json").write_text(text))
    _check(label_studio, report)
    if not changes:
        assert report is not None
        assert report.imported == 3


@pytest.mark.slow
@settings(**fuzzing.FILES)
@given(st.permutations(range(3)), st.permutations(range(3)), st.lists(st.sampled_from(NAMES), min_size=3, max_size=3))
def test_masks_get_to_the_image_that_they_name_in_any_order(
    images: list[int], objects: list[int], names: list[str]
) -> None:
    """Names may repeat: then neither of them gets anything."""
    document = {
        **DOCUMENT,
        "images": [{**DOCUMENT["images"][number], "file_name": names[number]} for number in images],
        "annotations": [DOCUMENT["annotations"][number] for number in objects],
    }
    label_studio, report = _run(lambda folder: (folder / "c.json").write_text(json.dumps(document)))
    _check(label_studio, report)
    for annotation in label_studio.annotations.values():
        (number,) = [at for at, name in enumerate(names) if name == NAMES[annotation["task"] - 1]]
        (region,) = annotation["result"]
        assert np.array_equal(decode_mask(region["value"]["rle"], SIZE_HW), MASKS[number])


def _changed_bytes(content: bytes, draw: st.DrawFn) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed)))
        what = draw(st.sampled_from(["cut", "change", "insert", "remove"]))
        if what == "cut":
            del changed[place:]
        elif what == "remove":
            del changed[place : place + draw(st.integers(1, 8))]
        elif what == "insert":
            changed[place:place] = draw(st.binary(max_size=8))
        elif place < len(changed):
            changed[place] = draw(st.integers(0, 255))
        if not changed:
            break
    return bytes(changed)


@st.composite
def changed_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A document or a mask with other bytes."""
    buffer = io.BytesIO()
    mask = PillowImage.fromarray(MASKS[0].astype(np.uint8) * draw(st.sampled_from([1, 2, 255])))
    mask.save(buffer, "PNG", bits=draw(st.sampled_from([8, 8, 1])))
    name, content = draw(st.sampled_from([("coco.json", json.dumps(DOCUMENT).encode()), ("a.png", buffer.getvalue())]))
    return name, _changed_bytes(content, draw)


@pytest.mark.slow
@settings(**fuzzing.FILES)
@given(changed_files())
def test_files_with_other_bytes(file: tuple[str, bytes]) -> None:
    def write(folder: Path) -> None:
        (folder / "labels.json").write_text('[{"index": 1, "label": "Cat"}, {"index": 2, "label": "Dog"}]')
        (folder / file[0]).write_bytes(file[1])

    _check(*_run(write))


@pytest.mark.slow
@settings(**fuzzing.FILES)
@given(st.randoms(use_true_random=False), st.lists(st.sampled_from(fuzzing._NASTY), min_size=1, max_size=3))
def test_lists_of_labels_of_any_content(chosen: random.Random, values: list[Any]) -> None:
    entries: list[Any] = [{"index": 1, "label": "Cat"}, {"index": 0, "label": None}]
    for value in map(copy.deepcopy, values):
        holder = chosen.choice(entries)
        if isinstance(holder, dict) and chosen.random() < 0.8:
            holder[chosen.choice(["index", "label"])] = value
        else:
            entries.append(value)

    def write(folder: Path) -> None:
        (folder / "labels.json").write_text(json.dumps(entries))
        PillowImage.fromarray(MASKS[0].astype(np.uint8)).save(folder / "b.png")

    _check(*_run(write))
