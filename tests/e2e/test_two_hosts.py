"""Workers on two hosts: network namespaces, each with its own files. PostgreSQL and Valkey listen on the network.

Needs root, the program `ip`, and PostgreSQL. Label Studio, which other tests use on loopback, stands behind a proxy.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from backend.cli.demo.label_studio_server import TOKEN, LabelStudio
from backend.cli.process.embedded_valkey import valkey_program
from backend.cli.process.supervisor import LOOPBACK, ProcessGroup, free_port
from backend.core.types import Json
from tests import postgres
from tests.e2e.conftest import NewProject
from tests.e2e.propagation_scene import assert_each_task_once, many_coins, start, wait_for_end
from tests.e2e.scene import HOSTS_NETWORK, Backend, Project, own_environment, wait_until

BRIDGE, GATEWAY = "smbr0", "10.77.31.1"
COUNT = 24


class Proxy:
    """Listens on the bridge and passes connections on to a port of loopback."""

    def __init__(self, port: int) -> None:
        self._target = (LOOPBACK, port)
        self._listener = socket.create_server((GATEWAY, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                threading.Thread(target=self._join, args=(near, far), daemon=True).start()

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        with near, far:
            back = threading.Thread(target=self._copy, args=(far, near), daemon=True)
            back.start()
            self._copy(near, far)
            back.join()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while some := source.recv(65536):
                sink.sendall(some)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine does not allow it: ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces on one bridge."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("this machine does not allow network namespaces: they need root and the program ip (iproute2)")
    names = [f"softmatcher-{letter}" for letter in "ab"]
    with ExitStack() as stack:

        def undo(*arguments: str) -> None:
            stack.callback(lambda: subprocess.run(["ip", *arguments], capture_output=True))

        ip("link", "add", BRIDGE, "type", "bridge")
        undo("link", "del", BRIDGE)
        ip("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            undo("netns", "del", name)
            ip("link", "add", f"smv{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"smv{number}", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"10.77.31.{10 + number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names


def port_of_bridge() -> int:
    with socket.create_server((GATEWAY, 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def database_url(hosts: list[str]) -> Iterator[str]:
    """PostgreSQL as the hosts reach it, with a password."""
    bin_folder = postgres.programs()
    if bin_folder is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    listener = postgres.Listener(GATEWAY, port_of_bridge(), HOSTS_NETWORK, secrets.token_hex(8))
    with postgres.running_server(bin_folder, listener) as url:
        yield url


@pytest.fixture
def redis_url(hosts: list[str], processes: ProcessGroup, tmp_path: Path) -> Iterator[str]:
    """Valkey as the hosts reach it, with a password."""
    port, password = port_of_bridge(), secrets.token_hex(8)
    settings = {"bind": GATEWAY, "port": str(port), "requirepass": password, "dir": str(tmp_path), "appendonly": "yes"}
    command = [valkey_program(), *(part for name, value in settings.items() for part in (f"--{name}", value))]
    processes.start("hosts-valkey", command, {"LC_ALL": "C"})
    queue = Redis.from_url(f"redis://:{password}@{GATEWAY}:{port}/0")

    def answers() -> bool:
        with suppress(RedisError):
            return bool(queue.ping())
        return False

    wait_until(answers, "Valkey answers", 30)
    yield f"redis://:{password}@{GATEWAY}:{port}/0"
    processes.stop("hosts-valkey")


@pytest.fixture
def two_hosts(
    hosts: list[str],
    database_url: str,
    redis_url: str,
    processes: ProcessGroup,
    label_studio: LabelStudio,
    tmp_path: Path,
) -> Iterator[Backend]:
    """A service here, and a worker on each of the hosts."""
    with ExitStack() as stack:
        proxy = Proxy(int(label_studio.url.rpartition(":")[2]))
        stack.callback(proxy.close)
        port = free_port()
        environment = own_environment(
            LABEL_STUDIO_URL=f"http://{GATEWAY}:{proxy.port}",
            LABEL_STUDIO_API_KEY=TOKEN,
            REDIS_URL=redis_url,
            DATABASE_URL=database_url,
            SOFTMATCHER_PORT=str(port),
            SOFTMATCHER_TORCH_THREADS="1",
            PYTHONUNBUFFERED="1",
        )
        command = [sys.executable, "-m", "backend"]
        backend = Backend("hosts", f"http://{LOOPBACK}:{port}", processes, environment)
        processes.start(
            "hosts-service", [*command, "serve"], environment | {"SOFTMATCHER_DATA_DIR": str(tmp_path / "s")}
        )
        stack.callback(lambda: processes.stop("hosts-service"))
        for part, name in (("hosts-worker", hosts[0]), ("hosts-worker-2", hosts[1])):
            own = environment | {"SOFTMATCHER_DATA_DIR": str(tmp_path / name)}
            processes.start(part, ["ip", "netns", "exec", name, *command, "work"], own)
            stack.callback(processes.stop, part)
        backend.wait()
        yield backend


def masks(project: Project) -> dict[int, list[list[int]]]:
    by_task: dict[int, list[Json]] = project.label_studio.predictions(project.id)
    return {
        task: [region["value"]["rle"] for prediction in some for region in prediction["result"]]
        for task, some in by_task.items()
    }


def _has_models(log: Path) -> bool:
    return "models ready" in log.read_text()


def test_two_hosts_do_what_one_does(two_hosts: Backend, new_project: NewProject) -> None:
    processes = two_hosts.processes
    project = new_project(two_hosts, many_coins(COUNT))
    project.mark_one_coin()
    for part in ("hosts-worker", "hosts-worker-2"):
        wait_until(partial(_has_models, processes[part].log_path), "workers have models", 240)
    ended = wait_for_end(project, start(project))
    assert_each_task_once(project, ended)
    assert ended["counts"]["done"] == COUNT
    for part in ("hosts-worker", "hosts-worker-2"):
        worked = [line for line in processes[part].log_path.read_text().splitlines() if "job=propagate" in line]
        assert any("finished=0" not in line for line in worked), f"{part} took part"
    together = masks(project)

    project.label_studio.delete_predictions(project.id, list(project.tasks.values()))
    processes.stop("hosts-worker-2")
    processes.start("hosts-worker-2", ["sleep", "600"], two_hosts.environment)
    alone = wait_for_end(project, start(project))
    assert_each_task_once(project, alone)
    assert alone["model_version"] == ended["model_version"]
    assert masks(project) == together
