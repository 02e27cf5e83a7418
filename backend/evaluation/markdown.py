"""Figures of an evaluation as Markdown tables."""

from collections.abc import Mapping

from backend.evaluation.run import EvaluationResult
from backend.evaluation.variants import VariantsResult

_FIGURES = (
    "miou",
    "miou_std",
    "absent_false_positive_rate",
    "score_auroc",
    "calibration_error",
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
