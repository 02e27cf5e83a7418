from collections.abc import Iterator

import pytest

from backend.cli.demo.label_studio_server import TOKEN, LabelStudio
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, point_on

TARGET = TARGETS[0]


@pytest.fixture(scope="module")
def personal_access_token(label_studio: LabelStudio) -> str:
    return label_studio.personal_access_token()


@pytest.fixture
def legacy_tokens_off(label_studio: LabelStudio, personal_access_token: str) -> Iterator[None]:
    """Label Studio's default: only personal access tokens are taken; our own calls use one, too."""
    settings = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False}
    label_studio.call("POST", "/api/jwt/settings", json=settings)
    access = label_studio.call("POST", "/api/token/refresh", json={"refresh": personal_access_token})["access"]
    with label_studio.authorized(f"Bearer {access}"):
        yield
        label_studio.call("POST", "/api/jwt/settings", json=settings | {"legacy_api_tokens_enabled": True})


def test_a_personal_access_token_does_where_legacy_tokens_are_off(
    legacy_tokens_off: None, start_other_backend: StartBackend, new_project: NewProject, personal_access_token: str
) -> None:
    backend = start_other_backend("personal", LABEL_STUDIO_API_KEY=personal_access_token)
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, TARGET)})
    project.mark_one_coin()
    project.label_studio.train(project.connection)
    project.retrieve(TARGET)
    assert project.iou(TARGET) > 0.5
    assert personal_access_token not in backend.log()


def test_a_legacy_token_where_they_are_off_is_said_in_the_log(
    legacy_tokens_off: None, start_other_backend: StartBackend, new_project: NewProject
) -> None:
    backend = start_other_backend("legacy", LABEL_STUDIO_API_KEY=TOKEN)
    project = new_project(backend, {MARKED: SAMPLES[MARKED].image})
    answer = project.label_studio.interact(project.connection, project.tasks[MARKED], [point_on(MARKED, 1)])
    assert "errors" in answer
    assert "set LABEL_STUDIO_API_KEY" in backend.log()
    assert TOKEN not in backend.log()


def test_without_a_token_of_ours_the_one_of_setup_is_used(
    start_other_backend: StartBackend, new_project: NewProject
) -> None:
    backend = start_other_backend("tokenless", LABEL_STUDIO_API_KEY="")
    project = new_project(backend, {name: SAMPLES[name].image for name in (MARKED, TARGET)})
    project.mark_one_coin()
    project.retrieve(TARGET)
    assert project.iou(TARGET) > 0.5
    assert TOKEN not in backend.log()
