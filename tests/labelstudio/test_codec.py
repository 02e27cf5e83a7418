"""Regions to arrays and back: the recorded requests, every kind of region, and what is wrong with one."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.errors import BadInputError
from backend.labelstudio.codec import Region, is_own_region_id, mask_to_region, new_region_id, read_regions
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.rle import encode_mask

from . import recorded

CONFIG = parse_label_config(
    '<View><Image name="image" value="$image"/><Image name="other" value="$other"/>'
    '<BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog" alias="dog"/></BrushLabels>'
    '<KeyPointLabels name="kp" toName="image"><Label value="Cat"/><Label value="Dog" alias="dog"/></KeyPointLabels>'
    '<RectangleLabels name="rect" toName="image" smart="true"><Label value="Cat"/></RectangleLabels></View>'
)
CAT_BRUSH = CONFIG.brushes[0]


def region(kind: str, value: dict[str, Any], **changes: Any) -> dict[str, Any]:
    tag = {"keypointlabels": "kp", "rectanglelabels": "rect", "brushlabels": "brush"}[kind]
    return {
        "id": "r1",
        "type": kind,
        "from_name": tag,
        "to_name": "image",
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "value": {kind: ["Cat"], **value},
        **changes,
    }


def point(x: Any = 50.0, y: float = 25.0, **changes: Any) -> dict[str, Any]:
    return region("keypointlabels", {"x": x, "y": y, "width": 0.2}, **changes)


def box(x: float, y: float, width: float, height: float, rotation: float | None = 0) -> dict[str, Any]:
    return region("rectanglelabels", {"x": x, "y": y, "width": width, "height": height, "rotation": rotation})


def brush(mask: NDArray[Any], **changes: Any) -> dict[str, Any]:
    size = {"original_width": mask.shape[1], "original_height": mask.shape[0]}
    return region("brushlabels", {"format": "rle", "rle": encode_mask(mask)}, **{**size, **changes})


def only(raw: dict[str, Any], size_hw: tuple[int, int] | None = None) -> Region:
    read = read_regions([raw], CONFIG, {"image": size_hw} if size_hw else None)
    assert read.problems == ()
    (found,) = read.regions
    return found


def problem(raw: Any, size_hw: tuple[int, int] | None = None) -> str:
    read = read_regions([raw, point(id="good")], CONFIG, {"image": size_hw} if size_hw else None)
    assert [good.id for good in read.regions] == ["good"], "one bad region must not spoil the others"
    (message,) = read.problems
    return message


@pytest.mark.parametrize("path", recorded.PAYLOADS, ids=lambda path: path.stem)
def test_every_recorded_request_is_read_without_problems(path: Path) -> None:
    payload = recorded.body(path.stem)
    configs = recorded.label_configs(payload)
    for config in configs:
        assert parse_label_config(config).labels == ("Cat", "Dog")
    for result in recorded.results(payload):
        read = read_regions(result, parse_label_config(configs[0]), {"image": (480, 640)})
        assert read.problems == ()
        assert len(read.regions) == len(result)
        assert all(found.mask.any() for found in read.regions if found.mask is not None)


def test_the_recorded_requests_hold_regions_of_every_kind() -> None:
    kinds = {
        raw["type"]
        for path in recorded.PAYLOADS
        for result in recorded.results(recorded.body(path.stem))
        for raw in result
    }

    assert kinds == {"keypointlabels", "rectanglelabels", "brushlabels"}


def test_recorded_points_keep_their_sign_and_place() -> None:
    context = recorded.body("predict_interactive_keypointlabels_with_negative_with_draft")["params"]["context"]
    read = read_regions(context["result"], CONFIG)

    assert [found.is_positive for found in read.regions] == [True, True, False]
    x, y = read.regions[2].point_xy or (0, 0)
    assert (x, y) == pytest.approx((0.738836017569546 * 640, 0.16617862371888716 * 480))


def test_a_point_without_a_sign_is_positive() -> None:
    assert only(point()).is_positive
    assert not only(point(is_positive=False)).is_positive
    assert only(point()).point_xy == pytest.approx((100, 25))


@pytest.mark.parametrize(("x", "y"), [(100, 100), (0, 0)])
def test_a_point_on_the_edge_lies_on_a_pixel(x: float, y: float) -> None:
    found_x, found_y = only(point(x, y)).point_xy or (-1, -1)

    assert 0 <= found_x < 200
    assert 0 <= found_y < 100


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (box(10, 20, 30, 40), (20, 20, 80, 60)),
        (box(10, 20, 30, 40, None), (20, 20, 80, 60)),
        (box(50, 50, 25, 25, 90), (75, 50, 100, 100)),
        (box(50, 50, 10, 10, 180), (80, 40, 100, 50)),
        (box(-10, -10, 200, 200), (0, 0, 200, 100)),
        (box(40, 60, -30, -40), (20, 20, 80, 60)),
    ],
)
def test_a_rectangle_becomes_the_box_of_its_corners(raw: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert only(raw).box_xyxy == pytest.approx(expected)


def test_a_rectangle_turned_by_45_degrees_gets_the_box_around_it() -> None:
    left, top, right, bottom = only(box(50, 20, 10, 20, 45)).box_xyxy or (0, 0, 0, 0)
    half = 20 / 2**0.5

    assert (left, top, right, bottom) == pytest.approx((100 - half, 20, 100 + half, 20 + 2 * half))


def test_a_brush_mask_round_trips() -> None:
    mask = np.random.default_rng(1).random((37, 53)) < 0.3
    raw = mask_to_region(mask, brush=CAT_BRUSH, label="dog", score=0.7)
    found = only(json.loads(json.dumps(raw)))

    assert found.mask is not None
    assert np.array_equal(found.mask, mask)
    assert (found.label, found.from_name, found.to_name, found.score) == ("dog", "brush", "image", 0.7)
    assert (raw["original_width"], raw["original_height"], raw["image_rotation"]) == (53, 37, 0)
    assert raw["origin"] == "prediction"
    assert raw["value"].keys() == {"format", "rle", "brushlabels"}


def test_region_ids_of_ours_are_unique_and_recognised() -> None:
    ids = {new_region_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(is_own_region_id(region_id) for region_id in ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", region_id) for region_id in ids)
    assert not any(
        is_own_region_id(other) for other in ("rf22902bb", "iXrRK7escN", "softmatcher-", "softmatcher-xyz", "")
    )


def test_a_mask_region_needs_a_label_of_its_brush() -> None:
    with pytest.raises(ValueError, match="label must be one of"):
        mask_to_region(np.ones((2, 2), np.bool_), brush=CAT_BRUSH, label="Fox", score=0.5)


def test_value_and_alias_name_the_same_label_and_several_labels_give_several_regions() -> None:
    read = read_regions([region("keypointlabels", {"x": 1, "y": 1, "keypointlabels": ["Dog", "Cat", "dog"]})], CONFIG)

    assert [found.label for found in read.regions] == ["dog", "Cat"]


def test_other_region_types_are_passed_over() -> None:
    others: list[dict[str, Any]] = [
        {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
        {"type": "choices", "id": "r1", "from_name": "c", "to_name": "image", "value": {"choices": ["x"]}},
        {"type": "polygonlabels", "id": "p", "from_name": "p", "to_name": "image", "value": {"points": []}},
    ]

    assert read_regions(others, CONFIG).regions == ()
    assert read_regions(others, CONFIG).problems == ()


@pytest.mark.parametrize("size", [{}, {"original_width": 0, "original_height": 0}, {"original_width": None}])
def test_without_an_original_size_the_real_one_counts(size: dict[str, Any]) -> None:
    raw = point(50, 50)
    del raw["original_width"], raw["original_height"]

    assert only({**raw, **size}, (300, 500)).point_xy == pytest.approx((250, 150))
    assert "must have original_width and original_height over 0" in problem({**raw, **size})


def test_percent_geometry_is_taken_of_the_real_size() -> None:
    found = only(point(50, 50), (30, 50))

    assert found.size_hw == (30, 50)
    assert found.point_xy == pytest.approx((25, 15))
    assert only(box(10, 20, 30, 40), (50, 100)).box_xyxy == pytest.approx((10, 10, 40, 30))


def test_a_mask_of_another_size_but_the_same_aspect_is_resized() -> None:
    mask = np.zeros((100, 200), np.bool_)
    mask[20:60, 40:120] = True
    found = only(brush(mask), (200, 400))

    assert found.mask is not None
    assert found.mask.shape == (200, 400)
    assert np.array_equal(found.mask[::2, ::2], mask)
    assert np.array_equal(np.asarray(only(brush(mask), (50, 100)).mask), mask[::2, ::2])


def test_a_mask_that_fits_the_image_is_taken_whatever_its_original_size_says() -> None:
    mask = np.eye(30, 40, dtype=np.bool_)

    assert np.array_equal(np.asarray(only(brush(mask, original_width=99, original_height=7), (30, 40)).mask), mask)
    assert np.array_equal(np.asarray(only(brush(mask, original_width=0, original_height=None), (30, 40)).mask), mask)


def test_a_mask_of_another_shape_is_a_problem() -> None:
    message = problem(brush(np.ones((100, 200), np.bool_)), (200, 100))

    assert "must be of the image's own size 100 x 200 px, got original size 200 x 100, another shape" in message


def test_all_regions_of_an_image_get_one_size() -> None:
    read = read_regions([point(id="a"), point(id="b", original_width=20, original_height=10)], CONFIG)

    assert [found.size_hw for found in read.regions] == [(100, 200), (100, 200)]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("text", "region number 1: must be a JSON object, got str"),
        (None, "must be a JSON object, got NoneType"),
        ({**point(), "value": None}, "must have a value that is a JSON object, got NoneType"),
        (point(float("nan")), "must have numbers"),
        (point(x="12"), "must have numbers"),
        (point(x=101.0), r"key point must be on the image, 0..100 percent, got \(101, 25\)"),
        (box(10, 10, 0, 10), "rectangle must have an area"),
        (box(110, 10, 10, 10), "rectangle must have an area"),
        (region("rectanglelabels", {"x": 1}), "must have numbers"),
        (point(to_name="elsewhere"), "'elsewhere' must be the name of an <Image>"),
        (point(from_name="gone"), "from_name must be a control tag of the label config.*'gone'"),
        (point(item_index=2), "is on page 2"),
        (
            region("keypointlabels", {"x": 1, "y": 1, "keypointlabels": ["Fox"]}),
            r"label must be one of \['Cat', 'dog'\].*'Fox'",
        ),
        (
            region("keypointlabels", {"x": 1, "y": 1, "keypointlabels": []}),
            "must have its label in value.keypointlabels",
        ),
        (region("keypointlabels", {"x": 1, "y": 1, "keypointlabels": [["Cat"]]}), "label must be one of"),
        (region("brushlabels", {"format": "rle"}), "must have value.rle or value.touches, got neither"),
        (region("brushlabels", {"rle": []}), "must have value.rle or value.touches, got neither"),
        (region("brushlabels", {"rle": [1, 2, 3]}), "header of 7 bytes"),
        (region("brushlabels", {"rle": "0,18"}), "list of ints in 0..255, got str"),
        (region("brushlabels", {"rle": encode_mask(np.ones((100, 200), np.bool_))[:9]}), "cut short"),
        (region("brushlabels", {"rle": encode_mask(np.ones((10, 20), np.bool_))}), "must be of 80000 words, got 800"),
        (region("brushlabels", {"touches": 5}), "value.touches must be a list, got int"),
        (region("brushlabels", {"touches": ["x"]}), "a brush touch must have type"),
        (region("brushlabels", {"touches": [{"relativePoints": [1, 2]}]}), "a brush touch must have type"),
        (
            region("brushlabels", {"touches": [{"relativePoints": [1, 2, 3], "relativeStrokeWidth": 1}]}),
            "a brush touch must",
        ),
        (
            region("brushlabels", {"touches": [{"relativePoints": [], "relativeStrokeWidth": 1}]}),
            "a brush touch must have",
        ),
        (
            region("brushlabels", {"touches": [{"type": "spray", "relativePoints": [1, 2], "relativeStrokeWidth": 1}]}),
            "type 'spray'",
        ),
    ],
)
def test_a_bad_region_is_explained_and_spoils_no_other(raw: Any, message: str) -> None:
    assert re.search(message, problem(raw)), problem(raw)


def test_a_region_cannot_ask_for_more_memory_than_its_image_has_pixels() -> None:
    huge = brush(np.ones((1, 1), np.bool_), original_width=10**6, original_height=10**6)

    assert "words" in problem(brush(np.ones((1, 1), np.bool_), original_width=2000, original_height=2000), (10, 10))
    assert "must have original_width" in problem(huge)


JUNK: list[Any] = [
    None, True, -1, 0, 3, 10**30, 1e308, float("nan"), float("inf"), "", "x", [], [None], [[1]], [1.5], {}, [{}],
]  # fmt: skip
TOUCHED = region("brushlabels", {"touches": [{"type": "add", "relativePoints": [1, 2], "relativeStrokeWidth": 1}]})


@pytest.mark.parametrize("good", [point(), box(1, 2, 3, 4), brush(np.eye(4, 5, dtype=np.bool_)), TOUCHED])
def test_junk_anywhere_in_a_region_never_raises(good: dict[str, Any]) -> None:
    places = [(), *((key,) for key in good), *(("value", key) for key in good["value"])]
    if "touches" in good["value"]:
        places += [("value", "touches", 0), *(("value", "touches", 0, key) for key in good["value"]["touches"][0])]
    for place in places:
        for junk in JUNK:
            result = json.loads(json.dumps([good]))
            holder: Any = result
            for step in (0, *place)[:-1]:
                holder = holder[step]
            holder[(0, *place)[-1]] = junk
            for sizes in (None, {"image": (4, 5)}):
                read = read_regions(result, CONFIG, sizes)
                assert all(found.size_hw[0] > 0 for found in read.regions)


def test_an_unknown_image_is_named() -> None:
    with pytest.raises(BadInputError, match=r"'x' must be the name of an <Image> .* \['image', 'other'\]"):
        CONFIG.task_key("x")
