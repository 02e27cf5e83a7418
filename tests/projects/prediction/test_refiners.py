"""Refiners of a project: trained by a job, kept in the store, named by model_version, used by whoever predicts."""

from typing import Any

import numpy as np
import pytest

from backend.core.pixel_classifier import PixelClassifier
from backend.core.pixel_filters import FILTER_COUNT
from backend.engine.pixel_refiner import PixelRefiner, RefinerTrial
from backend.jobs import tasks
from backend.labelstudio.rle import decode_mask
from backend.projects.prediction import refiners as module
from testing.fakes import Backend, draw, png

POINT = {
    "id": "a", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
    "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": ["Cat"]},
}  # fmt: skip


def everywhere() -> PixelRefiner:
    """Return a refiner that takes every pixel."""
    layers = ((np.zeros((1, FILTER_COUNT), np.float32), np.zeros(1, np.float32)),)
    return PixelRefiner(
        PixelClassifier(np.zeros(FILTER_COUNT, np.float32), np.ones(FILTER_COUNT, np.float32), layers), -100.0, 0.0
    )


@pytest.fixture
def key(backend: Backend) -> str:
    """A project with three annotated tasks and a fourth one."""
    for number in range(1, 5):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30 + number, 30))))
    key = backend.projects.note_project(backend.label_studio.project(1))
    for number in range(1, 4):
        backend.label_studio.annotate(10 + number, number, [POINT])
        tasks.ingest_annotation(key, 10 + number)
    return key


def switch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train_label_refiner", lambda *_, **__: RefinerTrial(everywhere(), 0.9, 0.5))


def predict(backend: Backend, key: str, number: int) -> Any:
    project = backend.projects.store.project(key)
    assert project is not None
    task = backend.label_studio.task(number, 1)
    return backend.projects.predictions.predict(key, project.label_config, [task]).results[0]


def test_the_third_reference_queues_the_training_and_not_the_second(backend: Backend, key: str) -> None:
    assert [job for job in backend.queue.jobs if job[0] == "train_refiners"] == [("train_refiners", (key,))]


def test_references_that_need_none_change_no_version_and_are_not_tried_again(backend: Backend, key: str) -> None:
    before = backend.projects.banks.model_version(key)
    outcome = tasks.train_refiners(key)
    assert outcome["tried"]["Cat"]["used"] is False
    assert backend.projects.banks.model_version(key) == before
    assert not backend.projects.refiners.is_due(key)
    assert tasks.train_refiners(key)["tried"] == {}


@pytest.mark.slow
def test_masks_with_and_without_it_have_another_version(
    backend: Backend, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = predict(backend, key, 4)
    switch_on(monkeypatch)
    assert tasks.train_refiners(key)["tried"] == {"Cat": {"used": True, "gain": 0.4}}
    after = predict(backend, key, 4)
    assert after["model_version"] == backend.projects.banks.model_version(key) != before["model_version"]
    mask = decode_mask(after["result"][0]["value"]["rle"], (48, 64))
    assert mask.all()
    assert not decode_mask(before["result"][0]["value"]["rle"], (48, 64)).all()


@pytest.mark.slow
def test_a_further_reference_puts_the_posterior_in_charge_until_it_is_trained_again(
    backend: Backend, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch_on(monkeypatch)
    tasks.train_refiners(key)
    backend.label_studio.annotate(14, 4, [POINT])
    tasks.ingest_annotation(key, 14)
    assert backend.projects.refiners.is_due(key)
    assert not decode_mask(predict(backend, key, 1)["result"][0]["value"]["rle"], (48, 64)).all()
    tasks.train_refiners(key)
    assert decode_mask(predict(backend, key, 1)["result"][0]["value"]["rle"], (48, 64)).all()


def test_training_ends_when_an_annotation_waits_and_stays_due(backend: Backend, key: str) -> None:
    assert backend.projects.refiners.train(key, lambda: True) == {}
    assert backend.projects.refiners.is_due(key)


def test_a_damaged_one_leaves_the_posterior_and_its_version(
    backend: Backend, key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = predict(backend, key, 4)["model_version"]
    switch_on(monkeypatch)
    tasks.train_refiners(key)
    store = backend.projects.store
    (record,) = store.refiners.records(key)
    store.refiners.save(key, record, {"numbers": np.zeros(3)})
    assert predict(backend, key, 4)["model_version"] == before
    assert "refiner must be of version" in caplog.text or "mean" in caplog.text
