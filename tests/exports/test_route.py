"""GET /projects/<id>/export over fakes."""

import io
import zipfile
from pathlib import Path

import pytest

from backend.errors import LabelStudioUnavailableError
from testing.fakes import Backend, FakeLabelStudio, make_backend
from tests.exports.scene import export, files, fill


@pytest.fixture
def filled(backend: Backend) -> Backend:
    fill(backend.label_studio)
    return backend


def test_a_zip_is_sent_that_holds_what_the_command_writes(filled: Backend, tmp_path: Path) -> None:
    answer = filled.client.get("/projects/1/export?format=yolo-seg&source=both&split=0.5,0.5,0")
    assert answer.status_code == 200
    assert answer.headers["Content-Disposition"] == 'attachment; filename="project-1-yolo-seg.zip"'
    export(filled, tmp_path / "out", format="yolo-seg", source="both", split="0.5,0.5,0")
    with zipfile.ZipFile(io.BytesIO(answer.data)) as archive:
        inside = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert inside == files(tmp_path / "out")


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("", 422, "format is missing"),
        ("?format=voc", 422, "format must be one of"),
        ("?format=coco&colour=red", 422, "unknown option"),
        ("?format=coco&source=predictions&min_score=0.99", 422, "no predictions with masks to export"),
    ],
)
def test_what_cannot_be_exported_is_said_before_anything_is_sent(
    filled: Backend, query: str, status: int, message: str
) -> None:
    answer = filled.client.get(f"/projects/1/export{query}")
    assert answer.status_code == status
    assert message in answer.get_json()["error"]


def test_a_number_that_no_project_can_have_is_refused(filled: Backend) -> None:
    assert filled.client.get(f"/projects/{10**30}/export?format=coco").status_code == 422


def test_label_studio_that_is_away_is_503_and_the_next_export_is_not_refused(filled: Backend) -> None:
    filled.label_studio.is_down = True
    assert filled.client.get("/projects/1/export?format=coco", buffered=True).status_code == 503
    filled.label_studio.is_down = False
    assert filled.client.get("/projects/1/export?format=coco", buffered=True).status_code == 200


@pytest.mark.slow
def test_an_export_that_breaks_off_is_no_zip(filled: Backend) -> None:
    filled.label_studio.away.add(filled.label_studio.tasks[5]["data"]["image"])
    answer = filled.client.get("/projects/1/export?format=coco", buffered=False)
    assert answer.status_code == 200
    received = bytearray()

    def receive() -> None:
        for chunk in answer.iter_encoded():
            received.extend(chunk)

    with pytest.raises(LabelStudioUnavailableError):
        receive()
    answer.close()
    assert received
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(bytes(received)))
    filled.label_studio.away.clear()
    assert filled.client.get("/projects/1/export?format=coco", buffered=True).status_code == 200


def test_one_download_at_a_time(filled: Backend) -> None:
    first = filled.client.get("/projects/1/export?format=coco", buffered=False)
    refused = filled.client.get("/projects/1/export?format=coco", buffered=True)
    assert refused.status_code == 409
    assert "being downloaded already" in refused.get_json()["error"]
    first.close()
    assert filled.client.get("/projects/1/export?format=coco", buffered=True).status_code == 200


def test_basic_auth_guards_it(tmp_path: Path) -> None:
    backend = make_backend(tmp_path / "data", FakeLabelStudio(), basic_auth_user="labeler", basic_auth_pass="secret")
    fill(backend.label_studio)
    assert backend.client.get("/projects/1/export?format=coco", buffered=True).status_code == 401
    assert (
        backend.client.get("/projects/1/export?format=coco", auth=("labeler", "secret"), buffered=True).status_code
        == 200
    )
    backend.projects.close()
