"""Ultralytics' segmentation format: a line an object, `<class> <x> <y> <x> <y> ...` in shares of width and height."""

import json
from collections.abc import Sequence

from backend.exports.options import SPLITS, ExportOptions
from backend.exports.outlines import pixel_polygon, tolerance_note
from backend.exports.records import ImageRecord, MaskRecord
from backend.exports.sinks import Sink


def to_yolo_line(one: MaskRecord, class_index: int, tolerance_px: float) -> str:
    """Return the line of one object."""
    height, width = one.mask.shape
    shares = pixel_polygon(one.mask, tolerance_px) / (width, height)
    return " ".join([str(class_index), *(f"{value:.6f}" for value in shares.ravel())])


def to_data_yaml(labels: Sequence[str], splits: Sequence[str]) -> str:
    """Return what `yolo segment train data=...` is given. Without `path` it means the folder of the file itself.

    Ultralytics refuses a file without `train` or `val`, and one whose `val` is no folder: if there is no such split,
    another one is named, with a comment that says so.

    Args:
        labels: the classes.
        splits: those that have images, at least one, in their order.
    """
    lines = []
    for split in SPLITS:
        if split in splits:
            lines.append(f"{split}: images/{split}")
        elif split != "test":
            lines += [f"# {_stand_in_note(split, splits[0])}", f"{split}: images/{splits[0]}"]
    # A quoted JSON text is a YAML text, whatever a label holds.
    names = [f"  {number}: {json.dumps(label, ensure_ascii=False)}" for number, label in enumerate(labels)]
    return "\n".join([*lines, "names:", *names, ""])


def _stand_in_note(missing: str, used: str) -> str:
    return (
        f"This data set has no {missing} images. Ultralytics wants a {missing} folder: {used} stands in for it, so "
        "figures of the two say nothing about other images."
    )


class YoloWriter:
    """A text file an image; one without objects has an empty one, which says that there is nothing."""

    def __init__(self, labels: Sequence[str], options: ExportOptions, title: str, sink: Sink) -> None:
        self._labels = labels
        self._classes = {label: number for number, label in enumerate(labels)}
        self._options = options
        self._sink = sink
        self._splits: set[str] = set()

    @property
    def notes(self) -> list[str]:
        """Return what a line is, and the splits that `data.yaml` has to name although they have no images."""
        used = self._filled
        return [
            "`data.yaml` is what Ultralytics trains from. A line is an object: holes and further parts hang on its "
            "polygon by lines there and back; between parts these are drawn one pixel wide.",
            *(f"`data.yaml`: {_stand_in_note(split, used[0])}" for split in ("train", "val") if split not in used),
            tolerance_note(self._options.tolerance_px),
        ]

    @property
    def _filled(self) -> list[str]:
        return [split for split in SPLITS if split in self._splits]

    def add(self, image: ImageRecord) -> None:
        """Write the label file of an image."""
        lines = [to_yolo_line(one, self._classes[one.label], self._options.tolerance_px) for one in image.masks]
        content = "".join(f"{line}\n" for line in lines).encode()
        self._splits.add(image.split)
        self._sink.write(f"labels/{image.split}/{image.stem}.txt", [content])

    def finish(self) -> None:
        """Write what names the classes."""
        self._sink.write("data.yaml", [to_data_yaml(self._labels, self._filled).encode()])
