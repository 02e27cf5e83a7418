"""Segmentation of targets: matching and mask generation of several labels, and which label gets what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from backend.core.explanation import Explanation, LabelExplanation
from backend.core.grid import map_to_size
from backend.core.instances import cut_instances
from backend.core.masks import mask_to_size, nearest_to_size
from backend.core.types import BoxedMask, EncodedImage, LabelMask, Mask
from backend.engine.competition import CompetitionResult, compete, labels_that_seem_there
from backend.engine.mask_generation import Decoded, MaskGeneration
from backend.engine.matching import Matching
from backend.engine.options import MatchOptions
from backend.engine.plans import FoundMasks, ImagePlan, LabelCandidate, LabelToFind, SegmentationPlan
from backend.engine.stages import StageTimer

Candidates = tuple[list[LabelCandidate], dict[int, LabelCandidate]]
"""The candidate of each label alone; and by label number those of labels that were looked for again beside others."""


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

    def plan(
        self,
        encoded: EncodedImage,
        labels: Sequence[LabelToFind],
        options: MatchOptions,
        *,
        is_matched_again: bool = False,
    ) -> ImagePlan:
        """Match a target with each label apart, and make the prompts of its labels; see `Matching.match`."""
        with self._stage("match"):
            matches = self._matching.match(encoded, labels, options, is_apart=True, is_matched_again=is_matched_again)
        plan = replace(self._masks.plan(encoded, matches.labels, options), sums=matches.sums)
        return self._with_fine(plan, encoded, labels, options)

    def _with_fine(
        self, plan: ImagePlan, encoded: EncodedImage, labels: Sequence[LabelToFind], options: MatchOptions
    ) -> ImagePlan:
        """Match the labels of thin things at twice the size, too, as if each were alone."""
        if encoded.fine_features is None:
            return plan
        fine = {
            number: bank.fine
            for number, label in enumerate(labels)
            # Other sources score patches of the usual size.
            if label.references is not None and not label.sources
            if (bank := self._matching.bank(label.references, options)).fine is not None
        }
        if not fine:
            return plan
        target = replace(encoded, features=encoded.fine_features)
        with self._stage("match fine"):
            wanted = [LabelToFind(labels[number].name, bank) for number, bank in fine.items()]
            matches = self._matching.match(target, wanted, options, is_apart=True).labels
        return replace(plan, fine=self._masks.plan(target, matches, options), fine_labels=tuple(fine))

    def _plan_beside(self, plan: SegmentationPlan, present: Sequence[int]) -> ImagePlan:
        """Match some labels again, with the objects of all others as their background."""
        with self._stage("match"):
            sums = None if plan.image is None else plan.image.sums
            matches = self._matching.match(plan.encoded, plan.labels, plan.options, sums=sums).labels
        return self._masks.plan(plan.encoded, [matches[index] for index in present], plan.options)

    def label_candidates(
        self, encoded: EncodedImage, labels: Sequence[LabelToFind], options: MatchOptions
    ) -> list[LabelCandidate]:
        """Make the candidate of each label, with the objects of the others as its background."""
        with self._stage("match"):
            matches = self._matching.match(encoded, labels, options).labels
        plan = self._with_fine(self._masks.plan(encoded, matches, options), encoded, labels, options)
        (make,) = self._first_candidates([plan], [options])
        return make()

    def finish(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], FoundMasks]]:
        """Return for each planned target what does the rest, see `Softmatcher.find_planned`."""
        return [
            _nothing if plan.image is None else partial(self._finish, plan, candidates)
            for plan, candidates in zip(plans, self._candidates_of(plans), strict=True)
        ]

    def explain(self, plan: SegmentationPlan) -> Explanation:
        """Return what becomes of a planned target, label by label, and why."""
        (make,) = self._candidates_of([plan])
        candidates, beside = make()
        results = compete(candidates, plan.options, beside=beside)
        naturals = {
            number: mask_to_size(result.mask, plan.encoded.size_hw)
            for number, result in enumerate(results)
            if result.is_kept
        }
        for number, refined in self._refine(plan, candidates, naturals).items():
            results[number] = replace(results[number], mask=nearest_to_size(refined, _hw(results[number].mask)))
        return Explanation(
            plan.options.matcher,
            plan.options.strategy,
            tuple(
                _explain_label(label.name, candidate, result, plan.options)
                for label, candidate, result in zip(plan.labels, candidates, results, strict=True)
            ),
        )

    def _candidates_of(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], Candidates]]:
        # Each label is looked for as if it were alone, so another label's references change nothing of its mask. Those
        # that seem to be there, if they are several, are then looked for again beside each other: their presence is
        # asked once more with the others' objects as background, and shared pixels go by these posteriors.
        known = [(plan.image, plan.options) for plan in plans if plan.image is not None]
        made_first = iter(self._first_candidates([image for image, _ in known], [options for _, options in known]))
        made: list[Callable[[], Candidates]] = []
        again: list[tuple[int, list[LabelCandidate], list[int], ImagePlan]] = []
        for number, plan in enumerate(plans):
            if plan.image is None:
                made.append(lambda: ([], {}))
            elif len(plan.labels) == 1:
                made.append(partial(_of_one_pass, next(made_first)))
            else:
                first = next(made_first)()
                made.append(partial(_unchanged, first))
                present = labels_that_seem_there(first, plan.options)
                if len(present) > 1:
                    again.append((number, first, present, self._plan_beside(plan, present)))
        second = self._masks.decode([image for *_, image in again]) if again else []
        for (number, first, present, _), one in zip(again, second, strict=True):
            made[number] = partial(self._of_two_passes, first, present, one, plans[number].options)
        return made

    def _first_candidates(
        self, images: Sequence[ImagePlan], options: Sequence[MatchOptions]
    ) -> list[Callable[[], list[LabelCandidate]]]:
        """Return for each target what makes its labels' candidates; those of thin things are the better of two."""
        decoded = self._masks.decode([*images, *(image.fine for image in images if image.fine is not None)])
        fine = iter(decoded[len(images) :])
        return [
            partial(self._joined, usual, next(fine) if image.fine is not None else None, own)
            for image, usual, own in zip(images, decoded, options, strict=False)
        ]

    def _joined(self, usual: Decoded, fine: Decoded | None, options: MatchOptions) -> list[LabelCandidate]:
        candidates = self._masks.label_candidates(usual, options)
        if fine is not None:
            for number, other in zip(usual[0].fine_labels, self._masks.label_candidates(fine, options), strict=True):
                candidates[number] = candidates[number].joined_with(other)
        return candidates

    def _of_two_passes(
        self, first: list[LabelCandidate], present: Sequence[int], decoded: Decoded, options: MatchOptions
    ) -> Candidates:
        return first, dict(zip(present, self._masks.label_candidates(decoded, options), strict=True))

    def _finish(self, plan: SegmentationPlan, make: Callable[[], Candidates]) -> FoundMasks:
        found: list[LabelMask] = []
        size_hw, options = plan.encoded.size_hw, plan.options
        candidates, beside = make()
        results = compete(candidates, options, beside=beside)
        kept = [number for number, result in enumerate(results) if result.is_kept]
        with self._stage("upsample"):
            naturals = {number: mask_to_size(results[number].mask, size_hw) for number in kept}
        refined = self._refine(plan, candidates, naturals)
        taken = np.zeros(size_hw, np.bool_)
        with self._stage("separate"):
            for number in kept:
                natural, result = refined.get(number, naturals[number]), results[number]
                if options.overlap == "exclusive" and len(kept) > 1:
                    # Masks that touch in the working frame may share the pixels that its border became.
                    natural = natural & ~taken
                    taken |= natural
                if options.instances:
                    parted = result.mask if number not in refined else nearest_to_size(natural, _hw(result.mask))
                    objects = cut_instances(natural, parted)
                else:
                    objects = [BoxedMask.of(natural)] if natural.any() else []
                label = plan.labels[number].name
                found += [LabelMask(label, one, result.score) for one in objects]
        return FoundMasks(found, 1.0 - max(candidate.presence for candidate in candidates))

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


def _nothing() -> FoundMasks:
    return FoundMasks([], 1.0)


def _hw(mask: Mask) -> tuple[int, int]:
    return mask.shape[0], mask.shape[1]


def _of_one_pass(make: Callable[[], list[LabelCandidate]]) -> Candidates:
    return make(), {}


def _unchanged(candidates: list[LabelCandidate]) -> Candidates:
    return candidates, {}


def _explain_label(
    label: str, candidate: LabelCandidate, result: CompetitionResult, options: MatchOptions
) -> LabelExplanation:
    chance = f"The object is there with a probability of {result.presence:.2f}"
    least = min(options.minimum_presence, options.minimum_presence_surest)
    required = options.minimum_presence if result.presence >= options.minimum_presence else least
    if result.is_kept:
        reason = f"{chance}; {required} is required."
    elif candidate.mask.any() and result.presence < least:
        reason = f"{chance}, less than the required {least}."
    elif candidate.mask.any() and result.presence < options.minimum_presence:
        reason = f"{chance}, less than the {options.minimum_presence} required beside a surer label."
    elif candidate.mask.any() and result.score < options.minimum_score:
        reason = f"The expected IoU is {result.score:.2f}, less than the required {options.minimum_score}."
    elif candidate.mask.any():
        reason = "Another label is likelier here, or took most of its pixels."
    elif any(cluster.is_kept for cluster in candidate.clusters):
        reason = "All its components were too small."
    else:
        reason = "No cluster mask is left: the object seems absent."
    return LabelExplanation(
        label, candidate.posterior, candidate.clusters, result.mask, result.score, result.is_kept, reason
    )


def _to_size(posterior: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    return map_to_size(posterior, size_hw)
