"""Quality on a project's own annotations, measured in a job, with the real Label Studio."""

from collections.abc import Callable
from pathlib import Path

from backend.cli.demo.label_studio_server import brush
from tests.e2e.conftest import NewProject
from tests.e2e.scene import SAMPLES, Backend, coin_mask, wait_until


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
