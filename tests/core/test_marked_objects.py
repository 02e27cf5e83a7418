"""Which marks are on one object: with a drawn world in which the mask of a mark is known."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.marked_objects import MOST_MARKS, MarkedObject, find_marked_objects
from backend.core.masks import painted_masks
from backend.core.strokes import mask_to_stroke
from backend.core.types import Mask, ScoredMask, Scribble

SIZE_HW = (60, 100)
_Y, _X = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
DISCS = [(_X - x) ** 2 + (_Y - 30) ** 2 < 12**2 for x in (20, 50, 80)]


class DrawnWorld:
    """Cuts the first disc with a mark on it: what a segmenter that makes one object of each scribble does."""

    def __init__(self, *, score_together: float = 0.9, score_alone: float = 0.9, joins: bool = False) -> None:
        self.asked: list[Scribble] = []
        self.joins = joins
        self.score_together, self.score_alone = score_together, score_alone

    def cut(self, scribble: Scribble) -> ScoredMask | None:
        self.asked.append(scribble)
        marked, _ = painted_masks(scribble)
        for left, top, right, bottom in scribble.boxes_xyxy.astype(int):
            marked[(top + bottom) // 2, (left + right) // 2] = True
        touched = [disc for disc in DISCS if (disc & marked).any()]
        if not touched:
            return None
        if len(touched) > 1:
            return ScoredMask(np.logical_or.reduce(touched) if self.joins else touched[0], self.score_together)
        return ScoredMask(touched[0], self.score_alone)


def find(world: DrawnWorld, scribble: Scribble, *, points_add_up: bool = False) -> list[MarkedObject]:
    return find_marked_objects(world.cut, scribble, points_add_up=points_add_up)


def points(*xy: tuple[float, float]) -> NDArray[np.float32]:
    return np.array(xy, np.float32).reshape(-1, 2)


def strokes(*boxes: tuple[int, int, int, int]) -> Mask:
    painted = np.zeros(SIZE_HW, bool)
    for left, top, right, bottom in boxes:
        painted[top:bottom, left:right] = True
    return painted


def masks_of(objects: Sequence[MarkedObject]) -> list[Mask]:
    return [one.found.mask for one in objects]


MARKS = {
    "point": Scribble(SIZE_HW, points((20, 30))),
    "stroke": Scribble(SIZE_HW, positive_strokes=strokes((14, 28, 26, 31))),
    "box": Scribble(SIZE_HW, boxes_xyxy=np.array([[8, 18, 33, 43]], np.float32)),
}
OTHERS = {
    "point": Scribble(SIZE_HW, points((80, 30))),
    "stroke": Scribble(SIZE_HW, positive_strokes=strokes((74, 28, 86, 31))),
    "box": Scribble(SIZE_HW, boxes_xyxy=np.array([[68, 18, 93, 43]], np.float32)),
}


def joined(one: Scribble, other: Scribble) -> Scribble:
    painted = [each.positive_strokes for each in (one, other) if each.positive_strokes is not None]
    return Scribble(
        SIZE_HW,
        np.concatenate([one.positive_xy, other.positive_xy]),
        boxes_xyxy=np.concatenate([one.boxes_xyxy, other.boxes_xyxy]),
        positive_strokes=np.logical_or.reduce(painted) if painted else None,
    )


@pytest.mark.parametrize("second", OTHERS)
@pytest.mark.parametrize("first", MARKS)
def test_marks_on_two_objects_give_two(first: str, second: str) -> None:
    found = masks_of(find(DrawnWorld(), joined(MARKS[first], OTHERS[second])))
    assert len(found) == 2
    for disc in (DISCS[0], DISCS[2]):
        assert any(np.array_equal(mask, disc) for mask in found)


def test_marks_on_one_object_are_cut_together() -> None:
    world = DrawnWorld()
    scribble = Scribble(SIZE_HW, points((14, 30), (26, 30)), positive_strokes=strokes((16, 24, 24, 26)))
    assert len(find(world, scribble)) == 1
    assert world.asked[-1] is scribble
    assert len(world.asked) == 4


@pytest.mark.parametrize("kind", MARKS)
def test_one_mark_is_cut_as_it_is(kind: str) -> None:
    world = DrawnWorld()
    assert len(find(world, MARKS[kind])) == 1
    assert [one is MARKS[kind] for one in world.asked] == [True]


def test_what_lies_in_a_box_or_on_a_stroke_is_no_mark_of_its_own() -> None:
    world = DrawnWorld()
    box, stroke = MARKS["box"], MARKS["stroke"]
    scribble = Scribble(SIZE_HW, points((15, 29), (20, 30)), points((99, 0)), box.boxes_xyxy, stroke.positive_strokes)
    assert len(find(world, scribble)) == 1
    assert [one is scribble for one in world.asked] == [True]
    world = DrawnWorld()
    find(world, Scribble(SIZE_HW, points((15, 29)), positive_strokes=stroke.positive_strokes))
    assert len(world.asked) == 1


def test_every_mark_keeps_all_negatives() -> None:
    world = DrawnWorld()
    away = strokes((0, 0, 5, 5))
    find(world, Scribble(SIZE_HW, points((20, 30), (80, 30)), points((50, 5)), negative_strokes=away))
    for asked in world.asked:
        assert asked.negative_xy.tolist() == [[50, 5]]
        assert asked.negative_strokes is away


def test_marks_of_faint_objects_are_cut_as_one_where_that_is_surer() -> None:
    two = Scribble(SIZE_HW, points((20, 30), (80, 30)))
    assert len(find(DrawnWorld(score_alone=0.3, score_together=0.6, joins=True), two)) == 1
    assert len(find(DrawnWorld(score_alone=0.45, score_together=0.6, joins=True), two)) == 2
    # What leaves an object out is no better, however sure it is.
    assert len(find(DrawnWorld(score_alone=0.3, score_together=0.6), two)) == 2


def test_a_mark_without_an_object_does_not_take_the_others_theirs() -> None:
    assert len(find(DrawnWorld(), Scribble(SIZE_HW, points((20, 30), (2, 2), (80, 30))))) == 2
    assert find(DrawnWorld(), Scribble(SIZE_HW, points((2, 2), (97, 2)))) == []


def test_points_of_one_object_add_up_where_the_segmenter_says_so() -> None:
    def cut(scribble: Scribble) -> ScoredMask:
        if len(scribble.positive_xy) > 1:
            return ScoredMask(DISCS[0] & (_Y > 30), 0.6)
        return ScoredMask(DISCS[0] & ((_X < 24) if scribble.positive_xy[0, 0] < 20 else (_X > 16)), 0.5)

    scribble = Scribble(SIZE_HW, points((18, 31), (22, 31)))
    (added,) = find_marked_objects(cut, scribble, points_add_up=True)
    assert np.array_equal(added.found.mask, DISCS[0])
    assert added.found.score == 0.6
    (together,) = find_marked_objects(cut, scribble, points_add_up=False)
    assert np.array_equal(together.found.mask, DISCS[0] & (_Y > 30))


def test_more_marks_than_the_most_are_cut_as_one() -> None:
    world = DrawnWorld()
    rng = np.random.default_rng(0)
    xy = (rng.random((MOST_MARKS + 1, 2)) * (100, 60)).astype(np.float32)
    many = Scribble(SIZE_HW, xy[np.argsort(xy[:, 0])])
    find(world, many)
    assert [one is many for one in world.asked] == [True]
    dots = np.zeros(SIZE_HW, bool)
    dots[::2, ::2] = True
    world = DrawnWorld()
    find(world, Scribble(SIZE_HW, positive_strokes=dots))
    assert len(world.asked) == 1


def test_a_part_beside_the_first_mask_is_of_the_same_object() -> None:
    def cut(scribble: Scribble) -> ScoredMask:
        left, right = DISCS[0] & (_X < 20), DISCS[0] & (_X >= 20)
        marked, _ = painted_masks(scribble)
        if (marked & left).any() and (marked & right).any():
            return ScoredMask(whole, 0.7)
        return ScoredMask(left if (marked & left).any() else right, score)

    whole, score = DISCS[0], 0.7
    parts = Scribble(SIZE_HW, points((14, 30)), positive_strokes=strokes((24, 24, 28, 34)))
    (only,) = find_marked_objects(cut, parts, points_add_up=False)
    assert np.array_equal(only.found.mask, DISCS[0])
    # What leaves a part out is no better, and two coins that touch stay two where both are sure.
    whole = DISCS[0] & (_X < 20)
    assert len(find_marked_objects(cut, parts, points_add_up=False)) == 2
    whole, score = DISCS[0], 0.9
    assert len(find_marked_objects(cut, parts, points_add_up=False)) == 2


def test_strokes_that_touch_are_marks_of_their_own_if_two_regions_painted_them() -> None:
    left, right = strokes((14, 28, 36, 31)), strokes((34, 29, 56, 32))
    apart = tuple(stroke for one in (left, right) if (stroke := mask_to_stroke(one)) is not None)
    both = Scribble(SIZE_HW, positive_strokes=left | right, strokes_apart=apart)
    found = masks_of(find(DrawnWorld(), both))
    assert [np.array_equal(mask, disc) for mask, disc in zip(found, DISCS[:2], strict=True)] == [True, True]
    # As one stroke they mark one object, and on one object two regions do too.
    assert len(find(DrawnWorld(), replace(both, strokes_apart=()))) == 1
    one, other = strokes((14, 28, 22, 31)), strokes((20, 24, 24, 34))
    apart = tuple(stroke for each in (one, other) if (stroke := mask_to_stroke(each)) is not None)
    assert len(find(DrawnWorld(), Scribble(SIZE_HW, positive_strokes=one | other, strokes_apart=apart))) == 1


def test_pieces_of_one_region_are_marks_of_their_own() -> None:
    both = strokes((14, 28, 26, 31), (74, 28, 86, 31))
    stroke = mask_to_stroke(both)
    assert stroke is not None
    assert len(find(DrawnWorld(), Scribble(SIZE_HW, positive_strokes=both, strokes_apart=(stroke,)))) == 2


def test_the_order_of_marks_changes_no_cut() -> None:
    def asked(order: Sequence[int]) -> list[tuple[list[list[float]], bytes]]:
        world = DrawnWorld()
        drawn = [strokes((14, 28, 36, 31)), strokes((34, 29, 56, 32)), strokes((70, 20, 90, 40))]
        apart = [mask_to_stroke(one) for one in drawn]
        chosen = tuple(stroke for number in order if (stroke := apart[number]) is not None)
        xy = points((20, 30), (80, 31), (50, 22))[list(order)]
        find(world, Scribble(SIZE_HW, xy, xy, positive_strokes=np.logical_or.reduce(drawn), strokes_apart=chosen))
        return [
            (one.positive_xy.tolist(), b"" if one.positive_strokes is None else one.positive_strokes.tobytes())
            for one in world.asked
        ]

    assert asked([0, 1, 2]) == asked([2, 0, 1]) == asked([1, 2, 0])


def test_touching_masks_are_joined_only_if_that_is_no_worse() -> None:
    def cut(scribble: Scribble) -> ScoredMask:
        left, right = DISCS[0] & (_X < 20), DISCS[0] & (_X >= 20)
        marked, _ = painted_masks(scribble)
        if (marked & left).any() and (marked & right).any():
            return ScoredMask(DISCS[0], 0.55)
        return ScoredMask(left if (marked & left).any() else right, 0.6)

    parts = Scribble(SIZE_HW, points((14, 30)), positive_strokes=strokes((24, 24, 28, 34)))
    assert len(find_marked_objects(cut, parts, points_add_up=False)) == 2


def test_an_unsure_object_is_not_lost_to_a_sure_one() -> None:
    def cut(scribble: Scribble) -> ScoredMask:
        marked, _ = painted_masks(scribble)
        touched = [disc for disc in DISCS if (disc & marked).any()]
        if len(touched) > 1:
            return ScoredMask(DISCS[0] | (DISCS[2] & (_X > 78)), 0.98)
        return ScoredMask(touched[0], 0.95 if touched[0] is DISCS[0] else 0.2)

    found = masks_of(find_marked_objects(cut, Scribble(SIZE_HW, points((20, 30), (80, 30))), points_add_up=False))
    assert [np.array_equal(mask, disc) for mask, disc in zip(found, (DISCS[0], DISCS[2]), strict=True)] == [True, True]
