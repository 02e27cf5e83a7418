"""Prompting: from a label's score map to points, prompt clusters, and the cluster masks that they give."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.core.explanation import ClusterMask
from backend.core.prompts import cluster_points, sample_points
from backend.core.types import Mask, PromptingStrategy, Scribble
from backend.models.segmenters import MaskCandidate, Prompt

PAPER_MINIMUM_SCORE = 0.5
"""Predicted IoU below which the strategy `paper` rejects a cluster mask. The paper filters, but gives no number."""
POINTS: dict[PromptingStrategy, int] = {"prior": 256, "paper": 64}
"""With `prior` points only say which pieces of the score map are meant, so that each object shall have one: measured in
docs/experiments.md. With `paper` the segmenter is asked with them."""


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """The prompts of one label.

    Attributes:
        clusters: (P, 2) float32 points (x, y) of each cluster, in the working frame.
        prompts: one per cluster.
        strategy: that decides which cluster masks are kept.
    """

    clusters: tuple[NDArray[np.float32], ...]
    prompts: tuple[Prompt, ...]
    strategy: PromptingStrategy


def plan_prompts(
    prior: NDArray[np.float32],
    matching: NDArray[np.float32],
    *,
    strategy: PromptingStrategy,
    points: int | None,
    cluster_count: int,
    seed: int,
) -> PromptPlan:
    """Draw points from the matching probability, and join them to prompt clusters.

    `prior`: the segmenter follows the score map, the points say which pieces of it are meant, and every piece counts.
    `paper`: the segmenter sees the points of a cluster and nothing else; cluster masks of too low a predicted IoU are
    rejected.

    Args:
        prior: (h, w) float32 in [0, 1] in the working frame.
        matching: (H_p, W_p) float32: what points are drawn from.
        strategy: its name.
        points: how many are drawn; None: `POINTS`.
        cluster_count: how many they are joined to.
        seed: of the draw.

    Source: Frick et al., IJCAI 2024, Section 3, Mask generation.
    """
    height, width = prior.shape
    drawn = sample_points(matching, count=POINTS[strategy] if points is None else points, seed=seed)
    scale = np.array([width, height], np.float32)
    clusters = tuple(cluster * scale for cluster in cluster_points(drawn, count=cluster_count))
    prompts = tuple(
        Prompt(Scribble((height, width), positive_xy=cluster), prior=prior if strategy == "prior" else None)
        for cluster in clusters
    )
    return PromptPlan(clusters, prompts, strategy)


def select_masks(
    plan: PromptPlan, candidates: Iterable[MaskCandidate], working_hw: tuple[int, int]
) -> tuple[ClusterMask, ...]:
    """Select between the mask candidates of each prompt cluster; the kept cluster masks are the label's mask.

    A cluster with points on several objects has a candidate of each: their union is its mask, and their score the
    mean over its pixels.

    Args:
        plan: the prompts.
        candidates: of these prompts, in any order.
        working_hw: size of the segmenter's working frame.
    """
    of_prompt: list[list[MaskCandidate]] = [[] for _ in plan.clusters]
    for candidate in candidates:
        of_prompt[candidate.prompt_index].append(candidate)
    parts = []
    for cluster, own in zip(plan.clusters, of_prompt, strict=True):
        found = [one for one in own if one.mask.any()]
        mask: Mask = np.logical_or.reduce([np.zeros(working_hw, bool), *(one.mask for one in found)])
        areas = [np.count_nonzero(one.mask) for one in found]
        score = float(np.average([one.score for one in found], weights=areas)) if found else 0.0
        rejection_reason = next((one.rejection_reason for one in own if one.rejection_reason), None)
        is_kept, reason = _verdict(plan.strategy, is_empty=not found, score=score, rejection_reason=rejection_reason)
        parts.append(ClusterMask(cluster, mask, score, is_kept, reason))
    return tuple(parts)


def _verdict(
    strategy: PromptingStrategy, *, is_empty: bool, score: float, rejection_reason: str | None
) -> tuple[bool, str]:
    if is_empty:
        return False, f"rejected: {rejection_reason or 'the segmenter found nothing at these points'}"
    if strategy == "paper" and score < PAPER_MINIMUM_SCORE:
        return False, f"rejected: predicted IoU below {PAPER_MINIMUM_SCORE}"
    return True, "kept"
