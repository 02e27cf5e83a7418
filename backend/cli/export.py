"""`export` and `import-masks`: data sets out of a project, and masks that are there already into it."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from backend.exports.options import CHOICES

if TYPE_CHECKING:
    from backend.exports.exporter import Report
    from backend.exports.importing import ImportReport
    from backend.exports.options import ExportOptions
    from backend.exports.reading import ExportedProject, VersionOf
    from backend.projects.composition import Projects
    from backend.projects.stored_projects import StoredProjects
    from backend.settings import Settings
    from backend.store.records import ProjectKey

_THREADS = 8
"""Images that are fetched at a time."""


def export(
    project: Annotated[int, typer.Option(help="Id of the project in Label Studio.")],
    format_: Annotated[str, typer.Option("--format", help=f"One of {', '.join(CHOICES['format'])}.")],
    out: Annotated[Path, typer.Option(help="A new folder, that of an earlier export to replace, or FILE.zip.")],
    source: Annotated[
        str, typer.Option(help="annotations, predictions, or both: predictions where a task has no annotation.")
    ] = "annotations",
    min_score: Annotated[float, typer.Option(help="Leave out predicted regions below this score.")] = 0.0,
    images: Annotated[str, typer.Option(help="include the files, or only the path (address in Label Studio).")] = (
        "include"
    ),
    tolerance: Annotated[float, typer.Option(help="How far polygons may be from the outlines, px; 0: exact.")] = 1.0,
    split: Annotated[str, typer.Option(help="Shares of train, val and test.")] = "0.8,0.1,0.1",
    annotators: Annotated[
        str, typer.Option(help="Of several annotations of a task: the newest (ground truth first), or all.")
    ] = "newest",
    leave_out_unreachable: Annotated[
        bool, typer.Option("--leave-out-unreachable", help="Go on without images whose host does not answer.")
    ] = False,
) -> None:
    """Export the masks of a project as a data set. Exit code 1: written, but something is broken and left out."""
    from backend.exports.options import options_from_texts
    from backend.settings import load_settings

    told = {
        "format": format_, "source": source, "min_score": str(min_score), "images": images,
        "tolerance_px": str(tolerance), "split": split, "annotators": annotators,
        "leave_out_unreachable": str(leave_out_unreachable),
    }  # fmt: skip
    try:
        is_fine = _export(load_settings(), project, options_from_texts(told), out)
    except KeyboardInterrupt:
        typer.echo("broken off; the same command goes on with the images that are there", err=True)
        raise
    if not is_fine:
        raise typer.Exit(1)


@contextmanager
def opened_projects(settings: "Settings") -> "Iterator[Projects]":
    """Open the backend's store and connections, and close them at the end."""
    from backend.projects.composition import open_projects

    with closing(open_projects(settings)) as projects:
        yield projects


@contextmanager
def opened_stored_projects(settings: "Settings") -> "Iterator[StoredProjects]":
    """Open the backend's store and connections without its models, and close them at the end."""
    from backend.projects.stored_projects import open_stored_projects

    with closing(open_stored_projects(settings)) as projects:
        yield projects


def _version_of(projects: "StoredProjects") -> "VersionOf":
    # Made when asked: a project without references needs nothing that predicts, which takes a tenth of a second.
    full = cache(lambda: _with_models(projects))
    return lambda project, signature, config: full().banks.version_of(project, signature, config)


def _with_models(projects: "StoredProjects") -> "Projects":
    from backend.metrics import Metrics
    from backend.projects.composition import Projects
    from backend.projects.model_host import Models

    if isinstance(projects, Projects):
        return projects
    metrics = Metrics()
    return Projects(
        projects.settings, projects.store, metrics, Models(projects.settings, metrics), projects.connections
    )


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Show a bar on the terminal; gives what is to be called after each step."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        shown = progress.add_task(what, total=total)
        yield lambda: progress.advance(shown)


def _export(settings: "Settings", project_id: int, options: "ExportOptions", out: Path) -> bool:
    from backend.exports.exporter import export_to_folder
    from backend.exports.reading import count_candidates, open_project

    with opened_stored_projects(settings) as projects:
        project = open_project(projects, project_id, _version_of(projects))
        with progress_bar(count_candidates(project, options), "tasks") as on_task:
            if out.suffix.lower() == ".zip":
                report = _export_zip(settings, project, options, out, on_task)
            else:
                report = export_to_folder(project, options, settings, out, threads=_THREADS, on_task=on_task)
    if report.has_resumed:
        typer.echo("went on from an interrupted run: images that were there were not fetched again")
    typer.echo(f"written: {out}: {report.images} images, {report.objects} objects")
    if report.empty_splits:
        typer.echo(f"no image fell into {' and '.join(report.empty_splits)}: choose other shares with --split")
    for kind, count in report.left_out.items():
        typer.echo(f"  left out: {count} x {kind}")
    if report.left_out:
        typer.echo("  each with its task and reason: left-out.jsonl")
    return not report.problems


def _export_zip(
    settings: "Settings",
    project: "ExportedProject",
    options: "ExportOptions",
    out: Path,
    on_task: Callable[[], None],
) -> "Report":
    from backend.errors import BadInputError, ConflictError
    from backend.exports.exporter import export_to_zip
    from backend.exports.sinks import disk_errors_reported

    if out.is_dir():
        raise BadInputError(f"--out must be a file when it ends in .zip, got the folder {out}: name another")
    beside = out.with_name(f".{out.name}.partial")
    with disk_errors_reported(f"the export {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        # Neither emptied before it is locked, nor opened for appending: a zip's headers are completed afterwards.
        with os.fdopen(os.open(beside, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            if not _is_locked(file, beside):
                raise ConflictError(f"another process is writing {out}: wait for it, or name another file")
            try:
                file.truncate(0)
                report = export_to_zip(project, options, settings, file, threads=_THREADS, on_task=on_task)
                file.flush()
                beside.replace(out)
            except BaseException:
                with suppress(OSError):
                    beside.unlink()
                raise
    return report


def _is_locked(file: IO[bytes], path: Path) -> bool:
    """Lock an open file for this process; False if another has it, or has renamed it in the meantime."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def import_masks(
    folder: Annotated[Path, typer.Argument(help="COCO files, or PNG masks with labels.json; images beside them help.")],
    project: Annotated[int, typer.Option(help="Id of the project in Label Studio.")],
    as_: Annotated[
        str, typer.Option("--as", help="annotations; or references: annotations that are also taken in at once.")
    ] = "annotations",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and match everything, say what would be added; write nothing.")
    ] = False,
) -> None:
    """Make masks that are there already annotations. Exit code 1: done, but something did not fit and is listed."""
    from backend.errors import BadInputError
    from backend.settings import load_settings

    if as_ not in ("annotations", "references"):
        raise BadInputError(f"--as must be annotations or references, got {as_!r}")
    with_references = as_ == "references"
    if not _import_masks(load_settings(), project, folder, with_references=with_references, is_dry_run=dry_run):
        raise typer.Exit(1)


def _import_masks(
    settings: "Settings", project_id: int, folder: Path, *, with_references: bool, is_dry_run: bool
) -> bool:
    from backend.exports.importing import ImportReport, import_masks
    from backend.exports.mask_files import find_masks
    from backend.exports.reading import open_project

    with opened_stored_projects(settings) as projects:
        project = open_project(projects, project_id, _version_of(projects))
        typer.echo(f"reading {folder}", err=True)
        found = find_masks(folder, project.config)
        report = ImportReport()
        try:
            import_masks(project, found, progress=progress_bar, report=report, is_dry_run=is_dry_run)
        except BaseException as error:
            _tell_import(report, is_dry_run=is_dry_run)
            if isinstance(error, KeyboardInterrupt):
                typer.echo("broken off", err=True)
            typer.echo("what is listed as added is there; the same command goes on and adds nothing twice", err=True)
            raise
        _tell_import(report, is_dry_run=is_dry_run)
        if with_references and not is_dry_run:
            report.problems.extend(_ingest(_with_models(projects), project.key, report.annotations))
    return not report.problems


def _tell_import(report: "ImportReport", *, is_dry_run: bool) -> None:
    would = "would be " if is_dry_run else ""
    typer.echo(
        f"{report.imported} annotations with {report.objects} masks {would}added; {report.already} tasks had them "
        f"already; {len(report.kept)} tasks keep an annotation of their own"
    )
    for line in (*report.kept, *report.problems, *report.notes):
        typer.echo(f"  {line}")


def _ingest(projects: "Projects", project_key: "ProjectKey", annotations: list[int]) -> list[str]:
    """Make references of annotations here and now; what did not become any."""
    failed: list[str] = []
    with progress_bar(len(annotations), "references") as on_annotation:
        for annotation in annotations:
            outcome = projects.references.ingest(project_key, annotation)
            if outcome not in ("references", "none"):
                failed.append(f"annotation {annotation}: {outcome}")
            on_annotation()
    typer.echo(f"{len(annotations) - len(failed)} annotations taken in as references")
    for line in failed:
        typer.echo(f"  {line}")
    return failed
