"""A second terminal finds the `up` that runs, and only that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from backend.cli.process.running_up import FILE, announced, beside_running_up
from backend.settings import load_settings


def test_a_second_terminal_finds_service_and_queue_while_up_runs(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    with announced(load_settings(data_dir=tmp_path, host="0.0.0.0"), port=4321, own_redis_url="unix:///q"):
        found = beside_running_up(settings)
        assert (found.host, found.port, found.redis_url) == ("0.0.0.0", 4321, "unix:///q")
        assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    assert not (tmp_path / FILE).exists()
    assert beside_running_up(settings) == settings


def test_what_the_second_terminal_names_itself_stays(tmp_path: Path) -> None:
    with announced(load_settings(data_dir=tmp_path), port=4321, own_redis_url="unix:///q"):
        named = load_settings(data_dir=tmp_path, port=9091, redis_url="redis://queue/0")
        assert beside_running_up(named) == named
        assert beside_running_up(load_settings(data_dir=tmp_path, port=0)).port == 4321


@pytest.mark.slow
def test_a_killed_up_is_not_taken_for_a_running_one(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from backend.cli.process.running_up import announced; from backend.settings import load_settings\n"
        "with announced(load_settings(data_dir=sys.argv[1]), port=4321, own_redis_url='unix:///q'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert json.loads((tmp_path / FILE).read_text())["port"] == 4321
    settings = load_settings(data_dir=tmp_path)
    assert beside_running_up(settings) == settings
    with announced(settings, port=1234, own_redis_url=None):
        assert beside_running_up(settings).port == 1234


def test_a_second_up_on_the_same_folder_leaves_the_firsts_word(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    with announced(settings, port=1, own_redis_url=None):
        with announced(settings, port=2, own_redis_url=None):
            assert beside_running_up(settings).port == 1
        assert beside_running_up(settings).port == 1


@pytest.mark.parametrize("content", ["", "[]", "no json", '{"port": "x", "host": 3, "redis_url": []}'])
def test_a_file_with_something_else_in_it_says_nothing(tmp_path: Path, content: str) -> None:
    settings = load_settings(data_dir=tmp_path)
    with announced(settings, port=4321, own_redis_url="unix:///q"):
        (tmp_path / FILE).write_text(content)
        assert beside_running_up(settings) == settings
