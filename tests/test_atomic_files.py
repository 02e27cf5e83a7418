"""A file that is replaced is the old one or the new one, never a part of it."""

import re
import stat
from pathlib import Path

import pytest

from backend.atomic_files import replacing


def test_the_new_content_takes_the_place_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    with replacing(path, mode=0o600, folder_mode=0o700) as file:
        file.write(b"new")
        assert not path.exists()
        (unfinished,) = path.parent.iterdir()
        assert re.fullmatch(r"file\.json\.[0-9a-f]{16}", unfinished.name)
    assert path.read_bytes() == b"new"
    assert [one.name for one in path.parent.iterdir()] == ["file.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_left_under_a_given_name_is_overwritten(tmp_path: Path) -> None:
    path, beside = tmp_path / "file", tmp_path / ".file.part"
    beside.write_bytes(b"a longer half")
    with replacing(path, beside=beside) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert not beside.exists()


def test_writers_of_one_place_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_nothing_else_in_the_backend_writes_beside_and_renames() -> None:
    """Two exceptions: a finished download is moved to its place, and the file of an export is locked while it grows."""
    backend = Path(__file__).parents[1] / "backend"
    users = {
        path.relative_to(backend).as_posix()
        for path in backend.rglob("*.py")
        if re.search(r"os\.replace\(|beside\.replace\(|os\.rename\(", path.read_text())
    }
    assert users == {"atomic_files.py", "models/weights/store.py", "cli/export.py"}
