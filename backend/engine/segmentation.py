"""Segmentation of targets: matching and mask generation of several labels, and which label gets what."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from backend.core.explanation import Explanation, LabelExplanation
from backend.core.grid import map_to_size
from backend.core.instances import split_instances
from backend.core.masks import mask_to_size, nearest_to_size
from backend.core.types import EncodedImage, LabelMask
from backend.engine.competition import Claim, compete
from backend.engine.mask_generation import MaskGeneration
from backend.engine.matching import Matching
from backend.engine.options import MatchOptions
from backend.engine.plans import ImagePlan, LabelToFind, Proposal, SegmentationPlan
from backend.engine.stages import StageTimer


class Segmentation:
    """Segments planned targets.

    Args:
        matching: makes score maps.
        masks: makes proposals of score maps.
        stage: times what is done.
    """

    def __init__(self, matching: Matching, masks: MaskGeneration, stage: StageTimer) -> None:
        self._matching = matching
        self._masks = masks
        self._stage = stage

    def plan(self, encoded: EncodedImage, labels: Sequence[LabelToFind], options: MatchOptions) -> ImagePlan:
        """Match a target, and make the prompts of its labels."""
        with self._stage("match"):
            matches = self._matching.match(encoded, labels, options)
        return self._masks.plan(encoded, matches, options)

    def propose(self, encoded: EncodedImage, labels: Sequence[LabelToFind], options: MatchOptions) -> list[Proposal]:
        """Make the proposal of each label, as if there were one pass only."""
        (decoded,) = self._masks.decode([self.plan(encoded, labels, options)])
        return self._masks.propose(decoded, options)

    def finish(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], list[LabelMask]]]:
        """Return for each planned target what does the rest, see `Softmatcher.segment_planned`."""
        return [
            list if plan.image is None else partial(self._finish, plan, proposals)
            for plan, proposals in zip(plans, self._propose_planned(plans), strict=True)
        ]

    def explain(self, plan: SegmentationPlan) -> Explanation:
        """Return what becomes of a planned target, label by label, and why."""
        (propose,) = self._propose_planned([plan])
        proposals = propose()
        claims = compete(proposals, plan.options)
        return Explanation(
            plan.options.matcher,
            plan.options.strategy,
            tuple(
                _explain_label(label.name, proposal, claim, plan.options)
                for label, proposal, claim in zip(plan.labels, proposals, claims, strict=True)
            ),
        )

    def _propose_planned(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], list[Proposal]]]:
        # Of several labels in two passes: which are on the image is judged while each has all others' objects as
        # background. Then those that are there are matched again as if there were no others: an absent label changes
        # nothing of a present one's mask.
        decoded = iter(self._masks.decode([plan.image for plan in plans if plan.image is not None]))
        made: list[Callable[[], list[Proposal]]] = []
        again: list[tuple[int, list[Proposal], list[int], ImagePlan]] = []
        for number, plan in enumerate(plans):
            if plan.image is None:
                made.append(list)
            elif len(plan.labels) == 1:
                made.append(partial(self._masks.propose, next(decoded), plan.options))
            else:
                first = self._masks.propose(next(decoded), plan.options)
                made.append(partial(list, first))
                present = [index for index, one in enumerate(first) if one.is_there(plan.options)]
                if 0 < len(present) < len(plan.labels):
                    labels = [plan.labels[index] for index in present]
                    again.append((number, first, present, self.plan(plan.encoded, labels, plan.options)))
        second = self._masks.decode([image for *_, image in again]) if again else []
        for (number, first, present, _), one in zip(again, second, strict=True):
            propose = partial(self._masks.propose, one, plans[number].options)
            made[number] = partial(_with_new_masks, first, present, propose)
        return made

    def _finish(self, plan: SegmentationPlan, propose: Callable[[], list[Proposal]]) -> list[LabelMask]:
        found: list[LabelMask] = []
        size_hw, options = plan.encoded.size_hw, plan.options
        proposals = propose()
        claims = compete(proposals, options)
        with self._stage("upsample"):
            for label, proposal, claim in zip(plan.labels, proposals, claims, strict=True):
                if not claim.is_kept:
                    continue
                natural = mask_to_size(claim.mask, size_hw)
                refiner = plan.refiners.get(label.name)
                if refiner is not None and plan.pixels is not None and natural.any():
                    natural = refiner.refine(natural, _to_size(proposal.posterior, size_hw), plan.pixels)
                if options.overlap == "exclusive":
                    # Masks that touch in the working frame may share the pixels that its border became.
                    for other in found:
                        natural &= ~other.mask
                if options.instances:
                    owner = nearest_to_size(split_instances(claim.mask), size_hw)
                    objects = [natural & (owner == index) for index in range(int(owner.max()) + 1)]
                else:
                    objects = [natural]
                found += [LabelMask(label.name, one, claim.score) for one in objects if one.any()]
        return found


def _with_new_masks(
    first: Sequence[Proposal], present: Sequence[int], propose: Callable[[], list[Proposal]]
) -> list[Proposal]:
    better = dict(zip(present, propose(), strict=True))
    # A label that was there stays there: only its mask is made anew.
    return [
        replace(better[index], presence=one.presence if better[index].mask.any() else 0.0) if index in better else one
        for index, one in enumerate(first)
    ]


def _explain_label(label: str, proposal: Proposal, claim: Claim, options: MatchOptions) -> LabelExplanation:
    chance = f"The object is there with a probability of {claim.presence:.2f}"
    if claim.is_kept:
        reason = f"{chance}; {options.minimum_presence} is required."
    elif proposal.mask.any() and claim.presence < options.minimum_presence:
        reason = f"{chance}, less than the required {options.minimum_presence}."
    elif proposal.mask.any() and claim.score < options.minimum_score:
        reason = f"The expected IoU is {claim.score:.2f}, less than the required {options.minimum_score}."
    elif proposal.mask.any():
        reason = "Its pixels went to a label that is likelier there."
    elif any(cluster.is_kept for cluster in proposal.clusters):
        reason = "All its components were too small."
    else:
        reason = "No cluster mask is left: the object seems absent."
    return LabelExplanation(
        label, proposal.posterior, proposal.clusters, claim.mask, claim.score, claim.is_kept, reason
    )


def _to_size(posterior: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    return map_to_size(torch.from_numpy(posterior), size_hw).numpy()
