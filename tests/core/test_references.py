"""Views of a reference, and what stays unknown on it."""

import numpy as np

from backend.core.arrays import unit as unit_length
from backend.core.references import MaskUncertainty, ambiguous_patch_weights, blend_uncertainty, reference_views


def test_every_view_shows_the_object_under_its_mask() -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    mask = np.zeros((60, 90), bool)
    mask[20:30, 50:70] = True
    image[mask] = 255
    views = list(reference_views(image, mask, ~mask))
    assert len(views) == 3
    for view in views:
        assert np.array_equal(view.image[..., 0] == 255, view.mask)
        assert view.background is not None
        assert np.array_equal(view.background, ~view.mask)
    assert views[2].mask.mean() > 2 * views[0].mask.mean()


def test_a_mask_of_one_pixel_in_the_corner_has_its_views() -> None:
    mask = np.zeros((5, 4), bool)
    mask[4, 3] = True
    assert all(view.mask.any() for view in reference_views(np.zeros((5, 4, 3), np.uint8), mask, None))


def test_look_alikes_are_unknown_unless_the_user_said_outside() -> None:
    object_patch, other = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    features = np.stack([object_patch, object_patch, object_patch, other, other, other])
    inside = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], np.float32)
    known = ambiguous_patch_weights(features, inside, None, temperature=0.05)
    assert known.tolist() == [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    told = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0], np.float32)
    known = ambiguous_patch_weights(features, inside, told, temperature=0.05)
    assert known.tolist() == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]


def test_a_mask_of_everything_leaves_nothing_unknown() -> None:
    features = unit_length(np.random.default_rng(0).standard_normal((9, 4), np.float32))
    assert ambiguous_patch_weights(features, np.ones(9, np.float32), None, temperature=0.05).tolist() == [1.0] * 9


def test_what_is_likely_is_seen_in_every_view_as_the_mask_is() -> None:
    mask = np.zeros((60, 90), bool)
    mask[20:30, 50:70] = True
    halves = mask.astype(np.float32) * np.float32(0.5)
    for view in reference_views(np.zeros((60, 90, 3), np.uint8), mask, None, MaskUncertainty(halves, halves)):
        assert view.uncertainty is not None
        assert np.array_equal(view.uncertainty.soft_mask, view.mask / 2)
        assert np.array_equal(view.uncertainty.confidence, view.mask / 2)


def test_trust_lies_between_the_mask_and_what_is_likely() -> None:
    inside, known = np.array([1.0, 0.0, 0.0], np.float32), np.array([1.0, 1.0, 0.0], np.float32)
    soft_mask = np.array([0.2, 0.6, 0.9], np.float32)
    for confidence, foreground, background in (
        (1.0, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
        (0.0, [0.2, 0.6, 0.9], [0.8, 0.4, 0.1]),
        (0.5, [0.6, 0.3, 0.45], [0.4, 0.7, 0.05]),
    ):
        weighed, weighed_known = blend_uncertainty(inside, known, soft_mask, confidence)
        assert np.allclose(weighed * weighed_known, foreground)
        assert np.allclose((1 - weighed) * weighed_known, background)
