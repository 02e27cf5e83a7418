"""GrabCut's set-up: repeatable, and nothing is cut where nothing is to decide."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from backend.models.graph_cut.grab_cut import MINIMUM_PX, grab_cut
from tests.models.graph_cut.test_segmenter import two_squares


def _state(prior: NDArray[Any]) -> NDArray[Any]:
    return np.where(prior > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)


def test_the_same_image_gives_the_same_mask_whatever_was_drawn_before() -> None:
    image = cv2.resize(data.chelsea(), (100, 60), interpolation=cv2.INTER_AREA)
    state = np.full((60, 100), cv2.GC_PR_BGD, np.uint8)
    state[5:55, 15:85], state[0], state[30:33, 48:52] = cv2.GC_PR_FGD, cv2.GC_BGD, cv2.GC_FGD

    def cut_unseeded(seed: int) -> int:
        given, models = state.copy(), (np.zeros((1, 65)), np.zeros((1, 65)))
        cv2.setRNGSeed(seed)
        cv2.grabCut(image, given, None, *models, 1, cv2.GC_INIT_WITH_MASK)
        return int((given & 1).sum())

    assert len({cut_unseeded(seed) for seed in range(8)}) > 1, "another image: this one does not depend on the draw"
    masks = []
    for seed in range(8):
        cv2.setRNGSeed(seed)
        masks.append(grab_cut(image, state.copy(), 1))
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


def test_colours_decide_about_what_is_unsure() -> None:
    image, prior = two_squares()
    state = _state(prior)
    state[20:45, 10:12] = cv2.GC_PR_BGD
    assert np.array_equal(grab_cut(image, state, 2), prior > 0.5)


def test_sure_pixels_and_sides_of_few_pixels_stay_as_they_are() -> None:
    image, prior = two_squares()
    sure = np.where(prior > 0.5, cv2.GC_FGD, cv2.GC_BGD).astype(np.uint8)
    sure[0, 0] = cv2.GC_FGD
    assert np.array_equal(grab_cut(image, sure.copy(), 1), sure == cv2.GC_FGD)
    few = np.full(image.shape[:2], cv2.GC_PR_BGD, np.uint8)
    few[25, 15 : 15 + MINIMUM_PX - 1] = cv2.GC_PR_FGD
    assert int(grab_cut(image, few, 1).sum()) == MINIMUM_PX - 1
