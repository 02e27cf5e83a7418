"""`evaluate`: quality of a profile on a folder of images with masks, or on a project's own annotations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    directory: Annotated[
        Path | None, typer.Argument(help="Holds <set>/<class>/<n>.jpg, with the mask <n>.png beside it.")
    ] = None,
    project: Annotated[
        int | None,
        typer.Option(help="In place of a data set: a project of Label Studio, each annotated image left out in turn."),
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Of a project: also by so many folds.")] = None,
    compare: Annotated[
        str, typer.Option(help="Of a project: what to try, with commas: matchers, min_score, profiles.")
    ] = "",
    apply: Annotated[
        bool, typer.Option("--apply", help="Of a project: set what the comparison recommends, in Label Studio.")
    ] = False,
    profile: Annotated[
        str | None, typer.Option(help="Which models. Default: lite; of a project: SOFTMATCHER_PROFILE.")
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="References a class.")] = 1,
    seeds: Annotated[str, typer.Option(help="Numbers with commas; each draws other references.")] = "0",
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many targets a class and seed; of a project: images.")
    ] = None,
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
    phrases: Annotated[
        Path | None,
        typer.Option(help="JSON file, class to phrases: measure with, without, and the phrase alone; nothing else."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
    sheets: Annotated[Path | None, typer.Option(help="Write pictures of the best, median and worst here.")] = None,
) -> None:
    """Measure mIoU on a data set, or on a project's own annotations (`--project`).

    Of a data set the seed draws a class's references; its other images are targets, scored at original size. Of a
    project each annotated image is predicted from the references of the others, all labels at once.
    """
    if (directory is None) == (project is None):
        raise typer.BadParameter("give either a data set's folder or --project")
    if project is not None:
        from backend.cli.evaluate_project import evaluate_project

        evaluate_project(
            project, profile=profile, limit=limit, folds=folds, compare=compare, is_applied=apply,
            json_file=json_file, sheets=sheets,
        )  # fmt: skip
        return
    assert directory is not None
    if folds is not None or compare or apply:
        raise typer.BadParameter("--folds, --compare and --apply go with --project")
    if labels is not None and not joint:
        raise typer.BadParameter("--labels goes with --joint")
    from backend.cli.evaluate_data_set import DataSetEvaluation, numbers, variants_of

    if phrases is not None:
        found = _evaluate_phrases(directory, phrases, profile or "text", shots, numbers(seeds), limit)
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(found, indent=1) + "\n")
        from rich.console import Console

        Console().print_json(json.dumps(found))
        return
    DataSetEvaluation(
        directory=directory, profile=profile or "lite", shots=shots, seeds=numbers(seeds), limit=limit,
        is_complete=complete, variants=variants_of(matchers, strategies, min_score, has_classifier=classifier),
        positional_ranks=numbers(positional_ranks) if positional_ranks else None,
        with_simulated_annotations=markings, with_refiner=refiner, is_joint=joint, labels=labels,
        json_file=json_file, markdown=markdown, sheets=sheets,
    ).run()  # fmt: skip


def _evaluate_phrases(
    directory: Path, phrases: Path, profile: str, shots: int, seeds: Sequence[int], limit: int | None
) -> dict[str, object]:
    from backend.evaluation.phrases import evaluate_phrases, read_phrases_file
    from backend.projects.model_host import load_configured, load_configured_text_encoder
    from backend.settings import load_settings

    settings, wanted = load_settings(profile=profile), read_phrases_file(phrases)
    text_encoder = load_configured_text_encoder(settings)
    engine = load_configured(settings, profile)
    return evaluate_phrases(directory, wanted, engine, text_encoder, shots=shots, seeds=seeds, limit=limit)


if __name__ == "__main__":
    typer.run(evaluate)
