"""`evaluate`: few-shot quality of a profile on a folder of images with masks."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from backend.evaluation.run import EvaluationResult


def evaluate(
    directory: Annotated[Path, typer.Argument(help="Holds <set>/<class>/<n>.jpg, with the mask <n>.png beside it.")],
    profile: Annotated[str, typer.Option(help="Which models.")] = "lite",
    shots: Annotated[int, typer.Option(min=1, help="References a class.")] = 1,
    seeds: Annotated[str, typer.Option(help="Numbers with commas; each draws other references.")] = "0",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many targets a class and seed.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    complete: Annotated[
        bool,
        typer.Option(help="Take the masks as all there is of a class on their image; off: look-alikes are unknown."),
    ] = True,
) -> None:
    """Measure mIoU: the seed draws a class's references, its other images are targets, scored at original size."""
    from backend.evaluation.run import evaluate as run_evaluation

    # Here, not above: the other commands' --help must not wait for torch.

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:32.32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("loading the models", total=None)
        result = run_evaluation(
            directory,
            profile=profile,
            shots=shots,
            seeds=_numbers(seeds),
            limit=limit,
            is_complete=complete,
            on_progress=lambda name, done, total: progress.update(bar, description=name, completed=done, total=total),
        )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    Console().print(_table(result))


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"seeds must be whole numbers with commas between, got {text!r}") from error


def _table(result: "EvaluationResult") -> Table:
    figures = result.to_json()
    table = Table("set / class", "mIoU", title="One reference set a class, IoU at original size")
    sets, classes = figures["sets"], figures["classes"]
    assert isinstance(sets, dict)
    assert isinstance(classes, dict)
    for set_name, value in sets.items():
        table.add_row(f"[bold]{set_name}[/]", f"[bold]{value:.3f}[/]")
        for name, class_value in classes.items():
            if name.split("/")[0] == set_name:
                table.add_row(f"  {name.split('/')[1]}", f"{class_value:.3f}")
    table.add_section()
    for key in (
        "miou",
        "miou_std",
        "absent_false_positive_rate",
        "score_auroc",
        "calibration_error",
        "seconds",
        "peak_mb",
    ):
        value = figures[key]
        table.add_row(key, "-" if value is None else f"{value:.3f}")
    for stage, milliseconds in result.stages_ms.items():
        table.add_row(f"{stage}, median ms", f"{milliseconds:.1f}")
    return table


if __name__ == "__main__":
    typer.run(evaluate)
