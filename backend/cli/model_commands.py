"""The commands `weights` and `bench`."""

from typing import Annotated

import typer

from backend.cli.failure import clear_errors

weights_app = typer.Typer(help="Model weights: which there are, fetch, verify, import.", no_args_is_help=True)


@weights_app.command("list")
@clear_errors
def list_weights(as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """Show the weights that are known by name, and which of them are here."""
    from backend.cli.weights import list_weights as run
    from backend.settings import load_settings

    run(load_settings(), as_json=as_json)


@weights_app.command("fetch")
@clear_errors
def fetch_weights(
    what: Annotated[str, typer.Argument(help="A profile (mobile, base, large) or a model of `weights list`.")],
    mirror: Annotated[str | None, typer.Option(help="Folder to take the files from: https:, http: or file:.")] = None,
) -> None:
    """Download the weights of a profile, or go on where a download stopped."""
    from backend.cli.weights import fetch
    from backend.settings import load_settings

    fetch(load_settings(), what, mirror)


@weights_app.command("verify")
@clear_errors
def verify_weights() -> None:
    """Read every stored file again and compare it with what it was."""
    from backend.cli.weights import verify
    from backend.settings import load_settings

    if not verify(load_settings()):
        raise typer.Exit(1)


@weights_app.command("import")
@clear_errors
def import_weights(
    path: Annotated[str, typer.Argument(help="A .pth, .pt or .safetensors file.")],
    name: Annotated[
        str | None, typer.Option("--as", help="Model it belongs to, if its content is none of the list.")
    ] = None,
) -> None:
    """Take in a file that is on this machine already."""
    from backend.cli.weights import import_file
    from backend.settings import load_settings

    import_file(load_settings(), path, name)


bench_app = typer.Typer(help="How long do things take on this machine?", no_args_is_help=True)


@bench_app.callback()
def bench() -> None:
    """How long do things take on this machine?"""


@bench_app.command("pipeline")
@clear_errors
def bench_pipeline(
    profile: Annotated[list[str] | None, typer.Option(help="Which profiles; repeat it. Default: lite, mobile.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    image: Annotated[list[str] | None, typer.Option(help="Image files. Default: a photograph of scikit-image.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each part, after one that does not count.")] = 5,
    json_file: Annotated[str | None, typer.Option("--json", help="Write the figures there.")] = None,
    chart: Annotated[str | None, typer.Option("--png", help="Draw a chart there (needs matplotlib).")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of one model call; 0: PyTorch's choice.")] = 0,
) -> None:
    """Time every part of a prediction, cold and warm; random weights where real ones are missing."""
    from backend.cli.bench import bench_pipeline as run
    from backend.settings import load_settings

    run(
        load_settings(), profile or ["lite", "mobile"], device=device, images=image or [], repeats=repeats,
        json_file=json_file, chart=chart, threads=threads,
    )  # fmt: skip
