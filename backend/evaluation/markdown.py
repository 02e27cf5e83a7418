"""Figures of an evaluation as Markdown tables."""

from collections.abc import Mapping, Sequence

from backend.evaluation.joint import JointSet, joint_to_json
from backend.evaluation.results import EvaluationResult
from backend.evaluation.variants import VariantsResult

_FIGURES = (
    "miou",
    "miou_std",
    "absent_false_positive_rate",
    "score_auroc",
    "calibration_error",
    "calibration_error_worst_third",
    "empty_answers",
    "targets",
    "seconds",
    "peak_mb",
)


def variants_to_markdown(result: VariantsResult) -> str:
    """Show the variants side by side: figures, milliseconds of each stage, mIoU of each set and class."""
    by_name = {name: one.to_json() for name, one in result.variants.items()}
    lines = [_row("figure", *by_name), _row("---", *("---:" for _ in by_name))]
    lines += [_row(figure, *(_number(figures[figure]) for figures in by_name.values())) for figure in _FIGURES]
    for name, value in result.simulated_annotations.items():
        lines.append(_row(f"miou from {name}", _number(value), *("" for _ in list(by_name)[1:])))
    stages = dict.fromkeys(stage for one in result.variants.values() for stage in one.stages_ms)
    lines += [
        _row(f"{stage}, median ms", *(_stage(one, stage) for one in result.variants.values())) for stage in stages
    ]
    lines += ["", _row("set / class", *by_name), _row("---", *("---:" for _ in by_name))]
    first = next(iter(result.variants.values()))
    for set_name in dict.fromkeys(name.split("/")[0] for name in first.classes):
        lines.append(
            _row(f"**{set_name}**", *(f"**{_of(figures, 'sets', set_name)}**" for figures in by_name.values()))
        )
        for name in first.classes:
            if name.split("/")[0] == set_name:
                lines.append(_row(name, *(_of(figures, "classes", name) for figures in by_name.values())))
    return "\n".join(lines) + "\n"


def joint_to_markdown(results: Sequence[JointSet]) -> str:
    """Show labels together beside each alone: a row per set, then means by number of labels."""
    figures = joint_to_json(results)
    header = ("several labels", "labels", "mIoU alone", "together", "loss", "wrong labels per image")
    lines = [_row(*header), _row("---", *("---:" for _ in header[1:]))]
    lines += [_joint_row(one.name, one.labels, one.to_json()) for one in sorted(results, key=_exclusive_first)]
    together = figures["occurring_together"]
    for name, group in (
        ("mean of labels that exclude each other", figures),
        ("mean of labels that occur together", together),
    ):
        by_labels = group["by_labels"] if isinstance(group, Mapping) else {}
        assert isinstance(by_labels, Mapping)
        lines += [_joint_row(f"**{name}**", int(count), means) for count, means in by_labels.items()]
    return "\n".join(lines) + "\n"


def _exclusive_first(one: JointSet) -> tuple[bool, str]:
    return not one.is_exclusive, one.name


def _joint_row(name: str, labels: int, figures: Mapping[str, object]) -> str:
    keys = ("alone_miou", "miou", "loss", "wrong_labels_per_image")
    return _row(name, str(labels), *(_number(figures[key]) for key in keys))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if isinstance(value, float) else "-"


def _stage(one: EvaluationResult, stage: str) -> str:
    return f"{one.stages_ms[stage]:.1f}" if stage in one.stages_ms else "-"


def _of(figures: Mapping[str, object], group: str, name: str) -> str:
    values = figures[group]
    return _number(values.get(name)) if isinstance(values, Mapping) else "-"
