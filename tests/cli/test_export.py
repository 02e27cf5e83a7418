"""`export` and `import-masks` as commands: what they print, and their exit codes."""

import fcntl
import resource
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from backend.cli import app
from backend.errors import LabelStudioUnavailableError
from backend.projects.composition import Projects
from backend.settings import Settings
from testing.fakes import Backend
from tests.exports.scene import box, brush, fill

pytestmark = pytest.mark.slow


@pytest.fixture
def filled(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Commands that find the project over fakes."""
    fill(backend.label_studio)
    monkeypatch.setattr("backend.exports.reading.IMAGE_PAUSES_S", ())

    @contextmanager
    def opened(settings: Settings) -> Iterator[Projects]:
        yield backend.projects

    # The package's attribute of that name is the command itself.
    monkeypatch.setattr(sys.modules["backend.cli.export"], "opened_stored_projects", opened)
    return backend


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_export_says_what_it_wrote_and_left_out(filled: Backend, tmp_path: Path) -> None:
    done = _run(
        "export", "--project", 1, "--format", "coco", "--source", "both", "--min-score", 0.5, "--out", tmp_path / "out"
    )
    assert done.exit_code == 0
    assert "6 images, 6 objects" in done.output
    assert "left out: 1 x prediction below the score" in done.output
    assert (tmp_path / "out" / "annotations" / "instances_train.json").exists()


def test_something_broken_is_exit_code_1_and_a_refusal_2(filled: Backend, tmp_path: Path) -> None:
    filled.label_studio.annotate(90, 8, [brush(box(1, 1, 9, 9), "Horse")])
    done = _run("export", "--project", 1, "--format", "png", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "left out: 1 x image without its masks" in done.output
    for arguments in (["--format", "voc"], ["--format", "coco", "--split", "1,2"]):
        refused = _run("export", "--project", 1, *arguments, "--out", tmp_path / "other")
        assert refused.exit_code == 2
        assert not (tmp_path / "other").exists()


def test_a_zip_appears_whole_or_not_at_all(filled: Backend, tmp_path: Path) -> None:
    filled.label_studio.away.add(filled.label_studio.tasks[5]["data"]["image"])
    out = tmp_path / "out.zip"
    assert _run("export", "--project", 1, "--format", "coco", "--out", out).exit_code == 2
    assert list(tmp_path.glob("*out*")) == list(tmp_path.glob(".*out*")) == []
    filled.label_studio.away.clear()
    assert _run("export", "--project", 1, "--format", "coco", "--out", out).exit_code == 0
    assert out.stat().st_size > 0


@contextmanager
def _small_disk(most_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: what a full disk or a quota does to a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _error_lines(done: Result) -> list[str]:
    """What is printed but for the progress bar."""
    return [line for line in done.output.splitlines() if line.strip() and not line.startswith("tasks")]


@pytest.mark.parametrize("format_", ["coco", "yolo-seg", "png", "parquet", "label-studio"])
@pytest.mark.parametrize("name", ["out", "out.zip"])
@pytest.mark.parametrize("most_bytes", [0, 100, 1500])
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    filled: Backend, tmp_path: Path, format_: str, name: str, most_bytes: int
) -> None:
    arguments = ("export", "--project", 1, "--format", format_, "--out", tmp_path / "sets" / name)
    with _small_disk(most_bytes):
        done = _run(*arguments)
    assert done.exit_code == 2, done.output
    (line,) = _error_lines(done)
    assert "cannot be written: File too large. Make room" in line
    assert {path.name for path in (tmp_path / "sets").iterdir()} <= {".out.partial"}
    assert _run(*arguments).exit_code == 0
    assert [path.name for path in (tmp_path / "sets").iterdir()] == [name]


@pytest.mark.parametrize("out", ["/", "/proc", "/proc/export", "/proc/export.zip", "/proc/sys/export", "{file}/export"])
def test_a_place_where_nothing_can_be_written_is_one_line(filled: Backend, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    out = out.format(file=tmp_path / "file")
    done = _run("export", "--project", 1, "--format", "coco", "--out", out)
    assert done.exit_code == 2, done.output
    (line,) = _error_lines(done)
    assert line.startswith("error: ")
    assert out in line
    assert not list(Path("/").glob(".*lock"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["file"]


def test_two_processes_never_write_one_zip(filled: Backend, tmp_path: Path) -> None:
    out, partial = tmp_path / "out.zip", tmp_path / ".out.zip.partial"
    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"half of it")
        other.flush()
        refused = _run("export", "--project", 1, "--format", "coco", "--out", out)
        assert refused.exit_code == 2
        assert "another process is writing" in _error_lines(refused)[0]
        assert partial.read_bytes() == b"half of it"
    # That process was killed.
    assert _run("export", "--project", 1, "--format", "coco", "--out", out).exit_code == 0
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
    assert out.read_bytes()[:2] == b"PK"
    assert not partial.exists()


def test_imported_masks_become_references_at_once(filled: Backend, tmp_path: Path) -> None:
    _run("export", "--project", 1, "--format", "coco", "--out", tmp_path / "out")
    filled.label_studio.annotations.clear()
    done = _run("import-masks", tmp_path / "out", "--project", 1, "--as", "references")
    assert done.exit_code == 0, done.output
    assert "5 annotations with 5 masks added" in done.output
    assert "5 annotations taken in as references" in done.output
    store = filled.projects.store
    assert sorted(one.label for one in store.list_references(filled.label_studio.key)) == [
        "Cat",
        "Cat",
        "Cat",
        "Dog",
        "Dog",
    ]
    assert "5 tasks had them already" in _run("import-masks", tmp_path / "out", "--project", 1).output
    assert _run("import-masks", tmp_path / "out", "--project", 1, "--as", "tasks").exit_code == 2
    assert _run("import-masks", tmp_path / "nowhere", "--project", 1).exit_code == 2


def test_a_dry_run_of_an_import_writes_nothing(filled: Backend, tmp_path: Path) -> None:
    _run("export", "--project", 1, "--format", "coco", "--out", tmp_path / "out")
    filled.label_studio.annotations.clear()
    done = _run("import-masks", tmp_path / "out", "--project", 1, "--dry-run", "--as", "references")
    assert done.exit_code == 0, done.output
    assert "5 annotations with 5 masks would be added" in done.output
    assert not filled.label_studio.annotations


@pytest.mark.parametrize("ending", [KeyboardInterrupt, LabelStudioUnavailableError("Label Studio does not answer")])
def test_an_import_that_is_broken_off_says_what_it_did(
    filled: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: BaseException | type[BaseException]
) -> None:
    _run("export", "--project", 1, "--format", "coco", "--out", tmp_path / "out")
    filled.label_studio.annotations.clear()
    create = filled.label_studio.create_annotation

    def create_two(task_id: int, result: list[dict[str, object]]) -> dict[str, object]:
        if len(filled.label_studio.annotations) == 2:
            raise ending
        return create(task_id, result)

    monkeypatch.setattr(filled.label_studio, "create_annotation", create_two)
    done = _run("import-masks", tmp_path / "out", "--project", 1)
    assert done.exit_code != 0
    assert "2 annotations with 3 masks added" in done.output
    assert "the same command goes on" in done.output
