"""Scores of a project, fitted on its own annotated images: when, on what, and what of the project changes."""

from typing import Any

import pytest

from backend.core import cancellation
from backend.core.calibration import log_odds, logistic
from backend.jobs import tasks
from backend.projects.options import match_options, score_fit_in_use
from backend.projects.quality.score_fit import is_fit_due
from testing.fakes import Backend, draw, png

POINT = {
    "id": "a", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
    "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": ["Cat"]},
}  # fmt: skip


def annotate(backend: Backend, *numbers: int) -> None:
    """Annotate the red cat of so many more tasks; every prediction of a cat is exact, with a score of 0.8."""
    for number in numbers:
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30 + number, 30))))
        backend.label_studio.annotate(100 + number, number, [POINT])
        tasks.ingest_annotation(backend.label_studio.key, 100 + number)


@pytest.fixture
def key(backend: Backend) -> str:
    backend.label_studio.add_task(90, png(draw(red=(5, 5, 20, 20))))
    return backend.projects.note_project(backend.label_studio.project(1))


def fit_of(backend: Backend, key: str) -> Any:
    project = backend.projects.store.project(key)
    assert project is not None
    return score_fit_in_use(backend.settings, project)


def score_of(backend: Backend, key: str) -> float:
    project = backend.projects.store.project(key)
    assert project is not None
    found = backend.projects.predictions.predict(key, project.label_config, [backend.label_studio.task(90, 1)])
    prediction: Any = found.results[0]
    return float(prediction["score"])


def test_five_images_raise_the_score_of_masks_that_are_better_than_it_says(backend: Backend, key: str) -> None:
    annotate(backend, 1, 2, 3, 4)
    assert not backend.projects.quality.is_score_due(key)
    assert score_of(backend, key) == pytest.approx(0.8)
    annotate(backend, 5)
    assert ("train_refiners", (key,)) in backend.queue.jobs
    before = backend.projects.banks.model_version(key)
    outcome = tasks.train_refiners(key)
    fit = fit_of(backend, key)
    assert (fit["images"], fit["masks"], outcome["score_offset"]) == (5, 5, fit["offset"])
    assert fit["offset"] > 0.2
    assert score_of(backend, key) == pytest.approx(logistic(log_odds(0.8) + fit["offset"]))
    assert backend.projects.banks.model_version(key) != before
    assert tasks.train_refiners(key).get("score_offset") is None


def test_a_fit_is_made_anew_when_there_are_half_as_many_images_more(backend: Backend, key: str) -> None:
    annotate(backend, 1, 2, 3, 4, 5)
    tasks.train_refiners(key)
    annotate(backend, 6, 7)
    assert not backend.projects.quality.is_score_due(key)
    annotate(backend, 8)
    tasks.train_refiners(key)
    assert fit_of(backend, key)["images"] == 8


def test_a_fit_goes_when_its_images_are_no_longer_annotated(backend: Backend, key: str) -> None:
    annotate(backend, 1, 2, 3, 4, 5)
    tasks.train_refiners(key)
    for number in (2, 3, 4, 5):
        del backend.label_studio.annotations[100 + number]
        tasks.ingest_annotation(key, 100 + number)
    tasks.train_refiners(key)
    assert fit_of(backend, key) is None
    assert score_of(backend, key) == pytest.approx(0.8)


def test_a_fit_of_another_matcher_does_not_count(backend: Backend, key: str) -> None:
    annotate(backend, 1, 2, 3, 4, 5)
    tasks.train_refiners(key)
    project = backend.projects.store.project(key)
    assert project is not None
    other = backend.settings.model_copy(update={"matcher": "softmatcher"})
    assert match_options(backend.settings, project).score_offset > 0
    assert match_options(other, project).score_offset == 0


def test_a_fit_that_makes_way_for_a_labeler_leaves_what_there_was(backend: Backend, key: str) -> None:
    annotate(backend, 1, 2, 3, 4, 5)
    assert backend.projects.quality.fit_score(key, lambda: True) is None
    assert fit_of(backend, key) is None
    assert backend.projects.quality.is_score_due(key)


def test_the_page_says_what_scores_were_fitted_on(backend: Backend, key: str) -> None:
    annotate(backend, 1, 2, 3, 4, 5)
    assert b"score-fit" not in backend.client.get("/projects/1?tab=quality").data
    tasks.train_refiners(key)
    page = backend.client.get("/projects/1?tab=quality").get_data(as_text=True)
    assert "Scores are fitted on 5 masks of 5 annotated images" in page


@pytest.mark.parametrize(("images", "is_due"), [(0, True), (6, True), (7, False), (10, False), (14, False), (15, True)])
def test_fits_follow_the_number_of_images(images: int, is_due: bool) -> None:
    assert is_fit_due({"images": 10, "made_for": "lite"}, images, "lite") is is_due
    assert is_fit_due({"images": 10, "made_for": "lite"}, 10, "mobile")
    assert not is_fit_due(None, 4, "lite")


def test_images_on_which_nothing_was_found_fit_nothing_and_are_not_tried_again(
    backend: Backend, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate(backend, 1, 2, 3, 4, 5)
    monkeypatch.setattr(type(backend.projects.models.get(1)[0]), "segment", lambda *_, **__: [])
    assert "score_offset" not in tasks.train_refiners(key)
    assert fit_of(backend, key) is None
    assert not backend.projects.quality.is_score_due(key)


def test_a_fit_makes_way_within_an_image(backend: Backend, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    annotate(backend, 1, 2, 3, 4, 5)
    began: list[str] = []

    def segment(*_: Any, **__: Any) -> list[Any]:
        began.append("segment")
        cancellation.check()
        raise AssertionError("somebody waits, and it goes on")

    monkeypatch.setattr(type(backend.projects.models.get(1)[0]), "segment", segment)
    assert backend.projects.quality.fit_score(key, lambda: bool(began)) is None
    assert began == ["segment"]
