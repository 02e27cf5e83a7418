"""A profile of DINOv2 and MobileSAM in Label Studio: what a lead and a labeler do with it, from missing weights on.

The weights are random, in files of the official names and layouts: what is found means nothing, but it has to be what
the engine says by itself.
"""

from pathlib import Path

import numpy as np
import pytest
import requests

from backend.cli.demo.coins import COIN
from backend.cli.demo.label_studio_server import brush, intersection_over_union, mask_of_regions
from backend.core.types import Image, Mask, Scribble
from backend.engine.loading import load_softmatcher
from backend.engine.softmatcher import Softmatcher
from backend.models.loading import ModelSource
from backend.models.weights import catalogue
from backend.models.weights.store import WeightsStore
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, Project, centre_of, coin_mask, point_on, wait_until
from tests.models.official_files import catalogue_of, random_official_files

OTHER, THIRD = TARGETS[:2]
IMAGE, SIZE_HW = SAMPLES[MARKED].image, SAMPLES[MARKED].size_hw


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    paths = random_official_files(tmp_path)
    monkeypatch.setattr(catalogue, "KNOWN_WEIGHTS", catalogue_of(paths))
    folder = tmp_path / "weights"
    for path in paths.values():
        WeightsStore(folder).add(path, name=None, source=path.as_uri())
    return folder


def encoded(backend: Backend) -> float:
    return backend.figure("softmatcher_stage_seconds_count", stage="encode")


def shown(project: Project) -> Mask:
    return mask_of_regions(project.interact(MARKED, point_on(MARKED, 2)), COIN, SIZE_HW)


def engines_own(engine: Softmatcher, image: Image) -> Mask:
    """What a key point on the second coin means."""
    scribble = Scribble(SIZE_HW, positive_xy=np.array([centre_of(coin_mask(MARKED, 2))], np.float32))
    found = engine.mask_from_scribble(engine.encode(image), scribble)
    assert found is not None
    return found.mask


def test_from_missing_weights_to_predictions(
    start_other_backend: StartBackend, new_project: NewProject, weights: Path
) -> None:
    backend = start_other_backend(
        "mobile",
        SOFTMATCHER_PROFILE="mobile",
        SOFTMATCHER_WEIGHTS_DIR=str(weights),
        SOFTMATCHER_PREFETCH_TASKS="0",
    )
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, OTHER, THIRD)})
    engine = load_softmatcher("mobile", source=ModelSource(weights))

    mask = shown(project)
    assert 0 < mask.mean() < 1, "random weights, but neither nothing nor everything"
    assert intersection_over_union(mask, engines_own(engine, IMAGE)) > 0.99
    assert encoded(backend) == 1
    assert np.array_equal(shown(project), mask)
    assert encoded(backend) == 1, "an encoded image was encoded again"

    coin = coin_mask(MARKED, 2)
    project.annotate(MARKED, brush(coin, COIN) | {"origin": "prediction"})  # a mask that was shown and accepted
    project.wait_for_references(1)
    project.retrieve(OTHER)
    assert len(project.predictions(OTHER)) == 1, "by the service"
    assert project.predictions(THIRD) == []
    project.label_studio.train(project.connection)
    wait_until(lambda: len(project.predictions(THIRD)) == 1, "a prediction by the worker", 120)
    reference = engine.describe(IMAGE, engine.encode(IMAGE), coin)
    for name in (OTHER, THIRD):
        (prediction,) = project.predictions(name)
        assert prediction["model_version"] == project.version()
        expected = engine.segment(engine.encode(SAMPLES[name].image), {COIN: [reference]})
        assert [one.label for one in expected] == [COIN]
        assert 0.1 < expected[0].mask.mean() < 0.9
        assert intersection_over_union(project.predicted_mask(name), expected[0].mask) > 0.99
        assert prediction["score"] == pytest.approx(expected[0].score, abs=0.01)

    # Someone clears the folder: the service starts all the same, and says what to do.
    notes, away = weights / "models", weights / "away"
    notes.rename(away)
    backend.processes.restart("mobile-service")

    def health() -> str:
        try:
            return str(backend.get("/health").json()["model"])
        except requests.ConnectionError:
            return ""

    wait_until(lambda: "python -m backend weights fetch mobile" in health(), "the command that helps", 120)
    answer = project.label_studio.interact(project.connection, project.tasks[MARKED], [point_on(MARKED, 2)])
    assert "503" in str(answer["errors"]), "Label Studio shows no more of an error than its number"
    away.rename(notes)
    backend.wait()
    assert np.array_equal(shown(project), mask)
    assert encoded(backend) == 0, "features are kept on disk"
