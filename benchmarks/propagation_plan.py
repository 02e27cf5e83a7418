"""`plan`: does a plan of 100,000 tasks need more memory than one of 1,000?

A simulated Label Studio that lists as many tasks as are asked for. The planner of a real worker's code in a process of
its own: peak memory during the plan, statements to the database, seconds; then a real service shows the status and the
page of the plan.
"""

import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import sqlalchemy as sa

from backend.cli.demo.coins import LABEL_CONFIG
from backend.cli.process.embedded_valkey import EmbeddedValkey
from backend.cli.process.supervisor import LOOPBACK, ProcessGroup, free_port
from backend.core.types import Json
from benchmarks.propagation_scene import in_own_process
from benchmarks.service import ANNOTATION, KEY, PROJECT, memory_mb, photograph, task, wait_until


class _ManyTasks(BaseHTTPRequestHandler):
    """As much of Label Studio as a plan asks for: `count` tasks, of which the first is annotated."""

    count = 0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path.startswith("/data/upload/"):
            return self._answer(photograph(0), "image/jpeg")
        answers = {"/api/projects/1/": PROJECT, "/api/annotations/1/": ANNOTATION, "/api/webhooks/": []}
        answer = self._list(parse_qs(address.query)) if address.path == "/api/tasks" else answers.get(address.path)
        return self._answer(json.dumps(answer).encode(), "application/json", 200 if answer is not None else 404)

    def _list(self, told: dict[str, list[str]]) -> Json:
        items = json.loads(told["query"][0]).get("filters", {}).get("items", [])
        after = max([item["value"] for item in items if item["filter"].endswith(":id")], default=0)
        size = int(told["page_size"][0])
        if any("total_annotations" in item["filter"] for item in items):
            return {
                "tasks": [{**task(1), "annotations": [{**ANNOTATION, "task": 1}]}] if after == 0 else [],
                "total": 1,
            }
        ids = range(after + 1, min(after + size, self.count) + 1)
        return {"tasks": [task(number) for number in ids], "total": self.count}

    def _answer(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No lines between the figures."""


def _serve_many(count: int, port: int) -> None:
    _ManyTasks.count = count
    ThreadingHTTPServer((LOOPBACK, port), _ManyTasks).serve_forever()


@contextmanager
def many_tasks(count: int) -> Iterator[str]:
    """A simulated Label Studio in a process of its own; its address."""
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(target=_serve_many, args=(count, port), daemon=True)
    server.start()
    url = f"http://{LOOPBACK}:{port}"
    wait_until(lambda: requests.get(f"{url}/api/projects/1/", timeout=5).ok)
    yield url
    server.terminate()
    server.join()


def measure_plan(count: int) -> Json:
    with tempfile.TemporaryDirectory() as folder, many_tasks(count) as url:
        figures: Json = in_own_process(_plan, url, f"{folder}/data")
        figures |= _show(url, folder)
    print(
        f"{count:7d} tasks: planned in {figures['plan_s']:.1f} s; planner's peak {figures['peak_mb']:.0f} MB, of which "
        f"{figures['growth_mb']:.1f} MB came with the plan; {figures['statements_a_task']:.4f} statements a task; "
        f"service's peak {figures['service_peak_mb']:.0f} MB, status {figures['status_ms']:.0f} ms, "
        f"page {figures['page_ms']:.0f} ms"
    )
    return figures


def _plan(url: str, data_dir: str, results: Any) -> None:
    from backend.projects.composition import open_projects
    from backend.settings import load_settings
    from backend.store.records import PropagationFilter

    projects = open_projects(load_settings(label_studio_url=url, label_studio_api_key="benchmark", data_dir=data_dir))
    projects.models.get(300)
    projects.store.save_project(KEY, label_config=LABEL_CONFIG)
    projects.references.reconcile(KEY)
    statements = 0

    def note(*_: Any) -> None:
        nonlocal statements
        statements += 1

    sa.event.listen(projects.store.engine, "before_cursor_execute", note)
    record = projects.propagations.start(KEY, PropagationFilter(), "benchmark", supersede=True)
    before_mb = _own_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    planned = projects.propagation_plans.plan(record.id)
    seconds = time.perf_counter() - began
    peak_mb = _own_mb("VmHWM")
    assert projects.store.propagations.get(record.id).state == "running", planned
    assert projects.store.propagation_tasks.counts(record.id).total == planned["planned"]
    results.put(
        {
            "plan_s": seconds,
            "peak_mb": peak_mb,
            "growth_mb": peak_mb - before_mb,
            "statements_a_task": statements / planned["planned"],
            "id": record.id,
            "maxrss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )


def _own_mb(name: str) -> float:
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) / 1024


def _show(label_studio_url: str, folder: str) -> Json:
    """What a real service needs to show the plan."""
    with ProcessGroup(Path(folder) / "logs") as processes:
        valkey = EmbeddedValkey(processes, Path(folder) / "valkey")
        port = free_port()
        url = f"http://{LOOPBACK}:{port}"
        environment = dict(os.environ) | {
            "LABEL_STUDIO_URL": label_studio_url,
            "LABEL_STUDIO_API_KEY": "benchmark",
            "REDIS_URL": valkey.url,
            "SOFTMATCHER_DATA_DIR": f"{folder}/data",
            "SOFTMATCHER_PORT": str(port),
        }
        service = processes.start("service", [sys.executable, "-m", "backend", "serve"], environment)
        processes.wait_for_http("service", f"{url}/health", timeout_s=180)
        wait_until(lambda: requests.get(f"{url}/health", timeout=30).json()["model"] == "ready")
        times: dict[str, list[float]] = {"status": [], "page": []}
        highest = [memory_mb(service.pid)]
        is_over = threading.Event()
        watcher = threading.Thread(target=lambda: _watch(service.pid, highest, is_over))
        watcher.start()
        for _ in range(15):
            for name, path in (("status", "/projects/1/propagations"), ("page", "/projects/1")):
                began = time.perf_counter()
                requests.get(f"{url}{path}", timeout=60).raise_for_status()
                times[name].append(1000 * (time.perf_counter() - began))
        is_over.set()
        watcher.join()
    valkey.close()
    return {
        "service_peak_mb": max(highest),
        "status_ms": statistics.median(times["status"]),
        "page_ms": statistics.median(times["page"]),
    }


def _watch(pid: int, highest: list[float], is_over: threading.Event) -> None:
    while not is_over.wait(0.05):
        highest.append(memory_mb(pid))
