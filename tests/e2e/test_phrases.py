"""Phrases in the real Label Studio, with models that know colour words: by its interface, and in the real editor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, Response, expect

from backend.cli.demo.label_studio_server import brush, intersection_over_union, mask_of_regions
from backend.core.types import Json, Mask
from testing import colour_words_profile
from testing.colour_words import draw_discs
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.editor import SLOW_MS, click_image, open_task, serialized
from tests.e2e.scene import Backend, Project, wait_until

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
LABEL, TEXT = "Disc", "softmatcher_text"
SIZE_HW = (160, 208)
CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image" smart="false"><Label value="Disc"/><Label value="Other"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Disc"/><Label value="Other"/></KeyPointLabels>
  <TextArea name="softmatcher_text" toName="image" editable="true" rows="2" maxSubmissions="1" showSubmitButton="true"/>
  <TextArea name="note" toName="image"/>
  <Choices name="choice" toName="image"><Choice value="good"/><Choice value="bad"/></Choices>
</View>"""
WITH_PROMPT = CONFIG.replace('<Label value="Disc"/>', '<Label value="Disc" text_prompt="red discs"/>', 1)
Disc = tuple[str, str, int, int, int]
RED, BLUE = ("red", "plain", 60, 80, 30), ("blue", "plain", 150, 80, 26)
MARKED: tuple[Disc, ...] = (
    ("red", "striped", 50, 50, 26), ("blue", "striped", 150, 50, 26), ("red", "plain", 60, 120, 26),
)  # fmt: skip
TARGET: tuple[Disc, ...] = (
    ("red", "striped", 150, 110, 26), ("blue", "striped", 50, 110, 26), ("red", "plain", 110, 40, 26),
)  # fmt: skip
"""Texture alone does not tell the first disc from the second, colour alone not from the third."""


@pytest.fixture(scope="module")
def words(new_backend: StartBackend) -> Backend:
    return new_backend(
        "words",
        module=colour_words_profile.__name__,
        SOFTMATCHER_PROFILE=colour_words_profile.NAME,
        SOFTMATCHER_PREFETCH_TASKS="0",
        SOFTMATCHER_COMPLETE_ANNOTATIONS="true",
    )


def made_of(
    new_project: NewProject, backend: Backend, label_config: str = CONFIG, **tasks: tuple[Disc, ...]
) -> Project:
    images = {name: draw_discs(*discs, size_hw=SIZE_HW)[0] for name, discs in tasks.items()}
    return new_project(backend, images, label_config=label_config)


def mask_of(regions: list[Json]) -> Mask:
    return mask_of_regions(regions, LABEL, SIZE_HW)


def first_of(*discs: Disc) -> Mask:
    return draw_discs(*discs, size_hw=SIZE_HW)[1][0]


def predicted(project: Project, task: str) -> Mask:
    """The mask of the newest prediction; nothing but masks is ever predicted."""
    predictions = project.predictions(task)
    regions = predictions[-1]["result"] if predictions else []
    assert {region["type"] for region in regions} <= {"brushlabels"}
    return mask_of(regions)


def phrases(project: Project) -> Json:
    found: Json = project.backend.get(f"/projects/{project.id}/phrases").json()
    return found


def write_phrases(project: Project, text: str) -> None:
    answer = project.backend.post(f"/projects/{project.id}/phrases", {"phrases": {LABEL: text}})
    assert answer.status_code == 200, answer.text


def weight(project: Project) -> float | None:
    """Return w of the label, None until it is measured."""
    value = phrases(project)["weights"].get(LABEL)
    return None if value is None else float(value)


def fitted(project: Project) -> float:
    """Predict with the references as they are now; return w."""
    project.retrieve("target")
    return weight(project) or 0.0


def encoded(backend: Backend) -> float:
    return backend.figure("softmatcher_stage_seconds_count", stage="encode")


def test_a_phrase_alone_finds_its_objects_and_nothing_where_they_are_not(
    new_project: NewProject, words: Backend
) -> None:
    project = made_of(new_project, words, WITH_PROMPT, red=(RED, BLUE), blue=(BLUE,), empty=())
    wait_until(lambda: weight(project) == 1.0, "its scale is measured on the images of the project", 90)
    assert [(one["phrase"], one["from"]) for one in phrases(project)["phrases"]] == [("red discs", "label config")]
    project.retrieve("red", "blue", "empty")
    assert intersection_over_union(predicted(project, "red"), first_of(RED)) > 0.9
    assert project.predictions("red")[-1]["model_version"] == project.version()
    assert project.predictions("blue") == []
    assert project.predictions("empty") == []
    project.label_studio.delete_predictions(project.id, list(project.tasks.values()))
    project.label_studio.train(project.connection)
    wait_until(lambda: bool(project.predictions("red")), "a prediction by the worker", 90)
    assert intersection_over_union(predicted(project, "red"), first_of(RED)) > 0.9
    assert project.predictions("blue") == []


def test_a_phrase_beside_a_reference_beats_either_alone(new_project: NewProject, words: Backend) -> None:
    truth = first_of(*TARGET)
    project = made_of(new_project, words, marked=MARKED, target=TARGET)
    region = brush(first_of(*MARKED), LABEL) | {"origin": "prediction", "from_name": "brush"}
    project.annotate("marked", region)
    project.wait_for_references(1)
    project.retrieve("target")
    by_reference = intersection_over_union(predicted(project, "target"), truth)

    alone = made_of(new_project, words, WITH_PROMPT.replace("red discs", "red"), marked=MARKED, target=TARGET, no=())
    wait_until(lambda: weight(alone) == 1.0, "its scale is measured", 90)
    alone.retrieve("target")
    by_phrase = intersection_over_union(predicted(alone, "target"), truth)

    write_phrases(project, "red")
    wait_until(lambda: fitted(project) > 0.5, "the phrase counts", 120)
    by_both = intersection_over_union(predicted(project, "target"), truth)
    assert by_both > 0.85, (by_reference, by_phrase, by_both)
    assert by_both > max(by_reference, by_phrase) + 0.2, (by_reference, by_phrase, by_both)


def test_a_phrase_that_misleads_gets_no_weight_and_costs_nothing(new_project: NewProject, words: Backend) -> None:
    project = made_of(
        new_project, words, marked=(("red", "plain", 60, 80, 30), ("blue", "striped", 160, 50, 26)),
        target=(("red", "plain", 140, 90, 30), ("blue", "striped", 50, 60, 26)),
    )  # fmt: skip
    write_phrases(project, "blue")  # before there is a reference: it is made with text features at once
    project.annotate("marked", brush(first_of(RED), LABEL) | {"origin": "prediction", "from_name": "brush"})
    project.wait_for_references(1)
    wait_until(lambda: fitted(project) == 0.0 and bool(project.predictions("target")), "w is measured", 60)
    version, misled = project.version(), predicted(project, "target")
    assert misled.any()

    write_phrases(project, "")
    project.retrieve("target")
    assert project.version() != version
    assert project.predictions("target")[-1]["model_version"] == project.version()
    assert np.array_equal(predicted(project, "target"), misled)


class Editor:
    """The editor with what it sends to the backend and gets back."""

    def __init__(self, page: Page, project: Project, task: str) -> None:
        self.page = page
        self.asked: list[list[Json]] = []
        self.answered: list[list[Json]] = []
        page.on("response", self._note)
        open_task(page, f"{project.label_studio.url}/projects/{project.id}/data?task={project.tasks[task]}")

    def _note(self, response: Response) -> None:
        if "interactive-annotating" in response.url:
            self.asked.append((response.request.post_data_json or {})["context"]["result"])
            self.answered.append(response.json()["data"]["result"])

    def turn_on_auto_annotation(self) -> None:
        self.page.locator("text=Auto-Annotation").first.click()

    def write(self, text: str, name: str = TEXT) -> None:
        self.page.locator(f'[name="{name}"]').first.fill(text)
        if name == TEXT:
            self.page.get_by_test_id("textarea-add-button").first.click()
        else:
            self.page.locator(f'[name="{name}"]').first.press("Enter")

    def wait_for_answers(self, count: int) -> list[Json]:
        """The last answer, as soon as there are so many."""
        wait_in_page(self.page, lambda: len(self.answered) >= count)
        assert len(self.answered) == count, self.asked
        return self.answered[-1]

    def assert_nothing_more(self, asked: int) -> None:
        """What was asked after so many questions was empty, and so was the answer."""
        self.page.wait_for_timeout(2000)
        assert all(one == [] for one in self.asked[asked:]), self.asked
        assert all(one == [] for one in self.answered[asked:]), self.answered

    def texts(self) -> list[tuple[str, list[str]]]:
        return [
            (region["from_name"], region["value"]["text"])
            for region in serialized(self.page)
            if region["type"] == "textarea"
        ]


def wait_in_page(page: Page, condition: Any) -> None:
    """Wait while the browser's events are read."""
    for _ in range(SLOW_MS // 100):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not happen")


@pytest.mark.browser
def test_a_text_is_suggested_accepted_and_submitted(page: Page, new_project: NewProject, words: Backend) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    target = ("red", "plain", 140, 60, 26)
    project = made_of(new_project, words, open=(RED, BLUE), target=(target,), blue=(BLUE,))
    project.label_studio.update_project(project.id, show_collab_predictions=True)
    editor = Editor(page, project, "open")
    editor.turn_on_auto_annotation()
    before = encoded(words)
    editor.write("a scratch", "note")
    assert editor.wait_for_answers(1) == [], "a text of another purpose suggests nothing"
    assert encoded(words) == before, "and loads no image"

    editor.write("Disc: red discs")
    suggested = editor.wait_for_answers(2)
    assert [region["type"] for region in suggested] == ["brushlabels"], "the text is not repeated"
    assert intersection_over_union(mask_of(suggested), first_of(RED)) > 0.9
    accept = page.get_by_test_id("bottombar-accept-suggestions-button")
    expect(accept).to_be_visible(timeout=SLOW_MS)
    page.screenshot(path=ARTIFACTS / "phrase-suggestion.png")
    accept.click()
    texts = [(TEXT, ["Disc: red discs"]), ("note", ["a scratch"])]
    wait_in_page(page, lambda: any(one["type"] == "brushlabels" for one in serialized(page)))
    assert sorted(editor.texts()) == sorted(texts), "each text is there once"
    assert np.array_equal(mask_of(serialized(page)), mask_of(suggested))

    page.get_by_test_id("bottombar-submit-button").click()
    project.wait_for_references(1)
    (annotation,) = project.label_studio.task(project.tasks["open"])["annotations"]
    kept = [(one["from_name"], one["value"]["text"]) for one in annotation["result"] if one["type"] == "textarea"]
    assert sorted(kept) == sorted(texts)
    (phrase,) = phrases(project)["phrases"]
    assert (phrase["label"], phrase["phrase"], phrase["from"]) == (LABEL, "red discs", f"annotation {annotation['id']}")

    def is_found() -> bool:
        project.retrieve("target", "blue")
        return bool(predicted(project, "target").any())

    wait_until(is_found, f"the next task has a mask; the log:\n{words.log()[-3000:]}", 90)
    open_task(page, f"{project.label_studio.url}/projects/{project.id}/data?task={project.tasks['target']}")
    wait_in_page(page, lambda: bool(serialized(page)))
    assert editor.texts() == [], "the next task has masks, no text"
    assert intersection_over_union(mask_of(serialized(page)), first_of(target)) > 0.8
    page.screenshot(path=ARTIFACTS / "phrase-next-task.png")


@pytest.mark.browser
def test_what_is_deleted_suggests_nothing(page: Page, new_project: NewProject, words: Backend) -> None:
    """Label Studio may ask again when a text or a point is deleted, with what is left: nothing gives nothing."""
    project = made_of(new_project, words, open=(RED, BLUE))
    editor = Editor(page, project, "open")
    editor.turn_on_auto_annotation()
    editor.write("Disc: red discs")
    assert len(editor.wait_for_answers(1)) == 1
    page.get_by_test_id("bottombar-reject-suggestions-button").click()
    page.get_by_test_id("htx-textbox-delete-button").first.click()
    wait_in_page(page, lambda: editor.texts() == [])
    editor.assert_nothing_more(1)

    page.locator(".lsf-tool_smart").first.click()
    page.locator(".lsf-label_clickable").nth(2).click()
    click_image(page, (60, 80), SIZE_HW)
    assert len(editor.wait_for_answers(len(editor.answered) + 1)) == 1
    asked = len(editor.asked)
    page.evaluate("() => { const one = Htx.annotationStore.selected; one.selectArea(one.regions[0]); }")
    page.keyboard.press("Backspace")
    wait_in_page(page, lambda: page.evaluate("() => Htx.annotationStore.selected.regions.length") == 0)
    editor.assert_nothing_more(asked)
    assert serialized(page) == []
    assert project.interact("open") == [], "the empty context itself"


@pytest.mark.browser
def test_a_phrase_is_tried_on_the_gallerys_tiles_before_it_is_kept(
    page: Page, new_project: NewProject, words: Backend
) -> None:
    project = made_of(new_project, words, both=(RED, BLUE), blue=(BLUE,))
    page.goto(f"{words.url}/projects/{project.id}")
    both, blue = (page.locator(f"#task-{project.tasks[name]}") for name in ("both", "blue"))
    page.locator("#phrase-label").select_option(LABEL)
    page.locator("#phrase-text").fill("red discs")
    page.locator("#phrase-preview").click()
    expect(page.locator("#said")).to_contain_text("finds something on 1 of 2 tiles", timeout=SLOW_MS)
    expect(both.locator(".preview .line")).to_have_count(1)
    expect(blue.locator(".preview .line")).to_have_count(0)
    page.screenshot(path=ARTIFACTS / "phrase-preview.png")
    assert phrases(project)["phrases"] == [], "nothing is kept by looking"

    page.locator("#phrase-cancel").click()
    expect(both.locator(".preview")).to_have_count(0)
    page.locator("#phrase-preview").click()
    page.locator("#phrase-keep:enabled").click(timeout=SLOW_MS)
    wait_in_page(page, lambda: bool(phrases(project)["phrases"]))
    (kept,) = phrases(project)["phrases"]
    assert (kept["label"], kept["phrase"]) == (LABEL, "red discs")
    expect(both.locator(".preview")).to_have_count(0)
