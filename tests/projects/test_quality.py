"""Quality on a project's own annotations: what counts, in which words, and what is recommended."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.core.pixel_classifier import PixelClassifier
from backend.core.pixel_filters import FILTER_COUNT
from backend.core.types import EncodedImage, LabelMask, Mask
from backend.engine.options import MatchOptions
from backend.engine.pixel_refiner import PixelRefiner, RefinerTrial
from backend.errors import BadInputError, ConflictError
from backend.jobs import tasks
from backend.projects.prediction import refiners
from backend.projects.quality import left_out_refiners
from backend.projects.quality.annotated_images import AnnotatedImage, annotated_images
from backend.projects.quality.comparison import Variant, compare, variants_of
from backend.projects.quality.evaluation import INTERRUPTED, OUT_OF_TIME, EvaluationPlan
from backend.projects.quality.figures import (
    LOWEST_WORD,
    SECOND_IMAGE,
    pack_mask,
    score_figures,
    summary_of,
    unpack_mask,
    without_masks,
    word_for,
    worst_cases,
)
from backend.projects.quality.folds import deal_folds
from backend.projects.quality.left_out import Trial, touching
from backend.projects.quality.left_out_refiners import LeftOutRefiners
from testing.fakes import Backend, ColourSoftmatcher, FakeLabelStudio, draw, make_backend, png

SMALL = np.zeros((8, 8), bool)


def everywhere() -> PixelRefiner:
    """Return a refiner that takes every pixel."""
    layers = ((np.zeros((1, FILTER_COUNT), np.float32), np.zeros(1, np.float32)),)
    classifier = PixelClassifier(np.zeros(FILTER_COUNT, np.float32), np.ones(FILTER_COUNT, np.float32), layers)
    return PixelRefiner(classifier, -100.0, 0.0)


def test_only_what_touches_the_marked_object_counts() -> None:
    marked = np.zeros((20, 40), bool)
    marked[5:15, 5:15] = True
    found = np.zeros_like(marked)
    found[6:16, 5:15] = True
    elsewhere = found.copy()
    elsewhere[5:15, 25:35] = True
    assert np.array_equal(touching(elsewhere, marked), found)
    assert not touching(elsewhere & ~found, marked).any()
    assert not touching(np.zeros_like(marked), marked).any()


def trial(
    task: int, *, label: str = "Cat", present: bool | None = True, iou: float | None = None, score: float | None = None
) -> Trial:
    return Trial(task, "image", f"sha-{task}", label, present, iou, score, 1, SMALL, SMALL)


@pytest.mark.parametrize(
    ("miou", "word"),
    [
        (None, SECOND_IMAGE),
        (0.2, LOWEST_WORD),
        (0.5, "correct most"),
        (0.71, "usable: correct some"),
        (0.9, "good: check a few"),
    ],
)
def test_numbers_have_words(miou: float | None, word: str) -> None:
    assert word_for(miou) == word


def test_an_absent_label_is_worth_1_unless_it_is_found() -> None:
    assert trial(1, present=False).value == 1.0
    assert trial(1, present=False, score=0.4).value == 0.0
    assert trial(1, present=None, score=0.4).value is None
    assert trial(1, iou=0.3, score=0.4).value == 0.3


def test_a_score_that_promises_too_much_is_said_to() -> None:
    figures = score_figures([trial(n, iou=0.5, score=0.8) for n in range(5)])
    assert figures["summary"] == "the score is 0.30 too high on average"
    assert figures["error"] == pytest.approx(0.3)
    right = score_figures([trial(n, iou=0.5, score=0.52) for n in range(5)])
    assert right["summary"] == "on average the score is right"
    assert score_figures([trial(1, iou=0.5, score=0.8)])["error"] is None


def test_false_finds_count_against_the_score() -> None:
    found = [trial(n, iou=0.8, score=0.8) for n in range(4)]
    assert score_figures([*found, trial(9, present=False, score=0.8)])["mean_iou"] == pytest.approx(0.64)
    unknown = score_figures([*found, trial(9, present=None, score=0.8)])
    assert unknown["regions"] == 4


def test_worst_cases_come_first_and_say_what_happened() -> None:
    cases = worst_cases(
        [trial(1, iou=0.9, score=0.9), trial(2, iou=0.0), trial(3, present=False, score=0.5), trial(4, iou=1.0)]
    )
    assert [(one["task"], one["what"]) for one in cases] == [
        (2, "not found"),
        (3, "found, but not there"),
        (1, "found in part"),
    ]
    assert "found" not in without_masks({"worst": cases})["worst"][0]


def test_masks_of_pictures_survive_as_text() -> None:
    mask = np.zeros((30, 50), bool)
    mask[3:20, 10:41] = True
    assert np.array_equal(unpack_mask(pack_mask(mask)), mask)
    assert max(unpack_mask(pack_mask(np.zeros((2000, 1000), bool))).shape) == 320


def test_one_content_is_in_one_fold() -> None:
    images = [AnnotatedImage(n, "image", sha, {}) for n, sha in enumerate("aabcde")]
    folds = deal_folds(images, 3)
    assert sorted(len(fold) for fold in folds) == [1, 2, 3]
    assert sum(any(one.image_sha256 == "a" for one in fold) for fold in folds) == 1


@pytest.mark.parametrize(
    ("after", "is_recommended"),
    [((0.7, 0.72, 0.71), True), ((0.504, 0.504, 0.504), False), ((0.9, 0.3, 0.45), False)],
)
def test_a_variant_is_recommended_if_its_gain_is_more_than_chance(
    after: tuple[float, ...], is_recommended: bool
) -> None:
    own = [trial(n, iou=0.5) for n in range(3)]
    other = Variant("matchers", "softmatcher", MatchOptions(matcher="softmatcher"), {"matcher": "softmatcher"})
    found = compare(own, {other: [trial(n, iou=value) for n, value in enumerate(after)]}, current={})
    assert found["settings"] == ({"matcher": "softmatcher"} if is_recommended else {})


def test_a_least_score_is_not_chosen_without_images_that_lack_the_label() -> None:
    own = [trial(n, iou=0.5, score=0.3) for n in range(3)]
    variant = next(one for one in variants_of(["min_score"], MatchOptions()) if one.name == "0.4")
    notes = compare(own, {variant: own}, current={})["notes"]
    assert len(notes) == 1
    assert "min_score" in notes[0]
    absent = trial(9, present=False, score=0.2)
    after = {variant: [*own, trial(9, present=False)]}
    found = compare([*own, absent], after, current={})
    assert found["notes"] == []
    with pytest.raises(BadInputError, match="matchers, min_score, profiles"):
        variants_of(["colour"], MatchOptions())


POINT = {
    "id": "a", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
    "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": ["Cat"]},
}  # fmt: skip
OTHER = {**POINT, "id": "b", "value": {"x": 80, "y": 40, "width": 1, "keypointlabels": ["Dog"]}}


def annotated(tmp_path: Path, softmatcher: Any = ColourSoftmatcher, **settings: Any) -> Backend:
    """Four tasks with a cat (red), of which two have a dog (blue); one task whose annotation is empty."""
    backend = make_backend(tmp_path, FakeLabelStudio(), softmatcher=softmatcher, **settings)
    for number in range(1, 5):
        cat = (10, 10, 30 + number, 30)
        drawn = draw(red=cat, blue=(44, 10, 60, 30)) if number < 3 else draw(red=cat)
        backend.label_studio.add_task(number, png(drawn))
        backend.label_studio.annotate(10 + number, number, [POINT, OTHER] if number < 3 else [POINT])
    backend.label_studio.add_task(5, png(draw(red=(1, 1, 9, 9))))
    backend.label_studio.annotate(15, 5, [])
    key = backend.projects.note_project(backend.label_studio.project(1))
    backend.projects.references.reconcile(key)
    return backend


def measure(backend: Backend, **plan: Any) -> dict[str, Any]:
    return backend.projects.quality.estimate(backend.label_studio.key, EvaluationPlan(**plan))


def test_labels_are_looked_for_at_once_and_an_empty_annotation_says_that_none_is_there(tmp_path: Path) -> None:
    figures = measure(annotated(tmp_path, complete_annotations=True), folds=2)
    assert (figures["images"], figures["tried"]) == (5, 5)
    cat, dog = figures["labels"]["Cat"], figures["labels"]["Dog"]
    assert (cat["images"], cat["tried"], cat["iou"], cat["word"]) == (4, 4, 1.0, "good: check a few")
    assert cat["false_finds"] == {"found": 1, "of": 1, "unmarked_found": 0, "unmarked_of": 0}
    assert dog["false_finds"] == {"found": 0, "of": 3, "unmarked_found": 0, "unmarked_of": 0}
    assert cat["growth"] == {"1": 1.0, "2": 1.0, "3": 1.0}
    assert figures["folds"]["iou"] == 1.0
    assert summary_of(figures) == "Cat 1.00, 4 images; Dog 1.00, 2 images"
    (worst,) = figures["worst"]
    assert (worst["task"], worst["label"], worst["what"]) == (5, "Cat", "found, but not there")


def test_unless_all_objects_are_marked_a_label_without_a_mark_is_unknown(tmp_path: Path) -> None:
    figures = measure(annotated(tmp_path))
    dog = figures["labels"]["Dog"]["false_finds"]
    assert (dog["of"], dog["unmarked_of"]) == (1, 2)


def test_a_label_of_one_image_needs_a_second(tmp_path: Path) -> None:
    backend = annotated(tmp_path)
    backend.projects.store.delete_annotations(backend.label_studio.key, [11])
    figures = measure(backend)
    assert figures["labels"]["Dog"]["word"] == "needs a second image"
    assert summary_of(figures).endswith("Dog: needs a second image")


def test_an_evaluation_ends_when_asked_or_when_its_time_is_over(tmp_path: Path) -> None:
    backend = annotated(tmp_path)
    answers = iter([False, False, True])
    stopped = measure(backend, should_stop=lambda: next(answers))
    assert (stopped["tried"], stopped["stopped"]) == (2, INTERRUPTED)
    assert measure(backend, budget_s=-1.0)["stopped"] == OUT_OF_TIME
    assert measure(backend, most_images=3)["tried"] == 3


class PickyByScore(ColourSoftmatcher):
    """Finds too much unless a least score is asked for."""

    def segment(
        self, encoded: EncodedImage, references: Any, options: MatchOptions | None = None, **further: Any
    ) -> list[LabelMask]:
        found = super().segment(encoded, references, options, **further)
        least = 0.0 if options is None else options.minimum_score
        return [one for one in found if _share(one.mask) > 0.05 or least < 0.3]


def _share(mask: Mask) -> float:
    return float(mask.mean())


def test_what_suits_the_project_is_set_in_label_studio(tmp_path: Path) -> None:
    backend = annotated(tmp_path, PickyByScore, complete_annotations=True)
    key = backend.label_studio.key
    project = backend.projects.store.project(key)
    assert project is not None
    with pytest.raises(ConflictError, match="compare first"):
        backend.projects.quality.apply_recommended(project)
    # More images without the object: one alone could be chance.
    for number in range(6, 10):
        backend.label_studio.add_task(number, png(draw(red=(1, 1, 3 + number, 9))))
        backend.label_studio.annotate(10 + number, number, [])
    backend.projects.references.reconcile(key)
    before = {task: list(known["predictions"]) for task, known in backend.label_studio.tasks.items()}
    annotations = dict(backend.label_studio.annotations)
    comparison = measure(backend, compare=("min_score",))["comparison"]
    assert comparison["settings"] == {"min_score": 0.3}
    assert {task: known["predictions"] for task, known in backend.label_studio.tasks.items()} == before
    assert backend.label_studio.annotations == annotations
    with pytest.raises(ConflictError, match="min_score"):
        backend.projects.quality.apply_recommended(project)
    version = backend.projects.banks.model_version(key)
    backend.label_studio.backends = [
        {"id": 1, "model_version": "other", "url": "http://a", "project": 1},
        {"id": 2, "model_version": version, "url": "http://b", "project": 1},
    ]
    assert backend.projects.quality.apply_recommended(project) == {"min_score": 0.3}
    assert backend.label_studio.backends[1]["extra_params"] == {"min_score": 0.3}
    assert "extra_params" not in backend.label_studio.backends[0]


def test_images_come_so_that_every_label_is_early() -> None:
    class Stored:
        def __init__(self, label: str, sha: str) -> None:
            self.label, self.image_sha256, self.image_tag, self.task_id, self.mask = label, sha, "image", 1, ~SMALL

    some: Any = [Stored("Cat", f"a{n}") for n in range(5)] + [Stored("Dog", "b")]
    assert "Dog" in [label for image in annotated_images(some)[:2] for label in image.masks]


@pytest.fixture
def working() -> Iterator[Callable[[Backend], Backend]]:
    """Let jobs work on a backend, as its worker does."""

    def work_on(backend: Backend) -> Backend:
        tasks.use_projects(backend.projects, backend.queue)  # type: ignore[arg-type]
        return backend

    yield work_on
    tasks.use_projects(None)


@pytest.mark.slow
def test_a_job_makes_way_for_annotations_and_begins_again(
    tmp_path: Path, working: Callable[[Backend], Backend]
) -> None:
    backend = working(annotated(tmp_path))
    waiting = iter([True])
    backend.queue.has_labelers_waiting = lambda: next(waiting, False)  # type: ignore[method-assign]
    assert backend.client.post("/projects/1/quality", json={"compare": ["matchers"]}).status_code == 202
    (name, arguments) = backend.queue.jobs[0]
    assert (name, arguments) == ("estimate_quality", (backend.label_studio.key, ["matchers"], 1))
    backend.work()
    found = backend.client.get("/projects/1/quality").get_json()
    assert found["tried"] == 5
    assert found["stopped"] is None
    assert found["comparison"]["variants"]


def test_routes_of_quality(tmp_path: Path, working: Callable[[Backend], Backend]) -> None:
    backend = working(annotated(tmp_path, complete_annotations=True))
    assert backend.client.post("/projects/1/quality", json={"compare": ["profiles"]}).status_code == 422
    assert backend.client.post("/projects/1/quality/apply").status_code == 409
    assert backend.client.get("/projects/1/quality/worst/0.jpg").status_code == 404
    assert backend.client.post("/projects/1/quality", data={"compare_matchers": "on"}).status_code == 303
    backend.work()
    picture = backend.client.get("/projects/1/quality/worst/0.jpg")
    assert picture.content_type == "image/jpeg"
    page = backend.client.get("/projects/1?tab=quality").get_data(as_text=True)
    assert "found, but not there" in page
    assert "good: check a few" in page
    assert "matchers softmatcher" in page


def test_a_reference_without_a_mask_says_that_its_label_is_absent() -> None:
    class Stored:
        label, image_sha256, image_tag, task_id, mask = "Cat", "a", "image", 1, SMALL

    (image,) = annotated_images([Stored()])  # type: ignore[list-item]
    assert image.shows("Cat", is_complete=False) is False
    assert image.shows("Dog", is_complete=False) is None
    assert image.shows("Dog", is_complete=True) is False


def test_a_refiner_in_use_takes_part_and_never_saw_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = annotated(tmp_path)
    key = backend.label_studio.key
    for module in (refiners, left_out_refiners):
        monkeypatch.setattr(module, "train_label_refiner", lambda *_, **__: RefinerTrial(everywhere(), 0.9, 0.5))
    assert backend.projects.refiners.train(key, lambda: False)["Cat"]["used"]
    trained: list[int] = []

    def train(engine: Any, references: Any, load: Any, options: Any, *, slot: Any) -> RefinerTrial:
        trained.append(len({load(number).image.tobytes() for number in range(len(references))}))
        return RefinerTrial(everywhere(), 0.9, 0.5)

    monkeypatch.setattr(left_out_refiners, "train_label_refiner", train)
    figures = measure(backend, compare=("min_score",))
    assert figures["refined"] == ["Cat"]
    assert trained == [3, 3, 3, 3], "each without its own image"
    cat, dog = figures["labels"]["Cat"], figures["labels"]["Dog"]
    assert cat["iou"] < 0.5, "it takes every pixel"
    assert (dog["iou"], dog["tried"]) == (1.0, 2)
    assert cat["growth"] == {"1": 1.0, "2": 1.0, "3": 1.0}, "shown without"
    assert all(one["miou"] < 0.8 for one in figures["comparison"]["variants"])


def test_training_a_refiner_for_an_evaluation_ends_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = annotated(tmp_path)
    monkeypatch.setattr(refiners, "train_label_refiner", lambda *_, **__: RefinerTrial(everywhere(), 0.9, 0.5))
    backend.projects.refiners.train(backend.label_studio.key, lambda: False)
    asked = iter([False] * 2)
    figures = measure(backend, should_stop=lambda: next(asked, True))
    assert (figures["tried"], figures["stopped"]) == (0, INTERRUPTED)


def test_a_refiner_is_trained_without_the_images_of_a_fold(tmp_path: Path) -> None:
    shown = [AnnotatedImage(number, "image", f"sha-{number}", {"Cat": ~SMALL}) for number in range(9)]
    known = {"Cat": {one.image_sha256: Any for one in shown}}
    seen: list[set[int]] = []

    def load(image: AnnotatedImage, label: str) -> None:
        seen[-1].add(image.task_id)

    found: Any = LeftOutRefiners(Any, ["Cat"], shown, known, load, nullcontext)  # type: ignore[arg-type]
    for image in shown[:4]:
        seen.append(set())
        assert found.of(image, MatchOptions()) == {}, "no image could be had"
        assert image.task_id not in seen[-1]
        assert len(seen[-1]) >= 6
    seen.append(set())
    found.of(shown[0], MatchOptions(), left_out=["sha-0", "sha-5"])
    assert seen[-1] == {1, 2, 3, 4, 6, 7, 8}
    seen.append(set())
    found.of(AnnotatedImage(99, "image", "", {}, is_empty=True), MatchOptions())
    assert seen[-1] == set(), "one that was trained already"
