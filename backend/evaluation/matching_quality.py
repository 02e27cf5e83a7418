"""Quality of each matcher before any segmenter: its posterior against the mask, on the patch grid."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.core.grid import mask_coverage
from backend.core.matchers import make_matcher
from backend.core.score_metrics import area_under_roc
from backend.core.types import MatcherName
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.datasets import draw_episode, find_classes, read_image, read_mask

_THRESHOLDS = np.arange(0.05, 1.0, 0.05, dtype=np.float32)


@dataclass(frozen=True)
class MatchingQuality:
    """Means over classes of the means over targets.

    Attributes:
        matcher: its name.
        shots: references per class.
        most_patches: bound of the memory bank; None: every patch.
        best_iou: with the best threshold of 19 for each target: how well the map ranks patches.
        iou: with the threshold 0.5.
        auroc: of the posterior against the patches that are mostly inside.
        posterior_error: mean distance to `posterior` with every patch.
        standard_error: mean of what the matcher itself states; 0 where it draws nothing.
        milliseconds: median of one match.
    """

    matcher: str
    shots: int
    most_patches: int | None
    best_iou: float
    iou: float
    auroc: float
    posterior_error: float
    standard_error: float
    milliseconds: float


@dataclass(frozen=True)
class _Score:
    best_iou: float
    iou: float
    auroc: float | None
    posterior_error: float
    standard_error: float
    seconds: float


def measure_quality(
    directory: Path,
    matchers: Sequence[MatcherName],
    *,
    seed: int = 0,
    shots: int = 1,
    targets: int = 2,
    banks: Sequence[int | None] = (None,),
    profile: str = "lite",
    load: Callable[[str], Softmatcher] = load_softmatcher,
) -> list[MatchingQuality]:
    """Match the targets of every class of a directory with each matcher.

    Args:
        directory: as for `evaluate`.
        matchers: names.
        seed: draws references and targets.
        shots: references per class.
        targets: up to this many per class.
        banks: bounds of the memory bank, each tried with every matcher; None keeps every patch.
        profile: which encoder.
        load: makes the engine (tests bring their own).

    Raises:
        BadInputError: no data set there.
    """
    engine = load(profile)
    scores: dict[tuple[MatcherName, int | None], dict[str, list[_Score]]] = {
        (name, most_patches): {} for most_patches in banks for name in matchers
    }
    for one in find_classes(directory):
        episode = draw_episode(one, shots=shots, seed=seed, limit=targets)
        references = []
        for path in episode.references:
            image = read_image(path)
            references.append(engine.describe(image, engine.encode(image), read_mask(path), is_complete=True))
        gathered = {
            most_patches: engine.gather(references, MatchOptions(bank_patches=most_patches or 2**31))
            for most_patches in {None, *banks}
        }
        for path in episode.targets:
            encoded = engine.encode(read_image(path))
            features = encoded.features.astype(np.float32)
            covered = mask_coverage(read_mask(path), (features.shape[0], features.shape[1])).flatten()
            patches = features.reshape(-1, features.shape[2])
            scale = engine.scale
            exact = make_matcher("posterior", scale)(gathered[None], patches).posterior
            for name, most_patches in scores:
                start = time.perf_counter()
                found = make_matcher(name, scale)(gathered[most_patches], patches)
                seconds = time.perf_counter() - start
                error = float(np.abs(found.posterior - exact).mean())
                score = _score(found.posterior, covered, error, found.error, seconds)
                scores[name, most_patches].setdefault(one.name, []).append(score)
    return [_summary(name, shots, most_patches, by_class) for (name, most_patches), by_class in scores.items()]


def _score(
    posterior: NDArray[np.float32], covered: NDArray[np.float32], error: float, standard_error: float, seconds: float
) -> _Score:
    best = max(soft_iou(posterior > threshold, covered) for threshold in _THRESHOLDS)
    auroc = area_under_roc(posterior.tolist(), (covered > 0.5).tolist())
    return _Score(best, soft_iou(posterior > 0.5, covered), auroc, error, standard_error, seconds)


def soft_iou(found: NDArray[np.bool_], covered: NDArray[np.float32]) -> float:
    """Return the IoU of found patches (T,) bool with a mask that covers `covered` (T,) of each; 1 if both empty."""
    shared = float(covered[found].sum())
    union = float(found.sum()) + float(covered.sum()) - shared
    return shared / union if union > 0 else 1.0


def _summary(name: str, shots: int, most_patches: int | None, by_class: dict[str, list[_Score]]) -> MatchingQuality:
    def mean(figure: Callable[[_Score], float | None]) -> float:
        per_class = [[value for one in some if (value := figure(one)) is not None] for some in by_class.values()]
        return statistics.fmean(statistics.fmean(values) for values in per_class if values)

    return MatchingQuality(
        name,
        shots,
        most_patches,
        best_iou=mean(lambda one: one.best_iou),
        iou=mean(lambda one: one.iou),
        auroc=mean(lambda one: one.auroc),
        posterior_error=mean(lambda one: one.posterior_error),
        standard_error=mean(lambda one: one.standard_error),
        milliseconds=1000 * statistics.median(one.seconds for some in by_class.values() for one in some),
    )
