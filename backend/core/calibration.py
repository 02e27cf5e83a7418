"""From what can be measured on a mask to the chance that its object is there, and to the IoU to expect of it."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask
from backend.errors import ConfigurationError

FORMAT = 1
"""Of a calibration file."""
EXPECTED_IOU = ("constant", "foreground_posterior", "soft_iou", "agreement")
PRESENCE = ("constant", "object_similarity", "intra_reference_similarity", "foreground_posterior", "agreement")
"""The coefficients of each logistic regression; posteriors enter as log-odds."""


@dataclass(frozen=True)
class MaskFeatures:
    """Measurements on a mask, each in [0, 1] but for the two similarities, which are in [-1, 1].

    Attributes:
        object_similarity: see `object_similarity.object_similarity`.
        intra_reference_similarity: see `object_similarity.intra_reference_similarity`.
        foreground_posterior: mean posterior inside the mask.
        background_posterior: mean posterior outside the mask.
        soft_iou: soft IoU of mask and posterior: both what is covered without posterior and posterior that is not
            covered lower it.
        agreement: IoU of the mask and the thresholded prior: colours and features agree.
        area: share of the image.
    """

    object_similarity: float
    intra_reference_similarity: float
    foreground_posterior: float
    background_posterior: float
    soft_iou: float
    agreement: float
    area: float


def mask_features(
    mask: Mask,
    posterior: NDArray[np.float32],
    prior: NDArray[np.float32],
    *,
    object_similarity: float,
    intra_reference_similarity: float,
) -> MaskFeatures:
    """Measure a mask; of an empty one the `area` is 0.

    Args:
        mask: (h, w) bool.
        posterior: (h, w) float32 in [0, 1].
        prior: (h, w) float32 in [0, 1], above 0.5 where the posterior is above its adaptive threshold.
        object_similarity: of what was found to the references' objects.
        intra_reference_similarity: of these.
    """
    covered = int(np.count_nonzero(mask))
    if not covered:
        return MaskFeatures(object_similarity, intra_reference_similarity, 0.0, 0.0, 0.0, 0.0, 0.0)
    shared, rest = float(posterior[mask].sum()), float(posterior[~mask].sum())
    above = prior > 0.5
    both = int(np.count_nonzero(above & mask))
    return MaskFeatures(
        object_similarity=object_similarity,
        intra_reference_similarity=intra_reference_similarity,
        foreground_posterior=shared / covered,
        background_posterior=rest / max(1, mask.size - covered),
        soft_iou=shared / (covered + rest),
        agreement=both / (covered + int(np.count_nonzero(above)) - both),
        area=covered / mask.size,
    )


@dataclass(frozen=True)
class Calibration:
    """Two logistic regressions on `MaskFeatures`, fitted on annotated images.

    Attributes:
        expected_iou_weights: a coefficient for each name of `EXPECTED_IOU`.
        presence_weights: a coefficient for each name of `PRESENCE`.
        fitted_for: profile whose masks the fit saw; for others a score is an estimate.
        fitted_on: in words: which images, how many.
    """

    expected_iou_weights: Mapping[str, float]
    presence_weights: Mapping[str, float]
    fitted_for: str
    fitted_on: str

    def expected_iou(self, features: MaskFeatures, offset: float = 0.0) -> float:
        """Return the IoU to expect of a mask if the object is present, in [0, 1]; 0 for an empty mask.

        Args:
            features: of the mask.
            offset: log-odds that a project's own annotations add, see `calibration_fit.fit_score_offset`.
        """
        if features.area == 0:
            return 0.0
        weights = self.expected_iou_weights
        return logistic(
            offset
            + weights["constant"]
            + weights["foreground_posterior"] * log_odds(features.foreground_posterior)
            + weights["soft_iou"] * features.soft_iou
            + weights["agreement"] * features.agreement
        )

    def presence_probability(self, features: MaskFeatures) -> float:
        """Return the probability that the object is on the image at all, in [0, 1]; 0 for an empty mask.

        It is fitted apart from the expected IoU: a poor mask of an object that is there is worth more than none. Fitted
        as if every other image had the object, each counting with the IoU that would be lost.
        """
        if features.area == 0:
            return 0.0
        weights = self.presence_weights
        return logistic(
            weights["constant"]
            + weights["object_similarity"] * features.object_similarity
            + weights["intra_reference_similarity"] * features.intra_reference_similarity
            + weights["foreground_posterior"] * log_odds(features.foreground_posterior)
            + weights["agreement"] * features.agreement
        )

    def is_fitted_for(self, profile: str) -> bool:
        """Return whether the fit saw masks of this profile; otherwise presence and scores are estimates."""
        return self.fitted_for == profile

    def digest(self) -> str:
        """Return twelve hex digits that change with any coefficient: part of model_version."""
        weights = [dict(self.expected_iou_weights), dict(self.presence_weights)]
        return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Return the text of a calibration file."""
        content = {
            "format": FORMAT,
            "fitted_for": self.fitted_for,
            "fitted_on": self.fitted_on,
            "expected_iou": dict(self.expected_iou_weights),
            "presence": dict(self.presence_weights),
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, name: str) -> "Calibration":
        """Read a calibration file.

        Args:
            text: its content.
            name: what an error calls it.

        Raises:
            ConfigurationError: it is no calibration file; says what is missing.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(f"calibration {name} must be JSON, got {error}; {_CURE}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ConfigurationError(f'calibration {name} must have "format": {FORMAT}; {_CURE}')
        return cls(
            _coefficients(content, "expected_iou", EXPECTED_IOU, name),
            _coefficients(content, "presence", PRESENCE, name),
            str(content.get("fitted_for", "")),
            str(content.get("fitted_on", "")),
        )


_CURE = "write one with `python -m backend calibrate`"


def _coefficients(content: Mapping[str, Any], part: str, names: tuple[str, ...], name: str) -> dict[str, float]:
    found = content.get(part)
    if (
        not isinstance(found, dict)
        or set(found) != set(names)
        or not all(isinstance(value, int | float) and math.isfinite(value) for value in found.values())
    ):
        raise ConfigurationError(
            f'calibration {name}: "{part}" must have finite numbers for {", ".join(names)}, got {found}; {_CURE}'
        )
    return {one: float(found[one]) for one in names}


def logistic(value: float) -> float:
    """Return 1 / (1 + exp(-value)), also for values whose exponential would overflow."""
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def log_odds(probability: float) -> float:
    """Return the logit of a probability, bounded to [0.001, 0.999]."""
    bounded = min(max(probability, 1e-3), 1 - 1e-3)
    return math.log(bounded / (1 - bounded))
