"""The image's own steps in a clean folder, then its commands as a container runs them. No Docker engine is needed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from backend.cli.process.embedded_valkey import valkey_program
from backend.cli.process.supervisor import ProcessGroup, free_port

ROOT = Path(__file__).parents[2]
NOT_ALLOWED = 77
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PASSWORD = "between-the-containers"


def _answers(url: str) -> bool:
    try:
        return bool(Redis.from_url(url).ping())
    except RedisError:
        return False


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("this machine does not allow it: needs root, unshare and setpriv")
    folder = tmp_path_factory.mktemp("image")
    packages = next(Path(entry) for entry in sys.path if Path(entry).name == "site-packages")
    with ProcessGroup(folder / "logs") as processes:
        # By TCP and with a password, as docker-compose.yml starts it.
        port = free_port()
        server = [valkey_program(), "--bind", "127.0.0.1", "--port", str(port), "--save", "60", "1"]
        processes.start("valkey", [*server, "--dir", str(folder), "--requirepass", PASSWORD], {"LC_ALL": "C"})
        queue_url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        processes.wait_until("valkey", lambda: _answers(queue_url), timeout_s=30, what="did not answer")
        command = [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            sys.executable, str(Path(__file__).parent / "image.py"),
            str(ROOT), str(folder / "image"), str(packages), queue_url, str(free_port()),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=560, cwd=folder)
    if done.returncode == NOT_ALLOWED or "unshare failed" in done.stderr:
        pytest.skip(f"this machine does not allow it: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_service_and_worker_run_as_nobody_on_a_read_only_root(container: dict[str, Any]) -> None:
    assert container["who"] == "10001"
    assert container["backend"].startswith("/opt/venv/lib/")
    assert container["root is read-only"]
    assert container["others' files"]
    assert container["no capability"].split() == ["CapEff:", "0000000000000000"]
    assert container["setuid gains nothing"].split() == ["NoNewPrivs:", "1"]
    assert container["health before"], "the health check must fail while nothing runs"
    assert container["health"].startswith("models ")
    assert container["worker"].startswith("worker ")
    assert "softmatcher.db" in container["in /data"]


def test_both_end_when_docker_stops_them_and_log_json(container: dict[str, Any]) -> None:
    for name in ("service", "worker"):
        assert container[f"{name}'s exit"] == 0, container[f"{name}'s log"]
        lines = [json.loads(line) for line in container[f"{name}'s log"].splitlines()]
        assert lines
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
        assert "secret" not in container[f"{name}'s log"]
        assert "0" * 40 not in container[f"{name}'s log"]
        assert PASSWORD not in container[f"{name}'s log"]


def test_doctor_runs_in_the_container(container: dict[str, Any]) -> None:
    assert "every route asks for it" in container["doctor"]
    assert "1 workers" in container["doctor"]
