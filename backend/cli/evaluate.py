"""`evaluate`: few-shot quality of a profile on a folder of images with masks."""

import json
from collections.abc import Sequence
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from backend.engine.options import MatchOptions
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
        typer.Option(
            help="Take the masks as all there is of a class on their image; off: patches like it are ambiguous."
        ),
    ] = True,
    matchers: Annotated[str, typer.Option(help="Names with commas, side by side.")] = "posterior",
    strategies: Annotated[
        str, typer.Option("--recipes", help="Prompting strategies: `prior`, `paper` or both, side by side.")
    ] = "prior",
    positional_ranks: Annotated[
        str,
        typer.Option(
            help="Numbers with commas, side by side: directions of a blank image's features taken out of every "
            "image's. Default: SOFTMATCHER_POSITIONAL_RANK."
        ),
    ] = "",
    markings: Annotated[
        bool, typer.Option(help="Also mark points, strokes, and one object of several instead of the masks.")
    ] = False,
    refiner: Annotated[
        bool, typer.Option(help="From three references on, train a refiner for classes whose references ask for one.")
    ] = True,
    joint: Annotated[
        bool, typer.Option("--joint", help="Also look for all classes of a set together, as labels of one project.")
    ] = False,
    labels: Annotated[
        int | None, typer.Option(min=2, help="With --joint: at most this many classes of a set, drawn by the seed.")
    ] = None,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out regions whose expected IoU is below this.")
    ] = 0.0,
    classifier: Annotated[
        bool, typer.Option(help="Blend the posterior with a classifier of patches, from two references on.")
    ] = True,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
    sheets: Annotated[Path | None, typer.Option(help="Write pictures of the best, median and worst here.")] = None,
) -> None:
    """Measure mIoU: the seed draws a class's references, its other images are targets, scored at original size."""
    from backend.evaluation.markdown import variants_to_markdown
    from backend.evaluation.variants import VariantsResult, evaluate_variants
    from backend.projects.model_host import load_configured
    from backend.settings import load_settings

    if labels is not None and not joint:
        raise typer.BadParameter("--labels goes with --joint")
    variants = _variants(matchers, strategies, min_score, classifier)
    ranks = _numbers(positional_ranks) if positional_ranks else [load_settings().positional_rank]
    engines = {rank: partial(load_configured, load_settings(positional_rank=rank)) for rank in ranks}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:32.32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("loading the models", total=None)
        runs = [
            evaluate_variants(
                directory,
                {f"{name}{_of_positional_rank(rank, ranks)}": options for name, options in variants.items()},
                profile=profile,
                shots=shots,
                seeds=_numbers(seeds),
                limit=limit,
                is_complete=complete,
                with_simulated_annotations=markings and rank == ranks[0],
                with_refiner=refiner,
                journal=None if json_file is None else _journal(json_file, _of_positional_rank(rank, ranks)),
                on_progress=lambda name, done, total: progress.update(
                    bar, description=name, completed=done, total=total
                ),
                load=load,
            )
            for rank, load in engines.items()
        ]
    run = reduce(VariantsResult.joined_with, runs)
    figures = run.to_json()
    joint_table = ""
    if joint:
        from backend.evaluation.joint import evaluate_joint, joint_to_json
        from backend.evaluation.markdown import joint_to_markdown

        sets = evaluate_joint(
            directory, profile=profile, shots=shots, seeds=_numbers(seeds), limit=limit, labels=labels,
            options=next(iter(variants.values())), is_complete=complete, load=engines[ranks[0]],
        )  # fmt: skip
        figures["joint"], joint_table = joint_to_json(sets), joint_to_markdown(sets)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text("\n".join(filter(None, (variants_to_markdown(run), joint_table))))
    if sheets is not None:
        from backend.evaluation.contact_sheet import draw_contact_sheets

        first, options = next(iter(run.variants.values())), next(iter(variants.values()))
        draw_contact_sheets(
            directory, first, engines[ranks[0]](profile), options, sheets,
            shots=shots, limit=limit, is_complete=complete,
        )  # fmt: skip
    for name, result in run.variants.items():
        Console().print(_table(result, name))
    if joint:
        typer.echo(joint_table)
    for kind, value in run.simulated_annotations.items():
        Console().print(f"mIoU, marked by {kind}: {value:.3f}")


def _variants(matchers: str, strategies: str, min_score: float, classifier: bool) -> "dict[str, MatchOptions]":
    from backend.core.matchers import MATCHERS
    from backend.core.types import PromptingStrategy
    from backend.engine.options import MatchOptions

    found = {}
    for matcher in _names(matchers, tuple(MATCHERS), "matchers"):
        for strategy in _names(strategies, get_args(PromptingStrategy), "recipes"):
            found[f"{matcher} {strategy}"] = MatchOptions(
                matcher=matcher,  # type: ignore[arg-type]
                strategy=strategy,  # type: ignore[arg-type]
                minimum_score=min_score,
                classifier=classifier,
            )
    return found


def _of_positional_rank(rank: int, ranks: Sequence[int]) -> str:
    return f" rank {rank}" if len(set(ranks)) > 1 else ""


def _journal(json_file: Path, suffix: str) -> Path:
    return json_file.with_name(f"{json_file.name}{suffix.replace(' ', '-')}.progress.jsonl")


def _names(text: str, known: tuple[str, ...], what: str) -> list[str]:
    named = [part.strip() for part in text.split(",") if part.strip()]
    if not named or set(named) - set(known):
        raise typer.BadParameter(f"{what} must be of {', '.join(known)}, got {text!r}")
    return list(dict.fromkeys(named))


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"expected whole numbers with commas between, got {text!r}") from error


def _table(result: "EvaluationResult", name: str) -> Table:
    figures = result.to_json()
    table = Table("set / class", "mIoU", title=f"{name}: one reference set a class, IoU at original size")
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
        "calibration_error_worst_third",
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
