import numpy as np
import pytest

from backend.cli.demo.coins import COIN
from backend.cli.demo.label_studio_server import intersection_over_union, key_point, mask_of_regions
from backend.core.types import Json, Mask
from tests.e2e.scene import MARKED, SAMPLES, Project, box_around, centre_of, coin_mask, point_on

SIZE_HW = SAMPLES[MARKED].size_hw


def shown(regions: list[Json]) -> Mask:
    return mask_of_regions(regions, COIN, SIZE_HW)


def has(mask: Mask, number: int) -> bool:
    """True if the mask has the middle of that coin."""
    column, row = centre_of(coin_mask(MARKED, number))
    return bool(mask[int(row), int(column)])


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_one_key_point_gives_its_coin(small_project: Project, number: int) -> None:
    (region,) = small_project.interact(MARKED, point_on(MARKED, number))
    assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "brush", "image")
    assert region["value"]["brushlabels"] == [COIN]
    assert (region["original_height"], region["original_width"]) == SIZE_HW
    assert region.get("origin") != "manual"
    assert 0 < region["score"] <= 1
    assert intersection_over_union(shown([region]), coin_mask(MARKED, number)) > 0.8


def test_a_rectangle_gives_its_coin(small_project: Project) -> None:
    regions = small_project.interact(MARKED, box_around(MARKED, 1))
    assert intersection_over_union(shown(regions), coin_mask(MARKED, 1)) > 0.8


def test_two_key_points_give_both_coins_and_a_negative_one_takes_it_away(small_project: Project) -> None:
    both = shown(small_project.interact(MARKED, point_on(MARKED, 1), point_on(MARKED, 3)))
    assert has(both, 1)
    assert has(both, 3)
    one = shown(small_project.interact(MARKED, point_on(MARKED, 1), point_on(MARKED, 3, is_positive=False)))
    assert has(one, 1)
    assert not has(one, 3)


def test_negative_points_alone_give_nothing(small_project: Project) -> None:
    assert small_project.interact(MARKED, point_on(MARKED, 1, is_positive=False)) == []


def test_region_ids_do_not_collide(small_project: Project) -> None:
    regions = [small_project.interact(MARKED, point_on(MARKED, number))[0] for number in (1, 2, 1)]
    assert len({region["id"] for region in regions}) == 3


def test_strokes_that_are_only_in_the_draft_count(small_project: Project) -> None:
    """The stroke is on another coin than the point: the answer has both."""
    column, row = (100 * side / size for side, size in zip(centre_of(coin_mask(MARKED, 3)), SIZE_HW[::-1], strict=True))
    stroke = {
        "id": "stroke-1",
        "type": "add",
        "points": [],
        "relativePoints": [column - 4, row, column + 4, row],
        "strokeWidth": 15,
        "relativeStrokeWidth": 5,
    }
    draft = {
        "id": "draft-1",
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "origin": "manual",
        "original_width": SIZE_HW[1],
        "original_height": SIZE_HW[0],
        "image_rotation": 0,
        "value": {"format": "rle", "touches": [stroke], "brushlabels": [COIN]},
    }
    task = small_project.tasks[MARKED]
    small_project.label_studio.call("POST", f"/api/tasks/{task}/drafts", json={"result": [draft], "lead_time": 1})
    mask = shown(small_project.interact(MARKED, point_on(MARKED, 1)))
    assert has(mask, 1)
    assert has(mask, 3)


def test_a_label_that_the_config_does_not_have_is_an_error_with_a_reason(small_project: Project) -> None:
    foreign = key_point((20, 20), SIZE_HW, "Button")
    answer = small_project.label_studio.interact(small_project.connection, small_project.tasks[MARKED], [foreign])
    assert "errors" in answer
    assert "Button" in small_project.backend.log()


def test_text_choices_and_a_deleted_last_point_suggest_nothing(small_project: Project) -> None:
    """With Auto-Annotation on, the editor sends the classification results of the whole image, or an empty list."""
    of_image = {"from_name": "note", "to_name": "image", "origin": "manual"}
    text = {**of_image, "id": "text-1", "type": "textarea", "value": {"text": ["a scratch"]}}
    choice = {**of_image, "id": "choice-1", "type": "choices", "value": {"choices": ["good"]}}
    encoded = small_project.backend.figure("softmatcher_stage_seconds_count", stage="encode")
    for context in ([text], [choice, text], []):
        assert small_project.interact(MARKED, *context) == []
    assert small_project.backend.figure("softmatcher_stage_seconds_count", stage="encode") == encoded


def test_the_second_call_on_an_image_takes_it_from_the_cache(small_project: Project) -> None:
    small_project.interact(MARKED, point_on(MARKED, 1))
    before = small_project.backend.figure("softmatcher_cache_hits_total")
    small_project.interact(MARKED, point_on(MARKED, 2))
    assert small_project.backend.figure("softmatcher_cache_hits_total") > before


def test_a_key_point_makes_no_reference(small_project: Project) -> None:
    small_project.interact(MARKED, point_on(MARKED, 1))
    assert small_project.references() == 0
    small_project.retrieve("coins-1")
    assert not np.any(small_project.predicted_mask("coins-1"))
