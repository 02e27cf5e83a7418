"""COCO instances: one file a split with run-length masks, which are exact, and one with polygons."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from backend.core.types import Json, Mask
from backend.exports.options import ExportOptions
from backend.exports.outlines import edge_polygons, tolerance_note
from backend.exports.records import ImageRecord, MaskRecord
from backend.exports.sinks import Sink


def mask_to_coco_rle(mask: Mask) -> Json:
    """Return `{"size": [H, W], "counts": "..."}`, as pycocotools compresses it."""
    encoded = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def box_xywh(mask: Mask) -> list[int]:
    """Return the box around a mask with at least one pixel: x, y, width, height in px."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def to_coco_image(image: ImageRecord) -> Json:
    """Return an entry of `images`; `sha256` and `task` are ours."""
    height, width = image.file.size_hw
    return {
        "id": image.id, "file_name": image.file_name, "width": width, "height": height,
        "sha256": image.file.sha256, "task": image.task_id,
    }  # fmt: skip


def to_coco_annotation(image: ImageRecord, one: MaskRecord, category: int, segmentation: object) -> Json:
    """Return an entry of `annotations`; `provenance` is ours."""
    return {
        "id": one.id, "image_id": image.id, "category_id": category, "iscrowd": 0,
        "bbox": box_xywh(one.mask), "area": int(np.count_nonzero(one.mask)), "segmentation": segmentation,
        "provenance": one.provenance.to_json(),
    }  # fmt: skip


def to_coco_polygons(mask: Mask, tolerance_px: float) -> list[list[float | int]]:
    """Return `[[x, y, x, y, ...], ...]`: one list a component, holes cut in."""
    rings = [ring for ring in edge_polygons(mask, tolerance_px) if len(ring) >= 3]
    return [ring.astype(int).ravel().tolist() for ring in rings]


class CocoWriter:
    """Keeps entries in files of lines until all are known."""

    def __init__(self, labels: Sequence[str], options: ExportOptions, title: str, sink: Sink) -> None:
        self._categories = [{"id": number, "name": label} for number, label in enumerate(labels, start=1)]
        self._ids = {label: number for number, label in enumerate(labels, start=1)}
        self._info = {"description": title}
        self._options = options
        self._sink = sink
        for split in options.splits:
            for part in ("images", "rle", "polygons"):
                (sink.scratch / f"{split}-{part}").touch()

    @property
    def notes(self) -> list[str]:
        """Return what each file has."""
        return [
            "`annotations/instances_<split>.json` has the masks as run-length codes: exactly those of Label Studio.",
            "`annotations/instances_<split>_polygons.json` has the same objects as polygons.",
            tolerance_note(self._options.tolerance_px),
        ]

    def add(self, image: ImageRecord) -> None:
        """Note an image and its masks."""
        exact = [
            to_coco_annotation(image, one, self._ids[one.label], mask_to_coco_rle(one.mask)) for one in image.masks
        ]
        tolerance_px = self._options.tolerance_px
        polygons = [
            {**entry, "segmentation": to_coco_polygons(one.mask, tolerance_px)}
            for entry, one in zip(exact, image.masks, strict=True)
        ]
        self._note(f"{image.split}-images", [to_coco_image(image)])
        self._note(f"{image.split}-rle", exact)
        self._note(f"{image.split}-polygons", polygons)

    def finish(self) -> None:
        """Write the files."""
        for split in self._options.splits:
            for part, ending in (("rle", ""), ("polygons", "_polygons")):
                self._sink.write(f"annotations/instances_{split}{ending}.json", self._document(split, part))

    def _note(self, name: str, entries: Sequence[Json]) -> None:
        with (self._sink.scratch / name).open("a") as file:
            file.writelines(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)

    def _document(self, split: str, part: str) -> Iterator[bytes]:
        head = json.dumps({"info": self._info, "categories": self._categories}, ensure_ascii=False)
        yield head[:-1].encode() + b',\n"images": [\n'
        yield from _joined(self._sink.scratch / f"{split}-images")
        yield b'],\n"annotations": [\n'
        yield from _joined(self._sink.scratch / f"{split}-{part}")
        yield b"]}\n"


def _joined(lines: Path) -> Iterator[bytes]:
    before: bytes | None = None
    with lines.open("rb") as file:
        for line in file:
            if before is not None:
                yield before.rstrip(b"\n") + b",\n"
            before = line
    if before is not None:
        yield before
