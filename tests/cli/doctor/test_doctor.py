"""`doctor` names what is wrong and what to do; the healthy case is in the end-to-end tests."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from backend.cli.doctor.checks import Check
from backend.cli.doctor.doctor import models_in_use, project_checks, run_doctor, scores_in_use
from backend.models.calibrations import read_calibration
from backend.settings import load_settings
from testing.fakes import Backend, draw, png


def _report(**settings: object) -> tuple[bool, str]:
    console = Console(width=300, record=True, file=io.StringIO())
    is_ok = run_doctor(load_settings(**settings), None, console)
    return is_ok, console.export_text()


@pytest.mark.slow
def test_nothing_set_up_says_what_to_set(tmp_path: Path) -> None:
    is_ok, report = _report(data_dir=tmp_path)
    assert not is_ok
    assert "LABEL_STUDIO_API_KEY" in report
    assert "0 projects, 0 references" in report
    assert "lite" in report


def test_the_path_of_sam_is_named_if_the_profile_has_one() -> None:
    assert models_in_use(load_settings(profile="base", sam_path="package")) == "profile base, SAM path package"
    assert models_in_use(load_settings(profile="sam2")) == "profile sam2, SAM path fast"
    assert models_in_use(load_settings()) == "profile lite"


def test_scores_are_called_estimates_unless_they_were_fitted_on_the_profiles_own_masks(tmp_path: Path) -> None:
    assert scores_in_use(load_settings(profile="lite")).startswith("fitted on")
    assert "estimates" in scores_in_use(load_settings(profile="base"))
    assert "calibrate" in scores_in_use(load_settings(profile="base"))
    own = tmp_path / "own.json"
    lite = read_calibration("lite.json")
    own.write_text(replace(lite, fitted_for="base", fitted_on="project 1").to_json())
    assert scores_in_use(load_settings(profile="base", calibration=own)) == "fitted on project 1"


@pytest.mark.slow
def test_label_studio_and_queue_that_do_not_answer(tmp_path: Path) -> None:
    is_ok, report = _report(
        data_dir=tmp_path,
        label_studio_url="http://127.0.0.1:1",
        label_studio_api_key="0" * 40,
        redis_url="redis://127.0.0.1:1",
    )
    assert not is_ok
    assert "check REDIS_URL" in report
    assert "http://127.0.0.1:1" in report
    assert "0" * 40 not in report


def test_unknown_profile_and_folder_that_cannot_be_written(tmp_path: Path) -> None:
    is_ok, report = _report(data_dir=tmp_path, profile="huge")
    assert not is_ok
    assert "huge" in report
    (tmp_path / "file").write_text("")
    is_ok, report = _report(data_dir=tmp_path / "file" / "data")
    assert not is_ok
    assert "SOFTMATCHER_DATA_DIR" in report


@pytest.mark.slow
def test_a_projects_annotations_without_reference_and_its_older_references_are_named(backend: Backend) -> None:
    point = {
        "id": "p", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
        "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": ["Cat"]},
    }  # fmt: skip
    for number, content in ((1, png(draw(red=(10, 10, 30, 30)))), (2, None)):
        backend.label_studio.add_task(number, content)
        backend.label_studio.annotate(10 + number, number, [point])
    key = backend.projects.note_project(backend.label_studio.project(1))

    def findings() -> dict[str, Check]:
        return {check.name: check for check in project_checks(backend.projects, key, 1)}

    backend.projects.references.reconcile(key)
    assert findings()["annotations"].is_ok is False
    assert findings()["annotations"].finding.startswith("1 gave no reference. task 2: ")
    assert findings()["references"].is_ok

    backend.projects.store.save_project(key, settings={"extra_params": {"complete_annotations": True}})
    assert findings()["references"].is_ok is False
    assert findings()["references"].finding.startswith("1 references were made with other settings")

    backend.label_studio.add_task(2, png(draw(red=(10, 10, 30, 30))))
    backend.projects.references.reconcile(key)
    assert findings()["annotations"].is_ok
    assert findings()["references"].is_ok
