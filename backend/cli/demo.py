"""`demo`: the main job for real, with one scribble of ours: Label Studio, queue, service, worker, a sample project."""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import requests
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.status import Status
from rich.table import Table

from backend.cli.label_studio_server import (
    PASSWORD,
    TOKEN,
    USERNAME,
    Json,
    LabelStudio,
    intersection_over_union,
    key_point,
    label_studio_program,
    mask_of_regions,
    start_label_studio,
)
from backend.cli.processes import LOOPBACK, EmbeddedValkey, ProcessGroup, free_port, signals_as_interrupt
from backend.cli.sample import COIN, LABEL_CONFIG, SampleTask, sample_tasks
from backend.cli.up import SERVICE, keep_running, start_backend
from backend.errors import SoftmatcherError
from backend.settings import load_settings

LABEL_STUDIO_PORT = 8080
SERVICE_PORT = 9090
MIN_MEAN_IOU = 0.8
MARKED_TASK, MARKED_COIN = 1, 2
"""The scribble: a key point in the middle of this coin of this tile."""
MODELS_S = 300
REFERENCE_S = 60
# What points the processes elsewhere; everything else, as SOFTMATCHER_PROFILE, is the user's choice.
_NOT_OURS = (
    "REDIS_URL",
    "DATABASE_URL",
    "SOFTMATCHER_PUBLIC_URL",
    "SOFTMATCHER_BASIC_AUTH_USER",
    "SOFTMATCHER_BASIC_AUTH_PASS",
)


@dataclass(frozen=True)
class TaskResult:
    """What Label Studio holds for one task after the retrieval.

    Attributes:
        name: of the sample task.
        regions: brush regions of the newest prediction; 0 without a prediction.
        score: of that prediction, None without one.
        iou: of their union with the known mask.
        milliseconds: of the request «retrieve predictions» for this task.
    """

    name: str
    regions: int
    score: float | None
    iou: float
    milliseconds: float


class DemoFailedError(SoftmatcherError):
    """The demo did not show what it has to show."""


def demo(once: bool) -> None:
    """Run the demo; without `once` it stays up until Ctrl-C.

    Args:
        once: end after the check.

    Raises:
        DemoFailedError: predictions are missing or poor; with `once` only, else it is printed.
        ProcessFailedError: a process did not come up.
        typer.Exit: Ctrl-C before the check was done; code 130.
    """
    console = Console(highlight=False)
    is_checked = False
    with signals_as_interrupt(), ExitStack() as stack:
        try:
            # The queue's folder is given back after its process has ended.
            queue = stack.enter_context(ExitStack())
            data_dir = load_settings().data_dir / "demo"
            processes = stack.enter_context(ProcessGroup(data_dir / "logs"))
            with console.status("Starting ...") as status:
                label_studio, service_url = _start_all(console, status, processes, queue, data_dir)
                stack.callback(label_studio.close)
                project = _run_main_job(console, status, label_studio, service_url, is_fatal=once)
            is_checked = True
            console.print(f"\nLook at it     [bold]{label_studio.url}/projects/{project}/data[/bold]", soft_wrap=True)
            console.print(f"Log in         user {USERNAME}   password {PASSWORD}", soft_wrap=True)
            console.print(f"Logs           {data_dir / 'logs'}", soft_wrap=True)
            if not once:
                console.print("Ctrl-C ends everything.")
                keep_running(processes, console)
        except KeyboardInterrupt:
            console.print("Ending Label Studio, service, worker and queue ...")
    if not is_checked:
        raise typer.Exit(130)


def _start_all(
    console: Console, status: Status, processes: ProcessGroup, queue: ExitStack, data_dir: Path
) -> tuple[LabelStudio, str]:
    """Start every process; Label Studio's API and the address of the service."""
    valkey = EmbeddedValkey(processes, data_dir / "valkey")
    queue.callback(valkey.close)
    started = time.monotonic()
    is_new = not (data_dir / "label-studio").exists()
    status.update("Starting Label Studio" + (" and making its database: about half a minute ..." if is_new else " ..."))
    label_studio = start_label_studio(
        processes, label_studio_program(), data_dir / "label-studio", free_port(LABEL_STUDIO_PORT)
    )
    console.print(f"Label Studio   {label_studio.url}   ({time.monotonic() - started:.0f} s)")

    started = time.monotonic()
    status.update("Starting service and worker, loading the models ...")
    port = free_port(SERVICE_PORT)
    url = f"http://{LOOPBACK}:{port}"
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    environment = kept | {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": TOKEN,
        "REDIS_URL": valkey.url,
        "SOFTMATCHER_DATA_DIR": str((data_dir / "backend").resolve()),
        "SOFTMATCHER_HOST": LOOPBACK,
        "SOFTMATCHER_PORT": str(port),
    }
    start_backend(processes, environment, url)
    processes.wait_until(
        SERVICE,
        lambda: bool(requests.get(f"{url}/health", timeout=5).json()["model"] == "ready"),
        timeout_s=MODELS_S,
        what="did not load its models",
    )
    console.print(f"Softmatcher    {url}   ({time.monotonic() - started:.0f} s)")
    return label_studio, url


def _run_main_job(
    console: Console, status: Status, label_studio: LabelStudio, service_url: str, *, is_fatal: bool
) -> int:
    """Make the project, scribble, wait, retrieve, print and check; the project's id."""
    samples = sample_tasks()
    status.update("Making a sample project ...")
    project = label_studio.create_project(f"Coins, {datetime.now():%Y-%m-%d %H:%M:%S}", LABEL_CONFIG)
    tasks = label_studio.upload_images(project, {sample.name: sample.image for sample in samples})
    label_studio.connect_backend(project, service_url)
    console.print(f"Project        {len(tasks)} tasks, {COIN} to be found, backend connected")

    marked = samples[MARKED_TASK]
    label_studio.annotate(tasks[marked.name], [_scribble(marked)])
    console.print(f"Annotation     one key point on one coin of {marked.name}")
    status.update("Waiting until the backend has made it a reference ...")
    started = time.monotonic()
    _wait_for_reference(service_url, project)
    console.print(f"Reference      made in {time.monotonic() - started:.1f} s")

    results = []
    for sample in samples:
        if sample is not marked:
            status.update(f"Retrieving predictions: {sample.name} ...")
            results.append(_retrieve(label_studio, project, tasks[sample.name], sample))
    console.print(_table(results))
    problem = _problem(results)
    if problem is None:
        console.print(f"[green]Mean IoU {_mean_iou(results):.3f}, at least {MIN_MEAN_IOU} was asked for.[/green]")
    elif is_fatal:
        raise DemoFailedError(problem)
    else:
        console.print(f"[red]{problem}[/red]")
    return project


def _scribble(sample: SampleTask) -> Json:
    rows, columns = np.nonzero(sample.objects == sorted(set(sample.objects.flat))[MARKED_COIN])
    return key_point((float(columns.mean()), float(rows.mean())), sample.size_hw, COIN)


def count_references(service_url: str, project: int, *, basic_auth: tuple[str, str] | None = None) -> int:
    """How many references the backend has for a project of Label Studio, read from its /metrics."""
    answer = requests.get(f"{service_url}/metrics", timeout=10, auth=basic_auth)
    answer.raise_for_status()
    return sum(
        int(sample.value)
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == "softmatcher_references" and sample.labels["project"].split(".")[0] == str(project)
    )


def _wait_for_reference(service_url: str, project: int) -> None:
    deadline = time.monotonic() + REFERENCE_S
    while count_references(service_url, project) == 0:
        if time.monotonic() > deadline:
            raise DemoFailedError(
                f"the annotation did not become a reference within {REFERENCE_S} s; see worker-1.log and service.log"
            )
        time.sleep(0.1)


def _retrieve(label_studio: LabelStudio, project: int, task: int, sample: SampleTask) -> TaskResult:
    started = time.perf_counter()
    label_studio.retrieve_predictions(project, [task])
    milliseconds = 1000 * (time.perf_counter() - started)
    predictions = label_studio.predictions(project).get(task, [])
    regions: list[Json] = predictions[-1]["result"] if predictions else []
    mask = mask_of_regions(regions, COIN, sample.size_hw)
    score = predictions[-1]["score"] if predictions else None
    return TaskResult(sample.name, len(regions), score, intersection_over_union(mask, sample.masks[COIN]), milliseconds)


def _mean_iou(results: list[TaskResult]) -> float:
    return sum(result.iou for result in results) / len(results)


def _problem(results: list[TaskResult]) -> str | None:
    """What is wrong with the results; None if nothing is."""
    missing = [result.name for result in results if result.regions == 0]
    if missing:
        return f"no prediction in Label Studio for {', '.join(missing)}"
    if _mean_iou(results) < MIN_MEAN_IOU:
        return f"mean IoU is {_mean_iou(results):.3f}, at least {MIN_MEAN_IOU} was asked for"
    return None


def _table(results: list[TaskResult]) -> Table:
    table = Table(title="Predictions as Label Studio stores them")
    table.add_column("task")
    for name in ("regions", "score", "IoU", "ms"):
        table.add_column(name, justify="right")
    for result in results:
        score = "-" if result.score is None else f"{result.score:.2f}"
        table.add_row(result.name, str(result.regions), score, f"{result.iou:.3f}", f"{result.milliseconds:.0f}")
    mean_ms = sum(result.milliseconds for result in results) / len(results)
    table.add_section()
    table.add_row("mean", "", "", f"{_mean_iou(results):.3f}", f"{mean_ms:.0f}")
    return table
