"""The project's page in Chromium, behind basic auth."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from backend.cli.demo.label_studio_server import LabelStudio
from backend.cli.process.supervisor import free_port
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.flaky_proxy import FlakyProxy
from tests.e2e.propagation_scene import assert_each_task_once, many_coins, newest
from tests.e2e.scene import TARGETS, Backend, point_on, wait_until

pytestmark = pytest.mark.browser

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
SLOW_MS = 120_000
USER, PASSWORD = "lead", "open-sesame"
COUNT = 16


@pytest.fixture
def slow_images(label_studio: LabelStudio) -> Iterator[FlakyProxy]:
    """Label Studio with images that take their time: there is something to watch."""
    proxy = FlakyProxy(label_studio.url, free_port())
    proxy.image_delay_s = 0.8
    yield proxy
    proxy.close()


@pytest.fixture
def guarded(start_other_backend: StartBackend, slow_images: FlakyProxy) -> Backend:
    return start_other_backend(
        "guarded-page",
        LABEL_STUDIO_URL=slow_images.url,
        SOFTMATCHER_BASIC_AUTH_USER=USER,
        SOFTMATCHER_BASIC_AUTH_PASS=PASSWORD,
        SOFTMATCHER_TORCH_THREADS="1",
    )


@pytest.fixture
def page(browser: Browser) -> Page:
    context = browser.new_context(
        viewport={"width": 1400, "height": 1000}, http_credentials={"username": USER, "password": PASSWORD}
    )
    page = context.new_page()
    page.set_default_timeout(SLOW_MS)
    return page


def test_lead_starts_watches_cancels_and_goes_on(page: Page, new_project: NewProject, guarded: Backend) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    images = {**many_coins(COUNT), "text": b"this is no image"}
    project = new_project(guarded, images)
    project.wait_for_webhook_credentials()
    project.mark_one_coin()
    project.annotate("tile-0", point_on(TARGETS[0], 1))
    project.wait_for_references(2)

    address = f"{guarded.url}/projects/{project.id}"
    page.goto(f"{address}?tab=references")
    expect(page.locator("#references .tile")).to_have_count(2)
    for picture in page.locator("#references img").all():
        picture.scroll_into_view_if_needed()
        wait_until(partial(picture.evaluate, "img => img.naturalWidth > 50"), "thumbnail shown")
    page.goto(f"{address}?tab=runs")
    page.locator("#start").click()
    expect(page.locator('[data-field="state"]')).to_have_text("running", timeout=SLOW_MS)
    wait_until(lambda: int(page.locator('[data-field="finished"]').inner_text()) > 0, "figures move by themselves", 120)
    page.screenshot(path=ARTIFACTS / "propagation-running.png", full_page=True)
    page.locator("#cancel").click()
    expect(page.locator('[data-field="state"]')).to_have_text("cancelled", timeout=SLOW_MS)
    page.locator("#resume").click()
    expect(page.locator('[data-field="state"]')).to_have_text("done", timeout=SLOW_MS)

    expect(page.locator("#retry-failed")).to_be_visible()
    expect(page.locator(".failures tr")).to_have_count(1)
    page.goto(f"{address}?tab=quality")
    page.locator("#estimate").click()
    wait_until(
        lambda: guarded.get(f"/projects/{project.id}/quality").json()["iou"] is not None, "quality measured", 120
    )
    page.reload()
    expect(page.locator("#quality-labels")).to_contain_text("0.")

    page.goto(address)
    assert page.locator(".tile .after .region").count() > 5
    for picture in page.locator(".tile img.photo").all()[:6]:
        picture.scroll_into_view_if_needed()
        wait_until(partial(picture.evaluate, "img => img.naturalWidth > 50"), "picture shown", 120)
    link = page.locator(".tile a[href*='/data?task=']").first.get_attribute("href") or ""
    assert link.startswith(f"{project.label_studio.url}/projects/{project.id}/data?task=")
    page.screenshot(path=ARTIFACTS / "propagation-done.png", full_page=True)
    ended = newest(project)
    assert_each_task_once(project, ended)
    assert ended["counts"]["failed"] == 1
    assert messages == []
