"""Which of SAM's masks a score map supports."""

import hashlib
import json
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask


@dataclass(frozen=True)
class SelectionOptions:
    """Thresholds, none of them tuned: no SAM weights were at hand when they were set.

    Attributes:
        minimum_iou: SAM's predicted IoU below which a mask is dropped.
        minimum_contrast: least difference of the score map's mean inside a mask and in a ring around it.
        ring_percent: width of that ring, percent of the longer side of the frame.
        minimum_prior: least mean of the score map inside a mask.
    """

    minimum_iou: float = 0.5
    minimum_contrast: float = 0.1
    ring_percent: float = 4.0
    minimum_prior: float = 0.35

    def digest(self) -> str:
        """Six hex digits that change with any threshold: part of the segmenter's signature."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:6]


@dataclass(frozen=True, eq=False)
class Selected:
    """Which of the masks, and its score in [0, 1]: SAM's predicted IoU, less what the score map does not support."""

    index: int
    score: float


def select_by_prior(
    masks: NDArray[np.bool_],
    predicted_iou: NDArray[np.float32],
    prior: NDArray[np.float32],
    options: SelectionOptions,
) -> Selected | None:
    """The mask that fits a score map best, or None if none does.

    Of one prompt's masks, parts and wholes of one thing, the best is the one with the highest predicted IoU times soft
    IoU with the score map, `sum(q in m) / (|m| + sum(q outside m))`.

    Args:
        masks: (C, h, w) bool.
        predicted_iou: (C,) float32.
        prior: (h, w) float32 in [0, 1].
        options: thresholds.
    """
    best: Selected | None = None
    best_fit = 0.0
    total = float(prior.sum())
    for index, (mask, opinion) in enumerate(zip(masks, predicted_iou, strict=True)):
        area = int(np.count_nonzero(mask))
        if area == 0 or opinion < options.minimum_iou:
            continue
        shared = float(prior[mask].sum())
        inside = shared / area
        if inside < options.minimum_prior or inside - _mean_around(mask, prior, options) < options.minimum_contrast:
            continue
        fit = float(opinion) * shared / (area + total - shared)
        if fit > best_fit:
            best_fit = fit
            best = Selected(index, float(np.clip(opinion, 0.0, 1.0)) * inside)
    return best


def _mean_around(mask: Mask, prior: NDArray[np.float32], options: SelectionOptions) -> float:
    """Mean of the score map in a ring around a mask; 0 for a mask that leaves none."""
    width_px = max(1, round(options.ring_percent / 100 * max(mask.shape)))
    # A wide kernel is slow at full size, and the ring need not be exact.
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * width_px + 1, 2 * width_px + 1))
    ring = (cv2.dilate(mask.astype(np.uint8), kernel) > 0) & ~mask
    return float(prior[ring].mean()) if ring.any() else 0.0
