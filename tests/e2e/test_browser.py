"""A labeler in the real editor: smart key point, suggestion, accept, submit; the next task opens pre-annotated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, Response, expect

from backend.cli.demo.coins import COIN
from backend.cli.demo.label_studio_server import intersection_over_union, mask_of_regions
from backend.core.types import Mask
from tests.e2e.conftest import NewProject
from tests.e2e.editor import SLOW_MS, click_image, open_task, serialized
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, centre_of, coin_mask, wait_until

pytestmark = pytest.mark.browser

TARGET = TARGETS[0]
ARTIFACTS = Path(__file__).parents[2] / "artifacts"


def serialized_mask(page: Page, name: str) -> Mask:
    return mask_of_regions(serialized(page), COIN, SAMPLES[name].size_hw)


def test_labeling_with_a_smart_key_point(page: Page, new_project: NewProject, backend: Backend) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, TARGET)})
    project.label_studio.update_project(project.id, show_collab_predictions=True)
    data_manager = f"{project.label_studio.url}/projects/{project.id}/data"
    suggestions: list[dict[str, Any]] = []

    def note_suggestion(response: Response) -> None:
        if "interactive-annotating" in response.url:
            suggestions.append(response.json())

    page.on("response", note_suggestion)
    open_task(page, f"{data_manager}?task={project.tasks[MARKED]}")

    page.locator("text=Auto-Annotation").first.click()
    page.locator(".lsf-tool_smart").first.hover()
    page.locator('.lsf-tool_smart[aria-label="key-point-tool"]').first.click()
    # The label of the second of the three controls; the tool has to be chosen before it.
    page.locator(".lsf-label_clickable").nth(1).click()
    click_image(page, centre_of(coin_mask(MARKED, 2)), SAMPLES[MARKED].size_hw)
    accept = page.get_by_test_id("bottombar-accept-suggestions-button")
    expect(accept).to_be_visible(timeout=SLOW_MS)
    page.screenshot(path=ARTIFACTS / "suggestion.png")
    accept.click()
    wait_until(lambda: [region["type"] for region in serialized(page)] == ["brushlabels"], "the mask alone is left")

    suggested = mask_of_regions(suggestions[-1]["data"]["result"], COIN, SAMPLES[MARKED].size_hw)
    assert np.array_equal(serialized_mask(page, MARKED), suggested)
    assert intersection_over_union(suggested, coin_mask(MARKED, 2)) > 0.8

    page.get_by_test_id("bottombar-submit-button").click()
    project.wait_for_references(1)
    (annotation,) = project.label_studio.task(project.tasks[MARKED])["annotations"]
    assert np.array_equal(mask_of_regions(annotation["result"], COIN, SAMPLES[MARKED].size_hw), suggested)

    open_task(page, f"{data_manager}?task={project.tasks[TARGET]}")
    wait_until(lambda: bool(serialized(page)), "the next task is pre-annotated")
    page.screenshot(path=ARTIFACTS / "next-task.png")
    shown = serialized_mask(page, TARGET)
    assert np.array_equal(shown, project.predicted_mask(TARGET))
    assert intersection_over_union(shown, SAMPLES[TARGET].masks[COIN]) > 0.8
