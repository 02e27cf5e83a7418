"""Self-matching on drawn feature maps: a mask of one thing finds itself again, a mixed one does not."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.grid import mask_coverage
from backend.core.references import MaskUncertainty, blend_uncertainty
from backend.core.self_matching import RING_SHARE, ring_around, self_matching
from backend.core.types import Mask

OBJECT, GROUND, THIRD = np.eye(3, dtype=np.float32)


def feature_map(kinds: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.stack([GROUND, OBJECT, THIRD])[(kinds)]


def drawn() -> tuple[NDArray[np.int64], Mask]:
    kinds = np.zeros((12, 16), np.int64)
    kinds[3:8, 4:9] = 1
    kinds[8:11, 10:15] = 2
    mask = np.kron(kinds == 1, np.ones((8, 8))) > 0
    return kinds, mask


def found(kinds: NDArray[np.int64], mask: Mask) -> float:
    view, covered = feature_map(kinds[:, ::-1].copy()), mask_coverage(mask[:, ::-1].copy(), (12, 16))
    return self_matching(feature_map(kinds), [(view.reshape(-1, 3), covered.flatten())], mask, temperature=0.05)


def test_a_mask_of_one_thing_finds_itself() -> None:
    kinds, mask = drawn()
    assert found(kinds, mask) > 0.8


def test_a_mask_of_half_object_and_half_ground_does_not() -> None:
    kinds, mask = drawn()
    mixed = np.roll(mask, 24, axis=1)
    assert found(kinds, mixed) < 0.5


def test_a_mask_of_everything_has_nothing_around_it() -> None:
    kinds, mask = drawn()
    assert found(kinds, np.ones_like(mask)) == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_the_ring_is_that_of_the_whole_image(seed: int) -> None:
    draw = np.random.default_rng(seed)
    height, width = (int(side) for side in draw.integers(20, 160, 2))
    mask = np.zeros((height, width), np.bool_)
    for _ in range(2):
        top, left = int(draw.integers(height)), int(draw.integers(width))
        mask[top : top + int(draw.integers(1, height)), left : left + int(draw.integers(1, width))] = True
    radius = max(2, round(RING_SHARE * max(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    np.testing.assert_array_equal(ring_around(mask), (cv2.dilate(mask.astype(np.uint8), disc) > 0) & ~mask)


@pytest.mark.parametrize("confidence", [0.0, 0.3, 1.0])
def test_a_guess_makes_no_background_of_ambiguous_patches(confidence: float) -> None:
    coverage, weight, soft = (
        np.array([0.0, 0.0], np.float32),
        np.array([0.0, 1.0], np.float32),
        np.array([0.1, 0.1], np.float32),
    )
    blended, kept = blend_uncertainty(coverage, weight, soft, confidence, keeps_ambiguous=True)
    background = (1 - blended) * kept
    assert float(background[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(background[1]) == pytest.approx(confidence + (1 - confidence) * 0.9, abs=1e-6)
    assert np.allclose(blended * kept, (1 - confidence) * soft, atol=1e-6)


def test_confidence_is_raised_and_never_lowered() -> None:
    whole = MaskUncertainty(0.4, np.zeros((2, 2), np.float32))
    raised, same = whole.at_least(0.6), whole.at_least(0.1)
    assert raised is not None
    assert same is not None
    assert (raised.confidence, same.confidence) == (0.6, 0.4)
    assert whole.at_least(1.0) is None
    by_object = MaskUncertainty(np.array([[0.2, 0.9]], np.float32), np.zeros((1, 2), np.float32))
    raised = by_object.at_least(0.5)
    assert raised is not None
    assert np.allclose(raised.confidence, [[0.5, 0.9]])
    assert np.allclose(by_object.confidence, [[0.2, 0.9]]), "values stay as they are"
