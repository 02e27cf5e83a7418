"""A scribble or a score map as SAM's prompts: points, a box, a mask input."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask, Scribble

POSITIVE, NEGATIVE = 1, 0
"""SAM's point labels. -1 is not a background point: it is no point at all."""
LARGEST_LOGIT = 8.0
"""Of a mask input. SAM's own low-resolution logits, which it was trained with, are of this size."""
STROKE_POINTS = 6
"""Points that stand for a stroke."""


@dataclass(frozen=True, eq=False)
class SamPrompt:
    """One prompt in SAM's input frame.

    Attributes:
        points_xy: (P, 2) float32, px; a pixel's index is its centre, as SAM has it.
        point_labels: (P,) float32, `POSITIVE` or `NEGATIVE`.
        box_xyxy: (4,) float32, px, or None.
        mask_logits: (256, 256) float32 in the logits frame, or None.
    """

    points_xy: NDArray[np.float32]
    point_labels: NDArray[np.float32]
    box_xyxy: NDArray[np.float32] | None = None
    mask_logits: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, bool, bool]:
        """Return what has to be equal for prompts to share a pass."""
        return len(self.points_xy), self.box_xyxy is not None, self.mask_logits is not None

    @property
    def is_ambiguous(self) -> bool:
        """Return whether the prompt is a lone point, which may mean a part or the whole."""
        return len(self.points_xy) <= 1 and self.box_xyxy is None and self.mask_logits is None


def scribble_to_prompts(
    scribble: Scribble,
    input_hw: tuple[int, int],
    *,
    mask_logits: NDArray[np.float32] | None = None,
    most_points: int = 16,
) -> list[SamPrompt]:
    """Return a prompt for each box (with the points in it), and one for the points that are in none.

    Args:
        scribble: in a frame of the image's aspect ratio.
        input_hw: the image in SAM's input frame.
        mask_logits: goes along with every prompt.
        most_points: positives and negatives of one prompt, each, thinned to those far from each other.

    Returns:
        [] for a scribble without anything positive.
    """
    height, width = scribble.size_hw
    # Pixel (x, y) covers [x, x + 1) here, while SAM names a pixel by its index and adds the half itself.
    factor = np.array([input_hw[1] / width, input_hw[0] / height], np.float32)
    positive = np.concatenate([scribble.positive_xy, _stroke_points(scribble.positive_strokes)]) * factor - 0.5
    negative = np.concatenate([scribble.negative_xy, _stroke_points(scribble.negative_strokes)]) * factor - 0.5
    boxes = scribble.boxes_xyxy * np.tile(factor, 2) - 0.5
    prompts, is_boxed = [], np.zeros(len(positive), bool)
    for box in boxes:
        is_inside, is_negative_inside = _is_in(positive, box), _is_in(negative, box)
        is_boxed |= is_inside
        prompts.append(
            _prompt(positive[is_inside], negative[is_negative_inside], box.astype(np.float32), mask_logits, most_points)
        )
    if not is_boxed.all():
        prompts.append(_prompt(positive[~is_boxed], negative, None, mask_logits, most_points))
    return prompts


def prior_to_logits(
    prior: NDArray[np.float32], input_hw: tuple[int, int], *, input_px: int, logits_px: int
) -> NDArray[np.float32]:
    """Turn a score map into SAM's mask input: log-odds, bounded, the padding certainly outside.

    Args:
        prior: (h, w) float32 in [0, 1], over the whole image.
        input_hw: the image in the input frame.
        input_px: side of the padded input.
        logits_px: side of the logits frame.
    """
    inside_hw = logits_hw(input_hw, input_px=input_px, logits_px=logits_px)
    resized = cv2.resize(prior, (inside_hw[1], inside_hw[0]), interpolation=cv2.INTER_AREA)
    edge = 1 / (1 + np.exp(LARGEST_LOGIT))
    bounded = np.clip(resized, edge, 1 - edge)
    logits = np.full((logits_px, logits_px), -LARGEST_LOGIT, np.float32)
    logits[: inside_hw[0], : inside_hw[1]] = np.log(bounded / (1 - bounded))
    return logits


def logits_hw(input_hw: tuple[int, int], *, input_px: int, logits_px: int) -> tuple[int, int]:
    """Return the size of the image in the logits frame."""
    height, width = (min(logits_px, max(1, round(side * logits_px / input_px))) for side in input_hw)
    return height, width


def points_by_object(
    scribbles: Sequence[Scribble], prior: NDArray[np.float32]
) -> list[tuple[list[int], Scribble, float]]:
    """Join the positive points of several scribbles by the piece of a score map that they lie on.

    Args:
        scribbles: in the score map's frame; only their points count.
        prior: (h, w) float32 in [0, 1]; a piece is what is connected above 0.5.

    Returns:
        For each piece with points, those with the most of the score map first: the indices of the scribbles with a
        point on it, the points, and how much of the score map it holds against the first. Points where nothing is
        supported are left out.
    """
    height, width = prior.shape
    is_supported = prior > 0.5
    pieces = cv2.connectedComponents(is_supported.astype(np.uint8), connectivity=8)[1]
    mass = np.bincount(pieces[is_supported], weights=prior[is_supported])
    points: dict[int, list[NDArray[np.float32]]] = {}
    owners: dict[int, list[int]] = {}
    for index, scribble in enumerate(scribbles):
        for x, y in scribble.positive_xy:
            piece = int(pieces[min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)])
            if piece:
                points.setdefault(piece, []).append(np.array([x, y], np.float32))
                owners.setdefault(piece, []).append(index)
    by_mass = sorted(points, key=lambda piece: float(mass[piece]), reverse=True)
    return [
        (
            sorted(set(owners[piece])),
            Scribble((height, width), positive_xy=np.stack(points[piece])),
            float(mass[piece] / mass[by_mass[0]]),
        )
        for piece in by_mass
    ]


def uncovered_points(scribble: Scribble, masks: Sequence[Mask]) -> Scribble | None:
    """Return the scribble's key points that no mask covers, with its negatives; None if all are covered."""
    if not masks or not len(scribble.positive_xy):
        return None
    covered = np.asarray(np.stack(masks).any(axis=0))
    height, width = covered.shape
    x = np.clip(scribble.positive_xy[:, 0].astype(int), 0, width - 1)
    y = np.clip(scribble.positive_xy[:, 1].astype(int), 0, height - 1)
    is_missed = np.array([not covered[row, column] for row, column in zip(y, x, strict=True)])
    if not is_missed.any():
        return None
    return Scribble(
        scribble.size_hw,
        positive_xy=scribble.positive_xy[is_missed],
        negative_xy=scribble.negative_xy,
        negative_strokes=scribble.negative_strokes,
    )


def _prompt(
    positive: NDArray[np.float32],
    negative: NDArray[np.float32],
    box: NDArray[np.float32] | None,
    mask_logits: NDArray[np.float32] | None,
    most_points: int,
) -> SamPrompt:
    positive, negative = _spread(positive, most_points), _spread(negative, most_points)
    labels = np.concatenate([np.full(len(positive), POSITIVE), np.full(len(negative), NEGATIVE)])
    points = np.concatenate([positive, negative]).astype(np.float32)
    return SamPrompt(points, labels.astype(np.float32), box, mask_logits)


def _is_in(points_xy: NDArray[np.float32], box_xyxy: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(((points_xy >= box_xyxy[:2]) & (points_xy <= box_xyxy[2:])).all(axis=1))


def _stroke_points(strokes: Mask | None) -> NDArray[np.float32]:
    """Return (N, 2) float32: pixel centres of a stroke that are deep in it and far from each other."""
    if strokes is None or not strokes.any():
        return np.zeros((0, 2), np.float32)
    depth = cv2.distanceTransform(np.pad(strokes, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.nonzero(strokes & (depth >= 0.7 * np.median(depth[strokes])))
    return _spread(np.stack([x + 0.5, y + 0.5], axis=1).astype(np.float32), STROKE_POINTS)


def _spread(points_xy: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Return up to `most` of the points: the one nearest to their middle, then always the farthest from those taken."""
    if len(points_xy) <= most:
        return points_xy
    chosen = [int(np.square(points_xy - points_xy.mean(axis=0)).sum(axis=1).argmin())]
    distance = np.square(points_xy - points_xy[chosen[0]]).sum(axis=1)
    while len(chosen) < most:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(points_xy - points_xy[chosen[-1]]).sum(axis=1))
    return points_xy[chosen]
