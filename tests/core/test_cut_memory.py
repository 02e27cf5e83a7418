"""What was cut is not cut again, and never mixed up."""

import gc

import numpy as np
import pytest

from backend.core import cut_memory
from backend.core.cut_memory import CutMemory
from backend.core.types import EncodedImage, Mask, ScoredMask, Scribble

SIZE_HW = (11, 7)


def encoded() -> EncodedImage:
    return EncodedImage(SIZE_HW, np.zeros((1, 1, 2), np.float16), {}, "models")


def point(x: float) -> Scribble:
    return Scribble(SIZE_HW, np.array([[x, 3]], np.float32))


def mask(x: int) -> Mask:
    found = np.zeros(SIZE_HW, bool)
    found[2:5, x] = True
    return found


def never() -> ScoredMask | None:
    raise AssertionError("it was cut before")


def test_the_same_marks_on_the_same_image_are_cut_once() -> None:
    memory, image = CutMemory(), encoded()
    for x in (1, 4):
        memory.get_or_cut(image, point(x), lambda x=x: ScoredMask(mask(x), x / 10))  # type: ignore[misc]
    again = memory.get_or_cut(image, point(1), never)
    assert again is not None
    assert np.array_equal(again.mask, mask(1))
    assert again.score == 0.1
    assert memory.get_or_cut(image, point(6), lambda: None) is None
    assert memory.get_or_cut(image, point(6), never) is None


@pytest.mark.parametrize(
    "other",
    [
        Scribble(SIZE_HW, negative_xy=np.array([[1, 3]], np.float32)),
        Scribble(SIZE_HW, np.array([[1, 3]], np.float32), positive_strokes=mask(1)),
        Scribble(SIZE_HW, np.array([[1, 3]], np.float32), negative_strokes=mask(1)),
        Scribble(SIZE_HW, np.array([[1, 3]], np.float32), boxes_xyxy=np.array([[0, 0, 3, 3]], np.float32)),
    ],
)
def test_other_marks_and_other_images_are_cut(other: Scribble) -> None:
    memory, image = CutMemory(), encoded()
    memory.get_or_cut(image, point(1), lambda: ScoredMask(mask(1), 0.5))
    assert memory.get_or_cut(image, other, lambda: None) is None
    assert memory.get_or_cut(encoded(), point(1), lambda: None) is None


@pytest.mark.slow
def test_the_oldest_go_where_masks_take_too_much_and_all_with_their_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_memory, "MOST_BYTES_AN_IMAGE", 800)
    memory, image = CutMemory(), encoded()
    for x in range(6):
        memory.get_or_cut(image, point(x), lambda: ScoredMask(mask(0), 0.5))
    assert memory.get_or_cut(image, point(5), never) is not None
    assert memory.get_or_cut(image, point(0), lambda: None) is None
    assert len(memory) == 1
    del image
    gc.collect()
    assert len(memory) == 0
