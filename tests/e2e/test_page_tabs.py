"""The tabs *Next* and *References* in Chromium over a real Label Studio: what their buttons do there and here."""

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from backend.core.types import Json
from tests.e2e.conftest import NewProject
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, Project, point_on, wait_until

pytestmark = pytest.mark.browser

SLOW_MS = 120_000
FIRST, SECOND = TARGETS[0], TARGETS[1]


class Tabs:
    """One window on the project's page, and what its console said."""

    def __init__(self, browser: Browser, project: Project) -> None:
        self.page: Page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
        self.page.set_default_timeout(SLOW_MS)
        self.messages: list[str] = []
        self.page.on("console", lambda one: self.messages.append(one.text) if one.type == "error" else None)
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self._address = f"{project.backend.url}/projects/{project.id}"

    def open(self, tab: str) -> Page:
        self.page.goto(f"{self._address}?tab={tab}")
        return self.page


def annotations(project: Project, task: int) -> list[Json]:
    return list(project.label_studio.task(task)["annotations"])


def tile(page: Page, project: Project, name: str) -> Locator:
    return page.locator(f"#task-{project.tasks[name]}")


def reference(page: Page, project: Project, name: str) -> Locator:
    named = page.get_by_text(f"task {project.tasks[name]}", exact=True)
    return page.locator("#references .tile").filter(has=named)


def propagate(project: Project) -> None:
    started = project.backend.post(f"/projects/{project.id}/propagations", {}).json()
    path = f"/projects/{project.id}/propagations/{started['id']}"
    wait_until(lambda: project.backend.get(path).json()["state"] == "done", "the propagation ends", 240)


def test_next_asks_for_uncertain_tasks_and_takes_right_wrong_and_undo(browser: Browser, project: Project) -> None:
    tabs = Tabs(browser, project)
    page = tabs.open("next")
    expect(page.locator("#label-next")).to_contain_text("No reference yet")
    project.mark_one_coin()
    propagate(project)

    page = tabs.open("next")
    asked = page.locator("#label-next .tile")
    expect(asked).to_have_count(min(5, len(TARGETS)))
    expect(asked.first.locator(".note")).to_contain_text("scores")
    ids = [int(one.get_attribute("data-task") or 0) for one in asked.all()]
    assert project.tasks[MARKED] not in ids
    assert asked.first.locator("a.open").get_attribute("href") == (
        f"{project.label_studio.url}/projects/{project.id}/data?task={ids[0]}"
    )

    sure = page.locator("#confirm-next .tile")
    expect(sure).to_have_count(2)
    right, wrong = (int(one.get_attribute("data-task") or 0) for one in sure.all())
    sure.nth(0).locator("[data-act=accept]").click()
    expect(page.locator(f"#confirm-next #task-{right}")).to_have_class("tile masks decided")
    (accepted,) = annotations(project, right)
    assert len(accepted["result"]) > 0
    page.locator(f"#confirm-next #task-{wrong} [data-act=wrong]").click()
    expect(page.locator(f"#confirm-next #task-{wrong}")).to_have_class("tile masks decided")
    (rejected,) = annotations(project, wrong)
    assert rejected["result"] == []
    project.wait_for_references(3)

    page.locator("#undo").click()
    expect(page.locator(f"#confirm-next #task-{wrong}")).to_have_class("tile masks")
    assert annotations(project, wrong) == []
    assert len(annotations(project, right)) == 1, "only the last one is taken back"
    project.wait_for_references(2)
    page = tabs.open("next")
    expect(page.locator(f"#confirm-next #task-{right}")).to_have_count(0)
    assert tabs.messages == []


def test_a_disabled_reference_changes_the_visible_tasks_until_it_is_enabled_or_deleted(
    browser: Browser, new_project: NewProject, backend: Backend
) -> None:
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, FIRST, SECOND)})
    tabs, gallery = Tabs(browser, project), Tabs(browser, project)
    shown = gallery.open("gallery")
    project.mark_one_coin()
    expect(tile(shown, project, FIRST).locator(".after .region")).not_to_have_count(0, timeout=SLOW_MS)
    project.annotate(SECOND, point_on(SECOND, 1))
    project.wait_for_references(2)
    wait_until(lambda: written_is_current(project, FIRST), "Label Studio has the new prediction", 120)
    of_two = project.predictions(FIRST)[0]["model_version"]

    page = tabs.open("references")
    expect(page.locator("#references .tile")).to_have_count(2)
    own = reference(page, project, SECOND)
    own.get_by_role("button", name="Disable").click()
    expect(page.locator("#references .tile.disabled")).to_have_count(1)
    expect(tile(shown, project, SECOND).locator(".badge.disabled")).to_be_visible(timeout=SLOW_MS)
    expect(tile(shown, project, SECOND).locator(".badge.reference")).to_have_count(0)
    wait_until(lambda: written_is_current(project, FIRST), "predicted without it", 120)
    of_one = project.predictions(FIRST)[0]["model_version"]
    assert of_one != of_two

    # Without any reference tiles have no prediction; what Label Studio has stays.
    page.locator("#references .tile:not(.disabled)").get_by_role("button", name="Disable").click()
    expect(page.locator("#references .tile.disabled")).to_have_count(2)
    expect(tile(shown, project, FIRST)).to_contain_text("all references are disabled", timeout=SLOW_MS)
    assert [one["model_version"] for one in project.predictions(FIRST)] == [of_one]
    assert len(annotations(project, project.tasks[SECOND])) == 1

    for _ in range(2):
        page.locator("#references .tile.disabled").first.get_by_role("button", name="Enable").click()
    expect(page.locator("#references .tile.disabled")).to_have_count(0)
    expect(tile(shown, project, FIRST).locator(".after .region")).not_to_have_count(0, timeout=SLOW_MS)
    wait_until(lambda: project.predictions(FIRST)[0]["model_version"] == of_two, "as with both of them before", 120)

    own = reference(page, project, SECOND)
    own.locator("summary").click()
    own.get_by_role("button", name="Delete").click()
    expect(page.locator("#references .tile")).to_have_count(1)
    assert project.references() == 1
    assert len(annotations(project, project.tasks[SECOND])) == 1, "its annotation stays"
    wait_until(lambda: project.predictions(FIRST)[0]["model_version"] == of_one, "predicted without it", 120)
    assert [*tabs.messages, *gallery.messages] == []


def written_is_current(project: Project, name: str) -> bool:
    """Whether Label Studio has one prediction of the task, and it is of the references that take part now."""
    return [one["model_version"] for one in project.predictions(name)] == [project.version()]
