"""An export from its first task to its last file."""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from backend import __version__
from backend.core.types import Json
from backend.errors import BadInputError
from backend.exports.data_card import DataCard
from backend.exports.folder_sink import FolderSink
from backend.exports.formats import FORMATS
from backend.exports.options import ExportOptions
from backend.exports.reading import ExportedProject, read_images
from backend.exports.records import ImageRecord, LeftOut
from backend.exports.sinks import RECORD, Sink, ZipSink, disk_errors_reported
from backend.settings import Settings


@dataclass(frozen=True)
class Report:
    """The result of an export.

    Attributes:
        left_out: how many there are of each kind.
        problems: how many of them are broken things, not choices.
        empty_splits: splits that have a share but no image.
        has_resumed: it went on from an interrupted run.
    """

    images: int
    objects: int
    left_out: dict[str, int]
    problems: int
    empty_splits: tuple[str, ...]
    has_resumed: bool = False


OnTask = Callable[[], None]


def identity(project: ExportedProject, options: ExportOptions, settings: Settings) -> Json:
    """Return what an export is of and in what form: the same exports have the same."""
    address = urlsplit(settings.label_studio_url)
    return {
        "label_studio": f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}",
        "project": project.id,
        "title": project.title,
        "labels": list(project.labels),
        "software": f"softmatcher-label-studio {__version__}",
        **options.to_json(),
    }


def export_to_folder(
    project: ExportedProject, options: ExportOptions, settings: Settings, out: Path, *, threads: int, on_task: OnTask
) -> Report:
    """Write a data set into a folder, which appears when all of it is there.

    Raises:
        BadInputError: nothing to export, or the folder holds other files.
        ConflictError: another process writes it.
        OutputError: the disk is full or read-only; the next run goes on with the images it has.
        LabelStudioError: Label Studio refuses or does not answer; the next run goes on with the images it has.
    """
    described = identity(project, options, settings)
    with disk_errors_reported(f"the export {out}"), FolderSink(out, described) as sink:
        report = _export(project, options, described, sink, threads=threads, on_task=on_task)
        sink.finish()
        return replace(report, has_resumed=sink.has_resumed)


def export_to_zip(
    project: ExportedProject,
    options: ExportOptions,
    settings: Settings,
    stream: IO[bytes],
    *,
    threads: int,
    on_task: OnTask,
) -> Report:
    """Write a data set as a zip; the stream need not be able to seek.

    Raises:
        BadInputError: nothing to export.
        OutputError: the disk is full or read-only.
        LabelStudioError: Label Studio refuses or does not answer.
    """
    prefix = "softmatcher-export-"
    with disk_errors_reported("the export's zip"), tempfile.TemporaryDirectory(prefix=prefix) as scratch:
        described = identity(project, options, settings)
        with ZipSink(stream, Path(scratch), archive_name(project, options)) as sink:
            report = _export(project, options, described, sink, threads=threads, on_task=on_task)
            sink.finish()
        return report


def archive_name(project: ExportedProject, options: ExportOptions) -> str:
    """Return the folder in a zip, and its file name without the ending."""
    return f"project-{project.id}-{options.format}"


def _export(
    project: ExportedProject, options: ExportOptions, described: Json, sink: Sink, *, threads: int, on_task: OnTask
) -> Report:
    labels = project.labels
    card = DataCard(labels, options, project.title)
    problems = 0
    with (sink.scratch / "objects").open("w") as objects, (sink.scratch / "left-out").open("w") as left_out:

        def note(one: LeftOut) -> None:
            nonlocal problems
            problems += one.is_problem
            card.note_left_out(one)
            _write_line(left_out, {"task": one.task_id, "kind": one.kind, "message": one.message})

        writer = FORMATS[options.format](labels, options, project.title, sink)
        for image in read_images(project, options, sink, threads=threads, on_task=on_task, on_left_out=note):
            if not card.images:
                # First in a zip, too: whoever downloads one sees at once that it has begun.
                record = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
                sink.write(RECORD, [record.encode()])
            writer.add(image)
            card.add(image)
            for line in _object_lines(image, options):
                _write_line(objects, line)
        if not card.images:
            raise BadInputError(_nothing(project, options, card.left_out))
        writer.finish()
    sink.write("objects.jsonl", _chunks(sink.scratch / "objects"))
    sink.write("left-out.jsonl", _chunks(sink.scratch / "left-out"))
    for name, picture in card.pictures():
        sink.write(f"card/{name}", [picture])
    sink.write("README.md", [card.markdown(writer.notes).encode()])
    return Report(card.images, card.objects, card.left_out, problems, card.empty_splits)


def _object_lines(image: ImageRecord, options: ExportOptions) -> Iterator[Json]:
    """Return a line per object, or one for an image without objects: where it comes from."""
    common: Json = {
        "image": image.file_name, "split": image.split, "task": image.task_id, "sha256": image.file.sha256,
    }  # fmt: skip
    if options.images == "path":
        common["address"] = image.address
    if not image.masks:
        yield {**common, "object": None}
    for one in image.masks:
        yield {**common, "object": one.id, "label": one.label, **one.provenance.to_json()}


def _nothing(project: ExportedProject, options: ExportOptions, left_out: dict[str, int]) -> str:
    found = ", ".join(f"{count} x {kind}" for kind, count in left_out.items())
    wanted = "annotations or predictions" if options.source == "both" else options.source
    advice = {
        "annotations": "submit some, or export --source predictions",
        "predictions": "propagate the project, or lower --min-score",
        "both": "submit an annotation, or propagate the project",
    }[options.source]
    return (
        f"project {project.id} has no {wanted} with masks to export{f' (left out: {found})' if found else ''}: {advice}"
    )


def _write_line(file: IO[str], entry: Json) -> None:
    file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
