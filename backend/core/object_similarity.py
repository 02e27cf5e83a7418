"""Is what was found of the same kind as what the references mark?

The posterior compares patch with patch, and patches of a coin and of a cup's rim are alike. The whole object tells them
apart: its mean feature in those channels of the encoder that name things, seen from what is typical of any image.
"""

from dataclasses import dataclass, field

import numpy as np

from backend.core.arrays import Array, amax, like, unit


@dataclass(frozen=True, eq=False)
class ObjectFeatureSpace:
    """The part of an encoder's features in which objects are compared.

    Attributes:
        channels: those that do, of the D of a patch.
        typical: (K,) float32: their mean over all sorts of images, or (1,) of 0 where it is not known. Two objects are
            alike in what they do not share with everything.
    """

    channels: slice = field(default_factory=lambda: slice(None))
    typical: Array = field(default_factory=lambda: np.zeros(1, np.float32))


LONE_INTRA_REFERENCE_SIMILARITY = 0.42
"""What one reference, which has nothing to be like, is taken to have: fitted as `scoring.PRESENCE_WEIGHTS` are."""


SAME_OBJECT = 0.98
"""Two references more alike than this show one object once more: an image annotated by two people."""


def object_similarity(objects: Array, target: Array, weights: Array, space: ObjectFeatureSpace) -> float:
    """Return the similarity of the found object to the most similar of the references' objects.

        max_n cos(o_n - c, m - c),     m = sum_t w[t] g_t / sum_t w[t],   c what is typical

    Args:
        objects: (N, D) float32: mean feature of each reference's object.
        target: (T, D) float32 of unit length.
        weights: (T,) float32 >= 0: what was found; on the CPU, wherever the others are.
        space: of the encoder.

    Returns:
        a cosine in [-1, 1]; -1 where nothing was found.
    """
    total = float(weights.sum())
    if total <= 0:
        return -1.0
    found = (like(weights, target) @ target / total)[space.channels] - space.typical
    known = objects[:, space.channels] - space.typical
    return float((unit(known) @ unit(found)).max().clip(-1.0, 1.0))


def intra_reference_similarity(objects: Array, space: ObjectFeatureSpace) -> float:
    """Return the similarity of the references' objects to each other: the level that a target can reach.

        mean_n max_k cos(o_n - c, o_k - c)      over k that show another object than n does (`SAME_OBJECT`)

    Args:
        objects: as for `object_similarity`.
        space: likewise.

    Returns:
        a cosine in [-1, 1]; `LONE_INTRA_REFERENCE_SIMILARITY` for a single object, however often it was given.
    """
    known = unit(objects[:, space.channels] - space.typical)
    likeness = known @ known.T
    others = likeness < SAME_OBJECT
    has_others = others.any(axis=1)
    if not bool(has_others.any()):
        return LONE_INTRA_REFERENCE_SIMILARITY
    closest = amax(likeness * others - 2.0 * ~others, 1)
    return float(closest[has_others].mean().clip(-1.0, 1.0))
