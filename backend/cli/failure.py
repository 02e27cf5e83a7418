"""How a command fails: one clear line, exit code 2, no traceback."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer

from backend.errors import SoftmatcherError

P = ParamSpec("P")


def clear_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Print the message of our own errors; all others are bugs and keep their traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except SoftmatcherError as error:
            typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(2) from None

    return run
