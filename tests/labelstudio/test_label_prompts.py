"""What regions mean together: finished masks, scribbles, negatives, background."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backend.core.strokes import paint_strokes
from backend.labelstudio.codec import Region, new_region_id, read_regions
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.label_prompts import group_annotation, is_complete_mask, regions_to_scribble

from . import recorded

SIZE = (10, 20)


def painted(rows: slice, label: str = "Cat", **changes: Any) -> Region:
    mask = np.zeros(SIZE, np.bool_)
    mask[rows] = True
    return replace(Region("r", "brush", label, "brush", "image", SIZE, mask=mask), **changes)


def point(x: float, y: float, label: str = "Cat", **changes: Any) -> Region:
    return replace(Region("r", "keypoint", label, "kp", "image", SIZE, point_xy=(x, y)), **changes)


def box(label: str = "Cat", **changes: Any) -> Region:
    return replace(Region("r", "rectangle", label, "rect", "image", SIZE, box_xyxy=(2, 3, 6, 5)), **changes)


def test_points_boxes_and_strokes_make_one_scribble() -> None:
    scribble = regions_to_scribble(
        [point(1, 2), point(3, 4, is_positive=False), box(), painted(slice(0, 2)), painted(slice(5, 6))], SIZE
    )

    assert scribble.positive_xy.tolist() == [[1, 2]]
    assert scribble.negative_xy.tolist() == [[3, 4]]
    assert scribble.boxes_xyxy.tolist() == [[2, 3, 6, 5]]
    assert scribble.positive_strokes is not None
    assert np.flatnonzero(scribble.positive_strokes.any(axis=1)).tolist() == [0, 1, 5]
    assert scribble.negative_strokes is None


def test_strokes_of_regions_stay_apart_joined_or_not() -> None:
    joined = replace(painted(slice(0, 4)), strokes_apart=regions_to_scribble(
        [painted(slice(0, 2)), painted(slice(1, 4))], SIZE
    ).strokes_apart)  # fmt: skip
    scribble = regions_to_scribble([joined, painted(slice(5, 6)), painted(slice(7, 8), is_positive=False)], SIZE)

    assert [(one.top, one.size_hw[0]) for one in scribble.strokes_apart] == [(0, 2), (1, 3), (5, 1)]
    assert scribble.positive_strokes is not None
    assert np.array_equal(paint_strokes(scribble.strokes_apart, SIZE), scribble.positive_strokes)


def test_no_regions_make_an_empty_scribble() -> None:
    assert regions_to_scribble([], SIZE).is_empty


def test_a_negative_box_is_painted_as_negative_stroke() -> None:
    scribble = regions_to_scribble([box(is_positive=False)], SIZE)

    assert scribble.is_empty
    assert scribble.negative_strokes is not None
    assert scribble.negative_strokes.sum() == 4 * 2
    assert scribble.negative_strokes[3:5, 2:6].all()


def test_regions_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(H, W\) = \(20, 10\)"):
        regions_to_scribble([point(1, 1)], (20, 10))


@pytest.mark.parametrize(
    ("region", "finished"),
    [
        (painted(slice(3), origin="manual"), False),
        (painted(slice(3), origin="prediction"), True),
        (painted(slice(3), origin="prediction-changed"), True),
        (painted(slice(3), id=new_region_id(), origin="manual"), True),
        (painted(slice(3), from_name="masks"), True),
        (painted(slice(3), origin="prediction", is_positive=False), False),
        (point(1, 1, origin="prediction"), False),
        (box(origin="prediction"), False),
    ],
)
def test_what_counts_as_a_finished_mask(region: Region, finished: bool) -> None:
    assert is_complete_mask(region, {"masks"}) is finished


def test_an_annotation_is_grouped_by_label_in_the_order_of_its_regions() -> None:
    marks = group_annotation(
        [point(1, 1, "Dog"), painted(slice(2), origin="prediction"), point(5, 5), point(9, 9, "Dog", is_positive=False)]
    )

    assert [mark.label for mark in marks] == ["Dog", "Cat"]
    dog, cat = marks
    assert (dog.scribble.positive_xy.tolist(), dog.scribble.negative_xy.tolist()) == ([[1, 1]], [[9, 9]])
    assert dog.complete_masks == ()
    assert [mask.sum() for mask in cat.complete_masks] == [2 * SIZE[1]]
    assert cat.scribble.positive_xy.tolist() == [[5, 5]]
    assert cat.scribble.positive_strokes is None
    assert cat.background is None


def test_a_background_label_is_a_negative_of_all_others_and_no_label_itself() -> None:
    marks = group_annotation(
        [point(1, 1), box("Dog"), painted(slice(7, 9), "Background"), point(4, 9, "Background"), box("Background")],
        background_labels={"Background"},
    )

    assert [mark.label for mark in marks] == ["Cat", "Dog"]
    for mark in marks:
        assert mark.scribble.negative_xy.tolist() == [[4, 9]]
        assert mark.background is not None
        assert mark.background.sum() == 2 * SIZE[1] + 4 * 2


def test_background_of_one_image_says_nothing_about_another() -> None:
    marks = group_annotation(
        [point(1, 1), point(2, 2, to_name="other"), painted(slice(3), "Background", to_name="other")], {"Background"}
    )

    assert [(mark.to_name, mark.background is None) for mark in marks] == [("image", True), ("other", False)]


@pytest.mark.parametrize("regions", [[], [point(1, 1, is_positive=False)], [painted(slice(3), "Background")]])
def test_without_a_positive_mark_there_are_no_marks(regions: list[Region]) -> None:
    assert group_annotation(regions, {"Background"}) == ()


def test_the_recorded_annotation_of_a_prediction_and_two_strokes() -> None:
    payload = recorded.body("webhook_ANNOTATION_CREATED_brushlabels_manual_prediction")
    config = parse_label_config(payload["project"]["label_config"])
    read = read_regions(payload["annotation"]["result"], config)
    (cat,) = group_annotation(read.regions)

    assert len(cat.complete_masks) == 1
    assert cat.scribble.positive_strokes is not None
    assert cat.region_ids == ("rf22902bb", "rc6552fd8", "h1ERNgS9BM")
