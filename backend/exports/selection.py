"""Which annotations or predictions of a task are exported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.core.types import Json
from backend.exports.options import ExportOptions
from backend.exports.records import LeftOut

_SHAPES = (
    "keypoint", "keypointlabels", "rectangle", "rectanglelabels", "polygon", "polygonlabels", "ellipse",
    "ellipselabels", "bitmask", "bitmasklabels", "vector", "vectorlabels",
)  # fmt: skip
"""Regions that mark a place on an image; not all of them are masks."""


@dataclass(frozen=True)
class Chosen:
    """One annotation or prediction that is exported.

    Attributes:
        found: as Label Studio gives it.
        is_prediction: what it is.
        result: its regions, without those below the lowest score.
    """

    found: Json
    is_prediction: bool
    result: tuple[Json, ...]

    def score_of(self, region_id: str) -> float | None:
        """Return the region's own score, else that of its prediction."""
        for region in self.result:
            if str(region.get("id")) == region_id:
                return _score(region, self.found)
        return _score({}, self.found)


def choose(
    task: Mapping[str, Any],
    options: ExportOptions,
    *,
    is_mask: Callable[[Json], bool],
    is_background: Callable[[Json], bool],
) -> tuple[list[Chosen], list[LeftOut]]:
    """Choose what of a task is exported, and what is not although there is something.

    A task of which nothing is exported is not in the data set: nobody said that there is nothing on its image. An
    annotation without regions says so, and its image is exported without objects. One with key points or boxes but no
    brush mask says that there is something and not where it ends: it is left out, or its task's prediction taken. So
    is one that marks background only: it says what no object is.

    Args:
        task: as Label Studio gives it, with annotations and predictions.
        options: of the export.
        is_mask: returns whether a region is a mask.
        is_background: returns whether a mask marks background and nothing else.
    """
    task_id = int(task["id"])
    left_out: list[LeftOut] = []
    if options.source != "predictions":
        taken = _annotations(task, task_id, options, is_mask, is_background, left_out)
        if taken or options.source == "annotations":
            return taken, left_out
    return _predictions(task, task_id, options, left_out), left_out


def _annotations(
    task: Mapping[str, Any],
    task_id: int,
    options: ExportOptions,
    is_mask: Callable[[Json], bool],
    is_background: Callable[[Json], bool],
    left_out: list[LeftOut],
) -> list[Chosen]:
    usable: list[Json] = []
    for annotation in task.get("annotations") or ():
        if annotation.get("was_cancelled"):
            continue
        brushed = [each for each in _regions(annotation) if is_mask(each)]
        is_masked = not all(map(is_background, brushed))
        types = {str(each.get("type")).lower() for each in _regions(annotation) if not is_mask(each)}
        shapes = sorted(types & set(_SHAPES))
        if brushed and not is_masked and not shapes:
            message = f"annotation {annotation['id']} says what no object is, not that there is none"
            left_out.append(LeftOut(task_id, "background only", message))
            continue
        if not is_masked and shapes:
            message = f"annotation {annotation['id']} has no mask but {', '.join(shapes)}"
            left_out.append(LeftOut(task_id, "annotation without a mask", message))
            continue
        usable.append(annotation)
    usable.sort(key=lambda each: (bool(each.get("ground_truth")), str(each.get("updated_at")), int(each["id"])))
    if options.annotators == "newest" and len(usable) > 1:
        others = ", ".join(str(each["id"]) for each in usable[:-1])
        left_out.append(LeftOut(task_id, "further annotation of the same task", f"annotations {others}"))
        usable = usable[-1:]
    usable.sort(key=lambda each: int(each["id"]))
    return [Chosen(each, False, _regions(each)) for each in usable]


def _predictions(
    task: Mapping[str, Any], task_id: int, options: ExportOptions, left_out: list[LeftOut]
) -> list[Chosen]:
    predictions: Sequence[Json] = task.get("predictions") or ()
    if not predictions:
        return []
    newest = max(predictions, key=lambda each: int(each["id"]))
    regions = _regions(newest)
    kept = tuple(each for each in regions if _is_sure(_score(each, newest), options.min_score))
    if len(kept) < len(regions):
        message = f"{len(regions) - len(kept)} regions of prediction {newest['id']} below {options.min_score:g}"
        left_out.append(LeftOut(task_id, "prediction below the score", message))
    is_empty_and_sure = not regions and _is_sure(_score({}, newest), options.min_score)
    return [Chosen(newest, True, kept)] if kept or is_empty_and_sure else []


def _regions(found: Json) -> tuple[Json, ...]:
    return tuple(each for each in found.get("result") or () if isinstance(each, dict))


def _score(region: Json, found: Json) -> float | None:
    for score in (region.get("score"), found.get("score")):
        if isinstance(score, int | float) and not isinstance(score, bool):
            return float(score)
    return None


def _is_sure(score: float | None, min_score: float) -> bool:
    return min_score <= 0 or (score is not None and score >= min_score)
