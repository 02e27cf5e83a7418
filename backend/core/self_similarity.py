"""Similarity of an image's pixels to what a scribble marks on it, from the image's own feature map."""

from collections.abc import Sequence
from operator import itemgetter

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.arrays import TINY
from backend.core.grid import map_to_size, mask_coverage
from backend.core.marked_objects import MarkedObject
from backend.core.masks import painted_masks
from backend.core.matching import balanced_mass
from backend.core.references import MaskUncertainty
from backend.core.types import Mask, Scribble

BACKGROUND_SHARE = 0.6
"""Of the patches without a stroke: so many of the least alike are taken for background."""
UNCERTAIN_SCORES = (0.6, 0.85)
"""A scribble's mask has full confidence from the second score on, and the lowest up to the first."""
LEAST_CONFIDENCE = {"points": 0.0, "strokes": 0.25}
"""What a mask counts for at least: strokes run through most of what they mean. Measured in docs/experiments.md."""
POINT_SHARE = 0.012
"""Radius of the disc that a point stands for over the longer side of the image."""


def scribble_affinity(
    features: NDArray[np.floating], scribble: Scribble, *, temperature: float = 0.05, stroke_samples: int = 40
) -> NDArray[np.float32] | None:
    """Return how similar each pixel is to what a scribble marks: a soft map for `cut_from_scribble`.

    The likeness of a patch is the soft maximum of its similarities s to the marked patches, tau log mean exp(s / tau).
    It is stretched so that the median patch of the image is at 0 and the most alike at 1: encoders differ in what
    cosine means "alike".

    Args:
        features: (H_p, W_p, D), each patch of unit length.
        scribble: its frame is the frame of the result. Marked are its positive points, samples of its strokes and,
            without any of these, the middle of its boxes.
        temperature: tau, the encoder's softmax scale.
        stroke_samples: so many pixels of the strokes at most.

    Returns:
        (h, w) float32 in [0, 1]; None if nothing positive was drawn.
    """
    if scribble.is_empty:
        return None
    rows, columns, depth = features.shape
    height, width = scribble.size_hw
    marked_xy = _marked_points(scribble, stroke_samples)
    x = np.clip((marked_xy[:, 0] * columns / width).astype(np.int64), 0, columns - 1)
    y = np.clip((marked_xy[:, 1] * rows / height).astype(np.int64), 0, rows - 1)
    patches = features.reshape(-1, depth).astype(np.float32)
    similarity = patches @ features[y, x].astype(np.float32).T / temperature
    highest = similarity.max(axis=1)
    likeness = temperature * (highest + np.log(np.exp(similarity - highest[:, None]).mean(axis=1)))
    lowest = np.median(likeness)
    stretched = np.clip((likeness - lowest) / max(1e-6, float(likeness.max() - lowest)), 0, 1)
    grid = stretched.reshape(rows, columns).astype(np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def stroke_posterior(
    features: NDArray[np.floating], scribble: Scribble, *, temperature: float = 0.05
) -> NDArray[np.float32] | None:
    """Return the probability of each pixel to show what strokes run through: a soft map for `cut_from_strokes`.

    As `matching.match_posterior` of the image with itself, a patch having no say in its own: the object are the patches
    that the strokes cover, each as far as it is covered; the background, what was painted as such and the
    `BACKGROUND_SHARE` of the others that looks least like the strokes. Within one image lighting and scale are the
    same, so likeness counts less steeply than between images: twice the temperature.

    Args:
        features: (H_p, W_p, D), each patch of unit length.
        scribble: its frame is the frame of the result; points count as strokes of a pixel, boxes do not count.
        temperature: the encoder's softmax scale.

    Returns:
        (h, w) float32 in [0, 1]; None without strokes on the object, or if they are on every patch.
    """
    if scribble.positive_strokes is None or not scribble.positive_strokes.any():
        return None
    inside, outside = painted_masks(scribble)
    rows, columns, depth = features.shape
    patches = features.reshape(-1, depth).astype(np.float32)
    covered = mask_coverage(inside, (rows, columns)).flatten()
    others = covered <= 0
    if not others.any():
        return None
    similarity = patches @ (covered @ patches / covered.sum())
    background = (others & (similarity <= np.quantile(similarity[others], BACKGROUND_SHARE))).astype(np.float32)
    background = np.maximum(background, mask_coverage(outside, (rows, columns)).flatten() > 0)
    weights = np.exp((patches @ patches.T - 1.0) / (2 * temperature))
    np.fill_diagonal(weights, 0.0)
    object_sum, background_sum = np.stack([balanced_mass(covered), balanced_mass(background)]) @ weights
    posterior = object_sum / np.maximum(object_sum + background_sum, TINY)
    return map_to_size(posterior.reshape(rows, columns), scribble.size_hw)


def scribble_uncertainty(
    features: NDArray[np.floating],
    objects: Sequence[MarkedObject],
    complete: Mask | None = None,
    *,
    temperature: float = 0.05,
) -> MaskUncertainty | None:
    """Return confidence and soft mask of what a scribble gave.

    The less a mask is expected to agree with what was meant, the more counts the posterior of the image with itself
    (`stroke_posterior`), which knows no borders but all that looks alike. What was marked holds in any case. Each
    object has a confidence of its own; what is off all of them has the lowest one.

    Args:
        features: (H_p, W_p, D), each patch of unit length.
        objects: at least one; what the scribble's marks gave.
        complete: (H, W) bool or None: more of the same label, which counts in full.
        temperature: the encoder's softmax scale.

    Returns:
        None if nothing is uncertain: good masks, or masks bounded by a box.
    """
    confidences = [_confidence(one) for one in objects]
    least = min(confidences)
    if least >= 1:
        return None
    size_hw = objects[0].scribble.size_hw
    positive, negative = np.zeros(size_hw, bool), np.zeros(size_hw, bool)
    for one, confidence in zip(objects, confidences, strict=True):
        if confidence < 1:
            positive |= _with_discs(one.scribble.positive_strokes, one.scribble.positive_xy, size_hw)
        negative |= _with_discs(one.scribble.negative_strokes, one.scribble.negative_xy, size_hw)
    painted = Scribble(size_hw, positive_strokes=positive, negative_strokes=negative)
    soft_mask = stroke_posterior(features, painted, temperature=temperature)
    if soft_mask is None:
        return None
    soft_mask[negative] = 0.0
    soft_mask[positive] = 1.0
    score = float(np.mean([one.found.score for one in objects]))
    is_by_points = all(one.scribble.positive_strokes is None for one in objects)
    if len(objects) == 1 and complete is None:
        return MaskUncertainty(least, soft_mask, score, is_by_points)
    confidence_of = np.full(size_hw, least, np.float32)
    for one, confidence in sorted(zip(objects, confidences, strict=True), key=itemgetter(1)):
        confidence_of[one.found.mask] = confidence
    if complete is not None:
        confidence_of[complete] = 1.0
    return MaskUncertainty(confidence_of, soft_mask, score, is_by_points)


def _confidence(one: MarkedObject) -> float:
    if len(one.scribble.boxes_xyxy):
        return 1.0
    low, high = UNCERTAIN_SCORES
    least = LEAST_CONFIDENCE["points" if one.scribble.positive_strokes is None else "strokes"]
    return least + (1 - least) * min(max((one.found.score - low) / (high - low), 0.0), 1.0)


def _with_discs(strokes: Mask | None, points_xy: NDArray[np.float32], size_hw: tuple[int, int]) -> Mask:
    painted = np.zeros(size_hw, np.uint8) if strokes is None else strokes.astype(np.uint8)
    radius = max(1, round(POINT_SHARE * max(size_hw)))
    for x, y in points_xy:
        cv2.circle(painted, (int(x), int(y)), radius, 1, -1)
    return painted > 0


def _marked_points(scribble: Scribble, stroke_samples: int) -> NDArray[np.float32]:
    marked = [scribble.positive_xy]
    if scribble.positive_strokes is not None:
        yx = np.argwhere(scribble.positive_strokes)
        marked.append((yx[:: max(1, -(-len(yx) // stroke_samples)), ::-1] + 0.5).astype(np.float32))
    points = np.concatenate(marked)
    if len(points):
        return points
    # The middle third of a box in each direction: the corners are background more often than not.
    shares = np.array([(x, y) for x in (0.33, 0.5, 0.67) for y in (0.33, 0.5, 0.67)], np.float32)
    low, high = scribble.boxes_xyxy[:, None, :2], scribble.boxes_xyxy[:, None, 2:]
    return np.asarray((low + (high - low) * shares).reshape(-1, 2), np.float32)
