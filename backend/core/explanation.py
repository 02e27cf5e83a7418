"""Explanations: how the masks of an image came about, or why there is none."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask


@dataclass(frozen=True, eq=False)
class ClusterMask:
    """One prompt cluster and the mask that it gave, in the segmenter's working frame of (h, w) px.

    Attributes:
        points_xy: (N, 2) float32, px: the cluster, a prompt of the segmenter.
        mask: (h, w) bool, empty where the segmenter found nothing.
        score: what the segmenter makes of it, in [0, 1].
        is_kept: it is part of the label's mask.
        reason: why it was kept or rejected.
    """

    points_xy: NDArray[np.float32]
    mask: Mask
    score: float
    is_kept: bool
    reason: str


@dataclass(frozen=True, eq=False)
class LabelExplanation:
    """How the mask of one label came about, in the segmenter's working frame.

    Attributes:
        label: its name.
        score_map: (h, w) float32 in [0, 1]: the posterior, after the labels competed.
        cluster_masks: one per prompt cluster.
        mask: (h, w) bool: what they made together, cleaned, without what other labels took.
        score: expected IoU, in [0, 1].
        is_kept: it is part of the segmentation.
        reason: why it was kept or rejected.
    """

    label: str
    score_map: NDArray[np.float32]
    cluster_masks: tuple[ClusterMask, ...]
    mask: Mask
    score: float
    is_kept: bool
    reason: str


@dataclass(frozen=True, eq=False)
class Explanation:
    """How the segmentation of one image came about.

    Attributes:
        matcher, strategy: what made it.
        labels: in the order of the references.
    """

    matcher: str
    strategy: str
    labels: tuple[LabelExplanation, ...]
