"""`demo`: the main job for real, with our scribbles: Label Studio, queue, service, worker, three sample projects."""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import typer
from rich.console import Console
from rich.status import Status

from backend.cli.demo.label_studio_server import (
    PASSWORD,
    TOKEN,
    USERNAME,
    LabelStudio,
    label_studio_program,
    start_label_studio,
)
from backend.cli.demo.own_images import OwnImages, add_own_project
from backend.cli.demo.sample_projects import sample_projects
from backend.cli.demo.scenario import DemoFailedError, ProjectResult, results_table, run_sample, say_what_is_absent
from backend.cli.process.embedded_valkey import EmbeddedValkey
from backend.cli.process.signals import signals_as_interrupt
from backend.cli.process.supervisor import LOOPBACK, ProcessGroup, free_port
from backend.cli.up import keep_running, start_backend, wait_for_models
from backend.errors import ModelUnavailableError
from backend.settings import load_settings

LABEL_STUDIO_PORT = 8080
_SHOWN_LEFT_OUT = 5
SERVICE_PORT = 9090
# What points the processes elsewhere; everything else, as SOFTMATCHER_PROFILE, is the user's choice.
_NOT_OURS = (
    "REDIS_URL",
    "DATABASE_URL",
    "SOFTMATCHER_PUBLIC_URL",
    "SOFTMATCHER_BASIC_AUTH_USER",
    "SOFTMATCHER_BASIC_AUTH_PASS",
)


def demo(once: bool, own: OwnImages | None = None) -> None:
    """Run the demo; without `once` it stays up until Ctrl-C.

    Args:
        once: end after the check.
        own: images of a further project, to be marked by hand.

    Raises:
        NotFoundError, BadInputError: there is no image of the user's, or a label cannot be used.
        DemoFailedError: predictions are missing or poor; with `once` only, else it is printed.
        ModelUnavailableError: weights of the profile are missing.
        ProcessFailedError: a process did not come up.
        typer.Exit: Ctrl-C before the check was done; code 130.
    """
    console = Console(highlight=False)
    is_checked = False
    if own is not None:
        own.check()
    with signals_as_interrupt(), ExitStack() as stack:
        try:
            # The queue's folder is given back after its process has ended.
            queue = stack.enter_context(ExitStack())
            data_dir = load_settings().data_dir / "demo"
            processes = stack.enter_context(ProcessGroup(data_dir / "logs"))
            with console.status("Starting ...") as status:
                label_studio, service_url = start_all(console, status, processes, queue, data_dir)
                stack.callback(label_studio.close)
                own_page = _add_own(console, status, own, label_studio, service_url) if own else None
                results = _run_samples(console, status, label_studio, service_url)
            _judge(console, results, is_fatal=once)
            is_checked = True
            console.print()
            for result in results:
                page = f"{label_studio.url}/projects/{result.id}/data"
                console.print(f"Look at it     [bold]{page}[/bold]   ({result.sample.title})", soft_wrap=True)
            if own_page is not None:
                console.print(f"Your images    [bold]{own_page}[/bold]   mark one, submit it", soft_wrap=True)
            console.print(f"References     {service_url}/projects", soft_wrap=True)
            console.print(f"Log in         user {USERNAME}   password {PASSWORD}", soft_wrap=True)
            console.print(f"Logs           {data_dir / 'logs'}", soft_wrap=True)
            if not once:
                console.print("Ctrl-C ends everything.")
                keep_running(processes, console)
        except KeyboardInterrupt:
            console.print("Ending Label Studio, service, worker and queue ...")
    if not is_checked:
        raise typer.Exit(130)


def start_all(
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
        "SOFTMATCHER_WEIGHTS_DIR": str(load_settings().weights_folder.resolve()),
        "SOFTMATCHER_HOST": LOOPBACK,
        "SOFTMATCHER_PORT": str(port),
    }
    start_backend(processes, environment, url)
    models = wait_for_models(processes, environment, url)
    if models != "ready":
        raise ModelUnavailableError(f"models {models}")
    console.print(f"Softmatcher    {url}   ({time.monotonic() - started:.0f} s)")
    return label_studio, url


def _add_own(console: Console, status: Status, own: OwnImages, label_studio: LabelStudio, service_url: str) -> str:
    """Make the project of the user's images, print what came of it, and return the address of its tasks."""
    title = f"{own.folder.resolve().name or 'images'}, {datetime.now():%Y-%m-%d %H:%M:%S}"
    project, count, left_out = add_own_project(own, title[-50:], label_studio, service_url, status.update)
    console.print(f"Your images    {count} tasks of {own.folder}, labels {', '.join(own.labels)}", markup=False)
    for line in left_out[:_SHOWN_LEFT_OUT]:
        console.print(f"               left out: {line}", markup=False)
    if len(left_out) > _SHOWN_LEFT_OUT:
        console.print(f"               and {len(left_out) - _SHOWN_LEFT_OUT} more")
    return f"{label_studio.url}/projects/{project}/data"


def _run_samples(console: Console, status: Status, label_studio: LabelStudio, service_url: str) -> list[ProjectResult]:
    """Make and run every sample project, and print what came of it."""
    status.update("Drawing the sample images ...")
    done = []
    for sample in sample_projects():
        title = f"{sample.title}, {datetime.now():%Y-%m-%d %H:%M:%S}"
        result = run_sample(sample, title, label_studio, service_url, status.update)
        done.append(result)
        wanted = " and ".join(sample.labels)
        console.print(f"\n[bold]{sample.title}[/bold]: {len(sample.tasks)} tasks, {wanted} to be found")
        console.print(f"{sample.marked}: {sample.said}; a reference {result.reference_s:.1f} s later")
        console.print(results_table(result))
        console.print(f"Known masks: {sample.source}.")
        absent = say_what_is_absent(result.results)
        if absent is not None:
            console.print(f"{absent}.")
    return done


def _judge(console: Console, results: Sequence[ProjectResult], *, is_fatal: bool) -> None:
    """Print one line a project; a problem is an error if it `is_fatal`."""
    console.print()
    problems = [result.problem for result in results if result.problem is not None]
    for result in results:
        if result.problem is None:
            title, asked = result.sample.title, result.sample.min_mean_iou
            console.print(f"[green]{title}: mean IoU {result.mean_iou:.3f}, at least {asked} was asked for.[/green]")
    if problems and is_fatal:
        raise DemoFailedError("; ".join(problems))
    for problem in problems:
        console.print(f"[red]{problem}[/red]")
