"""Competition: which labels are on an image, and which of them gets a pixel that several claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backend.core.masks import iou, resolve_overlaps
from backend.core.types import Mask
from backend.engine.options import MatchOptions
from backend.engine.plans import LabelCandidate

SAME_REGION_IOU = 0.35
"""Masks of two labels whose IoU is at least this are one region: it goes to one of them as a whole. From 0.3 to 0.4
nothing changes but by chance (docs/experiments.md)."""
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


def compete(
    candidates: Sequence[LabelCandidate],
    options: MatchOptions,
    *,
    beside: Mapping[int, LabelCandidate] | None = None,
) -> list[CompetitionResult]:
    """Decide which labels are there, and then which of them gets the pixels that several claim.

    The label with the largest presence probability of all is there if it would be alone. Another one must be there
    beside the others, too. A label that is not there takes nothing from one that is. Two masks on the
    same region are one object, which the label with the larger presence probability gets; elsewhere each pixel goes to
    the label with the higher posterior beside the others.

    Args:
        candidates: of each label as if it were alone.
        options: what presence requires, and whether labels may overlap.
        beside: index of a label -> its candidate with the others' objects as background; labels without one are taken
            as they are.
    """
    again = {**dict(enumerate(candidates)), **(beside or {})}
    chances = [candidate.sureness for candidate in candidates]
    present_alone = labels_that_seem_there(candidates, options)
    surest = max(present_alone, key=lambda index: chances[index], default=None)
    is_there = [
        index in present_alone and (index == surest or again[index].presence >= options.minimum_presence)
        for index in range(len(candidates))
    ]
    masks = [candidate.mask for candidate in candidates]
    if options.overlap == "exclusive":
        present = _with_regions_of_their_own(masks, chances, [index for index, there in enumerate(is_there) if there])
        while True:
            resolved = resolve_overlaps(
                [masks[index] for index in present], [again[index].posterior for index in present]
            )
            left = dict(zip(present, resolved, strict=True))
            # What is left of such a mask is no object of its own, and the others get back what it took.
            gone = [index for index in present if left[index].sum() < LEAST_LEFT_SHARE * masks[index].sum()]
            if not gone:
                break
            present.remove(min(gone, key=lambda index: chances[index]))
        is_there = [index in left for index in range(len(masks))]
        masks = [left.get(index, mask) for index, mask in enumerate(masks)]
    return [
        CompetitionResult(mask, candidate.presence, candidate.score, there)
        for mask, candidate, there in zip(masks, candidates, is_there, strict=True)
    ]


def labels_that_seem_there(candidates: Sequence[LabelCandidate], options: MatchOptions) -> list[int]:
    """Return the numbers of the labels that are there, each seen as if it were alone; the surest one needs less."""
    could_be = [number for number, one in enumerate(candidates) if one.is_there(options, is_surest=True)]
    surest = max(could_be, key=lambda number: candidates[number].sureness, default=None)
    return [number for number in could_be if candidates[number].is_there(options, is_surest=number == surest)]


def _with_regions_of_their_own(masks: Sequence[Mask], chances: Sequence[float], present: Sequence[int]) -> list[int]:
    # Decided from the likeliest label on: one that lost its region takes none from others.
    winners: list[int] = []
    for one in sorted(present, key=lambda index: -chances[index]):
        if all(iou(masks[one], masks[other]) < SAME_REGION_IOU for other in winners):
            winners.append(one)
    return sorted(winners)
