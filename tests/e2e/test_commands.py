"""The commands that start everything, run as `make` runs them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from backend.cli.demo.label_studio_server import LabelStudio
from backend.cli.process.supervisor import free_port
from tests.e2e.scene import own_environment, wait_until

EXPECTED_ON_TASKS = {"Coin": 5, "Motorcycle": 3, "Corrosion": 4, "Scuff": 4}
"""On how many of the tasks that the demo does not mark each label is."""


def ignore_ctrl_c() -> None:
    """Start as in the background of a shell, which has Ctrl-C ignored: the commands end on SIGINT all the same."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def running(arguments: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend", *arguments],
            env=own_environment(**environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=ignore_ctrl_c,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def said_by(arguments: list[str], environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "backend", *arguments]
    return subprocess.run(command, env=own_environment(**environment), capture_output=True, text=True).stdout


def processes_with(text: str) -> list[int]:
    """Ids of the processes that have this text in their environment or command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                seen = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in seen:
                found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_up_keeps_service_and_worker_running_until_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    log, data_dir = tmp_path / "out", tmp_path / "data"
    env_file = tmp_path / ".env"
    env_file.write_text(f"SOFTMATCHER_PORT={port}\nSOFTMATCHER_PROFIL=base\n")
    second_terminal = {"SOFTMATCHER_DATA_DIR": str(data_dir)}
    with running(["up", "--workers", "2"], log, second_terminal | {"SOFTMATCHER_ENV_FILE": str(env_file)}) as process:
        wait_until(lambda: "Softmatcher is up" in log.read_text(), "up", 180)
        assert f"http://127.0.0.1:{port}" in log.read_text()
        wait_until(lambda: "Models of profile lite ready" in log.read_text(), "models", 180)
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=10).json()["status"] == "UP"
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        workers = [pid for pid in children if b"work" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
        assert len(workers) == 2
        assert "SOFTMATCHER_PROFIL is set, but there is no such setting" in log.read_text()
        assert "models ready" in said_by(["health"], second_terminal)
        wait_until(lambda: "heard of" in said_by(["health", "--worker"], second_terminal), "workers in the queue", 60)
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: "worker-1 ended with code -9, starting it again" in log.read_text(), "restart", 30)

        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert processes_with(str(data_dir)) == []


def test_up_without_weights_stays_up_and_says_what_to_do(tmp_path: Path) -> None:
    log, port = tmp_path / "out", free_port()
    environment = {
        "SOFTMATCHER_PORT": str(port), "SOFTMATCHER_DATA_DIR": str(tmp_path / "data"), "SOFTMATCHER_PROFILE": "mobile",
    }  # fmt: skip
    with running(["up"], log, environment) as process:
        wait_until(lambda: "Models of profile mobile failed" in log.read_text(), "what is missing", 180)
        assert "run `python -m backend weights fetch mobile`" in log.read_text()
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=10).json()["status"] == "UP"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.timeout(600)
def test_demo_once_shows_the_main_job_on_three_projects_and_ends_all(
    tmp_path: Path, label_studio_command: Path
) -> None:
    log, data_dir = tmp_path / "out", tmp_path / "data"
    with running(["demo", "--once"], log, {"SOFTMATCHER_DATA_DIR": str(data_dir), "COLUMNS": "120"}) as process:
        assert process.wait(540) == 0, log.read_text()
    said = log.read_text()
    rows = re.findall(r"│ ([a-z]+-?\w*) +│ (\w+) +│ +(\d+) │ +([\d.-]+) │ +([\d.]+|not there) │ +\d+ │", said)
    reached: dict[str, list[float]] = {}
    for _, label, _, _, iou in rows:
        if iou != "not there":
            reached.setdefault(label, []).append(float(iou))
    assert {label: len(ious) for label, ious in reached.items()} == EXPECTED_ON_TASKS
    assert sum(reached["Coin"]) / len(reached["Coin"]) >= 0.8
    assert sum(reached["Motorcycle"]) / len(reached["Motorcycle"]) >= 0.65
    assert sum(reached["Corrosion"]) / len(reached["Corrosion"]) >= 0.8
    assert len(rows) == 5 + 6 + 2 * 6
    addresses = re.findall(r"Look at it +(http://127.0.0.1:\d+/projects/\d+/data)", said)
    assert len(set(addresses)) == 3
    assert processes_with(str(data_dir)) == []


def test_label_studio_takes_the_label_config_that_is_printed(label_studio: LabelStudio) -> None:
    labels = ['A & "B" <C>', "it's", "Füße, 錆", "]]>", "100 %"]
    printed = said_by(["label-config", *labels, "background"], {})
    project = label_studio.create_project("odd labels", printed)
    taken = label_studio.project(project)["parsed_label_config"]
    assert sorted(taken["brush"]["labels"]) == sorted([*labels, "background"])
    assert sorted(taken["point"]["labels"]) == sorted(taken["box"]["labels"]) == sorted(labels)
