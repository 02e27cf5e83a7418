"""`doctor` names what is wrong and what to do; the healthy case is in the end-to-end tests."""

import io
from pathlib import Path

from rich.console import Console

from backend.cli.doctor import run_doctor
from backend.settings import load_settings


def _report(**settings: object) -> tuple[bool, str]:
    console = Console(width=300, record=True, file=io.StringIO())
    is_ok = run_doctor(load_settings(**settings), None, console)
    return is_ok, console.export_text()


def test_nothing_set_up_says_what_to_set(tmp_path: Path) -> None:
    is_ok, report = _report(data_dir=tmp_path)
    assert not is_ok
    assert "LABEL_STUDIO_API_KEY" in report
    assert "0 projects, 0 references" in report
    assert "lite" in report


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
