"""Where a label's score map comes from: one source or several, joined before labels compete."""

from collections.abc import Sequence
from typing import Protocol

from backend.core.arrays import logit, sigmoid, stack
from backend.core.matching import ScoreMap, to_matching
from backend.core.types import EncodedImage

EPSILON = 1e-4
"""Log-odds are taken of posteriors this far from 0 and 1."""


class ScoreSource(Protocol):
    """Scores the patches of a target for one label.

    References with a matcher are one source, built in (`engine.matching`). Anything else that
    scores a label, such as a phrase or a classifier, is another: pass it to `Softmatcher.segment` with its labels.
    """

    def score(self, encoded: EncodedImage) -> ScoreMap:
        """Return the score map of a target, on the CPU: posterior and matching are (H_p * W_p,), row by row."""
        ...


def fuse(maps: Sequence[ScoreMap]) -> ScoreMap:
    """Join the score maps of a label's sources, by the sum of their log-odds.

        logit q[t] = sum_s logit q_s[t]

    A source without information about a patch returns 0.5 there, which changes nothing.

    Args:
        maps: of one label on one target, at least one; a single one is returned as it is.
    """
    if len(maps) == 1:
        return maps[0]
    log_odds = stack([logit(one.posterior, EPSILON) for one in maps]).sum(axis=0)
    posterior = sigmoid(log_odds)
    return ScoreMap(posterior, to_matching(posterior), max(one.error for one in maps))
