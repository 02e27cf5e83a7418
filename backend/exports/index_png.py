"""One PNG an image whose pixels are class numbers, with a palette to look at."""

import html
import io
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from backend.drawing.text import is_drawable
from backend.errors import BadInputError
from backend.exports.options import ExportOptions
from backend.exports.records import ImageRecord
from backend.exports.sinks import Sink

MOST_LABELS = 255
NOTHING = "(nothing)"
_SWATCH_PX = 24
_WIDTH_PX, _TEXT_PX = 420, 54


def palette_colour(index: int) -> tuple[int, int, int]:
    """Return the colour of a class number: its bits, spread over the colours from the top; 0 is black.

    Source: the colour map of PASCAL VOC's development kit.
    """
    colour = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            colour[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return colour[0], colour[1], colour[2]


def to_index_mask(image: ImageRecord, labels: Sequence[str]) -> tuple[NDArray[np.uint8], int]:
    """Return class numbers, and how many pixels masks of several labels claim.

    Labels are painted in their order: where two overlap, the later one is seen.

    Returns:
        (H, W) uint8: 0 nothing, n the n-th label.
    """
    painted = np.zeros(image.file.size_hw, np.uint8)
    contested = np.zeros(image.file.size_hw, np.bool_)
    for number, label in enumerate(labels, start=1):
        for one in image.masks:
            if one.label == label:
                contested |= one.mask & (painted > 0) & (painted != number)
                painted[one.mask] = number
    return painted, int(np.count_nonzero(contested))


def to_png(indices: NDArray[np.uint8]) -> bytes:
    """Return a palette PNG: readers that convert to colours show them, all others get the numbers."""
    picture = PillowImage.fromarray(indices, "L")
    picture.putpalette([value for index in range(256) for value in palette_colour(index)])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def to_legend(labels: Sequence[str]) -> bytes:
    """Return a PNG that shows each class number's colour, and its name if the font has all letters of that."""
    rows = [NOTHING, *labels]
    picture = PillowImage.new("RGB", (_WIDTH_PX, _SWATCH_PX * len(rows) + 8), "white")
    draw = ImageDraw.Draw(picture)
    for number, label in enumerate(rows):
        top = 4 + number * _SWATCH_PX
        draw.rectangle((4, top + 2, 44, top + _SWATCH_PX - 3), palette_colour(number), "black")
        text = f"{number}  {label}"
        if not is_drawable(text) or draw.textlength(text) > _WIDTH_PX - _TEXT_PX:
            text = f"{number}  (its name: legend.html)"
        draw.text((_TEXT_PX, top + 6), text, "black")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def to_legend_page(labels: Sequence[str]) -> bytes:
    """Return the same as a web page, which has every name whole in the letters that it is written in."""
    rows = "".join(
        f'<tr><td style="background:{_hex(number)};width:2em"></td>'
        f"<td>{number}</td><td>{html.escape(label)}</td></tr>\n"
        for number, label in enumerate([NOTHING, *labels])
    )
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>Legend</title>\n<table>\n{rows}</table>\n'.encode()


def _hex(number: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*palette_colour(number))


class PngWriter:
    """A mask file an image, of the image's name."""

    def __init__(self, labels: Sequence[str], options: ExportOptions, title: str, sink: Sink) -> None:
        """Write nothing yet.

        Raises:
            BadInputError: more labels than a byte has numbers for.
        """
        if len(labels) > MOST_LABELS:
            raise BadInputError(f"png has numbers for {MOST_LABELS} labels, got {len(labels)}: export as coco")
        self._labels = labels
        self._sink = sink
        self._contested_px = 0

    @property
    def notes(self) -> list[str]:
        """Return what a pixel's number means, and how many pixels several labels have."""
        return [
            "`masks/<split>/<name>.png`: pixels are class numbers, see `labels.json` and `legend.html`; 0 is nothing.",
            f"Pixels that masks of several labels claim: {self._contested_px}; the later label is seen.",
        ]

    def add(self, image: ImageRecord) -> None:
        """Write the mask of an image."""
        indices, contested = to_index_mask(image, self._labels)
        self._contested_px += contested
        self._sink.write(f"masks/{image.split}/{image.stem}.png", [to_png(indices)])

    def finish(self) -> None:
        """Write what names the numbers."""
        entries = [
            {"index": index, "label": label, "colour": _hex(index)} for index, label in enumerate([None, *self._labels])
        ]
        self._sink.write("labels.json", [(json.dumps(entries, indent=1, ensure_ascii=False) + "\n").encode()])
        self._sink.write("legend.png", [to_legend(self._labels)])
        self._sink.write("legend.html", [to_legend_page(self._labels)])
