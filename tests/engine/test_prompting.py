"""What becomes of a segmenter's candidates."""

import numpy as np

from backend.core.types import Mask
from backend.engine.prompting import PromptPlan, select_masks
from backend.models.segmenters import MaskCandidate

HW = (10, 12)


def _plan(count: int) -> PromptPlan:
    return PromptPlan(tuple(np.zeros((1, 2), np.float32) for _ in range(count)), (), "prior")


def _columns(start: int, stop: int) -> Mask:
    mask = np.zeros(HW, bool)
    mask[:, start:stop] = True
    return mask


def test_points_on_several_objects_keep_all_of_them() -> None:
    """A segmenter that asks object by object answers the first points on each: these may be the same."""
    candidates = [
        MaskCandidate(_columns(0, 3), 0.9, 0),
        MaskCandidate(_columns(6, 7), 0.5, 0),
        MaskCandidate(np.zeros(HW, bool), 0.0, 0, "too small"),
        MaskCandidate(_columns(9, 12), 0.4, 1),
    ]
    first, second = select_masks(_plan(2), candidates, HW)
    np.testing.assert_array_equal(first.mask, _columns(0, 3) | _columns(6, 7))
    assert first.is_kept
    assert np.isclose(first.score, (3 * 0.9 + 0.5) / 4)
    np.testing.assert_array_equal(second.mask, _columns(9, 12))
    assert (second.is_kept, second.score) == (True, 0.4)


def test_points_without_a_mask_tell_the_segmenters_reason() -> None:
    refused, silent = select_masks(_plan(2), [MaskCandidate(np.zeros(HW, bool), 0.0, 0, "SAM's masks are empty")], HW)
    assert (refused.is_kept, refused.reason) == (False, "rejected: SAM's masks are empty")
    assert (silent.is_kept, silent.reason) == (False, "rejected: the segmenter found nothing at these points")
    assert refused.mask.shape == silent.mask.shape == HW
