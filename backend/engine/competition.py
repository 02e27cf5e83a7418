"""Competition: which labels are on an image, and which of them gets a pixel that several claim."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.core.masks import resolve_overlaps
from backend.core.types import Mask
from backend.engine.options import MatchOptions
from backend.engine.plans import LabelCandidate

SAME_REGION_IOU = 0.5
"""Masks of two labels whose IoU is at least this are one region: it goes to one of them as a whole."""
LEAST_LEFT_SHARE = 0.3
"""A label that loses more than the rest of its mask to others is not there."""


@dataclass(frozen=True, eq=False)
class CompetitionResult:
    """The mask that a label keeps beside the other labels.

    Attributes:
        mask: (h, w) bool.
        presence: probability that the object is there, from before the labels compete.
        score: expected IoU of the candidate.
        is_kept: whether the mask is returned.
    """

    mask: Mask
    presence: float
    score: float
    is_kept: bool


def compete(candidates: Sequence[LabelCandidate], options: MatchOptions) -> list[CompetitionResult]:
    """Decide which labels are there, and then which of them gets the pixels that several claim.

    A label that is not there takes nothing from one that is. If two masks are mostly the same region, the label with
    the larger presence probability gets all that they share; elsewhere each pixel goes to the label with the higher
    posterior.
    """
    is_there = [candidate.is_there(options) for candidate in candidates]
    masks = [candidate.mask for candidate in candidates]
    chances = [candidate.presence for candidate in candidates]
    while options.overlap == "exclusive":
        present = [index for index, there in enumerate(is_there) if there]
        own = _without_shared_regions([masks[index] for index in present], [chances[index] for index in present])
        left = dict(zip(present, own, strict=True))
        # What is left of a region that went to another label is no object of its own, and the others get it back.
        gone = [index for index in present if left[index].sum() < LEAST_LEFT_SHARE * masks[index].sum()]
        if not gone:
            resolved = resolve_overlaps(own, [candidates[index].posterior for index in present])
            left = dict(zip(present, resolved, strict=True))
            gone = [index for index in present if left[index].sum() < LEAST_LEFT_SHARE * masks[index].sum()]
        if not gone:
            masks = [left.get(index, mask) for index, mask in enumerate(masks)]
            break
        is_there[min(gone, key=lambda index: chances[index])] = False
    return [
        CompetitionResult(mask, candidate.presence, candidate.score, there)
        for mask, candidate, there in zip(masks, candidates, is_there, strict=True)
    ]


def _without_shared_regions(masks: Sequence[Mask], chances: Sequence[float]) -> list[Mask]:
    # Decided from the likeliest label on: one that lost a region takes none from others.
    left = [mask.copy() for mask in masks]
    winners: list[int] = []
    for one in sorted(range(len(masks)), key=lambda index: -chances[index]):
        for other in winners:
            shared = int(np.count_nonzero(masks[one] & masks[other]))
            if shared >= SAME_REGION_IOU * int(np.count_nonzero(masks[one] | masks[other])):
                left[one] &= ~masks[other]
                break
        else:
            winners.append(one)
    return left
