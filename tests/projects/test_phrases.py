"""Phrases of a project, from where users write them to the masks, over a real engine that knows colour words."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.cli.demo.label_studio_server import brush
from backend.core.masks import iou
from backend.core.pixel_classifier import PixelClassifier
from backend.core.pixel_filters import FILTER_COUNT
from backend.core.types import Mask
from backend.drawing.explanation import draw_explanations
from backend.engine.pixel_refiner import PixelRefiner, RefinerTrial
from backend.engine.softmatcher import Softmatcher
from backend.errors import ModelUnavailableError, SoftmatcherError
from backend.jobs import tasks
from backend.labelstudio.rle import decode_mask
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter
from backend.projects.prediction import explain, refiners
from backend.projects.quality.evaluation import EvaluationPlan
from backend.projects.text_references import NEEDS_PROFILE
from backend.store import ProjectRecord
from backend.web.maintenance import Maintenance
from testing.colour_words import ColourWords, ColourWordsEncoder, draw_discs
from testing.fakes import Backend, FakeLabelStudio, make_backend, png

pytestmark = pytest.mark.slow

LABELS = '<Label value="Disc"{}/><Label value="Other"/>'
CONFIG = """<View><Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">{}</BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Disc"/></KeyPointLabels>
  <TextArea name="softmatcher_text" toName="image" editable="true" rows="2" maxSubmissions="1"/></View>"""
PLAIN, WITH_PROMPT = (CONFIG.format(LABELS.format(one)) for one in ("", ' text_prompt="red discs"'))
RED, BLUE = ("red", "plain", 60, 80, 30), ("blue", "plain", 150, 80, 26)


class Words(ColourWords):
    """`ColourWords` that may not be loaded."""

    failure: SoftmatcherError | None = None

    def load(self) -> "Words":
        if self.failure is not None:
            raise self.failure
        return self


class World:
    """A backend whose models know colour words, and the words' encoder."""

    def __init__(
        self, folder: Path, label_config: str = PLAIN, *, name: str = "data", complete_annotations: bool = True
    ) -> None:
        self.words, self.encoder = Words(), ColourWordsEncoder()
        self.label_studio = FakeLabelStudio(label_config=label_config)
        self.backend: Backend = make_backend(
            folder / name,
            self.label_studio,
            softmatcher=lambda on_stage: Softmatcher(
                self.encoder, LiteSegmenter(working_px=128), read_calibration("lite.json"), on_stage=on_stage
            ),
            load_text_encoder=self.words.load,
            complete_annotations=complete_annotations,
        )
        tasks.use_projects(self.backend.projects, self.backend.queue)  # type: ignore[arg-type]

    def add(self, task_id: int, *discs: tuple[str, str, int, int, int]) -> list[Mask]:
        image, masks = draw_discs(*discs)
        self.label_studio.add_task(task_id, png(image))
        return masks

    def setup(self) -> str:
        body = {"project": self.label_studio.key, "schema": self.label_studio.label_config, "access_token": "t" * 40}
        answer = self.backend.client.post("/setup", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.get_json()["model_version"])

    def tend(self) -> None:
        """What service and workers do by themselves."""
        maintenance = Maintenance(self.backend.projects, self.backend.queue)  # type: ignore[arg-type]
        maintenance.tend_phrases()
        maintenance.reconcile_due()
        self.backend.work()

    def predict(self, task_id: int, **more: Any) -> dict[str, Any]:
        body = {
            "tasks": [self.label_studio.tasks[task_id]], "project": self.label_studio.key,
            "label_config": self.label_studio.label_config, "params": {}, **more,
        }  # fmt: skip
        answer = self.backend.client.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.get_json()["results"][0] or {"result": []})

    def ask(self, task_id: int, *context: dict[str, Any]) -> Any:
        """What the editor sends of a task with Auto-Annotation on, answered."""
        body = {
            "tasks": [self.label_studio.tasks[task_id]], "project": self.label_studio.key,
            "label_config": self.label_studio.label_config, "params": {"context": {"result": list(context)}},
        }  # fmt: skip
        return self.backend.client.post("/predict", json=body)

    def project(self) -> ProjectRecord:
        found = self.backend.projects.store.project(self.label_studio.key)
        assert found is not None
        return found

    def encoded(self) -> int:
        """How many images were encoded."""
        return self.encoder.passes

    def regions(self, task_id: int) -> dict[str, NDArray[Any]]:
        return regions_of(self.predict(task_id))

    def write(self, task_id: int, text: str) -> dict[str, Any]:
        return self.predict(task_id, params={"context": {"result": [text_area(text)]}})

    def mark(self, annotation_id: int, task_id: int, *discs: tuple[str, str, int, int, int]) -> None:
        """Submit an annotation of discs with the finished masks of each, and make references of it."""
        regions = [
            brush(draw_discs(disc)[1][0], "Disc") | {"id": f"r{n}", "origin": "prediction", "from_name": "brush"}
            for n, disc in enumerate(discs)
        ]
        self.label_studio.annotate(annotation_id, task_id, regions)
        self.backend.projects.references.ingest(self.label_studio.key, annotation_id)

    def page(self) -> str:
        return str(self.backend.client.get("/projects/1?tab=references").text)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack
        tasks.use_projects(None)


@pytest.fixture
def world(tmp_path: Path, stack: ExitStack) -> World:
    made = World(tmp_path)
    stack.callback(made.backend.projects.close)
    return made


def text_area(text: str) -> dict[str, Any]:
    return {
        "id": "t1", "type": "textarea", "from_name": "softmatcher_text", "to_name": "image", "origin": "manual",
        "value": {"text": text.split("\n")},
    }  # fmt: skip


def point(x: int, y: int) -> dict[str, Any]:
    return {
        "id": "p1", "type": "keypointlabels", "from_name": "point", "to_name": "image", "original_width": 208,
        "original_height": 160, "value": {"x": 100 * x / 208, "y": 100 * y / 160, "keypointlabels": ["Disc"]},
    }  # fmt: skip


def regions_of(prediction: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Label to mask."""
    return {
        one["value"]["brushlabels"][0]: decode_mask(one["value"]["rle"], (160, 208)) for one in prediction["result"]
    }


def mask_of(prediction: dict[str, Any]) -> NDArray[Any]:
    (region,) = prediction["result"]
    assert region["type"] == "brushlabels"
    assert region["value"]["brushlabels"] == ["Disc"]
    return decode_mask(region["value"]["rle"], (160, 208))


def test_an_attribute_of_the_label_finds_the_objects_of_the_project(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, WITH_PROMPT)
    stack.callback(world.backend.projects.close)
    truth = world.add(1, RED, BLUE)[0]
    world.add(2, BLUE)
    world.add(3)
    before = world.setup()
    assert world.predict(1)["result"] == [], "not encoded yet"
    world.tend()
    assert world.words.calls == [["red discs"]]
    version = world.setup()
    assert version != before
    found = world.predict(1)
    assert iou(mask_of(found), truth) > 0.9
    assert found["model_version"] == version
    assert world.predict(2)["result"] == []
    assert world.predict(3)["result"] == []
    world.tend()
    assert len(world.words.calls) == 1, "encoded once"
    assert world.setup() == version


def test_phrases_take_part_in_the_figures_of_an_evaluation(world: World) -> None:
    first = ("red", "striped", 50, 50, 26), ("blue", "striped", 150, 50, 26), ("red", "plain", 60, 120, 26)
    second = ("red", "striped", 150, 110, 26), ("blue", "striped", 50, 110, 26), ("red", "plain", 110, 40, 26)
    for number, discs in ((1, first), (2, second)):
        world.add(number, *discs)
        region = brush(draw_discs(discs[0])[1][0], "Disc") | {"origin": "prediction", "from_name": "brush"}
        world.label_studio.annotate(10 + number, number, [region])
    world.setup()
    key, quality = world.label_studio.key, world.backend.projects.quality
    world.backend.projects.references.reconcile(key)
    before = quality.estimate(key)
    assert before["phrases"] == []
    sent = world.backend.client.post("/projects/1/phrases", json={"phrases": {"Disc": "red; -blue paint"}})
    assert sent.status_code == 200, sent.text
    world.tend()
    after = quality.estimate(key, EvaluationPlan(compare=("min_score",)))
    assert after["phrases"] == ["Disc"]
    assert after["labels"]["Disc"]["tried"] == 2
    assert after["iou"] > max(0.8, before["iou"] + 0.1)
    now = next(one for one in after["comparison"]["variants"] if one["is_current"])
    assert now["miou"] == after["iou"]


def test_a_propagation_predicts_with_phrases_alone(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, WITH_PROMPT)
    stack.callback(world.backend.projects.close)
    truth = world.add(1, RED)[0]
    world.add(2, BLUE)
    world.setup()
    Maintenance(world.backend.projects, world.backend.queue).tend_phrases()  # type: ignore[arg-type]
    world.backend.queue.jobs.clear()  # the scales are measured when it is planned
    started = world.backend.client.post("/projects/1/propagations", json={})
    assert started.status_code == 202
    world.backend.work()
    status = world.backend.client.get(f"/projects/1/propagations/{started.get_json()['id']}").get_json()
    assert (status["state"], status["counts"]["done"], status["counts"]["empty"]) == ("done", 1, 1)
    (prediction,) = world.label_studio.imported
    assert prediction["task"] == 1
    assert iou(mask_of(prediction), truth) > 0.9


def test_the_page_keeps_phrases_and_shows_their_weight(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []

    def note_reasons(pictures: Any, labels: Any) -> bytes:
        reasons.extend(label.reason for _, explanation, _ in pictures for label in explanation.labels)
        return draw_explanations(pictures, labels)

    monkeypatch.setattr(explain, "draw_explanations", note_reasons)
    world.add(1, ("red", "striped", 50, 50, 26), ("blue", "striped", 150, 50, 26), ("red", "plain", 60, 120, 26))
    truth = world.add(
        2, ("red", "striped", 150, 110, 26), ("blue", "striped", 50, 110, 26), ("red", "plain", 110, 40, 26)
    )
    world.setup()
    mask = draw_discs(("red", "striped", 50, 50, 26))[1][0]
    region = brush(mask, "Disc") | {"origin": "prediction", "from_name": "brush", "to_name": "image"}
    world.label_studio.annotate(10, 1, [region])
    world.backend.projects.references.reconcile(world.label_studio.key)
    by_reference = world.predict(2)
    version = world.setup()
    reached = iou(mask_of(by_reference), truth[0])

    sent = world.backend.client.post("/projects/1/phrases", json={"phrases": {"Disc": "red; -blue paint"}})
    assert sent.status_code == 200, sent.text
    assert sent.get_json()["notice"] is None
    world.tend()
    assert world.setup() != version
    fused = world.predict(2)
    assert iou(mask_of(fused), truth[0]) > max(0.8, reached + 0.2)
    listed = world.backend.client.get("/projects/1/phrases").get_json()
    assert [(one["phrase"], one["is_negative"], one["from"], one["is_encoded"]) for one in listed["phrases"]] == [
        ("red", False, "page", True),
        ("blue paint", True, "page", True),
    ]
    assert listed["weights"]["Disc"] > 0.5
    assert f"w = {listed['weights']['Disc']:.2f}" in world.page()
    assert "red; -blue paint" in world.page()
    assert world.backend.client.get("/projects/1/tasks/2/explain.png").status_code == 200
    assert any(f"count with w = {listed['weights']['Disc']:.2f}" in reason for reason in reasons)

    cleared = world.backend.client.post("/projects/1/phrases", data={"phrases.Disc": ""})
    assert cleared.status_code == 303
    assert world.backend.client.get("/projects/1/phrases").get_json()["phrases"] == []


@pytest.mark.parametrize(
    ("phrases", "words"),
    [
        ({"Hole": "a hole"}, "Hole"),
        ({"Disc": "-"}, "must have a word"),
        ({"Disc": "r" * 10_000}, "300 characters"),
        ({"Disc": "ru\x01st"}, "control characters"),
        ({"Disc": "; ".join(map(str, range(500)))}, "50 phrases"),
        ({"Disc": 5}, "expected"),
        ([], "expected"),
    ],
)
def test_what_the_page_cannot_keep_is_said_and_changes_nothing(world: World, phrases: Any, words: str) -> None:
    world.setup()
    world.backend.client.post("/projects/1/phrases", json={"phrases": {"Disc": "red"}})
    answer = world.backend.client.post("/projects/1/phrases", json={"phrases": phrases})
    assert answer.status_code == 422
    assert words in answer.get_json()["error"]
    assert [one["phrase"] for one in world.backend.client.get("/projects/1/phrases").get_json()["phrases"]] == ["red"]


@pytest.mark.parametrize(
    ("phrases", "words"),
    [
        ("-", "must have a word"),
        (";", "must have a word"),
        ("r" * 10_000, "300 characters"),
        ("ru\x85st", "control characters"),
        ("; ".join(map(str, range(500))), "50 phrases"),
    ],
)
def test_a_text_prompt_that_cannot_be_read_is_said_in_setup(
    phrases: str, words: str, tmp_path: Path, stack: ExitStack
) -> None:
    world = World(tmp_path, CONFIG.format(LABELS.format(f' text_prompt="{phrases}"')))
    stack.callback(world.backend.projects.close)
    body = {"project": world.label_studio.key, "schema": world.label_studio.label_config}
    answer = world.backend.client.post("/setup", json=body)
    assert answer.status_code == 422
    assert "text_prompt of label 'Disc'" in answer.get_json()["error"]
    assert words in answer.get_json()["error"]


def test_an_empty_text_prompt_is_none(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, CONFIG.format(LABELS.format(' text_prompt=" "')))
    stack.callback(world.backend.projects.close)
    world.setup()
    assert world.backend.client.get("/projects/1/phrases").get_json()["phrases"] == []


def test_phrases_are_tried_on_the_gallery_before_they_are_kept(world: World) -> None:
    truth = world.add(1, RED, BLUE)[0]
    world.add(2, BLUE)
    version = world.setup()

    def preview(**body: Any) -> Any:
        return world.backend.client.post("/projects/1/gallery/preview-phrases", json=body)

    tiles = preview(phrases={"Disc": "red discs"}, ids=[1, 2]).get_json()["tiles"]
    assert {one["id"]: [region["label"] for region in one["regions"]] for one in tiles} == {1: ["Disc"], 2: []}
    tried = world.backend.projects.previews.predict_phrases(world.project(), {"Disc": "red discs"}, [1])
    assert tried.keys() == {1}
    assert world.setup() == version, "nothing is kept"
    assert world.backend.client.get("/projects/1/phrases").get_json()["phrases"] == []
    assert world.predict(1)["result"] == []
    assert preview(phrases={}, ids=[1]).get_json()["tiles"] == []
    for phrases, words in (({"Hole": "a hole"}, "Hole"), ({"Disc": "-"}, "must have a word"), (None, "expected")):
        answer = preview(phrases=phrases, ids=[1])
        assert answer.status_code == 422
        assert words in answer.get_json()["error"]
    world.mark(10, 1, RED)
    tiles = preview(phrases={"Disc": "red"}, ids=[1]).get_json()["tiles"]
    assert [region["label"] for region in tiles[0]["regions"]] == ["Disc"]
    assert truth.any()


def test_a_text_in_the_editor_suggests_masks_without_the_text(world: World) -> None:
    truth = world.add(1, RED, BLUE)[0]
    world.add(2, BLUE)
    world.setup()
    found = world.write(1, "Disc: red discs")
    assert iou(mask_of(found), truth) > 0.9
    assert found["model_version"] == world.setup()
    assert world.write(2, "Disc: red discs")["result"] == []
    assert world.predict(1)["result"] == [], "only what is submitted is kept"
    assert world.predict(1, params={"context": {"result": []}})["result"] == [], "the text was deleted"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hole: a hole", "begin with a label"),
        ("red discs", "begin with a label"),
        ("Disc: -", "must have a word"),
        ("Disc: " + "r" * 10_000, "300 characters"),
        ("Disc: ru\x00st", "control characters"),
        ("Disc: " + "; ".join(map(str, range(500))), "50 phrases"),
        ("\n".join(f"Disc: phrase {n}" for n in range(500)), "50 phrases"),
    ],
)
def test_a_text_in_the_editor_that_cannot_be_read_is_said(world: World, text: str, words: str) -> None:
    world.add(1, RED)
    world.setup()
    answer = world.ask(1, text_area(text))
    assert answer.status_code == 422
    assert words in answer.get_json()["error"]
    assert world.words.calls == []
    assert world.encoded() == 0, "the image was loaded for nothing"


def test_texts_and_choices_of_another_purpose_load_no_image(world: World) -> None:
    world.add(1, RED)
    world.setup()
    other = [
        text_area("Hole: a hole") | {"from_name": "note"},
        {"id": "c1", "type": "choices", "from_name": "quality", "to_name": "image", "value": {"choices": ["good"]}},
    ]
    for context in (other[:1], other[1:], other, []):
        answer = world.ask(1, *context)
        assert answer.status_code == 200
        assert answer.get_json()["results"][0]["result"] == []
    world.label_studio.annotate(10, 1, other)  # as with Auto-Annotation off
    world.backend.projects.references.ingest(world.label_studio.key, 10)
    assert world.backend.projects.store.unread_annotations(world.label_studio.key) == []
    assert world.encoded() == 0


def test_a_missing_tokenizer_is_said_where_the_phrase_is(
    tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    stack.callback(world.backend.projects.close)
    world.words.failure = ModelUnavailableError("weights of tipsv2_tokenizer are missing: run `weights fetch text`")
    world.add(1, RED)
    world.setup()
    answer = world.backend.client.post("/projects/1/phrases", json={"phrases": {"Disc": "red"}})
    assert answer.status_code == 200
    assert "tipsv2_tokenizer are missing" in answer.get_json()["notice"]
    assert "tipsv2_tokenizer are missing" in world.page()
    assert world.predict(1)["result"] == []
    asked = world.ask(1, text_area("Disc: red discs"))
    assert asked.status_code == 503
    assert "tipsv2_tokenizer are missing" in asked.get_json()["error"]


def test_in_the_editor_another_text_encoder_than_the_images_is_said(world: World) -> None:
    world.words.text_space = "other-words"
    world.add(1, RED)
    world.setup()
    asked = world.ask(1, text_area("Disc: red discs"))
    assert asked.status_code == 422
    assert "must be of the weights of the image encoder" in asked.get_json()["error"]


STRIPED, UNMARKED, PLAIN_RED = (
    ("red", "striped", 50, 50, 26),
    ("blue", "striped", 150, 50, 26),
    ("red", "plain", 60, 120, 26),
)


def test_a_phrase_beside_an_annotation_that_left_objects_out(tmp_path: Path, stack: ExitStack) -> None:
    """What it did not mark may be the object: that speaks neither for nor against a phrase."""
    world = World(tmp_path, complete_annotations=False)
    stack.callback(world.backend.projects.close)
    world.add(1, STRIPED, UNMARKED, PLAIN_RED)
    masks = world.add(
        2, ("red", "striped", 150, 110, 26), ("blue", "striped", 50, 110, 26), ("red", "plain", 110, 40, 26)
    )
    world.setup()
    world.mark(10, 1, STRIPED)
    assert iou(mask_of(world.predict(2)), masks[0] | masks[1] | masks[2]) > 0.9, "any disc may be one"
    for phrase, expected in (("red", masks[0] | masks[2]), ("blue", masks[0] | masks[1] | masks[2])):
        world.backend.client.post("/projects/1/phrases", json={"phrases": {"Disc": phrase}})
        world.tend()
        assert iou(mask_of(world.predict(2)), expected) > 0.9, phrase
        weight = world.backend.client.get("/projects/1/phrases").get_json()["weights"]["Disc"]
        assert (weight > 0.5) == (phrase == "red"), (phrase, weight)


def everywhere() -> PixelRefiner:
    """Return a refiner that takes every pixel."""
    zeros, ones = np.zeros(FILTER_COUNT, np.float32), np.ones(FILTER_COUNT, np.float32)
    return PixelRefiner(PixelClassifier(zeros, ones, ((zeros[None], zeros[:1]),)), -100.0, 0.0)


def test_a_refiner_stays_with_its_references_beside_phrases(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label of phrases alone has none; one of references keeps its own, in predictions and in the editor."""
    monkeypatch.setattr(refiners, "train_label_refiner", lambda *_, **__: RefinerTrial(everywhere(), 0.9, 0.5))
    masks = world.add(9, ("red", "plain", 60, 80, 30), ("green", "plain", 150, 80, 26))
    world.setup()
    for number in (1, 2, 3):
        disc = ("red", "plain", 50 + 10 * number, 80, 30)
        world.add(number, disc, ("green", "plain", 150, 80, 26))
        world.mark(10 + number, number, disc)
    answer = world.backend.client.post("/projects/1/phrases", json={"phrases": {"Disc": "red", "Other": "green"}})
    assert answer.status_code == 200
    world.tend()  # the references are made again, with text features, and the refiner is trained
    records = world.backend.projects.store.refiners.records(world.label_studio.key)
    assert [record.label for record in records if record.digest] == ["Disc"]
    found = world.regions(9)
    assert (found["Disc"] | found["Other"]).all()
    assert iou(found["Other"], masks[1]) > 0.9
    suggested = world.ask(9, text_area("Disc: red\nOther: green")).get_json()["results"][0]
    found = regions_of(suggested)
    assert (found["Disc"] | found["Other"]).all()
    assert iou(found["Other"], masks[1]) > 0.9


def test_a_submitted_text_is_kept_with_its_annotation(world: World) -> None:
    truth = world.add(1, RED)[0]
    world.add(2, BLUE)
    world.setup()
    world.label_studio.annotate(10, 1, [text_area("Disc: red")])
    world.backend.projects.references.ingest(world.label_studio.key, 10)
    (kept,) = world.backend.client.get("/projects/1/phrases").get_json()["phrases"]
    assert (kept["label"], kept["phrase"], kept["from"]) == ("Disc", "red", "annotation 10")
    world.tend()
    assert iou(mask_of(world.predict(1)), truth) > 0.9
    del world.label_studio.annotations[10]
    world.backend.projects.references.ingest(world.label_studio.key, 10)
    assert world.backend.client.get("/projects/1/phrases").get_json()["phrases"] == []
    assert world.predict(1)["result"] == []


def test_a_submitted_text_that_cannot_be_read_is_the_annotations_problem(world: World) -> None:
    world.add(1, RED)
    world.setup()
    world.label_studio.annotate(10, 1, [text_area("Hole: a hole")])
    world.backend.projects.references.ingest(world.label_studio.key, 10)
    (unread,) = world.backend.projects.store.unread_annotations(world.label_studio.key)
    assert "begin with a label" in unread.problem


def test_without_a_text_profile_phrases_are_kept_and_change_nothing(
    tmp_path: Path, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    client, key = backend.client, backend.label_studio.key
    config = backend.label_studio.label_config
    with_prompt = config.replace('<Label value="Cat"/>', '<Label value="Cat" text_prompt="a cat"/>')

    def setup(schema: str) -> str:
        answer = client.post("/setup", json={"project": key, "schema": schema, "access_token": "t" * 40})
        assert answer.status_code == 200, answer.text
        return str(answer.get_json()["model_version"])

    before = setup(config)
    with caplog.at_level(logging.WARNING):
        assert setup(with_prompt) == before
        assert setup(with_prompt) == before
        assert backend.projects.texts.tend() == []
    assert [NEEDS_PROFILE in record.message for record in caplog.records].count(True) == 1
    answer = client.post("/projects/1/phrases", json={"phrases": {"Dog": "a dog"}})
    assert answer.get_json()["notice"] == NEEDS_PROFILE
    assert {one["phrase"] for one in answer.get_json()["phrases"]} == {"a cat", "a dog"}
    assert NEEDS_PROFILE in client.get("/projects/1?tab=references").text
    assert setup(with_prompt) == before


def test_vectors_that_nothing_uses_are_deleted_between_predictions(world: World) -> None:
    world.add(1, RED, BLUE)
    world.setup()
    maintenance = Maintenance(world.backend.projects, world.backend.queue)  # type: ignore[arg-type]
    texts = world.backend.projects.store.texts
    both, space = ["red", "blue", "green"], world.words.text_space
    assert world.write(1, "Disc: green")["result"] == []
    world.backend.client.post("/projects/1/phrases", json={"phrases": {"Disc": "red; blue"}})
    texts.save_vectors("another", texts.vectors(space, ["red"]))
    assert set(texts.vectors(space, both)) == {"red", "blue", "green"}
    world.backend.client.post("/projects/1/phrases", json={"phrases": {"Disc": "red"}})
    world.predict(1)
    assert set(texts.vectors(space, both)) == {"red", "blue", "green"}, "an inference deletes nothing"

    maintenance.prune_phrases()
    assert set(texts.vectors(space, both)) == {"red"}
    assert texts.vectors("another", both) == {}
    encoded = len(world.words.calls)
    world.tend()
    assert len(world.words.calls) == encoded, "what is used is kept"
    world.write(1, "Disc: green")
    assert world.words.calls[encoded:] == [["green"]]
    maintenance.prune_phrases()
    assert set(texts.vectors(space, both)) == {"red", "green"}, "some hours later again"


def test_without_a_text_encoder_no_vector_is_deleted(backend: Backend) -> None:
    texts = backend.projects.store.texts
    texts.save_vectors("words", {"red": np.ones(3, np.float32)})
    Maintenance(backend.projects, backend.queue).prune_phrases()  # type: ignore[arg-type]
    assert set(texts.vectors("words", ["red"])) == {"red"}


def test_another_text_encoder_than_the_images_is_said(world: World) -> None:
    world.words.text_space = "other-words"
    world.setup()
    world.add(1, RED)
    answer = world.backend.client.post("/projects/1/phrases", json={"phrases": {"Disc": "red"}})
    assert answer.status_code == 200
    assert "must be of the weights of the image encoder" in answer.get_json()["notice"]
    assert world.predict(1)["result"] == []
