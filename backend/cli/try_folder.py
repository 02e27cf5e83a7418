"""`try`: the project's page over the images of a folder, in one process, without Label Studio and without a queue."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from backend.cli.process.supervisor import LOOPBACK, free_port
from backend.cli.serve import Service
from backend.cli.service_address import service_address
from backend.errors import ConfigurationError, OutputError
from backend.projects.folder.annotation_files import AnnotationFiles
from backend.projects.folder.images import FolderFiles, FoundImages, find_images
from backend.projects.folder.tasks import PROJECT_ID, FolderTasks
from backend.settings import Settings, load_settings

if TYPE_CHECKING:
    from flask import Flask

    from backend.jobs.in_process import InProcessQueue
    from backend.projects.composition import Projects
    from backend.projects.model_host import Models

logger = logging.getLogger(__name__)

DEFAULT_LABEL = "Object"
_PORT = 9090
_LOOKED_AHEAD = 48
"""Images that are encoded before anything is drawn."""
_GRACE_S = 10
_MODELS_S = 600.0


@dataclass(frozen=True)
class TriedFolder:
    """A folder of images that `try` shows, and the places of what it keeps.

    Attributes:
        folder: of the images.
        found: the images in it.
        labels: that were named.
        settings: of the process.
        kept_at: folder of the annotations.
        is_lasting: they are still there after the end.
    """

    folder: Path
    found: FoundImages
    labels: tuple[str, ...]
    settings: Settings
    kept_at: Path
    is_lasting: bool


def try_folder(
    folder: Path, *, labels: Sequence[str], store: Path | None, profile: str | None, port: int | None
) -> None:
    """Serve the page of a folder until Ctrl-C.

    Args:
        folder: of the images.
        labels: to begin with; more can be added on the page.
        store: file of the references; None: all that is made is gone at the end.
        profile: the models in use; None: `lite`, or what the environment says.
        port: of the page; None: 9090 if it is free.

    Raises:
        NotFoundError, BadInputError: there is no image to show.
        ConfigurationError: the store is of another folder, or open in another process.
        OutputError: nothing can be written where the store shall be.
    """
    console = Console(highlight=False)
    found = find_images(folder)
    with _place(store) as (store_file, kept_at, data_dir):
        settings = _settings(store_file, data_dir, profile, port)
        tried = TriedFolder(folder, found, tuple(labels), settings, kept_at, is_lasting=store is not None)
        kept = AnnotationFiles(kept_at)
        # What is wrong is said here, before a process is started for it.
        tasks = open_tasks(tried, kept)
        _say(console, tried, tasks, kept)
        _serve(console, tried, kept)


def open_tasks(tried: TriedFolder, kept: AnnotationFiles) -> FolderTasks:
    """Return the folder's tasks.

    Raises:
        ConfigurationError, BadInputError, OutputError: see `FolderTasks`.
    """
    known = kept.state()
    labels = tried.labels or (() if known and known.labels else (DEFAULT_LABEL,))
    return FolderTasks(
        tried.folder, tried.found, kept, folder_files(tried), labels=labels,
        background_labels=frozenset(label.lower() for label in tried.settings.background_labels),
    )  # fmt: skip


def folder_files(tried: TriedFolder) -> FolderFiles:
    """Return the files of the folder."""
    return FolderFiles(tried.folder, int(tried.settings.max_image_mb * 1e6))


def open_folder(
    tried: TriedFolder, kept: AnnotationFiles, models: "Models | None" = None
) -> "tuple[Projects, InProcessQueue]":
    """Put together what serves the page; nothing is started yet.

    Args:
        tried: what is shown.
        kept: its annotations.
        models: in use; None: those of the settings.
    """
    from backend.jobs.in_process import InProcessQueue
    from backend.metrics import Metrics
    from backend.models.device.placement import choose_device
    from backend.projects.composition import Projects
    from backend.projects.folder.connections import FolderConnections
    from backend.projects.model_host import Models
    from backend.projects.remaining_tiles import RemainingTiles
    from backend.settings import CONCURRENT_BATCHES
    from backend.store import Store

    settings = tried.settings
    store, metrics = Store(settings.store_url), Metrics()
    store.create_tables()
    if models is None:
        # As a worker, which this process is, too.
        at_a_time = CONCURRENT_BATCHES if choose_device(settings.device).type == "cpu" else 1
        models = Models(settings, metrics, calls_at_a_time=at_a_time)
    tasks = open_tasks(tried, kept)
    connections = FolderConnections(store, tasks, folder_files(tried), _notes(tried, kept))
    projects = Projects(settings, store, metrics, models, connections)
    queue = InProcessQueue()
    queue.when_idle = RemainingTiles(
        store, connections, projects.gallery, projects.banks, connections.project_key, queue.has_work_waiting
    )
    metrics.read_from(
        references=projects.count_references,
        cache=models.cache_counters,
        queue=queue.waiting,
        workers=queue.workers_now,
        shared=dict,
        propagations=projects.propagations.counters,
    )
    return projects, queue


def _serve(console: Console, tried: TriedFolder, kept: AnnotationFiles) -> None:
    running: list[tuple[Projects, InProcessQueue]] = []

    def make_app() -> "Flask":
        from backend.jobs import tasks
        from backend.web.app import create_app

        projects, queue = open_folder(tried, kept)
        running.append((projects, queue))
        tasks.use_projects(projects, queue)
        projects.models.start()
        (project,) = [one for one in projects.store.projects() if one.project_id == PROJECT_ID][-1:]
        queue.start()
        # What was annotated before, and what was changed in the folder since.
        queue.reconcile(project.key)
        _look_ahead(projects, project.key)
        return create_app(projects, queue, is_for_label_studio=False)

    def say_where(worker: object) -> None:
        url = f"{service_address(tried.settings)}/projects/{PROJECT_ID}"
        console.print(f"Open           [bold]{url}[/bold]   Ctrl-C ends it", soft_wrap=True)

    def end(server: object, worker: object) -> None:
        for projects, queue in running:
            queue.close(_GRACE_S)
            projects.close()

    service = Service(
        tried.settings, make_app, post_worker_init=say_where, worker_exit=end, graceful_timeout=_GRACE_S
    )  # fmt: skip
    service.run()


def _look_ahead(projects: "Projects", project_key: str) -> None:
    """Encode the first images as soon as the models are there: the first thing drawn is then shown at once."""
    import threading

    from backend.errors import SoftmatcherError
    from backend.projects.gallery import config_of

    def run() -> None:
        try:
            projects.models.get(_MODELS_S)
        except SoftmatcherError as error:
            logger.error("%s", error)
            return
        project = projects.store.project(project_key)
        config = config_of(project) if project is not None else None
        if config is not None:
            projects.prefetch.note_opened(project_key, 0, config)

    threading.Thread(target=run, name="look-ahead", daemon=True).start()


@contextmanager
def _place(store: Path | None) -> Iterator[tuple[Path, Path, Path]]:
    """Give the file of the store, the folder of the annotations, and that of what can be computed again.

    Raises:
        ConfigurationError: the file is none.
        OutputError: its folder cannot be made.
    """
    if store is not None:
        file = store.absolute()
        if file.is_dir():
            raise ConfigurationError(f"expected a file as --store, got the folder {store}: name a file in it")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{file.parent} cannot be made: {error.strerror}") from error
        yield file, file.with_name(f"{file.name}.annotations"), load_settings().data_dir
        return
    folder = Path(tempfile.mkdtemp(prefix="softmatcher-try-"))
    try:
        yield folder / "try.db", folder / "annotations", folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settings(store_file: Path, data_dir: Path, profile: str | None, port: int | None) -> Settings:
    """Return the environment's settings, but for those of networks, other stores and passwords."""
    settings = load_settings(profile=profile, host=LOOPBACK)
    if port is not None and free_port(port) != port:
        raise ConfigurationError(f"port {port} is taken by another program: name another --port")
    return settings.model_copy(
        update={
            "port": port or free_port(_PORT), "database_url": f"sqlite:///{store_file}", "data_dir": data_dir,
            "weights_dir": settings.weights_folder.absolute(), "redis_url": None, "label_studio_api_key": None,
            "basic_auth_user": None, "basic_auth_pass": None, "webhook_secret": None, "public_url": None,
            "prefetch_tasks": _LOOKED_AHEAD,
            "log_level": settings.log_level if "SOFTMATCHER_LOG_LEVEL" in os.environ else "WARNING",
        }
    )  # fmt: skip


def _say(console: Console, tried: TriedFolder, tasks: FolderTasks, kept: AnnotationFiles) -> None:
    def line(name: str, text: str) -> None:
        console.print(f"{name:<15}{text}", markup=False, soft_wrap=True)

    count = tasks.count_tasks(PROJECT_ID)
    line("Images", f"{count} of {tasks.title}")
    for note in (*tried.found.notes, *kept.problems):
        line("", note)
    line("Labels", ", ".join(tasks.labels))
    annotated = count - tasks.count_tasks(PROJECT_ID, only_unlabeled=True)
    if tried.is_lasting:
        line("Annotations", f"{annotated} images; kept in {tried.kept_at}")
    else:
        line("Annotations", "gone at the end: with --store FILE they stay")


def _notes(tried: TriedFolder, kept: AnnotationFiles) -> list[str]:
    """Return what the page says of the folder, and where to go from there."""
    where = (
        f"Annotations are files in {tried.kept_at}, in a form that Label Studio imports. References are made of them."
        if tried.is_lasting
        else "All that is made here is gone when this program ends. --store FILE keeps it, and so does an export."
    )
    return [
        where,
        "Nothing is sent anywhere, and nothing is written into the folder of the images.",
        "Export has the masks as COCO, YOLO, PNG or Parquet.",
        "For a team, review and an editor connect this backend to Label Studio. The export format label-studio is made "
        "for its import: images, tasks and label config. docs/try.md says how.",
        *(f"Left out: {note}." for note in tried.found.notes),
        *(f"{problem}." for problem in kept.problems),
    ]


def split_labels(text: str | None) -> list[str]:
    """Return the labels of a list with commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


__all__ = ["TriedFolder", "open_folder", "split_labels", "try_folder"]
