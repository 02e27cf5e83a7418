"""A project over fakes whose masks are known, and readers of what is exported from it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from backend.core.types import Mask
from backend.exports.exporter import Report, export_to_folder
from backend.exports.options import options_from_texts
from backend.exports.reading import ExportedProject, open_project
from backend.labelstudio.rle import encode_mask
from testing.fakes import Backend, FakeLabelStudio, draw, png

Json = dict[str, Any]
SIZE_HW = (48, 64)
LABELS = ("Cat", "Dog")


def brush(mask: Mask, label: str, number: int = 1, **more: Any) -> Json:
    height, width = mask.shape
    return {
        "id": f"region-{number}", "type": "brushlabels", "from_name": "brush", "to_name": "image", "origin": "manual",
        "original_width": width, "original_height": height, "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_mask(mask), "brushlabels": [label]}, **more,
    }  # fmt: skip


def key_point(label: str = "Cat") -> Json:
    return {
        "id": "kp", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
        "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": [label]},
    }  # fmt: skip


def box(x0: int, y0: int, x1: int, y1: int, size_hw: tuple[int, int] = SIZE_HW) -> Mask:
    mask = np.zeros(size_hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def ring() -> Mask:
    return box(5, 5, 40, 40) & ~box(15, 15, 30, 30)


def picture(number: int) -> bytes:
    """A file that no other number gives."""
    image = draw(SIZE_HW, red=(10, 10, 30, 30))
    image[0, 0] = number % 256, number // 256, 7
    return png(image)


def turned_jpeg() -> bytes:
    """A photograph of a telephone: 48 x 64 px upright, stored lying, with an EXIF tag that turns it."""
    upright = PillowImage.fromarray(draw((64, 48), red=(4, 4, 20, 40)))
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    upright.transpose(PillowImage.Transpose.ROTATE_90).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


MASKS: dict[int, list[tuple[str, Mask]]] = {
    1: [("Cat", box(10, 10, 30, 30)), ("Dog", box(25, 20, 50, 40))],
    2: [("Dog", ring())],
    3: [("Cat", box(2, 2, 10, 10) | box(40, 30, 60, 45))],
    4: [],
    5: [("Cat", box(4, 4, 20, 40, (64, 48)))],
}
"""Task -> what its annotation says; two labels that overlap, a hole, two parts, nothing, an image that EXIF turns."""


def fill(label_studio: FakeLabelStudio) -> None:
    """Tasks 1 to 5 with the annotations above; 6 and 7 with predictions only; 8 with neither."""
    for number in range(1, 9):
        label_studio.add_task(number, turned_jpeg() if number == 5 else picture(number))
    for number, masks in MASKS.items():
        regions = [brush(mask, label, index) for index, (label, mask) in enumerate(masks, start=1)]
        label_studio.annotate(
            10 + number, number, regions, completed_by=7, created_at="2026-01-02T03:04:05Z",
            updated_at=f"2026-01-0{number}T00:00:00Z",
        )  # fmt: skip
    for number, score in ((6, 0.9), (7, 0.4)):
        region = brush(box(number, 8, 20, 20), "Cat", score=score, origin="prediction")
        label_studio.add_prediction(number, {"result": [region], "score": score, "model_version": "some-model"})


def opened(backend: Backend) -> ExportedProject:
    return open_project(backend.projects, 1, backend.projects.banks.version_of)


def export(backend: Backend, out: Path, **told: str) -> Report:
    options = options_from_texts({"format": "coco", **told})
    return export_to_folder(opened(backend), options, backend.settings, out, threads=2, on_task=lambda: None)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
