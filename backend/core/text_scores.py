"""Scores of patches by phrases, and how far the phrases of a label are to be believed.

    s[t] = <g_t, p> - max_k <g_t, o_k>,     z[t] = (s[t] - c) / T,     logit q[t] = logit q_visual[t] + w z[t]

g: text features of the patches of an image, of unit length. p: the label's phrases, o_k: what it is not, both as unit
vectors of the text encoder. c, T and w are measured: on reference images of the label, or, without any, on images of
the project.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.core.arrays import highest, unit

MOST_WEIGHT = 3.0
"""Largest w."""
_STEPS = 60
PRIOR_WEIGHT = 1.0
"""The w that a phrase has as long as references say little."""
PATCHES_A_REFERENCE = 8.0
"""Independent patches that a reference image counts as: with each reference the prior of strength 1 fades."""
LEAST_GAIN = 2e-3
"""Mean log-likelihood per patch that a phrase must gain; one that gains less gets w = 0."""
_MOST_Z = 8.0
_LEAST_TEMPERATURE = 1e-3
_CLASS_Z = 4.0
"""|z| at the means of object and background, if they are far apart."""
OUTSTANDING = 6.0
"""Robust standard deviations by which an image's best patches must stand out to be taken for the object."""
LEAST_GAP = 0.02
"""The same as a difference of cosines, for images without any spread."""
PRESENT_Z = 2.0
"""Mean z of an image's best patches from which on it may show the object."""
_BEST_PATCHES, _BEST_SHARE = 4, 0.005


@dataclass(frozen=True, eq=False)
class LabelPhrases:
    """The phrases of one label as vectors.

    Attributes:
        label: (D,) float32 of unit length: the mean of its phrases.
        others: (K, D) float32 of unit length: negative phrases, other labels, background; K may be 0.
    """

    label: NDArray[np.float32]
    others: NDArray[np.float32]

    def scores(self, text_features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return s of patches with text features (T, D): (T,) float32."""
        scores = text_features @ self.label
        if len(self.others):
            scores = scores - (text_features @ self.others.T).max(axis=1)
        return scores


def mean_of_phrases(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the mean of unit vectors (D,), brought to unit length; at least one."""
    return np.asarray(unit(np.stack(vectors).mean(axis=0)), np.float32)


@dataclass(frozen=True)
class TextScale:
    """How the scores of a label's phrases become log-odds.

    Attributes:
        centre: c.
        temperature: T, above 0.
        weight: w, 0 or more.
        is_gated: an image whose best patches are below `PRESENT_Z` has nothing of the label: there are no references to
            say so.
        references: reference images that it was measured on.
    """

    centre: float
    temperature: float
    weight: float
    is_gated: bool = False
    references: int = 0

    def log_odds(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return w z of scores (T,)."""
        z = self._z(scores)
        if self.is_gated and float(_best(z)) < PRESENT_Z:
            z = np.minimum(z, -_CLASS_Z)
        return self.weight * z

    def _z(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.clip((scores - self.centre) / self.temperature, -_MOST_Z, _MOST_Z)


@dataclass(frozen=True, eq=False)
class HeldOutView:
    """A reference image that was matched without itself.

    Attributes:
        scores: (T,) float32: s of its patches.
        log_odds: (T,) float32: what the other references say of them.
        foreground: (T,) float32 in [0, 1]: mass of the object.
        background: (T,) float32 in [0, 1]: mass of what is known not to be the object.
    """

    scores: NDArray[np.float32]
    log_odds: NDArray[np.float32]
    foreground: NDArray[np.float32]
    background: NDArray[np.float32]


def fit_text_scale(views: Sequence[HeldOutView], references: int) -> TextScale:
    """Measure c and T of a label's phrases on its reference images, and fit w.

    w maximises, over w >= 0,

        N sum_t m[t] log q(y[t] | l[t] + w z[t]) - (w - 1)^2 / 2,     N = `PATCHES_A_REFERENCE` * references

    where m are the masses of object and background, each of them half. A w that gains less than `LEAST_GAIN` in the
    first term against w = 0 is none: a phrase that misleads, or says what the references know, gets 0.

    Args:
        views: held-out reference images; those without an object or without a background say nothing.
        references: number of reference images that they come from.
    """
    kept = [one for one in views if float(one.foreground.sum()) > 0.0 and float(one.background.sum()) > 0.0]
    if not kept:
        return TextScale(0.0, 1.0, 0.0, references=references)
    scores, log_odds = (np.concatenate([getattr(one, name) for one in kept]) for name in ("scores", "log_odds"))
    foreground = np.concatenate([one.foreground / one.foreground.sum() for one in kept]) / (2 * len(kept))
    background = np.concatenate([one.background / one.background.sum() for one in kept]) / (2 * len(kept))
    on, off = float(2 * (foreground @ scores)), float(2 * (background @ scores))
    within = foreground @ (scores - on) ** 2 + background @ (scores - off) ** 2
    temperature = max(float(np.sqrt(within)), abs(on - off) / (2 * _CLASS_Z), _LEAST_TEMPERATURE)
    scale = TextScale((on + off) / 2, temperature, 1.0, references=references)
    z = scale.log_odds(scores)
    weights = np.linspace(0.0, MOST_WEIGHT, _STEPS + 1, dtype=np.float32)
    fused = log_odds + weights[:, None] * z
    likelihood = -np.logaddexp(0, -fused) @ foreground - np.logaddexp(0, fused) @ background
    objective = PATCHES_A_REFERENCE * references * likelihood - (weights - PRIOR_WEIGHT) ** 2 / 2
    objective = np.where(likelihood < likelihood[0] + LEAST_GAIN, -np.inf, objective)
    weight = float(weights[objective.argmax()]) if np.isfinite(objective).any() else 0.0
    return TextScale(scale.centre, temperature, round(weight, 3), references=references)


def scale_of_images(scores: Sequence[NDArray[np.float32]]) -> TextScale | None:
    """Measure c and T of a label's phrases on images of which nobody knows what they show.

    Most patches are taken for background: their median and spread say what a patch scores that shows something else.
    Images whose best patches stand out are taken to show the object.

    Args:
        scores: (T,) float32 of each image.

    Returns:
        A gated scale of w = 1, or None if no image stands out: then the label is not looked for by its phrases.
    """
    pooled = np.concatenate(list(scores)) if scores else np.empty(0, np.float32)
    if not len(pooled):
        return None
    median = float(np.median(pooled))
    spread = 1.4826 * float(np.median(np.abs(pooled - median)))
    tops = [float(_best(one)) for one in scores if len(one)]
    outstanding = [top for top in tops if top - median > max(OUTSTANDING * spread, LEAST_GAP)]
    if not outstanding:
        return None
    top = float(np.median(outstanding))
    temperature = max((top - median) / (2 * _CLASS_Z), _LEAST_TEMPERATURE)
    return TextScale((median + top) / 2, temperature, 1.0, is_gated=True)


def _best(values: NDArray[np.float32]) -> np.float32:
    """Return the mean of an image's best patches."""
    count = min(len(values), max(_BEST_PATCHES, round(_BEST_SHARE * len(values))))
    return np.float32(highest(values, count).mean())
