"""Affinity on features whose right answer is known: one unit vector a region."""

import numpy as np
import pytest

from backend.core.marked_objects import MarkedObject
from backend.core.self_similarity import LEAST_CONFIDENCE, scribble_affinity, scribble_uncertainty
from backend.core.types import ScoredMask, Scribble

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


def test_a_doubted_mask_leaves_open_all_that_looks_like_the_mark() -> None:
    found = ScoredMask(np.pad(np.ones((4, 4), bool), ((18, 18), (18, 38))), 0.7)
    positive, negative = np.array([[20, 20]], np.float32), np.array([[28, 12]], np.float32)
    uncertainty = scribble_uncertainty(FEATURES, [MarkedObject(Scribble((40, 60), positive), found)])
    assert uncertainty is not None
    assert 0 < uncertainty.confidence < 1
    assert uncertainty.soft_mask[25, 25] > 0.9  # of the same patch feature, outside the mask
    assert uncertainty.soft_mask[5, 50] < 0.1
    told = scribble_uncertainty(FEATURES, [MarkedObject(Scribble((40, 60), positive, negative), found)])
    assert told is not None
    assert told.soft_mask[20, 20] == 1
    assert told.soft_mask[12, 28] == 0  # looks alike, but was marked as not the object


def test_trust_grows_with_the_score_and_a_stroke_says_more_than_a_point() -> None:
    mask = np.pad(np.ones((4, 4), bool), ((18, 18), (18, 38)))
    point = Scribble((40, 60), np.array([[20, 20]], np.float32))
    stroke = Scribble((40, 60), positive_strokes=mask)
    confidences = {}
    for name, scribble in (("points", point), ("strokes", stroke)):
        uncertainties = [
            scribble_uncertainty(FEATURES, [MarkedObject(scribble, ScoredMask(mask, score))])
            for score in (0.1, 0.7, 0.8)
        ]
        confidences[name] = [uncertainty.confidence for uncertainty in uncertainties if uncertainty is not None]
        assert confidences[name][0] == LEAST_CONFIDENCE[name]
        assert confidences[name] == sorted(set(confidences[name]))
    assert all(of_stroke > of_point for of_point, of_stroke in zip(*confidences.values(), strict=True))


def test_a_good_mask_and_one_that_a_box_bounds_are_not_doubted() -> None:
    mask = np.pad(np.ones((4, 4), bool), ((18, 18), (18, 38)))
    point = np.array([[20, 20]], np.float32)
    assert scribble_uncertainty(FEATURES, [MarkedObject(Scribble((40, 60), point), ScoredMask(mask, 0.9))]) is None
    box = Scribble((40, 60), point, boxes_xyxy=np.array([[10, 10, 30, 30]], np.float32))
    assert scribble_uncertainty(FEATURES, [MarkedObject(box, ScoredMask(mask, 0.1))]) is None


def test_each_object_is_trusted_by_its_own_score() -> None:
    masks = [np.zeros((40, 60), bool) for _ in range(3)]
    for number, mask in enumerate(masks):
        mask[10:20, 5 + 20 * number : 15 + 20 * number] = True
    box = Scribble((40, 60), boxes_xyxy=np.array([[45, 10, 55, 20]], np.float32))
    points = [Scribble((40, 60), np.array([[10 + 20 * number, 15]], np.float32)) for number in range(2)]
    found = [ScoredMask(masks[0], 0.9), ScoredMask(masks[1], 0.7), ScoredMask(masks[2], 0.1)]
    objects = [MarkedObject(one, mask) for one, mask in zip([*points, box], found, strict=True)]
    uncertainty = scribble_uncertainty(FEATURES, objects)
    assert uncertainty is not None
    assert isinstance(uncertainty.confidence, np.ndarray)
    sure, unsure, boxed = (uncertainty.confidence[mask] for mask in masks)
    assert (sure == 1).all()
    assert (boxed == 1).all()
    assert np.unique(unsure).tolist() == pytest.approx([0.4])
    assert uncertainty.confidence[0, 0] == pytest.approx(0.4)
    assert uncertainty.soft_mask[15, 30] == 1  # what was marked holds
    seen = scribble_uncertainty(FEATURES, objects[1:2], complete=masks[0])
    assert seen is not None
    assert isinstance(seen.confidence, np.ndarray)
    assert (seen.confidence[masks[0]] == 1).all()
    assert scribble_uncertainty(FEATURES, [objects[0], objects[2]]) is None
