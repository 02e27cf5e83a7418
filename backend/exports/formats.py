"""The table of export formats, and the protocol that a writer of one has."""

from collections.abc import Sequence
from typing import Protocol

from backend.exports.coco import CocoWriter
from backend.exports.index_png import PngWriter
from backend.exports.label_studio_tasks import LabelStudioWriter
from backend.exports.options import ExportOptions
from backend.exports.records import ImageRecord
from backend.exports.sinks import Sink
from backend.exports.yolo import YoloWriter


class FormatWriter(Protocol):
    """Turns image records into the files of one format."""

    def add(self, image: ImageRecord) -> None:
        """Add an image, with its masks."""
        ...

    def finish(self) -> None:
        """Write the files that need all images."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Return sentences about the files for the data set's README, read after `finish`."""
        ...


class MakeWriter(Protocol):
    """Makes the writer of one export; a writer's class is one."""

    def __call__(self, labels: Sequence[str], options: ExportOptions, title: str, sink: Sink) -> FormatWriter:
        """Return a writer.

        Args:
            labels: the classes, in the order of the label config.
            options: of the export.
            title: of the project.
            sink: takes the files.
        """
        ...


def _parquet_writer(labels: Sequence[str], options: ExportOptions, title: str, sink: Sink) -> FormatWriter:
    # Imported here: of all formats one needs pyarrow.
    from backend.exports.parquet import ParquetWriter

    return ParquetWriter(labels, options, title, sink)


FORMATS: dict[str, MakeWriter] = {
    "coco": CocoWriter,
    "yolo-seg": YoloWriter,
    "png": PngWriter,
    "parquet": _parquet_writer,
    "label-studio": LabelStudioWriter,
}
"""Writers by the name of their format; `options.CHOICES` has the same names."""
