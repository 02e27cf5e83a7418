"""`evaluate DIR`: runs what was asked for on a data set, and writes and prints the figures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from backend.core.matchers import MATCHERS
from backend.core.types import PromptingStrategy
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.contact_sheet import draw_contact_sheets
from backend.evaluation.joint import JointSet, evaluate_joint, joint_to_json
from backend.evaluation.markdown import joint_to_markdown, variants_to_markdown
from backend.evaluation.results import EvaluationResult
from backend.evaluation.variants import VariantsResult, evaluate_variants
from backend.projects.model_host import load_configured
from backend.settings import load_settings


@dataclass(frozen=True)
class DataSetEvaluation:
    """A run of `evaluate DIR`: its arguments, and where the figures go.

    Attributes:
        directory: holds <set>/<class>/<n>.jpg with <n>.png.
        profile, shots, seeds, limit, is_complete, variants: see `evaluate_variants`.
        with_simulated_annotations, with_refiner: likewise.
        positional_ranks: side by side; None: that of the settings.
        is_joint: also all classes of a set at once.
        labels: see `evaluate_joint`.
        json_file, markdown, sheets: files and folder to write; None: not written.
    """

    directory: Path
    profile: str
    shots: int
    seeds: Sequence[int]
    limit: int | None
    is_complete: bool
    variants: Mapping[str, MatchOptions]
    positional_ranks: Sequence[int] | None
    with_simulated_annotations: bool
    with_refiner: bool
    is_joint: bool
    labels: int | None
    json_file: Path | None
    markdown: Path | None
    sheets: Path | None

    def run(self) -> None:
        """Measure, write and print."""
        ranks = self.positional_ranks or [load_settings().positional_rank]
        run = self._measure(ranks)
        figures = run.to_json()
        joint_table = ""
        if self.is_joint:
            sets = self._measure_joint(ranks[0])
            figures["joint"], joint_table = joint_to_json(sets), joint_to_markdown(sets)
        if self.json_file is not None:
            _write(self.json_file, json.dumps(figures, indent=1) + "\n")
        if self.markdown is not None:
            _write(self.markdown, "\n".join(filter(None, (variants_to_markdown(run), joint_table))))
        if self.sheets is not None:
            self._draw_sheets(run, ranks[0], self.sheets)
        for name, result in run.variants.items():
            Console().print(_table(result, name))
        if self.is_joint:
            typer.echo(joint_table)
        for kind, value in run.simulated_annotations.items():
            Console().print(f"mIoU, marked by {kind}: {value:.3f}")

    def _measure(self, ranks: Sequence[int]) -> VariantsResult:
        columns = (TextColumn("{task.description:32.32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("loading the models", total=None)
            runs = [
                evaluate_variants(
                    self.directory,
                    {f"{name}{_of_positional_rank(rank, ranks)}": options for name, options in self.variants.items()},
                    profile=self.profile,
                    shots=self.shots,
                    seeds=self.seeds,
                    limit=self.limit,
                    is_complete=self.is_complete,
                    with_simulated_annotations=self.with_simulated_annotations and rank == ranks[0],
                    with_refiner=self.with_refiner,
                    journal=self._journal(_of_positional_rank(rank, ranks)),
                    on_progress=lambda name, done, total: progress.update(
                        bar, description=name, completed=done, total=total
                    ),
                    load=_loader(rank),
                )
                for rank in dict.fromkeys(ranks)
            ]
        return reduce(VariantsResult.joined_with, runs)

    def _measure_joint(self, rank: int) -> Sequence[JointSet]:
        return evaluate_joint(
            self.directory, profile=self.profile, shots=self.shots, seeds=self.seeds, limit=self.limit,
            labels=self.labels, options=next(iter(self.variants.values())), is_complete=self.is_complete,
            load=_loader(rank),
        )  # fmt: skip

    def _draw_sheets(self, run: VariantsResult, rank: int, folder: Path) -> None:
        first, options = next(iter(run.variants.values())), next(iter(self.variants.values()))
        draw_contact_sheets(
            self.directory, first, _loader(rank)(self.profile), options, folder,
            shots=self.shots, limit=self.limit, is_complete=self.is_complete,
        )  # fmt: skip

    def _journal(self, suffix: str) -> Path | None:
        if self.json_file is None:
            return None
        return self.json_file.with_name(f"{self.json_file.name}{suffix.replace(' ', '-')}.progress.jsonl")


def _loader(rank: int) -> "partial[Softmatcher]":
    return partial(load_configured, load_settings(positional_rank=rank))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def variants_of(matchers: str, strategies: str, min_score: float, *, has_classifier: bool) -> dict[str, MatchOptions]:
    """Return the ways to match of the command's options, by name.

    Raises:
        BadParameter: a matcher or strategy that there is not.
    """
    found = {}
    for matcher in _names(matchers, tuple(MATCHERS), "matchers"):
        for strategy in _names(strategies, get_args(PromptingStrategy), "recipes"):
            found[f"{matcher} {strategy}"] = MatchOptions(
                matcher=matcher,  # type: ignore[arg-type]
                strategy=strategy,  # type: ignore[arg-type]
                minimum_score=min_score,
                classifier=has_classifier,
            )
    return found


def numbers(text: str) -> list[int]:
    """Return whole numbers written with commas.

    Raises:
        BadParameter: something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"expected whole numbers with commas between, got {text!r}") from error


def _of_positional_rank(rank: int, ranks: Sequence[int]) -> str:
    return f" rank {rank}" if len(set(ranks)) > 1 else ""


def _names(text: str, known: tuple[str, ...], what: str) -> list[str]:
    named = [part.strip() for part in text.split(",") if part.strip()]
    if not named or set(named) - set(known):
        raise typer.BadParameter(f"{what} must be of {', '.join(known)}, got {text!r}")
    return list(dict.fromkeys(named))


def _table(result: EvaluationResult, name: str) -> Table:
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
