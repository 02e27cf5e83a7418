"""Cut the object under a scribble out of an image by classical means: what the `lite` profile has instead of SAM.

Everything happens on a graph of superpixels. A scribble says too little to know how large the object is, so several
kinds of hypotheses are made - regions of merge hierarchies that hold the scribble, closed contours found by dynamic
programming around it, colour models that are diffused from it - and the one that agrees best with all the others,
weighted by how much each looks like one object, is the answer. Its score comes from that agreement.

The same input always gives the same mask, and no state is kept: threads may share it.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core import cancellation
from backend.core.types import Image, Mask, ScoredMask, Scribble
from backend.errors import BadInputError
from backend.models.graph_cut.hypotheses import box_hypotheses, seed_hypotheses, share_in_box
from backend.models.graph_cut.objectness import Scene, choose
from backend.models.graph_cut.superpixels import (
    Ints,
    Superpixels,
    colour_kernel,
    edge_strength,
    find_superpixels,
    merge_levels,
)
from backend.models.images import require_rgb

HIERARCHIES = ((0.25, 1.0), (0.5, 2.0))
"""(area_power, edge_weight) of each merge hierarchy: the first joins by likeness, the second rather by size."""


def cut_from_scribble(
    image: Image, scribble: Scribble, affinity: NDArray[np.float32] | None = None
) -> ScoredMask | None:
    """Cut out what a scribble marks.

    Args:
        image: (h, w, 3) uint8 RGB at working size; meant for a longest side of 128 to 400 px.
        scribble: in the frame of `image`. A point outside the image is moved to its nearest pixel.
        affinity: (h, w) float32 in [0, 1] or None: how much each pixel looks like what was marked. Soft evidence.

    Returns:
        Mask (h, w) and expected IoU; None if nothing positive was drawn or no plausible object is there.

    Raises:
        BadInputError: shapes or types do not fit.
        CancelledWorkError: see `cancellation.check`; asked for each box.
    """
    _require_fit(image, scribble, affinity)
    if scribble.is_empty:
        return None
    scene = _prepare(image, scribble, affinity)
    if scene is None:
        return None
    seeds = _seeds(scene, scribble)
    chosen = np.zeros(len(scene.pixels.area_px), bool)
    scores = []
    for box in np.asarray(scribble.boxes_xyxy, np.float64):
        cancellation.check()
        inside = seeds[share_in_box(scene, box)[seeds] > 0]
        found = choose(scene, box_hypotheses(scene, box, inside), inside, box)
        if found is not None:
            chosen |= found[0]
            scores.append(found[1])
    outside_boxes = seeds[~chosen[seeds]]
    if len(outside_boxes):
        has_strokes = scribble.positive_strokes is not None and bool(scribble.positive_strokes.any())
        hypotheses = seed_hypotheses(scene, outside_boxes, scribble)
        found = choose(scene, hypotheses, outside_boxes, None, has_strokes=has_strokes)
        if found is not None:
            chosen |= found[0]
            scores.append(found[1])
    if not chosen.any():
        return None
    mask = _keep_marks(chosen[scene.pixels.labels], scene.pixels.labels, scribble)
    return ScoredMask(mask, float(np.clip(np.mean(scores), 0, 1))) if mask.any() else None


def _require_fit(image: Image, scribble: Scribble, affinity: NDArray[np.float32] | None) -> None:
    require_rgb(image)
    if scribble.size_hw != image.shape[:2]:
        raise BadInputError(f"scribble must be in the frame {image.shape[:2]}, got {scribble.size_hw}; scale it first")
    if affinity is not None and affinity.shape != image.shape[:2]:
        raise BadInputError(f"affinity must be {image.shape[:2]}, got {affinity.shape}; resize it to the image")


def _keep_marks(mask: Mask, labels: Ints, scribble: Scribble) -> Mask:
    """Keep to the pixel what was marked: a superpixel that was marked both ways is split between its marks."""
    marks = {True: np.zeros(mask.shape, bool), False: np.zeros(mask.shape, bool)}
    height, width = mask.shape
    for sign, points, strokes in (
        (True, scribble.positive_xy, scribble.positive_strokes),
        (False, scribble.negative_xy, scribble.negative_strokes),
    ):
        if strokes is not None:
            marks[sign] |= strokes
        x = np.clip(np.floor(points[:, 0]), 0, width - 1).astype(np.int64)
        y = np.clip(np.floor(points[:, 1]), 0, height - 1).astype(np.int64)
        marks[sign][y, x] = True
    kept = mask | marks[True]
    torn = np.unique(labels[marks[False] & kept])
    if len(torn):
        if marks[True].any():
            to_in, to_out = (
                cv2.distanceTransform((~marks[sign]).astype(np.uint8), cv2.DIST_L2, 5) for sign in (True, False)
            )
            kept = kept & ~(np.isin(labels, torn) & (to_out < to_in))
        kept = kept & ~marks[False]
    return np.asarray(kept, np.bool_)


def _prepare(image: Image, scribble: Scribble, affinity: NDArray[np.float32] | None) -> Scene | None:
    channels = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    edges = edge_strength(channels)
    if affinity is not None:
        channels = np.dstack([channels, 30 * affinity.astype(np.float32)])
    side_px = max(image.shape[:2])
    pixels = find_superpixels(channels, edges, 2 * round(side_px / 140) + 1)
    if len(pixels.area_px) < 2:
        return None
    sure_out = np.zeros(len(pixels.area_px), bool)
    sure_out[_at(pixels, scribble.negative_xy)] = True
    if scribble.negative_strokes is not None:
        sure_out[np.unique(pixels.labels[scribble.negative_strokes])] = True
    levels = np.concatenate([merge_levels(pixels, area_power=p, edge_weight=w) for p, w in HIERARCHIES])
    deep = None if affinity is None else pixels.share_of(affinity)
    return Scene(pixels, edges, colour_kernel(pixels), levels, deep, sure_out, side_px)


def _at(pixels: Superpixels, points_xy: NDArray[np.float32]) -> Ints:
    height, width = pixels.labels.shape
    x = np.clip(np.floor(points_xy[:, 0]), 0, width - 1).astype(np.int64)
    y = np.clip(np.floor(points_xy[:, 1]), 0, height - 1).astype(np.int64)
    return np.asarray(pixels.labels[y, x], np.int64)


def _seeds(scene: Scene, scribble: Scribble) -> Ints:
    """Return the superpixels that the positive points and strokes lie on."""
    seeds = _at(scene.pixels, scribble.positive_xy)
    if scribble.positive_strokes is not None and scribble.positive_strokes.any():
        share = scene.pixels.share_of(scribble.positive_strokes)
        threshold = min(0.1, float(share.max()))
        seeds = np.concatenate([seeds, np.flatnonzero(share >= threshold)])
    return np.unique(seeds)
