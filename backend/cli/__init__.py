"""The command line. Every command imports what it needs when it runs, so that `--help` answers at once."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli.bench.commands import bench
from backend.cli.calibrate import calibrate
from backend.cli.evaluate import evaluate
from backend.cli.export import export, import_masks
from backend.cli.failure import clear_errors
from backend.cli.model_commands import weights_app

if TYPE_CHECKING:
    from backend.settings import Settings

logger = logging.getLogger(__name__)

app = typer.Typer(
    help="Softmatcher for Label Studio: one scribble becomes brush masks on the other tasks.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
app.add_typer(bench, name="bench")
app.add_typer(weights_app, name="weights")

_WITH_LOG = ("serve", "work")


@app.callback()
@clear_errors
def prepare(context: typer.Context) -> None:
    """Softmatcher for Label Studio: one scribble becomes brush masks on the other tasks."""
    from backend.cli.environment import environment_warnings, read_env_file

    read_env_file()
    if context.invoked_subcommand not in _WITH_LOG:
        for line in environment_warnings():
            typer.secho(f"warning: {line}", fg=typer.colors.YELLOW, err=True)


def _start_logging(settings: "Settings") -> None:
    from backend.cli.environment import environment_warnings
    from backend.cli.process.logs import start_logging

    start_logging(settings)
    for line in environment_warnings():
        logger.warning("%s", line)


@app.command()
@clear_errors
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind to.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind to.")] = None,
) -> None:
    """Run the HTTP service that Label Studio connects to."""
    from backend.cli.serve import run_service
    from backend.settings import load_settings

    settings = load_settings(host=host, port=port)
    _start_logging(settings)
    run_service(settings)


@app.command()
@clear_errors
def work(
    burst: Annotated[bool, typer.Option(help="End when the queues are empty.")] = False,
) -> None:
    """Run a worker: it ingests annotations, and predicts what the service deferred."""
    from backend.cli.process.signals import heed_interrupt
    from backend.jobs.worker import run_worker
    from backend.settings import load_settings

    heed_interrupt()  # RQ installs handlers of its own, but only once the models are loaded
    settings = load_settings()
    _start_logging(settings)
    run_worker(settings, is_burst=burst)


@app.command()
@clear_errors
def up(
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many workers to start. Default: 1; with a GPU 3.")
    ] = None,
) -> None:
    """Run service, workers and (without REDIS_URL) an embedded Valkey for a Label Studio that is already there."""
    from backend.cli.up import up as run

    run(workers)


@app.command("label-studio-env")
@clear_errors
def label_studio_env(
    network: Annotated[
        list[str] | None, typer.Argument(help="Network or address of the backend as Label Studio sees it.")
    ] = None,
) -> None:
    """Print the variables that let Label Studio talk to a backend at a private address, and to no other."""
    from backend.cli.label_studio_env import protection_but

    for name, value in protection_but(network or ["127.0.0.0/8"]).items():
        typer.echo(f"{name}={value}")


@app.command("label-config")
@clear_errors
def label_config(
    labels: Annotated[list[str], typer.Argument(help="What is to be marked; `background` goes to the brush alone.")],
) -> None:
    """Print a label config with these labels, for Settings > Labeling Interface > Code."""
    from backend.labelstudio.sample_label_config import make_label_config
    from backend.settings import load_settings

    background = {label.lower() for label in load_settings().background_labels}
    typer.echo(make_label_config(*labels, background_labels=background))


@app.command()
@clear_errors
def demo(
    once: Annotated[bool, typer.Option(help="End after the check instead of staying up.")] = False,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images of yours that become a further project, up to 200.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Labels of that project, as A,B.")] = None,
) -> None:
    """Run the main job for real: Label Studio, the backend, a sample project, one scribble, predictions."""
    from backend.cli.demo.demo import demo as run
    from backend.cli.demo.own_images import DEFAULT_LABEL, OwnImages
    from backend.cli.try_folder import split_labels
    from backend.errors import BadInputError

    if labels and images is None:
        raise BadInputError("--labels are those of a project of your own images: name their folder with --images")
    run(once, None if images is None else OwnImages(images, tuple(split_labels(labels)) or (DEFAULT_LABEL,)))


@app.command("try")
@clear_errors
def try_folder(
    folder: Annotated[Path, typer.Argument(help="Folder of images; those in its folders are shown, too.")],
    labels: Annotated[
        str | None, typer.Option(help="What is to be found, as A,B; more can be added on the page.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="File that keeps the references, with FILE.annotations beside it.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile, the models in use; lite needs no download.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the page.")] = None,
) -> None:
    """Try it on a folder of images, in the browser, without Label Studio: draw on one, see masks on the others."""
    from backend.cli.try_folder import split_labels
    from backend.cli.try_folder import try_folder as run

    run(folder, labels=split_labels(labels), store=store, profile=profile, port=port)


@app.command()
@clear_errors
def explain(
    project: Annotated[int, typer.Option(help="Id of a project of Label Studio.")],
    task: Annotated[int, typer.Option(help="Id of a task of it.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
) -> None:
    """Draw why the masks of a task are as they are: score maps, points, cluster masks kept and rejected."""
    from backend.drawing.text import numbered_labels
    from backend.exports.sinks import disk_errors_reported
    from backend.labelstudio.label_config import parse_label_config
    from backend.projects.composition import open_projects
    from backend.settings import load_settings

    projects = open_projects(load_settings())
    try:
        picture = projects.explanations.explain(project, task)
        known = projects.store.project_by_id(project)
    finally:
        projects.close()
    with disk_errors_reported(f"the picture {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(picture)
    typer.echo(f"written: {out}")
    labels = parse_label_config(known.label_config).labels if known is not None else ()
    for label, stand_in in numbered_labels(labels).items():
        typer.echo(f"  {stand_in} is {label}")


@app.command()
@clear_errors
def propagate(
    project: Annotated[int, typer.Option(help="Id of the project in Label Studio.")],
    only_unlabeled: Annotated[bool, typer.Option("--only-unlabeled", help="Leave out tasks with annotations.")] = False,
    label: Annotated[
        list[str] | None, typer.Option(help="Predict this label only; may be given several times.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many tasks.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many tasks it would be; start nothing.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show progress until it ends; exit code 1 on failures.")
    ] = False,
    supersede: Annotated[
        bool, typer.Option("--supersede/--refuse", help="If one runs: end it, or refuse to start another.")
    ] = False,
    service: Annotated[
        str | None, typer.Option(help="Address of the service; default: of the running `up`, or these settings.")
    ] = None,
) -> None:
    """Predict all tasks of a project through the workers."""
    from backend.cli.process.running_up import beside_running_up
    from backend.cli.propagate import propagate as run
    from backend.settings import load_settings

    is_fine = run(
        beside_running_up(load_settings()),
        project,
        service=service,
        only_unlabeled=only_unlabeled,
        labels=label or [],
        limit=limit,
        supersede=supersede,
        is_dry_run=dry_run,
        is_watched=watch,
    )
    if not is_fine:
        raise typer.Exit(1)


@app.command("next")
@clear_errors
def next_task(
    project: Annotated[int, typer.Option(help="Id of the project in Label Studio.")],
    undo: Annotated[bool, typer.Option("--undo", help="Restore the order that the project had before.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show progress until all tasks have a score; exit code 1 if it fails.")
    ] = False,
    service: Annotated[
        str | None, typer.Option(help="Address of the service; default: of the running `up`, or these settings.")
    ] = None,
) -> None:
    """Let Label Studio serve the least certain task first."""
    from backend.cli.process.running_up import beside_running_up
    from backend.cli.task_order import set_task_order
    from backend.settings import load_settings

    settings = beside_running_up(load_settings())
    if not set_task_order(settings, project, service=service, is_undone=undo, is_watched=watch):
        raise typer.Exit(1)


@app.command()
@clear_errors
def forget(
    project: Annotated[int, typer.Option(help="Id that the project has, or had, in Label Studio.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; without this only say what would be deleted.")] = False,
) -> None:
    """Delete what this backend keeps of a project: references, propagations, settings, token."""
    from backend.errors import NotFoundError
    from backend.projects.composition import open_projects
    from backend.settings import load_settings

    projects = open_projects(load_settings())
    try:
        known = [each for each in projects.store.projects() if each.project_id == project]
        counts = projects.store.count_references()
        if not known:
            raise NotFoundError(f"project {project} is not known here: `python -m backend doctor` lists what is")
        for each in known:
            typer.echo(f"project {each.key} ({each.title or 'untitled'}): {counts.get(each.key, 0)} references")
            if yes:
                projects.store.drop_project(each.key)
        typer.echo("deleted" if yes else "nothing was deleted: add --yes to delete it")
    finally:
        projects.close()


@app.command()
@clear_errors
def doctor(
    project: Annotated[int | None, typer.Option(help="Also check this project of Label Studio.")] = None,
) -> None:
    """Check everything between Label Studio and the models, and say what to do about what is wrong."""
    from backend.cli.doctor.doctor import run_doctor
    from backend.cli.process.running_up import beside_running_up
    from backend.settings import load_settings

    if not run_doctor(beside_running_up(load_settings()), project):
        raise typer.Exit(1)


@app.command()
@clear_errors
def health(
    worker: Annotated[bool, typer.Option("--worker", help="Of this host's worker, not of the service.")] = False,
) -> None:
    """Say whether the service (or this host's worker) is well; exit code 2 if not. For containers."""
    from backend.cli.health import check_service, check_worker
    from backend.cli.process.running_up import beside_running_up
    from backend.settings import load_settings

    settings = beside_running_up(load_settings())
    typer.echo(check_worker(settings) if worker else check_service(settings))


app.command()(clear_errors(calibrate))
app.command()(clear_errors(evaluate))
app.command()(clear_errors(export))
app.command("import-masks")(clear_errors(import_masks))
