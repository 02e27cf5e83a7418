"""Figures of a project's quality, and the words for them."""

import base64
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image as PillowImage

from backend.core.score_metrics import calibration_error
from backend.core.types import Json, Mask
from backend.projects.quality.left_out import Trial, label_means

WORDS = ((0.85, "good: check a few"), (0.7, "usable: correct some"), (0.5, "correct most"))
"""Least mean IoU, and what it means to those who use the masks."""
LOWEST_WORD = "not usable yet: add references"
SECOND_IMAGE = "needs a second image"
OFF_BY = 0.05
"""Difference of mean score and mean IoU from which on the score is said to be too high or too low."""
FEWEST_REGIONS = 5
"""Number of regions from which on the score is compared with the IoU."""
WORST = 6
"""Number of worst cases that are kept."""
_PICTURE_PX = 320
"""Longer side of the masks that are kept for pictures."""


def word_for(miou: float | None) -> str:
    """Return what a label's mean IoU means, in words; None: there was nothing to compare with."""
    if miou is None:
        return SECOND_IMAGE
    return next((word for least, word in WORDS if miou >= least), LOWEST_WORD)


def label_figures(
    images: Mapping[str, int], references: Mapping[str, int], trials: Sequence[Trial], growth: Mapping[str, Json]
) -> Json:
    """Return the figures of each label, see `Quality.estimate`.

    Args:
        images: label -> number of images that it is marked on.
        references: label -> number of references.
        trials: of all labels.
        growth: label -> number of reference images -> mean IoU.
    """
    means = label_means(trials, lambda one: one.iou)
    figures: Json = {}
    for label in sorted(images):
        own = [one for one in trials if one.label == label]
        miou = means.get(label)
        figures[label] = {
            "references": references[label],
            "images": images[label],
            "tried": sum(one.is_present is True for one in own),
            "iou": None if miou is None else round(miou, 3),
            "word": word_for(miou),
            "false_finds": _false_finds(own),
            "growth": growth.get(label, {}),
        }
    return figures


def _false_finds(trials: Sequence[Trial]) -> Json:
    absent = [one for one in trials if one.is_present is False]
    unknown = [one for one in trials if one.is_present is None]
    return {
        "found": sum(one.score is not None for one in absent),
        "of": len(absent),
        "unmarked_found": sum(one.score is not None for one in unknown),
        "unmarked_of": len(unknown),
    }


def score_figures(trials: Sequence[Trial]) -> Json:
    """Return how far the score can be believed: regions of labels that are there, and false finds with an IoU of 0."""
    found = [(one.score, one.iou or 0.0) for one in trials if one.score is not None and one.is_present is not None]
    scores, reached = [score for score, _ in found], [value for _, value in found]
    error = calibration_error(scores, reached)
    figures: Json = {"regions": len(found), "error": None, "mean_score": None, "mean_iou": None}
    if len(found) < FEWEST_REGIONS or error is None:
        return {**figures, "summary": f"too few regions to compare ({len(found)}, at least {FEWEST_REGIONS})"}
    mean_score, mean_iou = float(np.mean(scores)), float(np.mean(reached))
    difference = mean_score - mean_iou
    if abs(difference) < OFF_BY:
        summary = "on average the score is right"
    else:
        summary = f"the score is {abs(difference):.2f} too {'high' if difference > 0 else 'low'} on average"
    rounded = {"error": round(error, 3), "mean_score": round(mean_score, 3), "mean_iou": round(mean_iou, 3)}
    return {**figures, **rounded, "summary": summary}


def worst_cases(trials: Sequence[Trial]) -> list[Json]:
    """Return the trials with the lowest value, with their masks for pictures; false finds have an IoU of 0."""
    counted = [one for one in trials if one.value is not None and one.value < 1.0]
    counted.sort(key=lambda one: (one.value, one.task_id, one.label))
    return [
        {
            "task": one.task_id,
            "image": one.image_tag,
            "label": one.label,
            "iou": round(one.iou or 0.0, 3),
            "score": None if one.score is None else round(one.score, 3),
            "what": _what(one),
            "found": pack_mask(one.found),
            "marked": pack_mask(one.marked),
        }
        for one in counted[:WORST]
    ]


def _what(trial: Trial) -> str:
    if not trial.is_present:
        return "found, but not there"
    return "not found" if trial.score is None else "found elsewhere" if not trial.iou else "found in part"


def pack_mask(mask: Mask) -> str:
    """Return a mask, made smaller for pictures, as text."""
    picture = PillowImage.fromarray(mask.astype(np.uint8) * 255)
    picture.thumbnail((_PICTURE_PX, _PICTURE_PX))
    small = np.asarray(picture) > 127
    packed = zlib.compress(np.packbits(small).tobytes(), 9)
    return f"{small.shape[0]}x{small.shape[1]}:{base64.b64encode(packed).decode()}"


def unpack_mask(text: str) -> Mask:
    """Return the small mask that `pack_mask` made text of, (h, w) bool."""
    size, _, content = text.partition(":")
    height, width = (int(side) for side in size.split("x"))
    bits = np.frombuffer(zlib.decompress(base64.b64decode(content)), np.uint8)
    return np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)


def without_masks(figures: Json) -> Json:
    """Return the figures as programs get them: without the masks of the worst cases."""
    hidden = ("found", "marked")
    worst = [{name: value for name, value in case.items() if name not in hidden} for case in figures.get("worst") or ()]
    return {**figures, "worst": worst}


def summary_of(figures: Json) -> str:
    """Return one line per project: each label with its IoU and what was tried."""
    parts = []
    for label, one in figures["labels"].items():
        count = one["images"]
        tried = f"{one['iou']:.2f}, {count} images" if one["iou"] is not None else ""
        parts.append(f"{label} {tried}" if tried else f"{label}: {SECOND_IMAGE}")
    return "; ".join(parts) or "no references yet"
