"""`calibrate`: fit presence probability and expected IoU on annotated images, into a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from backend.core.calibration_fit import CalibrationFit, Row
    from backend.settings import Settings


_SHOWN_GROUPS = 20


def calibrate(
    out: Annotated[Path, typer.Option(help="File to write; SOFTMATCHER_CALIBRATION then names it.")],
    directory: Annotated[
        Path | None, typer.Argument(help="Data set: <set>/<class>/<n>.jpg, with the mask <n>.png beside it.")
    ] = None,
    project: Annotated[
        int | None,
        typer.Option(help="In place of a data set: a project of Label Studio, its references left out in turn."),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Which models. Default: SOFTMATCHER_PROFILE.")] = None,
    seeds: Annotated[
        str, typer.Option(help="Of a data set: numbers with commas; each draws other references.")
    ] = "0,1",
    targets: Annotated[int, typer.Option(min=1, help="Of a data set: up to this many targets per class and seed.")] = 4,
    shots: Annotated[int, typer.Option(min=1, help="Of a data set: references per class.")] = 1,
) -> None:
    """Fit the scores on annotated images, and write the calibration to a file; say how good it is on unseen ones."""
    from backend.core.calibration_fit import fit_calibration
    from backend.models.calibrations import read_calibration
    from backend.models.profiles import find_profile
    from backend.settings import load_settings

    if (directory is None) == (project is None):
        raise typer.BadParameter("give either a data set's folder or --project")
    settings = load_settings() if profile is None else load_settings(profile=profile)
    former = read_calibration(find_profile(settings.profile).calibration, settings.calibration)
    if directory is not None:
        rows = _rows_of_directory(settings, directory, _numbers(seeds), targets, shots)
        fitted_on = f"data set {directory.name}"
    else:
        assert project is not None
        rows = _rows_of_project(settings, project)
        fitted_on = f"project {project}"
    masks = sum(row.features.area > 0 for row in rows)
    fit = fit_calibration(rows, fitted_for=settings.profile, fitted_on=f"{fitted_on}, {masks} masks", former=former)
    _report(fit)
    _write(out, fit.calibration.to_json())
    typer.echo(f"written to {out}; set SOFTMATCHER_CALIBRATION to it for service and workers, and start them again")


def _rows_of_directory(
    settings: "Settings", directory: Path, seeds: list[int], targets: int, shots: int
) -> "list[Row]":
    from rich.console import Console
    from rich.progress import Progress

    from backend.evaluation.calibration import collect_rows
    from backend.projects.model_host import load_configured

    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("loading the models", total=None)
        engine = load_configured(settings, settings.profile)
        return collect_rows(
            engine, directory, seeds=seeds, targets=targets, shots=shots,
            on_class=lambda name, done, total: progress.update(bar, description=name, completed=done, total=total),
        )  # fmt: skip


def _rows_of_project(settings: "Settings", project_id: int) -> "list[Row]":
    from backend.cli.export import opened_projects
    from backend.errors import NotFoundError

    with opened_projects(settings) as projects:
        record = projects.store.project_by_id(project_id)
        if record is None:
            raise NotFoundError(
                f"project {project_id} is not known here: connect this backend to it in Label Studio (Settings > Model)"
            )
        return projects.quality.calibration_rows(record.key)


def _report(fit: "CalibrationFit") -> None:
    from backend.core.score_metrics import area_under_roc, calibration_error, calibration_errors, worst_third

    reached = list(fit.reached)
    by_group: dict[str, list[tuple[float, float]]] = {}
    for group, score, found in zip(fit.groups, fit.expected, fit.reached, strict=True):
        by_group.setdefault(group, []).append((float(score), float(found)))
    errors = calibration_errors(by_group)
    now, before = calibration_error(list(fit.expected), reached), calibration_error(list(fit.former), reached)
    typer.echo(f"{len(reached)} masks of objects that are there, each predicted by a fit on the other groups:")
    typer.echo(f"  calibration error of the score {_shown(now)}, with the former calibration {_shown(before)}")
    typer.echo(
        f"  AUROC of the score for IoU > 0.5: {_shown(area_under_roc(list(fit.expected), list(fit.reached > 0.5)))}"
    )
    if len(errors) <= _SHOWN_GROUPS:
        worst = ", ".join(f"{name} {errors[name]:.3f}" for name in sorted(errors, key=lambda name: -errors[name]))
        typer.echo(f"  calibration error of each group: {worst}")
    typer.echo(
        f"  mean calibration error of the worst third of the groups {_shown(worst_third(list(errors.values())))}"
    )
    if fit.has_presence:
        auroc = area_under_roc(list(fit.chances), list(fit.present))
        typer.echo(f"  AUROC of the presence probability: {_shown(auroc)}, with {int((~fit.present).sum())} absent")
    else:
        typer.echo("  presence keeps its former coefficients: too few images on which the object is known to be absent")


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _write(path: Path, text: str) -> None:
    from backend.atomic_files import replacing
    from backend.errors import BadInputError

    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise BadInputError(f"{path} cannot be written ({error.strerror}); give another --out") from None


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds takes numbers with commas, got {text}") from None
