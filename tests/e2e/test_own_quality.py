"""Quality on a project's own annotations, and a calibration of its own, with the real Label Studio."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.cli.demo.label_studio_server import brush
from backend.core.calibration import Calibration
from backend.core.types import Image, Mask
from tests.e2e.conftest import NewProject
from tests.e2e.scene import SAMPLES, Backend, Project, coin_mask, wait_until

COUNT = 24


def turned(image: Image, mask: Mask, number: int) -> tuple[Image, Mask]:
    """One of eight views of a tile, darkened a little more with each round."""
    turns, is_mirrored = number % 4, number // 4 % 2
    image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    if is_mirrored:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(image * (1 - 0.05 * (number // 8))).astype(np.uint8), np.ascontiguousarray(mask)


@pytest.fixture
def annotated(new_project: NewProject, backend: Backend) -> Project:
    """Two dozen views of the coins with all coins painted, and one image whose annotation is empty."""
    views = {}
    for number in range(COUNT):
        sample = list(SAMPLES.values())[number % len(SAMPLES)]
        views[f"view-{number}"] = turned(sample.image, sample.masks["Coin"], number)
    plain = np.random.default_rng(0).integers(90, 110, (200, 200, 3)).astype(np.uint8)
    project = new_project(backend, {**{name: image for name, (image, _) in views.items()}, "plain": plain})
    for name, (_, mask) in views.items():
        project.annotate(name, brush(mask, "Coin"))
    project.annotate("plain")
    wait_until(lambda: project.references() == COUNT, f"{COUNT} references; {backend.log()[-2000:]}", 600)
    wait_until(lambda: 1.5 * images_of_fit(backend, project) > COUNT, "scores fitted on most images", 300)
    return project


def images_of_fit(backend: Backend, project: Project) -> int:
    """Number of annotated images that the page says scores are fitted on; 0 if they are not."""
    said = re.search(r"masks of (\d+) annotated images", backend.get(f"/projects/{project.id}?tab=quality").text)
    return int(said[1]) if said else 0


def run(backend: Backend, *arguments: str) -> str:
    command = [sys.executable, "-m", "backend", *arguments]
    done = subprocess.run(command, env=dict(backend.environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_ages(value: Any) -> Any:
    """The same without what only tells how long ago something was: `created_ago` and the like."""
    if isinstance(value, dict):
        return {key: without_ages(part) for key, part in value.items() if not str(key).endswith("_ago")}
    return [without_ages(part) for part in value] if isinstance(value, list | tuple) else value


def state_of(project: Project) -> Any:
    """What Label Studio has of a project: annotations and predictions of all tasks, and the project's own settings."""
    listing: Callable[..., Any] = project.label_studio.call
    tasks = listing("GET", f"/api/tasks?project={project.id}&fields=all&review=true&page_size=100")["tasks"]
    content = [without_ages((one["id"], one["data"], one["annotations"], one["predictions"])) for one in tasks]
    return content, project.label_studio.project(project.id)["model_version"], project.version()


@pytest.mark.timeout(900)
def test_quality_and_calibration_of_a_project(annotated: Project, backend: Backend, tmp_path: Path) -> None:
    before = state_of(annotated)
    out, sheets = tmp_path / "quality.json", tmp_path / "sheets"
    printed = run(
        backend, "evaluate", "--project", str(annotated.id), "--limit", "6", "--folds", "3",
        "--compare", "matchers,min_score", "--json", str(out), "--sheets", str(sheets),
    )  # fmt: skip
    assert f"Coin 0.{printed.partition('Coin 0.')[2][:2]}, {COUNT} images" in printed
    figures = json.loads(out.read_text())
    assert figures["tried"] == 6
    assert figures["labels"]["Coin"]["iou"] > 0.8
    assert figures["folds"]["iou"] > 0.7
    assert set(figures["labels"]["Coin"]["growth"]) == {"1", "2", "3", "5", "8"}
    assert {one["kind"] for one in figures["comparison"]["variants"]} == {"matchers", "min_score"}
    assert len(list(sheets.iterdir())) == len(figures["worst"]) > 0
    assert state_of(annotated) == before

    calibration = tmp_path / "own.json"
    said = run(backend, "calibrate", "--project", str(annotated.id), "--out", str(calibration))
    assert f"{COUNT} masks of objects that are there" in said
    written = Calibration.from_json(calibration.read_text(), name="own")
    assert written.fitted_on.startswith(f"project {annotated.id}, ")
    assert state_of(annotated) == before


def test_the_page_measures_in_a_job_and_sets_what_suits(new_project: NewProject, backend: Backend) -> None:
    project = new_project(backend)
    for name in SAMPLES:
        mask = coin_mask(name, 1)
        project.annotate(name, brush(mask, "Coin"))
    wait_until(lambda: project.references() == len(SAMPLES), "references", 120)
    assert backend.post(f"/projects/{project.id}/quality", {"compare": ["matchers"]}).status_code == 202
    measured = f"/projects/{project.id}/quality"
    wait_until(lambda: backend.get(measured).json()["iou"] is not None, f"measured; {backend.log()[-2000:]}", 180)
    found = backend.get(measured).json()
    assert found["tried"] == len(SAMPLES)
    assert backend.get(f"/projects/{project.id}/quality/worst/0.jpg").headers["Content-Type"] == "image/jpeg"
    page = backend.get(f"/projects/{project.id}?tab=quality").text
    assert found["labels"]["Coin"]["word"] in page
    answer = backend.post(f"/projects/{project.id}/quality/apply", {})
    wanted = found["comparison"]["settings"]
    assert answer.status_code == (200 if wanted else 409)
    if wanted:
        assert project.label_studio.backend(project.connection)["extra_params"] == wanted


def test_recommended_settings_reach_a_guarded_backend(
    new_project: NewProject, start_other_backend: Callable[..., Backend]
) -> None:
    """Label Studio checks the connection anew when extra params change: with the password that it has."""
    from backend.projects.composition import open_projects
    from backend.settings import load_settings

    guarded = start_other_backend(
        "guarded-quality", SOFTMATCHER_BASIC_AUTH_USER="ls", SOFTMATCHER_BASIC_AUTH_PASS="secret-of-quality"
    )
    project = new_project(guarded, {"coins-1": SAMPLES["coins-1"].image})
    version = project.version()
    settings = load_settings(
        data_dir=Path(guarded.environment["SOFTMATCHER_DATA_DIR"]),
        label_studio_url=guarded.environment["LABEL_STUDIO_URL"],
        label_studio_api_key=guarded.environment["LABEL_STUDIO_API_KEY"],
    )
    projects = open_projects(settings)
    try:
        client = projects.client_for(project.key)
        (connected,) = client.ml_backends(project.id)
        client.set_extra_params(connected, {"min_score": 0.3})
    finally:
        projects.close()
    assert project.label_studio.backend(project.connection)["extra_params"] == {"min_score": 0.3}
    assert project.version() != version
