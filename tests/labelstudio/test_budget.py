"""What one annotation may cost: hostile strokes, thousands of masks, values that nobody thought of."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from backend.core import strokes as strokes_module
from backend.core.strokes import paint_strokes
from backend.errors import BadInputError
from backend.labelstudio import budget as budget_module
from backend.labelstudio.budget import ReadingBudget
from backend.labelstudio.codec import read_regions
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.rle import encode_mask
from backend.labelstudio.strokes import draw_touches
from testing.fakes import LABEL_CONFIG

CONFIG = parse_label_config(LABEL_CONFIG)
SIZE_HW = (480, 640)


def _brush(**value: Any) -> dict[str, Any]:
    return {
        "id": "b", "type": "brushlabels", "from_name": "brush", "to_name": "image", "original_width": 640,
        "original_height": 480, "value": {"format": "rle", "brushlabels": ["Cat"], **value},
    }  # fmt: skip


def _touch(points: list[float], width: float) -> dict[str, Any]:
    return {"type": "add", "relativePoints": points, "relativeStrokeWidth": width}


def _good() -> dict[str, Any]:
    mask = np.zeros(SIZE_HW, bool)
    mask[10:50, 10:50] = True
    return {**_brush(rle=encode_mask(mask)), "id": "good"}


@pytest.mark.parametrize(
    "text",
    [
        '{"relativeStrokeWidth": 1e400, "relativePoints": [1, 2, 3, 4], "type": "add"}',
        '{"relativeStrokeWidth": 1e308, "relativePoints": [1, 2, 3, 4], "type": "add"}',
        '{"relativeStrokeWidth": 1, "relativePoints": [1e400, 2], "type": "add"}',
        '{"relativeStrokeWidth": 1, "relativePoints": [1, 2, 3], "type": "add"}',
        '{"relativeStrokeWidth": 1, "relativePoints": {"a": 1}, "type": "add"}',
        '{"relativeStrokeWidth": [1], "relativePoints": [[1, 2], 3], "type": "add"}',
        '{"relativeStrokeWidth": 1, "relativePoints": ["x", "y"], "type": "add"}',
    ],
)
def test_a_stroke_that_cannot_be_is_its_regions_problem(text: str) -> None:
    read = read_regions([_brush(touches=[json.loads(text)]), _good()], CONFIG, {"image": SIZE_HW})
    assert [region.id for region in read.regions] == ["good"]
    assert len(read.problems) == 1


def test_huge_points_end_by_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand points, each as large as the image, held two workers for an hour."""
    points = [float(number % 100) for number in range(4000)]
    monkeypatch.setattr(budget_module, "MOST_STROKE_PIXELS", 50 * SIZE_HW[0] * SIZE_HW[1])
    read = read_regions([_brush(touches=[_touch(points, 200.0)]), _good()], CONFIG, {"image": SIZE_HW})
    assert [region.id for region in read.regions] == ["good"]
    assert "pixels near strokes" in read.problems[0]


def test_time_is_a_budget_too() -> None:
    now = [0.0]
    spent = ReadingBudget(seconds=5.0, clock=lambda: now[0])
    spent.spend(regions=1)
    now[0] = 6.0
    with pytest.raises(BadInputError, match="within 5 s"):
        spent.spend(regions=1)


def test_points_and_regions_are_counted() -> None:
    with pytest.raises(BadInputError, match="points of strokes"):
        draw_touches(np.zeros((8, 8), bool), [_touch([1.0, 2.0] * (budget_module.MOST_POINTS + 1), 0.1)])
    spent = ReadingBudget()
    spent.spend(regions=budget_module.MOST_REGIONS)
    with pytest.raises(BadInputError, match="up to 20000 regions, got 20001"):
        spent.spend(regions=1)


@pytest.mark.slow
def test_many_masks_take_the_memory_of_few() -> None:
    """A thousand full masks of one label took 11 GB."""
    mask = np.zeros((1000, 1000), bool)
    mask[100:900, 100:900] = True
    region = {**_brush(rle=encode_mask(mask)), "original_width": 1000, "original_height": 1000}
    tracemalloc.start()
    try:
        read = read_regions([region] * 60, CONFIG, {"image": (1000, 1000)}, joins_masks=True)
        peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert len(read.regions) == 1
    assert np.array_equal(np.asarray(read.regions[0].mask), mask)
    assert peak_mb < 30, "60 masks would be 60 MB"


def test_joined_masks_are_the_union_and_kinds_stay_apart() -> None:
    masks = [np.zeros(SIZE_HW, bool) for _ in range(3)]
    for number, mask in enumerate(masks):
        mask[10 * number : 10 * number + 5, 5:60] = True
    regions = [{**_brush(rle=encode_mask(mask)), "id": f"b{number}"} for number, mask in enumerate(masks)]
    regions[2]["origin"] = "prediction"
    read = read_regions(regions, CONFIG, {"image": SIZE_HW}, joins_masks=True)
    assert [region.origin for region in read.regions] == ["manual", "prediction"]
    assert np.array_equal(np.asarray(read.regions[0].mask), masks[0] | masks[1])
    assert np.array_equal(np.asarray(read.regions[1].mask), masks[2])
    apart = [paint_strokes([stroke], SIZE_HW) for stroke in read.regions[0].strokes_apart]
    assert [np.array_equal(one, mask) for one, mask in zip(apart, masks[:2], strict=True)] == [True, True]


def test_strokes_are_kept_apart_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros(SIZE_HW, bool)
    mask[5:10, 5:60] = True
    region = _brush(rle=encode_mask(mask))
    for bound, value in (("MOST_STROKES", 4), ("MOST_STROKE_PX", 5 * 55 * 4)):
        with monkeypatch.context() as patched:
            patched.setattr(strokes_module, bound, value)
            counts = [
                len(
                    read_regions([region] * count, CONFIG, {"image": SIZE_HW}, joins_masks=True)
                    .regions[0]
                    .strokes_apart
                )
                for count in (1, 4, 5, 6)
            ]
        assert counts == [1, 4, 0, 0]


def test_key_points_beyond_the_budget_are_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "MOST_PROMPTS", 3)
    point = {
        "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": SIZE_HW[1],
        "original_height": SIZE_HW[0], "value": {"x": 5, "y": 5, "keypointlabels": ["Cat"]},
    }  # fmt: skip
    read = read_regions([point | {"id": f"p{number}"} for number in range(5)], CONFIG)
    assert [region.id for region in read.regions] == ["p0", "p1", "p2"]
    assert "up to 3 key points and boxes" in read.problems[0]
