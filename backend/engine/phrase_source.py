"""Phrases of a label as a source of its score map, and their fit to the label's reference images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from backend.core.arrays import sigmoid
from backend.core.matching import ReferenceBank, ScoreMap, to_matching
from backend.core.text_scores import HeldOutView, LabelPhrases, TextScale, fit_text_scale
from backend.core.types import EncodedImage, Reference
from backend.engine.matching import Matching
from backend.engine.options import MatchOptions

_MOST_HELD_OUT = 8
"""Reference images of a label that are left out in turn."""
_OBJECT, _BACKGROUND = 0.5, 0.1
"""Coverage from which on a patch shows the object, and below which it does not; between them nobody knows."""


class PhraseSource:
    """Scores patches by the phrases of a label.

    An image that was encoded without text features gets 0.5 everywhere, which changes nothing.

    Args:
        phrases: of the label.
        scale: how far they are to be believed.
    """

    def __init__(self, phrases: LabelPhrases, scale: TextScale) -> None:
        self._phrases = phrases
        self.scale = scale

    def score(self, encoded: EncodedImage) -> ScoreMap:
        """Return the score map of a target, q = sigmoid(w z)."""
        if encoded.text_features is None:
            posterior = np.full(encoded.features.shape[0] * encoded.features.shape[1], 0.5, np.float32)
        else:
            patches = encoded.text_features.astype(np.float32).reshape(-1, encoded.text_features.shape[2])
            posterior = sigmoid(self.scale.log_odds(self._phrases.scores(patches)))
        return ScoreMap(posterior, to_matching(posterior))


def fit_phrases(
    matching: Matching,
    label: str,
    phrases: LabelPhrases,
    references: Sequence[Sequence[Reference]],
    others: Mapping[str, ReferenceBank],
    options: MatchOptions,
) -> TextScale:
    """Measure how far a label's phrases are to be believed, on its own reference images.

    Each is matched without itself. The only one is cut into two halves, each of which is matched with the other.

    Args:
        matching: matches them.
        label: the label.
        phrases: of it.
        references: for each reference image what annotations made of it.
        others: the banks of the labels, whose objects are background of this one.
        options: of the matching.
    """
    images = [some for some in references if any(one.text_features is not None for one in some)]
    banks = [bank for name, bank in others.items() if name != label]
    views: list[HeldOutView] = []
    for image in images[:_MOST_HELD_OUT]:
        rest = [one for some in references if some is not image for one in some]
        for one in image:
            if one.text_features is None:
                continue
            plain = _plain_view(one)
            pairs = [(plain, rest)] if rest else _halves(plain)
            views += [_held_out(matching, phrases, target, bank, banks, options) for target, bank in pairs]
    return fit_text_scale(views, len(images))


def _plain_view(reference: Reference) -> Reference:
    """Return the part of a reference that shows the image as it is: its first patches, those with text features."""
    assert reference.text_features is not None  # looked at before
    return _patches(reference, np.arange(len(reference.text_features)))


def _patches(reference: Reference, chosen: NDArray[np.int64]) -> Reference:
    text = None if reference.text_features is None else reference.text_features[chosen]
    return replace(
        reference,
        features=reference.features[chosen],
        foreground_coverage=reference.foreground_coverage[chosen],
        ignore_weight=reference.ignore_weight[chosen],
        text_features=text,
    )


def _halves(plain: Reference) -> list[tuple[Reference, list[Reference]]]:
    """Return both halves of a view, above and below the middle of its object, each with the other as its bank."""
    mass = np.cumsum(plain.foreground_coverage.astype(np.float64) * plain.ignore_weight)
    if not mass[-1] > 0:
        return []
    middle = int(np.searchsorted(mass, mass[-1] / 2)) + 1
    above, below = (_patches(plain, part) for part in np.split(np.arange(len(mass)), [middle]))
    halves = [(above, [below]), (below, [above])]
    return [(target, bank) for target, bank in halves if all(_has_object(one) for one in (target, *bank))]


def _has_object(reference: Reference) -> bool:
    return bool((reference.foreground_coverage * reference.ignore_weight > 0).any())


def _held_out(
    matching: Matching,
    phrases: LabelPhrases,
    view: Reference,
    bank: Sequence[Reference],
    others: Sequence[ReferenceBank],
    options: MatchOptions,
) -> HeldOutView:
    assert view.text_features is not None
    coverage, weight = (one.astype(np.float32) for one in (view.foreground_coverage, view.ignore_weight))
    return HeldOutView(
        phrases.scores(view.text_features.astype(np.float32)),
        matching.log_odds(view.features.astype(np.float32), bank, others, options),
        (coverage > _OBJECT) * weight,
        (coverage < _BACKGROUND) * weight,
    )
