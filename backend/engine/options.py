"""Options of matching and of mask generation."""

import hashlib
import json
from dataclasses import asdict, dataclass

from backend.core.types import MatcherName, OverlapName, PromptingStrategy

MASKS_VERSION = 2
"""Raised with every change of the code that changes masks of the same references: predictions made before are then
outdated, in a release or between two. `tests/engine/test_recorded_masks.py` asks for it."""


@dataclass(frozen=True)
class MatchOptions:
    """How references are matched and masks are generated from the score maps. Every field fits into JSON.

    Attributes:
        matcher: a key of `MATCHERS`: `posterior`, the paper's `softmatcher`, ...
        strategy: how a score map becomes prompts and masks: `prior`, or the `paper`'s own way.
        temperature: softmax scale, above 0; None takes the encoder's own.
        points: number of points sampled from the matching probability, per label; None takes the strategy's own.
        clusters: number of prompt clusters that these points are joined to.
        seed: seed of the sampling.
        bank_patches: bound of the number of patches that a label's references are matched with, see `build_bank`.
        small_component_percent: components and holes smaller than this percentage of the image are cleaned away.
        instances: whether each object of a label gets a mask of its own.
        minimum_presence: nothing is returned for a label whose presence probability is below this.
        minimum_presence_surest: the same of the label with the largest presence probability on an image, if lower.
        minimum_score: nor for one whose expected IoU is below this.
        score_offset: log-odds added to expected IoUs, fitted on the project's own annotations.
        classifier: whether the posterior is blended with a classifier of patches, which several references are fitted
            to, see `PatchClassifier`; for the matcher `posterior`.
        overlap: `exclusive`: a pixel has up to one label; `allowed`: labels may lie on one another.
    """

    matcher: MatcherName = "posterior"
    strategy: PromptingStrategy = "prior"
    temperature: float | None = None
    points: int | None = None
    clusters: int = 8
    seed: int = 0
    bank_patches: int = 2560
    small_component_percent: float = 0.02
    instances: bool = False
    minimum_presence: float = 0.5
    minimum_presence_surest: float = 0.45
    minimum_score: float = 0.0
    score_offset: float = 0.0
    classifier: bool = True
    overlap: OverlapName = "exclusive"

    def digest(self) -> str:
        """Return twelve hex digits that change with any option, and with `MASKS_VERSION`: part of model_version."""
        known = {**asdict(self), "masks_version": MASKS_VERSION}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
