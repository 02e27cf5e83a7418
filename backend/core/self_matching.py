"""Self-matching: whether the other views of a reference find its mask again on the image itself."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.grid import map_to_size
from backend.core.matching import ReferenceBank, match_posterior
from backend.core.references import ambiguous_patch_weights
from backend.core.types import Mask

RING_SHARE = 0.08
"""Width of the ring around the mask over the longer side of the image: wide enough to leave the mask's own patches."""


def self_matching(
    features: NDArray[np.float32],
    views: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    mask: Mask,
    *,
    temperature: float,
    similarity_floor: float = -1.0,
) -> float:
    """Return how much higher the posterior is inside a mask than around it, matched from the other views of the image.

        mean over the mask of q - mean over a ring around it of q

    with q the posterior of the image as it is. A mask that is one thing finds itself again in another view; one that
    mixes things does not.

    Args:
        features: (H_p, W_p, D) float32 of the image as it is, each patch of unit length.
        views: of each other view its patches (R, D) float32 and their foreground coverage (R,) float32 in [0, 1].
        mask: (H, W) bool, not empty.
        temperature: the encoder's softmax scale.
        similarity_floor: the encoder's.

    Returns:
        A difference in [-1, 1]; 0 if nothing is around the mask, or no view covers any of it.
    """
    ring = ring_around(mask)
    patches = np.concatenate([view for view, _ in views])
    coverage = np.concatenate([covered for _, covered in views])
    if not ring.any() or float(coverage.sum()) <= 0:
        return 0.0
    weights = np.concatenate(
        [
            ambiguous_patch_weights(view, covered, None, temperature=temperature)
            if float(covered.sum()) > 0
            else np.ones_like(covered)
            for view, covered in views
        ]
    )
    bank = ReferenceBank(patches, coverage * weights, (1 - coverage) * weights)
    found = match_posterior(
        bank, features.reshape(-1, features.shape[2]), temperature=temperature, similarity_floor=similarity_floor
    ).posterior
    posterior = map_to_size(found.reshape(features.shape[:2]), (mask.shape[0], mask.shape[1]))
    return float(posterior[mask].mean() - posterior[ring].mean())


def ring_around(mask: Mask) -> Mask:
    """Return the pixels around a mask, (H, W) bool of one that is not empty, up to `RING_SHARE` away."""
    radius = max(2, round(RING_SHARE * max(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    ring: Mask = np.zeros_like(mask)
    # A large disc takes long for each pixel: only those that it may reach are looked at.
    near = tuple(_span(np.flatnonzero(mask.any(axis=axis)), radius) for axis in (1, 0))
    ring[near] = (cv2.dilate(mask[near].astype(np.uint8), disc) > 0) & ~mask[near]
    return ring


def _span(places: NDArray[np.int64], radius: int) -> slice:
    return slice(max(0, int(places[0]) - radius), int(places[-1]) + radius + 1)
