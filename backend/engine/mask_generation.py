"""Mask generation: from score maps to prompts, from the segmenter's candidates to one mask per label."""

from collections.abc import Sequence

import numpy as np

from backend.core.calibration import Calibration, mask_features
from backend.core.explanation import ClusterMask
from backend.core.grid import map_to_size
from backend.core.masks import clean_mask
from backend.core.score_map import map_peak, recentre_log_odds
from backend.core.types import EncodedImage, Mask
from backend.engine.options import MatchOptions
from backend.engine.plans import ImagePlan, LabelCandidate, LabelMatch
from backend.engine.prompting import plan_prompts, select_masks
from backend.engine.stages import StageTimer
from backend.models.segmenters import BatchSegmenter, MaskCandidate

Decoded = tuple[ImagePlan, list[list[MaskCandidate]]]


class MaskGeneration:
    """Generates masks from score maps.

    Args:
        segmenter: makes masks of prompts.
        calibration: makes presence probability and expected IoU of what can be measured on a mask.
        stage: times what is done.
    """

    def __init__(self, segmenter: BatchSegmenter, calibration: Calibration, stage: StageTimer) -> None:
        self._segmenter = segmenter
        self._calibration = calibration
        self._stage = stage

    def plan(self, encoded: EncodedImage, matches: Sequence[LabelMatch], options: MatchOptions) -> ImagePlan:
        """Make the prompts of a target's labels."""
        with self._stage("prompt"):
            working_hw = self._segmenter.working_hw(encoded.embedding)
            posteriors = [map_to_size(one.posterior, working_hw) for one in matches]
            priors = [recentre_log_odds(posterior, map_peak(posterior)) for posterior in posteriors]
            prompts = [
                plan_prompts(
                    prior,
                    one.matching,
                    strategy=options.strategy,
                    points=options.points,
                    cluster_count=options.clusters,
                    seed=options.seed,
                )
                for prior, one in zip(priors, matches, strict=True)
            ]
            calls = [self._segmenter.plan(encoded.embedding, one.prompts) for one in prompts]
        similarities = [one.similarities for one in matches]
        return ImagePlan(working_hw, posteriors, priors, similarities, prompts, calls)

    def decode(self, plans: Sequence[ImagePlan]) -> list[Decoded]:
        """Decode the prompts of several targets at once."""
        calls = [one for plan in plans for one in plan.calls]
        with self._stage("decode", images=len(plans)):
            candidates = iter(self._segmenter.decode_planned(calls))
        return [(plan, [next(candidates) for _ in plan.calls]) for plan in plans]

    def label_candidates(self, decoded: Decoded, options: MatchOptions) -> list[LabelCandidate]:
        """Join each label's cluster masks to one mask, with its scores."""
        plan, candidates = decoded
        with self._stage("clean-up"):
            clusters = [
                select_masks(own, found, plan.working_hw) for own, found in zip(plan.prompts, candidates, strict=True)
            ]
            masks = [_join_cluster_masks(own, plan.working_hw, options) for own in clusters]
        return [
            self._measure(plan, index, mask, own, options.score_offset)
            for index, (mask, own) in enumerate(zip(masks, clusters, strict=True))
        ]

    def _measure(
        self, plan: ImagePlan, index: int, mask: Mask, clusters: tuple[ClusterMask, ...], score_offset: float
    ) -> LabelCandidate:
        posterior, similarities = plan.posteriors[index], plan.similarities[index]
        to_references, among_references = similarities or (0.0, 0.0)
        features = mask_features(
            mask,
            posterior,
            plan.priors[index],
            object_similarity=to_references,
            intra_reference_similarity=among_references,
        )
        if similarities is not None:
            presence = self._calibration.presence_probability(features)
        else:
            # Without references there is nothing to be similar to: the surest patches decide.
            presence = float(posterior[mask].max()) if mask.any() else 0.0
        score = self._calibration.expected_iou(features, score_offset)
        return LabelCandidate(mask, posterior, presence, score, features, clusters)


def _join_cluster_masks(clusters: Sequence[ClusterMask], working_hw: tuple[int, int], options: MatchOptions) -> Mask:
    union = np.zeros(working_hw, bool)
    for cluster in clusters:
        if cluster.is_kept:
            union |= cluster.mask
    small_component_px = max(1.0, options.small_component_percent / 100 * union.size)
    return clean_mask(union, small_component_px=small_component_px, hole_px=small_component_px)
