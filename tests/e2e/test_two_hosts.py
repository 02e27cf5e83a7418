"""Workers on two hosts: network namespaces, each with its own files; PostgreSQL and queue reached over the wire.

Needs root, the program `ip`, and PostgreSQL.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from backend.cli.label_studio_server import TOKEN, Json, LabelStudio
from backend.cli.processes import LOOPBACK, EmbeddedValkey, ProcessGroup, free_port
from tests.e2e.conftest import NewProject
from tests.e2e.propagation_scene import assert_each_task_once, many_coins, start, wait_for_end
from tests.e2e.scene import Backend, Project, own_environment, wait_until

BRIDGE, GATEWAY = "smbr0", "10.77.31.1"
COUNT = 24


class Forwarder:
    """Listens on an address of the bridge and passes connections on to where a server listens on this host."""

    def __init__(self, family: int, target: object) -> None:
        self._family, self._target = family, target
        self._listener = socket.create_server((GATEWAY, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(self._family)
                try:
                    far.connect(self._target)  # type: ignore[arg-type]
                except OSError:
                    near.close()
                    far.close()
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


@pytest.fixture
def two_hosts(
    hosts: list[str], postgres_url: str, processes: ProcessGroup, label_studio: LabelStudio, tmp_path: Path
) -> Iterator[Backend]:
    """A service here, and a worker on each of the hosts."""
    database = sa.make_url(postgres_url)
    schema = f"softmatcher_hosts_{uuid.uuid4().hex}"
    admin = sa.create_engine(database.set(drivername="postgresql+psycopg"))
    with admin.begin() as connection:
        connection.execute(sa.schema.CreateSchema(schema))
    queue = EmbeddedValkey(processes, tmp_path / "valkey", name="hosts-valkey")
    with ExitStack() as stack:
        forwarders = [
            _to_postgres(database),
            Forwarder(socket.AF_UNIX, queue.url.removeprefix("unix://")),
            Forwarder(socket.AF_INET, (LOOPBACK, int(label_studio.url.rpartition(":")[2]))),
        ]
        for forwarder in forwarders:
            stack.callback(forwarder.close)
        to_database, to_queue, to_label_studio = (forwarder.port for forwarder in forwarders)
        address = database.set(host=GATEWAY, port=to_database, query={"options": f"-csearch_path={schema}"})
        port = free_port()
        environment = own_environment(
            LABEL_STUDIO_URL=f"http://{GATEWAY}:{to_label_studio}",
            LABEL_STUDIO_API_KEY=TOKEN,
            REDIS_URL=f"redis://{GATEWAY}:{to_queue}/0",
            DATABASE_URL=address.render_as_string(hide_password=False),
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
            stack.callback(lambda part=part: processes.stop(part))
        backend.wait()
        yield backend
    processes.stop("hosts-valkey")
    queue.close()
    with admin.begin() as connection:
        connection.execute(sa.schema.DropSchema(schema, cascade=True))
    admin.dispose()


def _to_postgres(database: sa.URL) -> Forwarder:
    folder = database.query.get("host")
    if isinstance(folder, str):
        return Forwarder(socket.AF_UNIX, f"{folder}/.s.PGSQL.{database.port or 5432}")
    return Forwarder(socket.AF_INET, (database.host, database.port or 5432))


def masks(project: Project) -> dict[int, list[list[int]]]:
    by_task: dict[int, list[Json]] = project.label_studio.predictions(project.id)
    return {
        task: [region["value"]["rle"] for prediction in some for region in prediction["result"]]
        for task, some in by_task.items()
    }


def test_two_hosts_do_what_one_does(two_hosts: Backend, new_project: NewProject) -> None:
    processes = two_hosts.processes
    project = new_project(two_hosts, many_coins(COUNT))
    project.mark_one_coin()
    for part in ("hosts-worker", "hosts-worker-2"):
        wait_until(lambda part=part: "models ready" in processes[part].log_path.read_text(), "workers have models", 240)
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
