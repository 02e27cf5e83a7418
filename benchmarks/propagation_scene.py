"""What the propagation's benchmarks share: real parts on loopback, a project of photographs, and how to watch them."""

import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from backend.cli.demo.coins import LABEL_CONFIG
from backend.cli.demo.label_studio_server import TOKEN, LabelStudio, label_studio_program, start_label_studio
from backend.cli.process.embedded_valkey import EmbeddedValkey
from backend.cli.process.supervisor import LOOPBACK, ProcessGroup, free_port
from backend.core.types import Json
from benchmarks.service import HEIGHT, WIDTH, photograph, region, wait_until

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Scene:
    """A running Label Studio, queue and service, and what they run on.

    Attributes:
        label_studio: the real server.
        server: its process, `label-studio`.
        processes: the others: `valkey`, `service`, `worker-1`, ...
        folder: of everything.
        url: of the service.
        environment: of service and workers.
        workers: names of those that run.
    """

    label_studio: LabelStudio
    server: ProcessGroup
    processes: ProcessGroup
    folder: Path
    url: str
    environment: dict[str, str]
    workers: list[str] = field(default_factory=list)

    def start_workers(self, count: int) -> None:
        """See that so many workers run and have their models."""
        command = [sys.executable, "-m", "backend", "work"]
        while len(self.workers) < count:
            name = f"worker-{len(self.workers) + 1}"
            self.processes.start(name, command, self.environment)
            self.workers.append(name)
        wait_until(lambda: all("models ready" in self.processes[name].last_lines(2000) for name in self.workers), 240)

    def wait_for_service(self) -> None:
        """Wait until the service has its models."""
        self.processes.wait_for_http("service", f"{self.url}/health", timeout_s=180)
        wait_until(lambda: self.get("/health")["model"] == "ready")

    def get(self, path: str) -> Json:
        """A JSON answer of the service."""
        answer = requests.get(f"{self.url}{path}", timeout=60)
        answer.raise_for_status()
        found: Json = answer.json()
        return found

    def post(self, path: str, body: Json) -> Json:
        """A JSON answer of the service."""
        answer = requests.post(f"{self.url}{path}", json=body, timeout=60)
        answer.raise_for_status()
        found: Json = answer.json()
        return found

    def references(self, project: int) -> float:
        """How many references the service has of a project."""
        lines = requests.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        name = f'softmatcher_references{{project="{project}"}}'
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    def new_project(self, files: dict[str, bytes]) -> tuple[int, int, list[int]]:
        """Make a project of JPEG files, connect the service, mark the astronaut on the first: id, connection, tasks."""
        project = self.label_studio.create_project("propagation", LABEL_CONFIG)
        tasks = upload(self.label_studio, project, files)
        connection = self.label_studio.connect_backend(project, self.url)
        self.label_studio.annotate(tasks[0], [region(0)])
        wait_until(lambda: self.references(project) == 1.0)
        return project, connection, tasks

    def status(self, project: int, propagation: int) -> Json:
        """What the service says of a propagation."""
        return self.get(f"/projects/{project}/propagations/{propagation}")

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds that each process and its children have used."""
        seconds = {"label-studio": _session_cpu_s(self.server["label-studio"].pid)}
        return seconds | {
            name: _session_cpu_s(self.processes[name].pid) for name in ("valkey", "service", *self.workers)
        }


@contextmanager
def open_scene(
    folder: Path,
    *,
    label_studio_changes: dict[str, str] | None = None,
    through: Callable[[str], str] = str,
    **changes: str,
) -> Iterator[Scene]:
    """Start Label Studio, queue and service (profile lite) with these changes of the environment; no worker yet.

    `through`: Label Studio's address -> the one that the backend reaches it by.
    """
    with ProcessGroup(folder / "logs") as server, ProcessGroup(folder / "logs", grace_s=30) as processes:
        label_studio = start_label_studio(
            server, label_studio_program(), folder / "label-studio", free_port(), label_studio_changes
        )
        valkey = EmbeddedValkey(processes, folder / "valkey")
        port = free_port()
        foreign = ("SOFTMATCHER_", "LABEL_STUDIO_", "REDIS_URL", "DATABASE_URL")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
            "LABEL_STUDIO_URL": through(label_studio.url),
            "LABEL_STUDIO_API_KEY": TOKEN,
            "REDIS_URL": valkey.url,
            "SOFTMATCHER_DATA_DIR": f"{folder}/data",
            "SOFTMATCHER_PORT": str(port),
            "SOFTMATCHER_ENV_FILE": os.devnull,
            "PYTHONUNBUFFERED": "1",
        }
        environment |= changes
        scene = Scene(label_studio, server, processes, folder, f"http://{LOOPBACK}:{port}", environment)
        processes.start("service", [sys.executable, "-m", "backend", "serve"], environment)
        scene.wait_for_service()
        yield scene
    valkey.close()


def photographs(count: int, *, seed: int = 0) -> dict[str, bytes]:
    """Name -> JPEG, 640 x 480 px; no two the same, nor of two seeds."""
    return {f"photograph-{seed}-{number}": _marked(photograph(number), seed) for number in range(count)}


def _marked(jpeg: bytes, seed: int) -> bytes:
    if not seed:
        return jpeg
    pixels = np.asarray(Image.open(io.BytesIO(jpeg))).copy()
    pixels[:8, :8] = 16 * (seed % 16)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def upload(label_studio: LabelStudio, project: int, files: dict[str, bytes]) -> list[int]:
    """Upload 25 files a request; the ids of the tasks in the order of the files."""
    names = list(files)
    ids: list[int] = []
    for start in range(0, len(names), 25):
        some = [
            (f"file{n}", (f"{name}.jpg", files[name], "image/jpeg")) for n, name in enumerate(names[start : start + 25])
        ]
        ids += label_studio.call("POST", f"/api/projects/{project}/import?return_task_ids=true", files=some)["task_ids"]
    return sorted(ids)


def in_own_process(function: Callable[..., None], *arguments: object) -> Any:
    """What the function puts into the queue that is its last argument."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    child = context.Process(target=function, args=(*arguments, results))
    child.start()
    result = results.get(timeout=3600)
    child.join()
    return result


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for the documentation."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _session_cpu_s(session: int) -> float:
    ticks = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # Behind the name: state, parent, group, session, ..., user and system time, and those of children that ended.
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))
    return ticks / _CLOCK_TICKS


assert (HEIGHT, WIDTH) == (480, 640)
