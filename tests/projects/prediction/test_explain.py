"""explain.png: the route, and what it answers when there is nothing to explain."""

import io

import pytest
from PIL import Image as PillowImage

from testing.fakes import Backend, draw, png
from tests.web.test_app import _setup, _with_red_reference


@pytest.mark.slow
def test_a_task_is_explained(backend: Backend) -> None:
    _with_red_reference(backend)
    backend.label_studio.add_task(2, png(draw(red=(30, 20, 50, 40))))
    answer = backend.client.get("/projects/1/tasks/2/explain.png")
    assert answer.status_code == 200
    assert answer.content_type == "image/png"
    with PillowImage.open(io.BytesIO(answer.data)) as picture:
        assert picture.width > 500


@pytest.mark.slow
def test_a_project_without_references_is_explained(backend: Backend) -> None:
    _setup(backend)
    backend.label_studio.add_task(2, png(draw()))
    assert backend.client.get("/projects/1/tasks/2/explain.png").status_code == 200


@pytest.mark.parametrize(("address", "status"), [("/projects/9/tasks/2", 404), ("/projects/1/tasks/77", 404)])
def test_what_is_not_there_is_not_found(backend: Backend, address: str, status: int) -> None:
    _with_red_reference(backend)
    answer = backend.client.get(f"{address}/explain.png")
    assert answer.status_code == status
    assert answer.get_json()["error"]


def test_a_missing_image_is_said(backend: Backend) -> None:
    _with_red_reference(backend)
    backend.label_studio.add_task(3, None)
    assert backend.client.get("/projects/1/tasks/3/explain.png").status_code == 404


def test_label_studio_down_is_said(backend: Backend) -> None:
    _with_red_reference(backend)
    backend.label_studio.is_down = True
    assert backend.client.get("/projects/1/tasks/1/explain.png").status_code == 503


@pytest.mark.parametrize("params", [{"instances": True}, {"recipe": "paper"}, {"matcher": "prototype"}])
def test_options_of_a_project_change_its_version(backend: Backend, params: dict[str, object]) -> None:
    plain = _setup(backend).json["model_version"]
    assert _setup(backend, extra_params=params).json["model_version"] != plain


def test_an_unknown_matcher_is_refused_with_the_names(backend: Backend) -> None:
    answer = _setup(backend, extra_params={"matcher": "magic"})
    assert answer.status_code == 422
    assert "softmatcher-rff" in answer.json["error"]
