"""Segmentation of targets: matching and mask generation of several labels, and which label gets what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from backend.core.explanation import Explanation, LabelExplanation
from backend.core.grid import map_to_size
from backend.core.instances import split_instances
from backend.core.masks import mask_to_size, nearest_to_size
from backend.core.types import EncodedImage, LabelMask, Mask
from backend.engine.competition import CompetitionResult, compete
from backend.engine.mask_generation import MaskGeneration
from backend.engine.matching import Matching
from backend.engine.options import MatchOptions
from backend.engine.plans import ImagePlan, LabelCandidate, LabelToFind, SegmentationPlan
from backend.engine.stages import StageTimer


class Segmentation:
    """Segments planned targets.

    Args:
        matching: makes score maps.
        masks: makes candidates of score maps.
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

    def label_candidates(
        self, encoded: EncodedImage, labels: Sequence[LabelToFind], options: MatchOptions
    ) -> list[LabelCandidate]:
        """Make the candidate of each label, as if there were one pass only."""
        (decoded,) = self._masks.decode([self.plan(encoded, labels, options)])
        return self._masks.label_candidates(decoded, options)

    def finish(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], list[LabelMask]]]:
        """Return for each planned target what does the rest, see `Softmatcher.segment_planned`."""
        return [
            list if plan.image is None else partial(self._finish, plan, candidates)
            for plan, candidates in zip(plans, self._candidates_of(plans), strict=True)
        ]

    def explain(self, plan: SegmentationPlan) -> Explanation:
        """Return what becomes of a planned target, label by label, and why."""
        (make,) = self._candidates_of([plan])
        candidates = make()
        results = compete(candidates, plan.options)
        return Explanation(
            plan.options.matcher,
            plan.options.strategy,
            tuple(
                _explain_label(label.name, candidate, result, plan.options)
                for label, candidate, result in zip(plan.labels, candidates, results, strict=True)
            ),
        )

    def _candidates_of(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], list[LabelCandidate]]]:
        # Of several labels in two passes: which are on the image is decided while each has all others' objects as
        # background. Then those that are there are matched again as if there were no others: an absent label changes
        # nothing of a present one's mask.
        decoded = iter(self._masks.decode([plan.image for plan in plans if plan.image is not None]))
        made: list[Callable[[], list[LabelCandidate]]] = []
        again: list[tuple[int, list[LabelCandidate], list[int], ImagePlan]] = []
        for number, plan in enumerate(plans):
            if plan.image is None:
                made.append(list)
            elif len(plan.labels) == 1:
                made.append(partial(self._masks.label_candidates, next(decoded), plan.options))
            else:
                first = self._masks.label_candidates(next(decoded), plan.options)
                made.append(partial(list, first))
                present = [index for index, one in enumerate(first) if one.is_there(plan.options)]
                if 0 < len(present) < len(plan.labels):
                    labels = [plan.labels[index] for index in present]
                    again.append((number, first, present, self.plan(plan.encoded, labels, plan.options)))
        second = self._masks.decode([image for *_, image in again]) if again else []
        for (number, first, present, _), one in zip(again, second, strict=True):
            make = partial(self._masks.label_candidates, one, plans[number].options)
            made[number] = partial(_with_new_masks, first, present, make)
        return made

    def _finish(self, plan: SegmentationPlan, make: Callable[[], list[LabelCandidate]]) -> list[LabelMask]:
        found: list[LabelMask] = []
        size_hw, options = plan.encoded.size_hw, plan.options
        candidates = make()
        results = compete(candidates, options)
        kept = [number for number, result in enumerate(results) if result.is_kept]
        with self._stage("upsample"):
            naturals = {number: mask_to_size(results[number].mask, size_hw) for number in kept}
        refined = self._refine(plan, candidates, naturals)
        with self._stage("separate"):
            for number in kept:
                natural, result = refined.get(number, naturals[number]), results[number]
                if options.overlap == "exclusive":
                    # Masks that touch in the working frame may share the pixels that its border became.
                    for other in found:
                        natural = natural & ~other.mask
                if options.instances:
                    parted = result.mask if number not in refined else nearest_to_size(natural, _hw(result.mask))
                    owner = nearest_to_size(split_instances(parted), size_hw)
                    objects = [natural & (owner == index) for index in range(int(owner.max()) + 1)]
                else:
                    objects = [natural]
                label = plan.labels[number].name
                found += [LabelMask(label, one, result.score) for one in objects if one.any()]
        return found

    def _refine(
        self, plan: SegmentationPlan, candidates: Sequence[LabelCandidate], naturals: Mapping[int, Mask]
    ) -> dict[int, Mask]:
        """Return the refined masks by label number, of the labels that have a refiner."""
        refined: dict[int, Mask] = {}
        for number, natural in naturals.items():
            refiner = plan.refiners.get(plan.labels[number].name)
            if refiner is None or plan.pixels is None or not natural.any():
                continue
            with self._stage("refine"):
                posterior = _to_size(candidates[number].posterior, plan.encoded.size_hw)
                mask = refiner.refine(natural, posterior, plan.pixels)
            if plan.options.overlap == "exclusive":
                # What another label was given stays its own: a refiner knows nothing of other labels.
                for other, theirs in naturals.items():
                    if other != number:
                        mask = mask & (natural | ~theirs)
            refined[number] = mask
        return refined


def _hw(mask: Mask) -> tuple[int, int]:
    return mask.shape[0], mask.shape[1]


def _with_new_masks(
    first: Sequence[LabelCandidate], present: Sequence[int], make: Callable[[], list[LabelCandidate]]
) -> list[LabelCandidate]:
    better = dict(zip(present, make(), strict=True))
    # A label that was there stays there: only its mask is made anew.
    return [
        replace(better[index], presence=one.presence if better[index].mask.any() else 0.0) if index in better else one
        for index, one in enumerate(first)
    ]


def _explain_label(
    label: str, candidate: LabelCandidate, result: CompetitionResult, options: MatchOptions
) -> LabelExplanation:
    chance = f"The object is there with a probability of {result.presence:.2f}"
    if result.is_kept:
        reason = f"{chance}; {options.minimum_presence} is required."
    elif candidate.mask.any() and result.presence < options.minimum_presence:
        reason = f"{chance}, less than the required {options.minimum_presence}."
    elif candidate.mask.any() and result.score < options.minimum_score:
        reason = f"The expected IoU is {result.score:.2f}, less than the required {options.minimum_score}."
    elif candidate.mask.any():
        reason = "Its pixels went to a label that is likelier there."
    elif any(cluster.is_kept for cluster in candidate.clusters):
        reason = "All its components were too small."
    else:
        reason = "No cluster mask is left: the object seems absent."
    return LabelExplanation(
        label, candidate.posterior, candidate.clusters, result.mask, result.score, result.is_kept, reason
    )


def _to_size(posterior: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    return map_to_size(torch.from_numpy(posterior), size_hw).numpy()
