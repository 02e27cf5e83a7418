"""The commands `weights`."""

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
    what: Annotated[
        list[str], typer.Argument(help="Profiles (mobile, base, large, sam2) or models of `weights list`.")
    ],
    mirror: Annotated[str | None, typer.Option(help="Folder to take the files from: https:, http: or file:.")] = None,
) -> None:
    """Download the weights of profiles or models, or go on where a download stopped."""
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
