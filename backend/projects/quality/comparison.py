"""Ways to match, side by side on a project's own images, and which of them suits it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from backend.core.types import Json, MatcherName
from backend.engine.options import MatchOptions
from backend.errors import BadInputError
from backend.projects.quality.left_out import Trial, mean_value

COMPARABLE = ("matchers", "min_score", "profiles")
"""What can be compared."""
COMPARED_MATCHERS: tuple[MatcherName, ...] = ("posterior", "softmatcher", "softmatcher-rff", "sinkhorn", "prototype")
"""All but `hungarian`, which takes seconds per image and label."""
COMPARED_SCORES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6)
LEAST_GAIN = 0.01
"""Gain in mean value from which on another way is recommended, if it is more than its own standard error as well."""


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to match.

    Attributes:
        kind: of `COMPARABLE`.
        name: value of the setting.
        options: of the matching.
        setting: extra param of the ML backend that sets it; None for a profile, which the whole service has.
    """

    kind: str
    name: str
    options: MatchOptions
    setting: Json | None


def variants_of(kinds: Sequence[str], options: MatchOptions) -> list[Variant]:
    """Return the ways to match that are compared, without profiles: those need other models.

    Raises:
        BadInputError: something that cannot be compared.
    """
    unknown = sorted(set(kinds) - set(COMPARABLE))
    if unknown:
        raise BadInputError(f"expected any of {', '.join(COMPARABLE)} to compare, got {', '.join(unknown)}")
    found = []
    if "matchers" in kinds:
        names: list[MatcherName] = list(dict.fromkeys((options.matcher, *COMPARED_MATCHERS)))
        found += [Variant("matchers", name, replace(options, matcher=name), {"matcher": name}) for name in names]
    if "min_score" in kinds:
        scores = sorted({options.minimum_score, *COMPARED_SCORES})
        found += [
            Variant("min_score", f"{score:g}", replace(options, minimum_score=score), {"min_score": score})
            for score in scores
        ]
    return found


def compare(own: Sequence[Trial], others: Mapping[Variant, Sequence[Trial]], *, current: Mapping[str, str]) -> Json:
    """Return the figures of every variant beside the present one, and what is recommended.

    Args:
        own: trials with the present options.
        others: variant -> trials of the same images.
        current: kind -> name of the present one.

    Returns:
        `variants`: a list with `kind`, `name`, `value`, `miou`, `false_finds`, `gain`, `error` (standard error of the
        gain), `is_current`; `recommended`: kind -> name, only where it is better; `settings`: the extra params that set
        it; `notes`: what could not be told.
    """
    notes = []
    has_absent = any(one.is_present is False for one in own)
    if any(variant.kind == "min_score" for variant in others) and not has_absent:
        notes.append(
            "min_score: no annotated image is known to lack a label, so nothing says what a higher one would save; "
            "submit an empty annotation on a few images without the object"
        )
    rows: list[Json] = []
    recommended: dict[str, tuple[float, str, Json | None]] = {}
    for variant, trials in others.items():
        gain, error = _gain(own, trials)
        is_current = current.get(variant.kind) == variant.name
        rows.append(
            {
                "kind": variant.kind, "name": variant.name,
                "value": _rounded(mean_value(trials, lambda one: one.value)),
                "miou": _rounded(mean_value(trials, lambda one: one.iou)),
                "false_finds": sum(one.is_present is False and one.score is not None for one in trials),
                "gain": round(gain, 3), "error": round(error, 3), "is_current": is_current,
            }
        )  # fmt: skip
        is_better = gain >= LEAST_GAIN and gain > error
        if is_better and gain > recommended.get(variant.kind, (0.0, "", None))[0]:
            recommended[variant.kind] = gain, variant.name, variant.setting
    settings: Json = {}
    for _, _, setting in recommended.values():
        settings |= setting or {}
    return {
        "variants": rows,
        "recommended": {kind: name for kind, (_, name, _) in recommended.items()},
        "settings": settings,
        "notes": notes,
    }


def _gain(own: Sequence[Trial], others: Sequence[Trial]) -> tuple[float, float]:
    """Return the mean difference of the values, image by image, and its standard error."""
    before, after = _by_image(own), _by_image(others)
    differences = [after[key] - before[key] for key in before if key in after]
    if not differences:
        return 0.0, 0.0
    error = float(np.std(differences, ddof=1) / np.sqrt(len(differences))) if len(differences) > 1 else float("inf")
    return float(np.mean(differences)), error if np.isfinite(error) else 1.0


def _by_image(trials: Sequence[Trial]) -> dict[tuple[int, str], float]:
    values: dict[tuple[int, str], list[float]] = {}
    for one in trials:
        if one.value is not None:
            values.setdefault((one.task_id, one.image_tag), []).append(one.value)
    return {key: float(np.mean(some)) for key, some in values.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
