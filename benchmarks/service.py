"""How long do the answers take, and what stays quick while a batch runs?

    python -m benchmarks.service [--tasks 20] [--json FILE]

A real service and worker (profile lite, embedded Valkey) on 640 x 480 px photographs made of scikit-image's astronaut,
each with other pixels, so that no answer comes from a cache that its row does not name. A stub of Label Studio serves
them.
Quoted: median and quartiles; the first request of each kind is the warm-up.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from skimage.transform import resize

from backend.cli.demo.coins import LABEL_CONFIG
from backend.cli.process.embedded_valkey import EmbeddedValkey
from backend.cli.process.supervisor import LOOPBACK, ProcessGroup, free_port

PROJECT = {"id": 1, "created_at": "2026-11-22T16:34:04+00:00", "title": "bench", "label_config": LABEL_CONFIG}
KEY = "1.1795365244"
HEIGHT, WIDTH = 480, 640


@cache
def _astronaut() -> NDArray[Any]:
    photograph: NDArray[Any] = (resize(data.astronaut(), (HEIGHT, HEIGHT)) * 255).astype(int)
    return photograph


def photograph(number: int) -> bytes:
    """The astronaut, shifted and lightened by the number: the same object, never the same file."""
    canvas = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    left = 10 + number * 7 % (WIDTH - HEIGHT - 20)
    canvas[:, left : left + HEIGHT] = np.clip(_astronaut() + number % 9, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def region(number: int) -> dict[str, Any]:
    """A key point on the astronaut's face."""
    left = 10 + number * 7 % (WIDTH - HEIGHT - 20)
    value = {"x": 100 * (left + 210) / WIDTH, "y": 100 * 110 / HEIGHT, "width": 0.5, "keypointlabels": ["Coin"]}
    return {
        "id": f"point-{number}", "type": "keypointlabels", "from_name": "point", "to_name": "image",
        "origin": "manual", "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "value": value,
    }  # fmt: skip


def task(number: int) -> dict[str, Any]:
    return {"id": number, "project": 1, "data": {"image": f"/data/upload/1/{number}.jpg"}, "predictions": []}


ANNOTATION = {
    "id": 1, "task": 0, "project": 1, "result": [region(0)], "was_cancelled": False,
    "updated_at": "2026-11-22T17:00:00+00:00",
}  # fmt: skip


class LabelStudioStub(BaseHTTPRequestHandler):
    """As much of Label Studio as the backend asks for here."""

    def do_GET(self) -> None:
        name = self.path.split("?")[0]
        if name.startswith("/data/upload/"):
            return self._answer(photograph(int(Path(name).stem)), "image/jpeg")
        answers = {"/api/projects/1/": PROJECT, "/api/annotations/1/": ANNOTATION, "/api/webhooks/": []}
        listing = {"tasks": [{**task(0), "annotations": [ANNOTATION]}], "total": 1}
        answer = listing if name == "/api/tasks" else answers.get(name)
        return self._answer(json.dumps(answer).encode(), "application/json", 200 if answer is not None else 404)

    def _answer(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No lines between the figures."""


def timed(call: Callable[[int], object], numbers: range) -> list[float]:
    """Milliseconds of each call; the first of all is left out."""
    call(numbers[0])
    times = []
    for number in numbers[1:]:
        started = time.perf_counter()
        call(number)
        times.append(1000 * (time.perf_counter() - started))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    server = ThreadingHTTPServer((LOOPBACK, 0), LabelStudioStub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder, ProcessGroup(Path(folder) / "logs") as processes:
        valkey = EmbeddedValkey(processes, Path(folder) / "valkey")
        port = free_port()
        environment = os.environ | {
            "LABEL_STUDIO_URL": f"http://{LOOPBACK}:{server.server_port}",
            "LABEL_STUDIO_API_KEY": "benchmark",
            "REDIS_URL": valkey.url,
            "SOFTMATCHER_DATA_DIR": f"{folder}/data",
            "SOFTMATCHER_PORT": str(port),
        }
        command = [sys.executable, "-m", "backend"]
        service = processes.start("service", [*command, "serve"], environment)
        processes.start("worker", [*command, "work"], environment)
        figures = measure(f"http://{LOOPBACK}:{port}", arguments.tasks, service.pid)
    valkey.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def measure(url: str, count: int, pid: int) -> dict[str, Any]:
    session = requests.Session()

    def post(path: str, body: object) -> Any:
        response = session.post(f"{url}{path}", json=body, timeout=100)
        response.raise_for_status()
        return response.json()

    def setup(_: int = 0) -> Any:
        return post("/setup", {"project": KEY, "schema": LABEL_CONFIG, "hostname": url, "extra_params": None})

    def predict(*numbers: int, context: object = None) -> Any:
        params = {"context": context}
        tasks = [task(number) for number in numbers]
        return post("/predict", {"tasks": tasks, "project": KEY, "label_config": LABEL_CONFIG, "params": params})

    def interact(number: int) -> Any:
        return predict(number, context={"result": [region(number)]})

    wait_until(lambda: session.get(f"{url}/health", timeout=5).json()["model"] == "ready")
    setup()
    resident_mb = memory_mb(pid)
    post("/webhook", {"action": "ANNOTATION_CREATED", "project": PROJECT, "annotation": {"id": 1}})
    wait_until(lambda: 'softmatcher_references{project="1"} 1.0' in session.get(f"{url}/metrics", timeout=5).text)
    rows = {
        "key point, first on its image": timed(interact, range(1000, 1000 + count)),
        "key point, same image again": timed(lambda number: interact(1000 + number % 5), range(5, 5 + count)),
        "predict one task, image unseen": timed(lambda number: predict(number), range(2000, 2000 + count)),
        "predict one task, features cached": timed(lambda number: predict(number), range(2000, 2000 + count)),
    }
    batch = threading.Thread(target=lambda: predict(*range(3000, 3000 + count)))
    batch.start()
    health: list[float] = []
    setups: list[float] = []
    webhooks: list[float] = []
    event = {"action": "ANNOTATION_UPDATED", "project": PROJECT, "annotation": {"id": 1}}
    while batch.is_alive():
        health += timed(lambda _: requests.get(f"{url}/health", timeout=5), range(2))
        setups += timed(setup, range(2))
        webhooks += timed(lambda _: post("/webhook", event), range(2))
        time.sleep(0.05)
    rows |= {"/health while a batch runs": health, "/setup while a batch runs": setups}
    rows["/webhook while batch and worker run"] = webhooks
    print(f"{'':40s} {'n':>4s} {'median':>8s} {'quartiles':>15s} {'max':>8s}   ms")
    for name, times in rows.items():
        low, middle, high = statistics.quantiles(times, n=4)
        print(f"{name:40s} {len(times):4d} {middle:8.1f} {f'{low:.1f} - {high:.1f}':>15s} {max(times):8.1f}")
    stages = stage_means(session.get(f"{url}/metrics", timeout=5).text)
    print("mean of each stage, ms:", ", ".join(f"{name} {value:.1f}" for name, value in stages.items()))
    print(
        f"service at rest {resident_mb:.0f} MB, after all this {memory_mb(pid):.0f} MB (parent and worker of gunicorn)"
    )
    return {"ms": rows, "stages_ms": stages, "rest_mb": resident_mb, "end_mb": memory_mb(pid)}


def stage_means(metrics: str) -> dict[str, float]:
    figures = dict(
        line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("softmatcher_stage_seconds_")
    )
    names = [name.split('"')[1] for name in figures if "_count{" in name]
    return {
        name: 1000
        * float(figures[f'softmatcher_stage_seconds_sum{{stage="{name}"}}'])
        / float(figures[f'softmatcher_stage_seconds_count{{stage="{name}"}}'])
        for name in names
    }


def memory_mb(pid: int) -> float:
    """Resident memory of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(own.split()[1]) / 1024 + sum(memory_mb(int(child)) for child in children)


def wait_until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"not within {timeout_s} s")


if __name__ == "__main__":
    main()
