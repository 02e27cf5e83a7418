"""`evaluate --project N`: quality on a project's own annotations, and what suits it."""

import json
from functools import partial
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from backend.cli.export import opened_projects
from backend.core.types import Json
from backend.engine.options import MatchOptions
from backend.errors import ModelUnavailableError, NotFoundError
from backend.exports.sinks import disk_errors_reported
from backend.models.profiles import PROFILES
from backend.projects.composition import ProjectRecord, Projects
from backend.projects.model_host import load_configured
from backend.projects.quality.comparison import variants_of
from backend.projects.quality.evaluation import EvaluationPlan
from backend.projects.quality.figures import summary_of, unpack_mask, without_masks
from backend.settings import Settings, load_settings

_MOST_IMAGES = 200


def evaluate_project(
    project_id: int,
    *,
    profile: str | None,
    limit: int | None,
    folds: int | None,
    compare: str,
    is_applied: bool,
    json_file: Path | None,
    sheets: Path | None,
) -> None:
    """Measure, print and write the figures of a project; set what is recommended if that was asked for.

    Raises:
        NotFoundError: this backend is not connected to the project.
        BadInputError: something that cannot be compared.
        ConflictError: nothing is recommended that could be set.
        LabelStudioError, ModelUnavailableError: what is needed cannot be had.
    """
    settings = load_settings() if profile is None else load_settings(profile=profile)
    kinds = tuple(part.strip() for part in compare.split(",") if part.strip())
    variants_of(kinds, MatchOptions())  # refuses what cannot be compared before models are loaded
    with opened_projects(settings) as projects:
        record = projects.store.project_by_id(project_id)
        if record is None:
            raise NotFoundError(
                f"project {project_id} is not known here: connect this backend to it in Label Studio (Settings > Model)"
            )
        figures = _measure(settings, projects, record, limit, folds, kinds)
        _print(figures, record)
        if json_file is not None:
            with disk_errors_reported(f"the figures {json_file}"):
                json_file.parent.mkdir(parents=True, exist_ok=True)
                json_file.write_text(json.dumps(without_masks(figures), indent=1) + "\n")
        if sheets is not None:
            _draw_worst(projects, record, figures, sheets)
        if is_applied:
            changed = projects.quality.apply_recommended(record)
            typer.echo(f"set in Label Studio as extra params: {json.dumps(changed)}")


def _measure(
    settings: Settings,
    projects: Projects,
    record: ProjectRecord,
    limit: int | None,
    folds: int | None,
    kinds: tuple[str, ...],
) -> Json:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("loading the models", total=None)
        plan = EvaluationPlan(
            most_images=limit or _MOST_IMAGES,
            folds=folds,
            compare=kinds,
            profiles=_usable_profiles(settings) if "profiles" in kinds else (),
            on_step=lambda what, done, total: progress.update(bar, description=what, completed=done, total=total),
        )
        return projects.quality.estimate(record.key, plan, load_profile=partial(load_configured, settings))


def _usable_profiles(settings: Settings) -> tuple[str, ...]:
    """Return the profiles whose weights are there, and say which are left out."""
    usable = [settings.profile]
    for name in PROFILES:
        if name == settings.profile:
            continue
        try:
            load_configured(settings, name)
        except ModelUnavailableError as error:
            typer.echo(f"profile {name} is left out: {error}", err=True)
        else:
            usable.append(name)
    return tuple(usable)


def _print(figures: Json, record: ProjectRecord) -> None:
    console = Console(highlight=False)
    console.print(summary_of(figures), markup=False)
    table = Table("label", "mIoU", "which means", "images", "false finds", "by number of reference images")
    for label, one in figures["labels"].items():
        finds = one["false_finds"]
        grown = ", ".join(f"{count}: {value:.2f}" for count, value in one["growth"].items())
        shown = f"{finds['found']} of {finds['of']}" if finds["of"] else "-"
        table.add_row(label, _number(one["iou"]), one["word"], str(one["tried"]), shown, grown)
    console.print(table)
    if figures.get("folds"):
        folds = figures["folds"]
        console.print(f"by {folds['count']} folds: mIoU {_number(folds['iou'])}")
    if figures.get("score"):
        score = figures["score"]
        console.print(f"score: {score['summary']}; calibration error {_number(score['error'])}", markup=False)
        console.print(
            f"  `python -m backend calibrate --project {record.project_id} --out FILE` fits it to this project",
            markup=False,
        )
    if figures.get("worst"):
        console.print("worst cases:")
        for case in figures["worst"]:
            console.print(
                f"  task {case['task']}, {case['label']}: {case['what']}, IoU {case['iou']:.2f}", markup=False
            )
    if figures.get("comparison"):
        _print_comparison(console, figures["comparison"])


def _print_comparison(console: Console, comparison: Json) -> None:
    table = Table("setting", "mIoU", "false finds", "gain", "its standard error")
    for one in comparison["variants"]:
        name = f"{one['kind']} {one['name']}{' (now)' if one['is_current'] else ''}"
        table.add_row(name, _number(one["miou"]), str(one["false_finds"]), f"{one['gain']:+.3f}", f"{one['error']:.3f}")
    console.print(table)
    for note in comparison["notes"]:
        console.print(note, markup=False)
    for kind, name in comparison["recommended"].items():
        console.print(f"better here: {kind} {name}", markup=False)
    if comparison["settings"]:
        console.print(f"--apply sets {json.dumps(comparison['settings'])} as the project's extra params", markup=False)
    if "profiles" in comparison["recommended"]:
        console.print(f"the whole service changes with SOFTMATCHER_PROFILE={comparison['recommended']['profiles']}")
    if not comparison["recommended"]:
        console.print("nothing is clearly better than the present settings")


def _draw_worst(projects: Projects, record: ProjectRecord, figures: Json, folder: Path) -> None:
    with disk_errors_reported(f"the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(figures.get("worst") or (), 1):
            content = projects.thumbnails.of_masks(
                record, case["task"], case["image"],
                found=unpack_mask(case["found"]), marked=unpack_mask(case["marked"]),
            )  # fmt: skip
            (folder / f"worst-{number}-task-{case['task']}.jpg").write_bytes(content)
    typer.echo(f"written: {folder}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
