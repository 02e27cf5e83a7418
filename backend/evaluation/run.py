"""Few-shot evaluation of a profile: draws references, segments the other images of their class, measures the masks."""

import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from backend.core.masks import iou
from backend.core.matching import ReferenceBank
from backend.core.score_metrics import area_under_roc, calibration_error, calibration_errors, worst_third
from backend.core.types import EncodedImage, Reference
from backend.engine.fine_features import needs_fine
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.datasets import (
    ImageClass,
    draw_absent_target,
    draw_episode,
    find_classes,
    read_image,
    read_mask,
)

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


class StageClock:
    """Collects stage timings from any thread: pass `record` as a pipeline's `on_stage`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, list[float]] = {}

    def record(self, stage: str, seconds: float) -> None:
        """Keep one timing."""
        with self._lock:
            self._seconds.setdefault(stage, []).append(seconds)

    def medians_ms(self) -> dict[str, float]:
        """Return stage to the median of its timings, in milliseconds."""
        with self._lock:
            return {stage: 1000 * statistics.median(values) for stage, values in self._seconds.items()}


def evaluate(
    directory: Path,
    *,
    profile: str = "lite",
    shots: int = 1,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    options: MatchOptions | None = None,
    is_complete: bool = True,
    on_progress: OnProgress | None = None,
    load: Callable[[str, Callable[[str, float], None]], Softmatcher] = load_softmatcher,
) -> EvaluationResult:
    """Run a profile over all classes of a directory.

    Args:
        directory: `<set>/<class>/<n>.jpg` with `<n>.png`.
        profile: which models.
        shots: references per class.
        seeds: each draws other references; every image is encoded once for all of them.
        limit: up to this many targets per class and seed.
        options: of the matching; None for the profile's own.
        is_complete: the masks of the data set are all there is of the class on their images.
        on_progress: called before each class and at the end.
        load: makes the engine (tests bring their own).

    Raises:
        BadInputError: no data set there, shots or limit below 1, no seeds.
    """
    start = time.perf_counter()
    classes = find_classes(directory)
    clock = StageClock()
    engine = load(profile, clock.record)
    scores: dict[str, list[TargetScore]] = {}
    absent: list[bool] = []
    for index, one in enumerate(classes):
        if on_progress is not None:
            on_progress(one.name, index, len(classes))
        images = ClassImages(engine, is_complete=is_complete)
        scores[one.name] = []
        for seed in seeds:
            episode = draw_episode(one, shots=shots, seed=seed, limit=limit)
            bank = engine.gather([images.reference(path) for path in episode.references], options)
            references = {one.class_name: bank}
            for path in episode.targets:
                found = engine.segment(images.target(path, references), references, options)
                truth = read_mask(path)
                reached = iou(found[0].mask, truth) if found else float(not truth.any())
                name = f"{one.name}/{path.name}"
                scores[one.name].append(TargetScore(seed, name, reached, found[0].score if found else None))
            absent += _absent_answers(engine, one, classes, references, seed, options)
    if on_progress is not None:
        on_progress("done", len(classes), len(classes))
    settings = {
        "profile": profile,
        "shots": shots,
        "seeds": list(seeds),
        "limit": limit,
        "is_complete": is_complete,
        "signature": engine.signature,
        "options": asdict(options or MatchOptions()),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return EvaluationResult(scores, absent, {}, clock.medians_ms(), settings, time.perf_counter() - start, peak_mb)


def _absent_answers(
    engine: Softmatcher,
    one: ImageClass,
    classes: Sequence[ImageClass],
    references: Mapping[str, ReferenceBank],
    seed: int,
    options: MatchOptions | None,
) -> list[bool]:
    target = draw_absent_target(one, classes, seed=seed)
    if target is None:
        return []
    image = read_image(target)
    return [bool(engine.segment(engine.encode(image), references, options, pixels=image))]


class ClassImages:
    """The encoded images and described references of one class, each made once."""

    def __init__(self, engine: Softmatcher, *, is_complete: bool) -> None:
        self._engine = engine
        self._is_complete = is_complete
        self._encoded: dict[Path, EncodedImage] = {}
        self._references: dict[Path, Reference] = {}

    def encoded(self, path: Path) -> EncodedImage:
        """Return an image of the class, encoded."""
        if path not in self._encoded:
            self._encoded[path] = self._engine.encode(read_image(path))
        return self._encoded[path]

    def target(self, path: Path, references: Mapping[str, ReferenceBank]) -> EncodedImage:
        """Return an image of the class, encoded, as matching these references needs it."""
        encoded = self.encoded(path)
        if encoded.fine_features is None and needs_fine(references):
            encoded = self._encoded[path] = self._engine.add_fine_features(encoded, read_image(path))
        return encoded

    def reference(self, path: Path) -> Reference:
        """Return the reference made of an image and its mask."""
        if path not in self._references:
            image, mask = read_image(path), read_mask(path)
            self._references[path] = self._engine.describe(
                image, self.encoded(path), mask, is_complete=self._is_complete
            )
        return self._references[path]
