"""Shapes are masks: compared with what their equations say of each pixel's centre."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from backend.core.types import Mask
from backend.labelstudio.codec import RegionsRead, read_regions
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.label_prompts import group_annotation, is_complete_mask

SIZE_HW = (40, 60)
_Y, _X = np.mgrid[:40, :60] + 0.5
CONFIG = parse_label_config(
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="Cat"/></BrushLabels>'
    '<PolygonLabels name="polygon" toName="image"><Label value="Cat"/><Label value="Roof"/></PolygonLabels>'
    '<EllipseLabels name="ellipse" toName="image"><Label value="Cat"/></EllipseLabels>'
    '<BitmaskLabels name="bitmask" toName="image"><Label value="Cat"/></BitmaskLabels>'
    '<RectangleLabels name="plain" toName="image"><Label value="Cat"/></RectangleLabels>'
    '<RectangleLabels name="smart" toName="image" smart="true"><Label value="Cat"/></RectangleLabels></View>'
)


def region(kind: str, control: str = "", label: str = "Cat", **value: object) -> dict[str, Any]:
    return {
        "id": "r", "type": f"{kind}labels", "from_name": control or kind, "to_name": "image", "original_width": 60,
        "original_height": 40, "value": {**value, f"{kind}labels": [label]},
    }  # fmt: skip


def read(raw: dict[str, Any]) -> RegionsRead:
    return read_regions([raw], CONFIG)


def mask_of(raw: dict[str, Any]) -> Mask:
    found = read(raw)
    assert found.problems == ()
    (only,) = found.regions
    assert is_complete_mask(only)
    assert only.mask is not None
    return only.mask


def png(alpha: NDArray[np.uint8]) -> str:
    rgba = np.zeros((*alpha.shape, 4), np.uint8)
    rgba[..., 3] = alpha
    file = io.BytesIO()
    PillowImage.fromarray(rgba).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_a_rectangle_is_its_pixels_turned_about_its_corner_too() -> None:
    plain = mask_of(region("rectangle", "plain", x=10, y=25, width=50, height=25))
    assert np.array_equal(plain, (_X > 6) & (_X < 36) & (_Y > 10) & (_Y < 20))
    turned = mask_of(region("rectangle", "plain", x=50, y=25, width=20, height=25, rotation=30))
    turn = math.radians(30)
    along = (_X - 30) * math.cos(turn) + (_Y - 10) * math.sin(turn)
    across = (_Y - 10) * math.cos(turn) - (_X - 30) * math.sin(turn)
    assert np.array_equal(turned, (along > 0) & (along < 12) & (across > 0) & (across < 10))


def test_a_smart_rectangle_is_a_box_and_no_mask() -> None:
    (box,) = read(region("rectangle", "smart", x=10, y=25, width=50, height=25)).regions
    assert box.mask is None
    assert box.box_xyxy == pytest.approx((6, 10, 36, 20))


def test_polygons_hold_the_pixels_whose_centres_are_within() -> None:
    triangle = mask_of(region("polygon", points=[[0, 0], [100, 0], [0, 100]]))
    assert np.array_equal(triangle, _X / 60 + _Y / 40 < 1)
    back = mask_of(region("polygon", points=[[0, 100], [100, 0], [0, 0]]))
    assert np.array_equal(back, triangle)
    # The corner of an L is no part of it; what leaves the image is cut off.
    points = [[-50, -50], [50, -50], [50, 50], [150, 50], [150, 150], [-50, 150]]
    assert np.array_equal(mask_of(region("polygon", points=points)), (_X < 30) | (_Y > 20))
    # A pentagram's middle is crossed twice in the same sense: the editor's canvas fills it.
    star = [(50 + 45 * math.sin(turn), 50 - 45 * math.cos(turn)) for turn in np.arange(5) * 4 * math.pi / 5]
    assert mask_of(region("polygon", points=star))[20, 30]


def test_ellipses_are_turned_in_pixels() -> None:
    upright = mask_of(region("ellipse", x=50, y=50, radiusX=25, radiusY=20))
    assert np.array_equal(upright, ((_X - 30) / 15) ** 2 + ((_Y - 20) / 8) ** 2 <= 1)
    quarter = mask_of(region("ellipse", x=50, y=50, radiusX=25, radiusY=20, rotation=90))
    assert np.array_equal(quarter, ((_X - 30) / 8) ** 2 + ((_Y - 20) / 15) ** 2 <= 1)


def test_a_bitmask_is_what_is_not_transparent() -> None:
    drawn = (_X > 20) & (_Y < 15)
    for alpha in (255, 100, 1):
        assert np.array_equal(mask_of(region("bitmask", imageDataURL=png((drawn * alpha).astype(np.uint8)))), drawn)
    assert "without a pixel" in read(region("bitmask", imageDataURL=png(np.zeros(SIZE_HW, np.uint8)))).problems[0]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (region("polygon", points=[[1, 1], [2, 2]]), "three points"),
        (region("polygon", points=[[1, 1], [2, 2], [1e18, 3]]), "far off the image"),
        (region("polygon", points=[[1, 1], [2, 2], [float("nan"), 3]]), "three points"),
        (region("polygon", points="points"), "three points"),
        (region("polygon", points=[[1, 1], [2], [3, 3]]), "three points"),
        (region("ellipse", x=1, y=1, radiusX=0, radiusY=5), "radii above 0"),
        (region("ellipse", x=1, y=1, radiusX=1e400, radiusY=5), "must have numbers"),
        (region("ellipse", x=1, y=1), "must have numbers"),
        (region("rectangle", "plain", x=1, y=float("nan"), width=5, height=5), "must have numbers"),
        (region("bitmask"), "must have a PNG"),
        (region("bitmask", imageDataURL="data:image/png;base64,?"), "base64"),
        (region("bitmask", imageDataURL="data:image/png;base64,AAAA"), "must be one of"),
        (region("bitmask", imageDataURL=png(np.ones((5, 5), np.uint8))), "own size 60 x 40"),
        (region("bitmask", imageDataURL=png(np.ones((50, 60), np.uint8))), "own size 60 x 40"),
    ],
)
def test_what_is_no_shape_is_a_problem_of_its_region(raw: dict[str, Any], message: str) -> None:
    found = read(raw)
    assert found.regions == ()
    assert message in found.problems[0]


@pytest.mark.slow
def test_many_points_and_pixels_are_bounded() -> None:
    points = [[float(number % 100), float(number % 97)] for number in range(300_000)]
    assert "200000 points" in read(region("polygon", points=points)).problems[0]


def test_a_shape_of_a_label_without_a_brush_is_passed_over_and_named() -> None:
    found = read(region("polygon", label="Roof", points=[[0, 0], [100, 0], [0, 100]]))
    assert (found.regions, found.problems) == ((), ())
    assert found.passed_over == ("polygonlabels of polygon",)
    choice = {"id": "c", "type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["good"]}}
    assert read(choice).passed_over == ()


def test_an_annotation_of_a_polygon_alone_marks_its_object() -> None:
    case = json.loads((Path(__file__).parents[1] / "cases" / "only_polygon.json").read_text())
    config = parse_label_config(case["label_config"])
    (marks,) = group_annotation(read_regions(case["annotation_of_task_0"], config).regions)
    assert marks.label == "Coin"
    (mask,) = marks.complete_masks
    assert mask.mean() == pytest.approx(0.25 * 0.32, rel=0.05)
