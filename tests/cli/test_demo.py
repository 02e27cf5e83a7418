import numpy as np

from backend.cli.demo import TaskResult, _problem, _scribble
from backend.cli.sample import sample_tasks


def result(name: str, iou: float, regions: int = 1) -> TaskResult:
    return TaskResult(name, regions, 0.9 if regions else None, iou, 100.0)


def test_good_masks_everywhere_are_no_problem() -> None:
    assert _problem([result("a", 0.95), result("b", 0.7)]) is None


def test_a_task_without_prediction_is_a_problem_whatever_the_mean() -> None:
    assert _problem([result("a", 1.0)] * 9 + [result("b", 0.0, regions=0)]) == "no prediction in Label Studio for b"


def test_poor_masks_are_a_problem() -> None:
    assert _problem([result("a", 0.9), result("b", 0.6)]) == "mean IoU is 0.750, at least 0.8 was asked for"


def test_the_scribble_is_one_point_on_a_coin() -> None:
    for sample in sample_tasks():
        value = _scribble(sample)["value"]
        height, width = sample.size_hw
        row, column = int(value["y"] / 100 * height), int(value["x"] / 100 * width)
        coin = sample.objects[row, column]
        assert coin > 0
        assert np.count_nonzero(sample.objects == coin) > 500
