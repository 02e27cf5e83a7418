"""The data card: the content of a data set, counted while it is written, as Markdown with charts.

It says what Label Studio and the export know, and nothing else: no licence, author or date that nobody gave.
"""

import heapq
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image as PillowImage

from backend.drawing.overlay import draw_overlay
from backend.exports.index_png import palette_colour
from backend.exports.options import ExportOptions
from backend.exports.records import ImageRecord, LeftOut
from backend.labelstudio.image_decoding import decode_image

_SAMPLES_A_LABEL = 6
_MOST_SAMPLES = 12
_SHOWN_LEFT_OUT = 5
_SIDE_PX = 480
_BAR = 24
_SHARES = (0.001, 0.01, 0.05, 0.2, 1.0)
"""Upper bounds of an object's share of its image."""
_SHARE_NAMES = ("< 0.1 %", "0.1 - 1 %", "1 - 5 %", "5 - 20 %", "> 20 %")
_SCORES = 10


@dataclass
class _Label:
    objects: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    shares: Counter[int] = field(default_factory=Counter)
    scores: Counter[int] = field(default_factory=Counter)


class DataCard:
    """Counts images as they pass; what it keeps does not grow with their number."""

    def __init__(self, labels: Sequence[str], options: ExportOptions, title: str) -> None:
        self._labels = {label: _Label() for label in labels}
        self._options = options
        self._title = title
        self._images: Counter[str] = Counter()
        self._empty: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._origins: Counter[str] = Counter()
        self._annotators: Counter[str] = Counter()
        self._versions: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._examples: defaultdict[str, list[LeftOut]] = defaultdict(list)
        self._samples = _Samples(labels)

    @property
    def images(self) -> int:
        """Return how many there are so far."""
        return self._images.total()

    @property
    def objects(self) -> int:
        """Return how many there are so far."""
        return self._sources.total()

    @property
    def empty_splits(self) -> tuple[str, ...]:
        """Return splits that have a share but no image."""
        return tuple(split for split in self._options.splits if not self._images[split])

    @property
    def left_out(self) -> dict[str, int]:
        """Return what is not in the data set, by kind."""
        return dict(sorted(self._left_out.items()))

    def add(self, image: ImageRecord) -> None:
        """Count an image."""
        self._images[image.split] += 1
        self._empty[image.split] += not image.masks
        height, width = image.file.size_hw
        for one in image.masks:
            label, area = self._labels[one.label], int(np.count_nonzero(one.mask))
            label.objects[image.split] += 1
            label.pixels += area
            label.shares[int(np.searchsorted(_SHARES, area / (height * width)))] += 1
            origin = one.provenance
            if origin.score is not None:
                label.scores[min(int(origin.score * _SCORES), _SCORES - 1)] += 1
            self._sources[origin.source] += 1
            self._origins[origin.origin] += 1
            if origin.annotator is not None:
                self._annotators[str(origin.annotator)] += 1
            if origin.model_version is not None:
                self._versions[origin.model_version] += 1
        for name in {one.label for one in image.masks}:
            self._labels[name].images[image.split] += 1
        self._samples.offer(image)

    def note_left_out(self, one: LeftOut) -> None:
        """Count something that is not in the data set."""
        self._left_out[one.kind] += 1
        if len(self._examples[one.kind]) < _SHOWN_LEFT_OUT:
            self._examples[one.kind].append(one)

    def pictures(self) -> list[tuple[str, bytes]]:
        """Return the samples: file name and PNG."""
        return self._samples.pictures()

    def markdown(self, notes: Sequence[str]) -> str:
        """Return the page.

        Args:
            notes: about the format, a sentence each.
        """
        return "\n".join(self._lines(notes)) + "\n"

    def _lines(self, notes: Sequence[str]) -> Iterator[str]:
        splits = self._options.splits
        yield f"# {_plain(self._title)}"
        yield ""
        yield f"{self.images} images, {self.objects} objects; format `{self._options.format}`."
        yield f"Masks from {_SOURCES[self._options.source]}. How it was made: `export.json`; every file: `SHA256SUMS`."
        yield ""
        yield from (f"- {note}" for note in notes)
        yield "- Splits follow from the SHA-256 of the image file: copies of an image are in one split, and stay there."
        yield ""
        yield "## Splits"
        yield ""
        yield from _table(
            ("split", "share asked for", "images", "of these without objects", "objects"),
            [
                (
                    split, f"{share:.0%}", self._images[split], self._empty[split],
                    sum(label.objects[split] for label in self._labels.values()),
                )
                for split, share in zip(("train", "val", "test"), self._options.split, strict=True)
                if split in splits
            ],
        )  # fmt: skip
        if self.empty_splits:
            yield ""
            yield f"No image fell into {' and '.join(self.empty_splits)}: the project is small, or the share is."
        yield ""
        yield "## Labels"
        yield ""
        yield from _table(
            ("label", *(f"objects {split}" for split in splits), "objects", "images", "pixels", ""),
            [
                (
                    _plain(name), *(label.objects[split] for split in splits), label.objects.total(),
                    label.images.total(), label.pixels, _bar(label.objects.total(), self._most_objects),
                )
                for name, label in self._labels.items()
            ],
        )  # fmt: skip
        yield ""
        yield from self._histograms()
        yield "## Where the masks come from"
        yield ""
        yield from _table(("", "objects"), self._origin_rows())
        yield ""
        yield from self._left_out_lines()
        pictures = self._samples.chosen()
        if pictures:
            yield "## Samples"
            yield ""
            legend = ", ".join(
                f"{_plain(name)} `#{'{:02x}{:02x}{:02x}'.format(*palette_colour(number))}`"
                for number, name in enumerate(self._labels, start=1)
            )
            yield f"Chosen by their hash, some for each label. Colours: {legend}."
            yield ""
            yield from (f"![{image}](card/{name})" for name, image in pictures)

    @property
    def _most_objects(self) -> int:
        return max((label.objects.total() for label in self._labels.values()), default=0)

    def _histograms(self) -> Iterator[str]:
        yield "## Size of the objects, as share of their image"
        yield ""
        yield from _table(
            ("label", *_SHARE_NAMES),
            [
                (_plain(name), *(_cell(label.shares[number], label.objects.total()) for number in range(len(_SHARES))))
                for name, label in self._labels.items()
            ],
        )
        yield ""
        if any(label.scores for label in self._labels.values()):
            yield "## Scores"
            yield ""
            yield "Expected IoU as the model saw it; an accepted suggestion keeps its score."
            yield ""
            yield from _table(
                ("label", *(f"{number / _SCORES:.1f} -" for number in range(_SCORES)), "without"),
                [
                    (
                        _plain(name), *(label.scores[number] for number in range(_SCORES)),
                        label.objects.total() - label.scores.total(),
                    )
                    for name, label in self._labels.items()
                ],
            )  # fmt: skip
            yield ""

    def _origin_rows(self) -> list[tuple[str, int]]:
        groups = (
            ("from ", self._sources, "s"),
            ("region's origin: ", self._origins, ""),
            ("user of Label Studio, id ", self._annotators, ""),
            ("model version ", self._versions, ""),
        )
        return [
            (f"{before}{_plain(name)}{after}", count)
            for before, counts, after in groups
            for name, count in sorted(counts.items())
        ]

    def _left_out_lines(self) -> Iterator[str]:
        yield "## Not in this data set"
        yield ""
        if not self._left_out:
            yield "Nothing was left out of the tasks that have masks."
            yield ""
            return
        yield "All of it: `left-out.jsonl`."
        yield ""
        for kind, count in sorted(self._left_out.items()):
            yield f"- **{kind}**: {count}"
            yield from (f"  - task {one.task_id}: {_plain(one.message)}" for one in self._examples[kind])
        yield ""


_SOURCES = {
    "annotations": "annotations",
    "predictions": "predictions",
    "both": "annotations, and from predictions where a task has none",
}


class _Samples:
    """The images with the smallest hashes, some for each label, as pictures."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._numbers = {label: number for number, label in enumerate(labels, start=1)}
        self._kept: dict[str, list[tuple[int, int, str]]] = {label: [] for label in labels}
        self._pictures: dict[int, bytes] = {}

    def offer(self, image: ImageRecord) -> None:
        """Keep the image if it is among the first of one of its labels."""
        order = -int(image.file.sha256[:16], 16)
        is_new = False
        for label in {one.label for one in image.masks}:
            kept, entry = self._kept[label], (order, image.id, image.file_name)
            if len(kept) < _SAMPLES_A_LABEL:
                heapq.heappush(kept, entry)
                is_new = True
            elif entry > kept[0]:
                heapq.heapreplace(kept, entry)
                is_new = True
        if is_new:
            self._pictures[image.id] = self._draw(image)
            wanted = {image_id for kept in self._kept.values() for _, image_id, _ in kept}
            self._pictures = {key: picture for key, picture in self._pictures.items() if key in wanted}

    def chosen(self) -> list[tuple[str, str]]:
        """Return names of the pictures and of their images: of each label one, then another, up to a dozen."""
        ranked = [sorted(kept, reverse=True) for kept in self._kept.values()]
        in_turn = [kept[turn] for turn in range(_SAMPLES_A_LABEL) for kept in ranked if turn < len(kept)]
        chosen = dict.fromkeys((image_id, name) for _, image_id, name in in_turn)
        return [(f"{name.rpartition('.')[0]}.png", name) for _, name in list(chosen)[:_MOST_SAMPLES]]

    def pictures(self) -> list[tuple[str, bytes]]:
        """Name and PNG of what is shown."""
        by_name = {name: image_id for kept in self._kept.values() for _, image_id, name in kept}
        return [(picture, self._pictures[by_name[name]]) for picture, name in self.chosen()]

    def _draw(self, image: ImageRecord) -> bytes:
        """Return a PNG of the image, at most 480 px a side, with its masks tinted and outlined."""
        picture = PillowImage.fromarray(decode_image(image.read()))
        picture.thumbnail((_SIDE_PX, _SIDE_PX))
        coloured = [(one.mask, palette_colour(self._numbers[one.label])) for one in image.masks]
        drawn = draw_overlay(np.asarray(picture), tinted=coloured, outlined=coloured)
        buffer = io.BytesIO()
        PillowImage.fromarray(drawn).save(buffer, "PNG")
        return buffer.getvalue()


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def _bar(count: int, most: int) -> str:
    return "█" * math.ceil(_BAR * count / most) if most else ""


def _cell(count: int, total: int) -> str:
    return f"{count} {'▇' * math.ceil(8 * count / total)}" if count else "0"


def _plain(text: str) -> str:
    """Return somebody's text so that it is no Markdown and no HTML."""
    kept = " ".join(text.split())
    return "".join(f"\\{each}" if each in "\\`*_{}[]<>#|!" else each for each in kept)
