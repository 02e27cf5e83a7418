import pytest

from backend.cli.demo.sample_projects import SampleProject
from backend.cli.demo.scenario import LabelResult, ProjectResult, results_table, say_what_is_absent

SAMPLE = SampleProject("Coins", ("Coin",), (), "marked", (), "a point", "drawn", min_mean_iou=0.8)


def found(task: str, iou: float, regions: int = 1) -> LabelResult:
    return LabelResult(task, "Coin", True, regions, 0.9 if regions else None, iou, 100.0)


def absent(task: str, score: float | None) -> LabelResult:
    return LabelResult(task, "Coin", False, 0 if score is None else 1, score, None, 100.0)


def project(*results: LabelResult) -> ProjectResult:
    return ProjectResult(SAMPLE, 1, 0.5, results)


def test_good_masks_everywhere_are_no_problem() -> None:
    assert project(found("a", 0.95), found("b", 0.7)).problem is None


def test_a_task_without_prediction_is_a_problem_whatever_the_mean() -> None:
    results = [found("a", 1.0)] * 9 + [found("b", 0.0, regions=0)]
    assert project(*results).problem == "Coins: no prediction in Label Studio for Coin on b"


def test_poor_masks_are_a_problem() -> None:
    assert project(found("a", 0.9), found("b", 0.6)).problem == "Coins: mean IoU is 0.750, at least 0.8 was asked for"


def test_what_is_absent_does_not_count_in_the_mean() -> None:
    assert project(found("a", 0.9), absent("b", None), absent("c", 0.5)).mean_iou == pytest.approx(0.9)


def test_regions_where_nothing_is_are_said() -> None:
    said = say_what_is_absent([found("a", 0.9), absent("b", None), absent("c", 0.51)])
    assert said is not None
    assert "Not there 2 times: rightly nothing was returned 1 times, a region with score 0.51" in said
    assert "0.90 and more" in said
    assert say_what_is_absent([found("a", 0.9)]) is None


def test_the_table_has_a_row_for_every_result() -> None:
    assert results_table(project(found("a", 0.9), absent("b", None))).row_count == 3
