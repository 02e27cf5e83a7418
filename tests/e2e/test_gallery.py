"""The gallery in Chromium over a real Label Studio: submits change tiles, decisions become annotations."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from backend.web.pages import TABS
from tests.e2e.accessibility import SCHEMES, WIDTHS_PX, violations
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Project, point_on, wait_until

pytestmark = pytest.mark.browser

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
SLOW_MS = 120_000
expect.set_options(timeout=SLOW_MS)
FIRST, SECOND = TARGETS[0], TARGETS[1]


def opened(browser: Browser, project: Project, messages: list[str]) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.set_default_timeout(SLOW_MS)
    page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(f"{project.backend.url}/projects/{project.id}")
    return page


def tile(project: Project, name: str) -> str:
    return f"#task-{project.tasks[name]}"


def annotations(project: Project, name: str) -> int:
    return len(project.label_studio.task(project.tasks[name])["annotations"])


def test_submits_change_tiles_and_decisions_become_annotations(browser: Browser, project: Project) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    messages: list[str] = []
    page, other = opened(browser, project, messages), opened(browser, project, messages)
    expect(page.locator(".tile")).to_have_count(len(project.tasks))
    expect(page.locator("#no-references")).to_be_visible()

    project.annotate(MARKED, point_on(MARKED, 2))
    for shown in (page, other):
        expect(shown.locator(f"{tile(project, FIRST)} .after .region")).not_to_have_count(0)
    expect(page.locator(f"{tile(project, MARKED)} .badge.reference")).to_be_visible()
    photo = page.locator(f"{tile(project, FIRST)} .photo")
    wait_until(lambda: bool(photo.evaluate("img => img.naturalWidth > 50")), "photograph shown")
    wait_until(lambda: len(project.predictions(FIRST)) == 1, "the prediction is in Label Studio")
    assert project.iou(FIRST) > 0.5
    path_box = page.locator(f"{tile(project, FIRST)} .after .line").first.bounding_box()
    photo_box = photo.bounding_box()
    assert path_box
    assert photo_box
    assert photo_box["x"] - 3 <= path_box["x"] < photo_box["x"] + photo_box["width"]

    project.annotate(SECOND, point_on(SECOND, 1))
    expect(page.locator(f"{tile(project, SECOND)} .badge.annotated")).to_be_visible()

    page.locator(tile(project, FIRST)).focus()
    page.keyboard.press("a")
    expect(page.locator(f"{tile(project, FIRST)} .badge.annotated")).to_be_visible()
    assert annotations(project, FIRST) == 1
    page.keyboard.press("u")
    expect(page.locator(f"{tile(project, FIRST)} .badge.annotated")).to_have_count(0)
    assert annotations(project, FIRST) == 0

    page.locator(f"{tile(project, TARGETS[2])} [data-act=wrong]").click()
    expect(page.locator(f"{tile(project, TARGETS[2])} .badge.annotated")).to_be_visible()
    (wrong,) = project.label_studio.task(project.tasks[TARGETS[2]])["annotations"]
    assert wrong["result"] == []
    page.screenshot(path=ARTIFACTS / "gallery.png", full_page=True)

    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("#least").fill("1")
    expect(page.locator("#least-count")).to_contain_text("0 of")
    page.locator("#save-least").click()
    expect(page.locator("#save-least")).to_be_disabled()
    wait_until(
        lambda: project.label_studio.backend(project.connection)["extra_params"].get("min_score") == 1.0,
        "min_score is in Label Studio",
    )
    assert messages == []


def test_a_point_drawn_on_a_tile_shows_what_would_change_and_keep_makes_it_an_annotation(
    browser: Browser, project: Project
) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    messages: list[str] = []
    page = opened(browser, project, messages)
    photo = page.locator(f"{tile(project, MARKED)} .photo")
    wait_until(lambda: bool(photo.evaluate("img => img.naturalWidth > 50")), "photograph shown")
    page.locator(f"{tile(project, MARKED)} [data-act=draw]").click()
    box = photo.bounding_box()
    assert box
    value = point_on(MARKED, 2)["value"]
    size_hw = SAMPLES[MARKED].size_hw
    scale = min(box["width"] / size_hw[1], box["height"] / size_hw[0])
    left = box["x"] + (box["width"] - scale * size_hw[1]) / 2
    top = box["y"] + (box["height"] - scale * size_hw[0]) / 2
    page.mouse.click(left + scale * size_hw[1] * value["x"] / 100, top + scale * size_hw[0] * value["y"] / 100)
    expect(page.locator(f"{tile(project, FIRST)} .preview .line")).not_to_have_count(0)
    page.screenshot(path=ARTIFACTS / "gallery-preview.png", full_page=True)
    assert annotations(project, MARKED) == 0
    page.locator("#try-keep").click()
    expect(page.locator(f"{tile(project, MARKED)} .badge.reference")).to_be_visible()
    expect(page.locator(f"{tile(project, FIRST)} .after .region")).not_to_have_count(0)
    assert annotations(project, MARKED) == 1
    assert messages == []


def test_no_rule_of_axe_is_broken_and_no_part_is_wider_than_the_window(browser: Browser, project: Project) -> None:
    page = opened(browser, project, [])
    project.annotate(MARKED, point_on(MARKED, 2))
    project.annotate(SECOND, point_on(SECOND, 1))
    expect(page.locator(f"{tile(project, FIRST)} .after .region")).not_to_have_count(0)
    project.backend.post(f"/projects/{project.id}/propagations", {}).raise_for_status()
    page.goto(f"{project.backend.url}/projects/{project.id}?tab=runs")
    expect(page.locator('[data-field="state"]')).to_have_text("done")
    project.backend.post(f"/projects/{project.id}/quality", {}).raise_for_status()
    path = f"/projects/{project.id}/quality"
    wait_until(lambda: project.backend.get(path).json()["iou"] is not None, "quality measured", 120)
    for scheme in SCHEMES:
        for width in WIDTHS_PX:
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            for tab in TABS:
                page.goto(f"{project.backend.url}/projects/{project.id}?tab={tab}")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (tab, width)
                expect(page.locator("h1")).to_be_visible()
                assert violations(page) == [], (tab, width, scheme)
            for address in ("/projects", "/projects/4711"):
                page.goto(f"{project.backend.url}{address}")
                assert violations(page) == [], (address, width, scheme)
