"""Simulates what a user marks instead of a complete mask: points and strokes in it, or one object of several."""

import random
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask, Scribble

MOST_OBJECTS = 5
"""A user marks no more objects of an image than this by hand."""
POINTS_AN_OBJECT = 2
STROKE_SHARE = 0.25
"""Thickness of a stroke over the width of the object where it is thickest."""
MOST_CORRECTIONS = 3
"""A user who sees a wrong mask marks again, but not for ever."""
WORTH_CORRECTING = 0.02
"""Part of the object's area below which a wrong patch is left as it is."""


def simulated_points(mask: Mask, *, seed: int) -> Scribble:
    """Simulate key points on the largest objects of a mask: one where each is thickest, the others by the seed.

    Args:
        mask: (H, W) bool, not empty.
        seed: of the others.
    """
    points: list[tuple[float, float]] = []
    for piece in largest_pieces(mask):
        distance = _distance(piece)
        points.append(_thickest(distance))
        points += _drawn(distance, POINTS_AN_OBJECT - 1, seed)
    return Scribble(_size(mask), positive_xy=np.array(points, np.float32))


def simulated_strokes(mask: Mask, *, seed: int) -> Scribble:
    """Simulate a stroke through each of the largest objects of a mask, never outside of it.

    Args:
        mask: (H, W) bool, not empty.
        seed: of its corners.
    """
    strokes = np.zeros(mask.shape, np.uint8)
    for piece in largest_pieces(mask):
        distance = _distance(piece)
        path = [_thickest(distance), *_drawn(distance, 2, seed)]
        corners = np.array(sorted(path), np.int32).reshape(-1, 1, 2)
        thickness = max(1, round(2 * float(distance.max()) * STROKE_SHARE))
        drawn = cv2.polylines(np.zeros(mask.shape, np.uint8), [corners], isClosed=False, color=1, thickness=thickness)
        strokes |= drawn & piece.astype(np.uint8)
    return Scribble(_size(mask), positive_strokes=strokes > 0)


def is_all_marked(mask: Mask) -> bool:
    """Return whether the simulated points and strokes mark all objects, but for small components."""
    pieces = largest_pieces(mask)
    return sum(int(piece.sum()) for piece in pieces) >= 0.9 * int(mask.sum())


def corrected(scribble: Scribble, found: Mask, mask: Mask) -> Scribble | None:
    """Return the scribble with one mark more, where the mask found is most wrong: the way a user goes on who sees it.

    The thickest wrong patch gets a point in its middle, or, if the scribble has strokes, a stroke as wide as those:
    positive where the object was missed, negative where it was exceeded. Objects that were not marked at first stay
    unmarked, and finding them is not wrong.

    Args:
        scribble: so far, in the frame of `mask`.
        found: (H, W) bool: what became of it.
        mask: (H, W) bool: what was meant.

    Returns:
        None where nothing is worth it.
    """
    marked = np.logical_or.reduce(largest_pieces(mask))
    errors = {True: _distance(marked & ~found), False: _distance(found & ~mask)}
    is_missing = float(errors[True].max()) >= float(errors[False].max())
    distance = errors[is_missing]
    x, y = _thickest(distance)
    patch = cv2.connectedComponents((distance > 0).astype(np.uint8), connectivity=8)[1]
    if distance[int(y), int(x)] == 0 or (patch == patch[int(y), int(x)]).sum() < WORTH_CORRECTING * marked.sum():
        return None
    if scribble.positive_strokes is None:
        point = np.array([[x, y]], np.float32)
        if is_missing:
            return replace(scribble, positive_xy=np.concatenate([scribble.positive_xy, point]))
        return replace(scribble, negative_xy=np.concatenate([scribble.negative_xy, point]))
    # The ridge of the patch, as one would paint along it.
    stroke = (distance >= (1 - STROKE_SHARE) * distance[int(y), int(x)]) & (patch == patch[int(y), int(x)])
    if is_missing:
        return replace(scribble, positive_strokes=scribble.positive_strokes | stroke)
    before = scribble.negative_strokes
    return replace(scribble, negative_strokes=stroke if before is None else before | stroke)


def largest_object(mask: Mask) -> Mask:
    """Return the largest piece of a mask: what is marked if one object of several is."""
    return largest_pieces(mask)[0]


def largest_pieces(mask: Mask) -> list[Mask]:
    """Return the largest pieces of a mask, those that a user marks."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    order = sorted(range(1, count), key=lambda index: -int(stats[index, cv2.CC_STAT_AREA]))
    # Small components beside an object are not what a user marks.
    least = 0.1 * int(stats[order[0], cv2.CC_STAT_AREA])
    kept = [index for index in order[:MOST_OBJECTS] if int(stats[index, cv2.CC_STAT_AREA]) >= least]
    return [pieces == index for index in kept]


def _distance(piece: Mask) -> NDArray[np.float32]:
    framed = cv2.copyMakeBorder(piece.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return np.asarray(cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)


def _thickest(distance: NDArray[np.float32]) -> tuple[float, float]:
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(x), float(y)


def _drawn(distance: NDArray[np.float32], count: int, seed: int) -> list[tuple[float, float]]:
    y, x = np.nonzero(distance >= 0.4 * distance.max())
    draw = random.Random(f"{seed} {distance.shape} {len(y)}")
    return [(float(x[index]), float(y[index])) for index in (draw.randrange(len(y)) for _ in range(count))]


def _size(mask: Mask) -> tuple[int, int]:
    return mask.shape[0], mask.shape[1]
