"""Labels of thin things: whatever predicts, explains, previews or measures them has the target's pixels at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backend.core.matching import ReferenceBank
from backend.core.memory_bank import read_bank
from backend.core.patches import PatchesInMemory, PatchSource
from backend.core.types import EncodedImage, Image, LabelMask, Reference
from backend.engine.options import MatchOptions
from backend.jobs import tasks
from backend.labelstudio.label_config import parse_label_config
from backend.projects.prediction.preview import Stroke
from backend.store import ProjectRecord
from testing.fakes import Backend, ColourSoftmatcher, draw, png
from tests.projects.prediction.test_refiners import POINT, predict, switch_on


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Make every reference one of a thin thing; return what `segment` was given besides references and options."""
    given: list[dict[str, Any]] = []
    describe, segment = ColourSoftmatcher.describe, ColourSoftmatcher.segment

    def thin(self: ColourSoftmatcher, *arguments: Any, **further: Any) -> Reference:
        described = describe(self, *arguments, **further)
        return replace(described, fine=described)

    def gather_patches(
        self: ColourSoftmatcher, source: PatchSource, options: MatchOptions | None = None
    ) -> ReferenceBank:
        fine = source.fine()
        bank = read_bank(source, self.signature, most_patches=2**31)
        return bank if fine is None else replace(bank, fine=read_bank(fine, self.signature, most_patches=2**31))

    def recorded(
        self: ColourSoftmatcher,
        encoded: EncodedImage,
        references: Mapping[str, ReferenceBank | Sequence[Reference]],
        options: MatchOptions | None = None,
        **further: Any,
    ) -> list[LabelMask]:
        given.append({**further, "fine_features": encoded.fine_features})
        return segment(self, encoded, references, options, **further)

    def add_fine_features(self: ColourSoftmatcher, encoded: EncodedImage, pixels: Image) -> EncodedImage:
        return replace(encoded, fine_features=np.zeros((2, 2, 3), np.float16))

    monkeypatch.setattr(ColourSoftmatcher, "describe", thin)
    monkeypatch.setattr(ColourSoftmatcher, "gather_patches", gather_patches)
    monkeypatch.setattr(
        ColourSoftmatcher,
        "gather",
        lambda self, references, options=None: gather_patches(self, PatchesInMemory(references)),
    )
    monkeypatch.setattr(ColourSoftmatcher, "segment", recorded)
    monkeypatch.setattr(ColourSoftmatcher, "add_fine_features", add_fine_features, raising=False)
    return given


@pytest.fixture
def key(backend: Backend, seen: list[dict[str, Any]]) -> str:
    """A project with two annotated tasks and a third one."""
    for number in range(1, 5):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30 + number, 30))))
    key = backend.projects.note_project(backend.label_studio.project(1))
    for number in (1, 2, 3):
        backend.label_studio.annotate(10 + number, number, [POINT])
        tasks.ingest_annotation(key, 10 + number)
    seen.clear()
    return key


def project_of(backend: Backend, key: str) -> ProjectRecord:
    project = backend.projects.store.project(key)
    assert project is not None
    return project


def test_a_prediction_has_the_pixels(backend: Backend, key: str, seen: list[dict[str, Any]]) -> None:
    predict(backend, key, 4)
    assert [one["pixels"].shape for one in seen] == [(48, 64, 3)]


def test_a_task_of_a_propagation_has_the_pixels(backend: Backend, key: str, seen: list[dict[str, Any]]) -> None:
    project = project_of(backend, key)
    config = backend.projects.banks.context(project, parse_label_config(project.label_config))
    for _, finish in backend.projects.predictions.predict_each(
        config, [backend.label_studio.task(4, 1)], lambda: False
    ):
        finish()
    assert [one["pixels"].shape for one in seen] == [(48, 64, 3)]


def test_an_explanation_has_the_pixels_and_the_refiners(
    backend: Backend, key: str, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    switch_on(monkeypatch)
    tasks.train_refiners(key)
    seen.clear()
    assert backend.client.get("/projects/1/tasks/4/explain.png").status_code == 200
    (given,) = seen
    assert given["pixels"].shape == (48, 64, 3)
    assert list(given["refiners"]) == ["Cat"]


def test_a_preview_has_the_pixels_and_the_refiners_of_the_other_labels(
    backend: Backend, key: str, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    switch_on(monkeypatch)
    tasks.train_refiners(key)
    previews, project = backend.projects.previews, project_of(backend, key)
    stroke = Stroke(((0.3, 0.4),), is_positive=True)
    for label, kept in (("Cat", []), ("Dog", ["Cat"])):
        made = previews.draw(project, 4, label, [stroke])
        seen.clear()
        assert previews.predict(project, made.name, [4])
        (given,) = seen
        assert given["pixels"].shape == (48, 64, 3)
        assert list(given["refiners"]) == kept


def test_the_quality_of_a_project_is_measured_at_twice_the_size(
    backend: Backend, key: str, seen: list[dict[str, Any]]
) -> None:
    backend.projects.quality.estimate(key)
    assert seen
    assert all(one["fine_features"] is not None for one in seen)


def test_labels_of_thick_things_need_no_pixels(backend: Backend) -> None:
    for number in (1, 2):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30, 30))))
    key = backend.projects.note_project(backend.label_studio.project(1))
    backend.label_studio.annotate(11, 1, [POINT])
    tasks.ingest_annotation(key, 11)
    project = project_of(backend, key)
    context = backend.projects.banks.context(project, parse_label_config(project.label_config))
    assert not context.needs_pixels_on("image")
    assert context.further_on("image", None) == {}
