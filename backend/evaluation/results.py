"""Figures of an evaluation: what single targets reached, and the means that a run is known by."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from backend.core.score_metrics import area_under_roc, calibration_error, calibration_errors, worst_third

GOOD_IOU = 0.5
OnProgress = Callable[[str, int, int], None]
"""Called with what is being worked on, classes done, classes in all."""


@dataclass(frozen=True)
class TargetScore:
    """The result of one target.

    Attributes:
        seed: of the draw.
        target: `set/class/file`.
        iou: at original size; an empty answer has 0 unless the mask is empty too.
        score: what the pipeline expected; None where it returned nothing.
    """

    seed: int
    target: str
    iou: float
    score: float | None


@dataclass(frozen=True)
class EvaluationResult:
    """Figures of one run; `to_json` names them for others.

    Attributes:
        classes: `set/class` to its targets, over all seeds.
        absent: for each pair of a reference and an image without its object: did a region come back.
        refined: `set/class` to the share of its seeds whose references switched a refiner on.
        stages_ms: stage to the median milliseconds of an image.
        settings: what was run.
        seconds: wall time.
        peak_mb: highest resident memory of the process so far.
    """

    classes: Mapping[str, Sequence[TargetScore]]
    absent: Sequence[bool]
    refined: Mapping[str, float]
    stages_ms: Mapping[str, float]
    settings: Mapping[str, object]
    seconds: float
    peak_mb: float

    def miou(self, seed: int | None = None) -> float:
        """Return the mean over classes of the mean over targets (of one seed, or of all)."""
        return statistics.fmean(self.class_mious(seed).values())

    def class_mious(self, seed: int | None = None) -> dict[str, float]:
        """Return `set/class` to the mean IoU of its targets."""
        return {
            name: statistics.fmean(one.iou for one in targets if seed is None or one.seed == seed)
            for name, targets in self.classes.items()
        }

    def to_json(self) -> dict[str, object]:
        """Return the figures as JSON values."""
        per_class = self.class_mious()
        seeds = sorted({one.seed for targets in self.classes.values() for one in targets})
        per_seed = [self.miou(seed) for seed in seeds]
        set_names = sorted({name.split("/")[0] for name in per_class})
        targets = [one for targets in self.classes.values() for one in targets]
        returned = [(one.score, one.iou) for one in targets if one.score is not None]
        by_set: dict[str, list[tuple[float, float]]] = {}
        for name, some in self.classes.items():
            by_set.setdefault(name.split("/")[0], []).extend(
                (one.score, one.iou) for one in some if one.score is not None
            )
        of_sets = calibration_errors(by_set)
        return {
            "miou": self.miou(),
            "miou_std": statistics.pstdev(per_seed),
            "miou_per_seed": dict(zip(map(str, seeds), per_seed, strict=True)),
            "sets": {
                name: statistics.fmean(value for key, value in per_class.items() if key.split("/")[0] == name)
                for name in set_names
            },
            "classes": per_class,
            "absent_false_positive_rate": statistics.fmean(self.absent) if self.absent else None,
            "absent_pairs": len(self.absent),
            "score_auroc": area_under_roc(
                [one.score or 0.0 for one in targets], [one.iou > GOOD_IOU for one in targets]
            ),
            "calibration_error": calibration_error(
                [score for score, _ in returned], [reached for _, reached in returned]
            ),
            "refined": {name: share for name, share in self.refined.items() if share},
            "calibration_error_sets": of_sets,
            "calibration_error_worst_third": worst_third(list(of_sets.values())),
            "empty_answers": len(targets) - len(returned),
            "targets": len(targets),
            "stages_ms": dict(self.stages_ms),
            "seconds": self.seconds,
            "peak_mb": self.peak_mb,
            "settings": dict(self.settings),
            "scores": {name: [asdict(one) for one in targets] for name, targets in self.classes.items()},
        }
