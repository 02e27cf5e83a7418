"""The gallery while people work: submits in the editor, two browsers, a password, many tasks, Label Studio away."""

from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from backend.cli.demo.label_studio_server import PASSWORD, USERNAME, LabelStudio
from backend.cli.process.supervisor import free_port
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.editor import click_image, open_task
from tests.e2e.flaky_proxy import FlakyProxy
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, Project, centre_of, coin_mask, point_on, wait_until

pytestmark = pytest.mark.browser

SLOW_MS = 120_000
FIRST = TARGETS[0]
MANY = 500
LARGEST_BATCH = 24


def new_page(browser: Browser, **context: Any) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 1000}, **context).new_page()
    page.set_default_timeout(SLOW_MS)
    return page


def gallery(browser: Browser, project: Project, **context: Any) -> Page:
    page = new_page(browser, **context)
    page.goto(f"{project.backend.url}/projects/{project.id}")
    expect(page.locator(".tile")).to_have_count(min(24, len(project.tasks)))
    return page


def editor(browser: Browser, label_studio: LabelStudio, address: str) -> Page:
    page = new_page(browser)
    page.goto(f"{label_studio.url}/user/login/")
    page.fill("input[name=email]", USERNAME)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url)
    open_task(page, address)
    return page


def regions(page: Page, project: Project, name: str) -> Any:
    return page.locator(f"#task-{project.tasks[name]} .after .region")


def badge(page: Page, project: Project, name: str, kind: str) -> Any:
    return page.locator(f"#task-{project.tasks[name]} .badge.{kind}")


def test_submit_in_the_editor_changes_the_tiles_of_two_browsers(
    browser: Browser, project: Project, label_studio: LabelStudio
) -> None:
    pages = [gallery(browser, project), gallery(browser, project)]
    address = f"{label_studio.url}/projects/{project.id}/data?task={project.tasks[MARKED]}"
    editing = editor(browser, label_studio, address)
    # The label of the key points, the second of the three controls.
    editing.locator(".lsf-label_clickable").nth(1).click()
    click_image(editing, centre_of(coin_mask(MARKED, 2)), SAMPLES[MARKED].size_hw)
    editing.get_by_test_id("bottombar-submit-button").click()
    for page in pages:
        expect(regions(page, project, FIRST)).not_to_have_count(0, timeout=SLOW_MS)
        expect(badge(page, project, MARKED, "reference")).to_be_visible(timeout=SLOW_MS)
        expect(page.locator("#no-references")).to_be_hidden()

    # What somebody decides in one window is seen in the other.
    wait_until(lambda: len(project.predictions(FIRST)) == 1, "the prediction is in Label Studio", 120)
    pages[0].locator(f"#task-{project.tasks[FIRST]} [data-act=accept]").click()
    expect(badge(pages[1], project, FIRST, "annotated")).to_be_visible(timeout=SLOW_MS)


def test_tiles_are_live_behind_basic_auth(
    browser: Browser, start_other_backend: StartBackend, new_project: NewProject
) -> None:
    backend = start_other_backend(
        "guarded-gallery", SOFTMATCHER_BASIC_AUTH_USER="ls", SOFTMATCHER_BASIC_AUTH_PASS="secret-of-tiles"
    )
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, FIRST)})
    project.wait_for_webhook_credentials()
    page = gallery(browser, project, http_credentials={"username": "ls", "password": "secret-of-tiles"})
    project.annotate(MARKED, point_on(MARKED, 2))
    expect(regions(page, project, FIRST)).not_to_have_count(0, timeout=SLOW_MS)
    page.locator(f"#task-{project.tasks[FIRST]} [data-act=accept]").click()
    expect(badge(page, project, FIRST, "annotated")).to_be_visible(timeout=SLOW_MS)


def test_the_page_answers_while_500_tasks_are_propagated_and_counts_task_by_task(
    backend: Backend, project: Project
) -> None:
    addresses = [project.label_studio.task(task)["data"] for task in project.tasks.values()]
    wanted = [{"data": addresses[number % len(addresses)]} for number in range(MANY - len(addresses))]
    project.label_studio.import_tasks(project.id, wanted)
    project.mark_one_coin()
    started = backend.post(f"/projects/{project.id}/propagations", {}).json()
    seen: list[int] = []

    def has_come_far() -> bool:
        propagation = backend.get(f"/projects/{project.id}/gallery/changes").json()["propagation"]
        if propagation is not None and propagation["total"] == MANY:
            seen.append(propagation["finished"])
        return bool(seen) and seen[-1] >= 2 * LARGEST_BATCH

    wait_until(has_come_far, "tasks are finished one after the other", 240)
    for tab in ("gallery", "next", "references", "runs", "quality", "export", "settings"):
        assert backend.get(f"/projects/{project.id}?tab={tab}").status_code == 200, tab
    page = backend.get(f"/projects/{project.id}").text
    assert page.count('class="tile ') == 24
    assert f"{MANY - 24} more" in page
    assert 'data-state="masks"' in page
    steps = [after - before for before, after in pairwise(seen) if after > before]
    assert min(steps) < 4, "a batch has at least so many"
    assert backend.post(f"/projects/{project.id}/propagations/{started['id']}/cancel", {}).status_code == 200


def test_the_page_is_useful_while_label_studio_is_away(
    browser: Browser, start_other_backend: StartBackend, new_project: NewProject, label_studio: LabelStudio
) -> None:
    proxy = FlakyProxy(label_studio.url, free_port())
    backend = start_other_backend("gallery-cut-off", LABEL_STUDIO_URL=proxy.url)
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, FIRST)})
    page = gallery(browser, project)
    project.annotate(MARKED, point_on(MARKED, 2))
    expect(regions(page, project, FIRST)).not_to_have_count(0, timeout=SLOW_MS)
    wait_until(lambda: len(project.predictions(FIRST)) == 1, "the prediction is in Label Studio", 120)
    proxy.answers_itself = True
    page.reload()
    expect(page.locator("#problem")).to_contain_text("Shown is what this backend knows", timeout=SLOW_MS)
    expect(regions(page, project, FIRST)).not_to_have_count(0, timeout=SLOW_MS)
    page.locator(f"#task-{project.tasks[FIRST]} [data-act=accept]").click()
    expect(page.locator("#said")).not_to_be_empty(timeout=SLOW_MS)
    assert not project.label_studio.task(project.tasks[FIRST])["annotations"]
    proxy.answers_itself = False
    page.reload()
    expect(page.locator("#problem")).to_be_hidden(timeout=SLOW_MS)
    page.locator(f"#task-{project.tasks[FIRST]} [data-act=accept]").click()
    expect(badge(page, project, FIRST, "annotated")).to_be_visible(timeout=SLOW_MS)
    proxy.close()
