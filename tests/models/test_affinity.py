"""Affinity on features whose right answer is known: one unit vector a region."""

import numpy as np
import pytest

from backend.core.types import Scribble
from backend.models.affinity import scribble_affinity

FEATURES = np.zeros((4, 6, 2), np.float16)
FEATURES[..., 0] = 1
FEATURES[1:3, 1:3] = (0, 1)


@pytest.mark.parametrize(
    "scribble",
    [
        Scribble((40, 60), np.array([[20, 20]], np.float32)),
        Scribble((40, 60), boxes_xyxy=np.array([[10, 10, 30, 30]], np.float32)),
        Scribble((40, 60), positive_strokes=np.pad(np.ones((4, 4), bool), ((18, 18), (18, 38)))),
    ],
)
def test_patches_like_the_marked_one_are_high_and_the_others_low(scribble: Scribble) -> None:
    affinity = scribble_affinity(FEATURES, scribble)
    assert affinity is not None
    assert affinity.shape == (40, 60)
    assert affinity[20, 20] > 0.95
    assert affinity[5, 50] < 0.05


def test_nothing_positive_has_no_affinity() -> None:
    assert scribble_affinity(FEATURES, Scribble((40, 60), negative_xy=np.array([[20, 20]], np.float32))) is None


def test_features_without_contrast_say_nothing() -> None:
    flat = np.zeros((4, 6, 2), np.float32)
    flat[..., 0] = 1
    affinity = scribble_affinity(flat, Scribble((40, 60), np.array([[20, 20]], np.float32)))
    assert affinity is not None
    assert np.all(affinity == 0)
