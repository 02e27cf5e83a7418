import pytest

from backend.errors import LabelStudioError
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.scene import Backend, Project


def test_connecting_registers_backend_and_webhook(small_project: Project) -> None:
    label_studio, backend = small_project.label_studio, small_project.backend
    connection = label_studio.backend(small_project.connection)
    assert connection["state"] == "CO"
    assert connection["model_version"]
    (webhook,) = label_studio.webhooks(small_project.id)
    assert webhook["url"] == f"{backend.url}/webhook"
    assert webhook["send_for_all_actions"]
    assert webhook["is_active"]


def test_model_version_is_the_same_while_nothing_changes(small_project: Project) -> None:
    assert small_project.version() == small_project.version()


def test_versions_answers_without_a_project(small_project: Project) -> None:
    versions = small_project.label_studio.call("GET", f"/api/ml/{small_project.connection}/versions")
    assert small_project.version() in versions["versions"]


def test_a_label_config_without_brush_is_refused_and_logged(new_project: NewProject, backend: Backend) -> None:
    project = new_project(backend, {}, is_connected=False)
    project.label_studio.update_project(
        project.id,
        label_config='<View><Image name="image" value="$image"/>'
        '<Choices name="choice" toName="image"><Choice value="A"/></Choices></View>',
    )
    with pytest.raises(LabelStudioError, match="/setup"):
        project.label_studio.connect_backend(project.id, backend.url)
    # Label Studio doesn't show the answer's text, but sends its user to the backend's log.
    assert "BrushLabels" in backend.log()


def test_basic_auth_is_asked_for_and_the_webhook_gets_it(
    new_project: NewProject, start_other_backend: StartBackend
) -> None:
    backend = start_other_backend(
        "guarded", SOFTMATCHER_BASIC_AUTH_USER="studio", SOFTMATCHER_BASIC_AUTH_PASS="pass: word!"
    )
    stranger = new_project(backend, {}, is_connected=False)
    with pytest.raises(LabelStudioError, match="authentication"):
        stranger.label_studio.connect_backend(stranger.id, backend.url)
    with pytest.raises(LabelStudioError, match="authentication"):
        stranger.label_studio.connect_backend(stranger.id, backend.url, basic_auth=("studio", "wrong"))

    project = new_project(backend)
    project.wait_for_webhook_credentials()
    project.mark_one_coin()
    project.retrieve("coins-1")
    assert project.iou("coins-1") > 0.5
    assert "pass: word!" not in backend.log()
