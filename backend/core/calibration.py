"""How good is a mask? What speaks for it, the IoU to expect of it, and whether the object is there at all."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask


@dataclass(frozen=True)
class MaskFeatures:
    """What speaks for a mask, each in [0, 1] but for kinship and cohesion.

    Attributes:
        object_similarity: `object_similarity.object_similarity`, in [-1, 1].
        intra_reference_similarity: `object_similarity.intra_reference_similarity` of the references, in [-1, 1].
        inside: mean posterior inside the mask.
        outside: mean posterior outside of it.
        support: soft IoU of the mask and the posterior: what is claimed without support and what is supported without
            being claimed both cost.
        agreement: IoU of the mask and the thresholded prior: colours and features tell the same.
        area: share of the image.
    """

    object_similarity: float
    intra_reference_similarity: float
    inside: float
    outside: float
    support: float
    agreement: float
    area: float


# Fitted by benchmarks/calibration.py: logistic regressions on 68 classes, each set judged by a fit on the other sets.
IOU_WEIGHTS = {"constant": -2.7, "inside": 0.32, "support": 0.45, "agreement": 3.9}
PRESENCE_WEIGHTS = {
    "constant": -4.6,
    "object_similarity": 13.4,
    "intra_reference_similarity": -4.5,
    "inside": 0.23,
    "agreement": 3.15,
}


def mask_features(
    mask: Mask,
    posterior: NDArray[np.float32],
    prior: NDArray[np.float32],
    *,
    object_similarity: float,
    intra_reference_similarity: float,
) -> MaskFeatures:
    """What speaks for a mask; without pixels, an `area` of 0.

    Args:
        mask: (h, w) bool.
        posterior: (h, w) float32 in [0, 1].
        prior: (h, w) float32 in [0, 1], above 0.5 where the posterior says object.
        object_similarity: of what was found to the references' objects.
        intra_reference_similarity: of these.
    """
    claimed = int(np.count_nonzero(mask))
    if not claimed:
        return MaskFeatures(object_similarity, intra_reference_similarity, 0.0, 0.0, 0.0, 0.0, 0.0)
    shared, rest = float(posterior[mask].sum()), float(posterior[~mask].sum())
    likely = prior > 0.5
    both = int(np.count_nonzero(likely & mask))
    return MaskFeatures(
        object_similarity=object_similarity,
        intra_reference_similarity=intra_reference_similarity,
        inside=shared / claimed,
        outside=rest / max(1, mask.size - claimed),
        support=shared / (claimed + rest),
        agreement=both / (claimed + int(np.count_nonzero(likely)) - both),
        area=claimed / mask.size,
    )


def expected_iou(evidence: MaskFeatures) -> float:
    """The IoU to expect of a mask if the object is present, in [0, 1]; 0 for an empty mask."""
    if evidence.area == 0:
        return 0.0
    return _logistic(
        IOU_WEIGHTS["constant"]
        + IOU_WEIGHTS["inside"] * _logit(evidence.inside)
        + IOU_WEIGHTS["support"] * evidence.support
        + IOU_WEIGHTS["agreement"] * evidence.agreement
    )


def presence(evidence: MaskFeatures) -> float:
    """The chance that the object is on the image at all, in [0, 1]; 0 for an empty mask.

    Judged apart from the expected IoU: a poor mask of an object that is there is worth more than none. Fitted as if
    every other image had the object, each counting with the IoU that would be lost.
    """
    if evidence.area == 0:
        return 0.0
    return _logistic(
        PRESENCE_WEIGHTS["constant"]
        + PRESENCE_WEIGHTS["object_similarity"] * evidence.object_similarity
        + PRESENCE_WEIGHTS["intra_reference_similarity"] * evidence.intra_reference_similarity
        + PRESENCE_WEIGHTS["inside"] * _logit(evidence.inside)
        + PRESENCE_WEIGHTS["agreement"] * evidence.agreement
    )


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _logit(value: float) -> float:
    bounded = min(max(value, 1e-3), 1 - 1e-3)
    return math.log(bounded / (1 - bounded))
