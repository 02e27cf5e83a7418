"""Choose which images to label next: pure functions over scores and image pooled."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadInputError

SelectionRule = Literal["uncertain", "unlike", "both", "typical"]
"""`uncertain`: the lowest scores first; `unlike`: the images least similar to those that are labeled or chosen;
`both`: the mean of these two ranks; `typical`: the image that makes the rest most similar to what is labeled or chosen.
"""
RULES: tuple[SelectionRule, ...] = get_args(SelectionRule)

PooledFeatures = NDArray[np.float32]
"""(N, D), one row of unit length per image, as `pool_features` makes them."""
SKETCH_LENGTH: Final = 128
"""Numbers of a sketch, at most: cosines of alike images differ by 0.01 to 0.02 from those of all features."""


@dataclass(frozen=True)
class Choice:
    """One chosen image.

    Attributes:
        index: of the candidate.
        score: its score, as given.
        similarity: cosine to the most similar labeled or chosen image; None if there is none.
        covers: number of candidates that are more similar to this image than to any labeled or chosen one, itself
            included.
    """

    index: int
    score: float
    similarity: float | None
    covers: int


def pool_features(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return one vector for an image: the mean of its patches' features, (D,) float32 of unit length.

    Args:
        features: (H_p, W_p, D), the feature map.
    """
    mean = np.asarray(features, np.float32).reshape(-1, features.shape[-1]).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-6), np.float32)


def sketch_features(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return a short vector for an image, to be kept for each task: pooled features projected to few numbers.

    Args:
        features: (H_p, W_p, D), the feature map.

    Returns:
        (min(D, `SKETCH_LENGTH`),) float32 of unit length; the same projection for all images of a D.
    """
    pooled = pool_features(features)
    if len(pooled) <= SKETCH_LENGTH:
        return pooled
    projected = pooled @ _projection(len(pooled))
    return np.asarray(projected / max(float(np.linalg.norm(projected)), 1e-6), np.float32)


@cache
def _projection(length: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(length).standard_normal((length, SKETCH_LENGTH))
    return np.asarray(drawn, np.float32)


def choose_next(
    scores: Sequence[float],
    pooled: PooledFeatures,
    labeled: PooledFeatures,
    count: int,
    *,
    rule: SelectionRule = "uncertain",
) -> list[Choice]:
    """Choose candidates one after the other, each in view of those before it.

    Args:
        scores: (N,) of the candidates, in [0, 1]: how sure their predictions are.
        pooled: (N, D) of the candidates.
        labeled: (R, D) of the images that are labeled; may be empty.
        count: up to this many are chosen.
        rule: how.

    Returns:
        Choices in their order; ties go to the lower index.

    Raises:
        BadInputError: shapes that don't agree, or an unknown rule.
    """
    if rule not in RULES:
        raise BadInputError(f"rule must be one of {', '.join(RULES)}, got {rule}")
    if pooled.ndim != 2 or len(scores) != len(pooled):
        raise BadInputError(f"expected one row of features per score, got {len(scores)} and {pooled.shape}")
    certain = np.asarray(scores, np.float64)
    between = pooled @ pooled.T
    nearest = (pooled @ labeled.T).max(axis=1) if len(labeled) else np.full(len(certain), -1.0, np.float32)
    has_labeled = len(labeled) > 0
    left = np.ones(len(certain), bool)
    choices: list[Choice] = []
    for _ in range(min(count, len(certain))):
        merit = _merits(rule, certain, nearest, between, left)
        merit[~left] = -np.inf
        index = int(merit.argmax())
        covers = int(np.count_nonzero(left & (between[index] > nearest)))
        similarity = float(nearest[index]) if has_labeled else None
        choices.append(Choice(index, float(certain[index]), similarity, covers))
        left[index] = False
        nearest = np.maximum(nearest, between[index])
        has_labeled = True
    return choices


def _merits(
    rule: SelectionRule,
    certain: NDArray[np.float64],
    nearest: NDArray[np.float32],
    between: NDArray[np.float32],
    left: NDArray[np.bool_],
) -> NDArray[np.float64]:
    if rule == "uncertain":
        return -certain
    if rule == "unlike":
        return -nearest.astype(np.float64)
    if rule == "both":
        return -(_ranks(certain, left) + _ranks(nearest, left))
    gains = np.maximum(between[left] - nearest[left, None], 0.0).sum(axis=0)
    return np.asarray(gains, np.float64)


def _ranks(values: NDArray[np.floating], left: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the rank of each value that is left among those that are, from 0; equal values have equal ranks."""
    ranks = np.zeros(len(values))
    ranks[left] = np.unique(values[left], return_inverse=True)[1]
    return ranks


def cluster_images(pooled: PooledFeatures, count: int, *, seed: int = 0, rounds: int = 20) -> NDArray[np.int64]:
    """Group images by k-means of their pooled features; return the cluster of each, (N,), numbered from 0.

    Starts from images that are as unlike each other as possible, the first drawn by the seed; a cluster never gets
    empty. With fewer images than clusters each image is its own.
    """
    if len(pooled) <= count:
        return np.arange(len(pooled))
    first = int(np.random.default_rng(seed).integers(len(pooled)))
    centres = pooled[[first]]
    while len(centres) < count:
        nearest = (pooled @ centres.T).max(axis=1)
        centres = np.vstack([centres, pooled[[int(nearest.argmin())]]])
    owner = np.zeros(len(pooled), np.int64)
    for _ in range(rounds):
        found = (pooled @ centres.T).argmax(axis=1)
        if np.array_equal(found, owner):
            break
        owner = found
        for cluster in np.unique(owner):
            mean = pooled[owner == cluster].mean(axis=0)
            centres[cluster] = mean / max(float(np.linalg.norm(mean)), 1e-6)
    return owner
