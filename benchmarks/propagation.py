"""How fast is a propagation, does it leave the labelers' answers quick, and does a long plan stay small?

    python benchmarks/propagation.py rate [--tasks 500] [--alone 60] [--json FILE]
    python benchmarks/propagation.py plan [--tasks 1000 100000] [--json FILE]

`rate`: a real Label Studio, service and workers (profile lite, embedded Valkey) on 640 x 480 px photographs made of
scikit-image's astronaut, no two the same, no feature cache on disk. First the pipeline alone on the same files, in a
process of the workers' priority; then a propagation with one worker, then one with two, with a key point asked for
every second. Interactive answers are asked for before, too: at rest.

`plan`: a simulated Label Studio that lists as many tasks as are asked for. The planner of a real worker's code in a
process of its own: peak memory during the plan, statements to the database, seconds; then a real service shows the
status and the page of the plan.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import sqlalchemy as sa
from service import ANNOTATION, HEIGHT, KEY, PROJECT, WIDTH, memory_mb, photograph, region, task, wait_until

from backend.cli.label_studio_server import TOKEN, LabelStudio, label_studio_program, start_label_studio
from backend.cli.processes import LOOPBACK, EmbeddedValkey, ProcessGroup, free_port
from backend.cli.sample import COIN, LABEL_CONFIG
from backend.worker import NICENESS

Json = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rate = commands.add_parser("rate")
    rate.add_argument("--tasks", type=int, default=500)
    rate.add_argument("--alone", type=int, default=60, help="images for the pipeline alone")
    plan = commands.add_parser("plan")
    plan.add_argument("--tasks", type=int, nargs="+", default=[1000, 100_000])
    for each in (rate, plan):
        each.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "rate":
        figures = measure_rate(arguments.tasks, arguments.alone)
    else:
        figures = {str(count): measure_plan(count) for count in arguments.tasks}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


# -- rate


def measure_rate(count: int, alone: int) -> Json:
    with tempfile.TemporaryDirectory() as folder, ProcessGroup(Path(folder) / "logs", grace_s=30) as processes:
        root = Path(folder)
        label_studio = start_label_studio(processes, label_studio_program(), root / "label-studio", free_port())
        valkey = EmbeddedValkey(processes, root / "valkey")
        port = free_port()
        url = f"http://{LOOPBACK}:{port}"
        environment = dict(os.environ) | {
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": TOKEN,
            "REDIS_URL": valkey.url,
            "SOFTMATCHER_DATA_DIR": f"{folder}/data",
            "SOFTMATCHER_PORT": str(port),
            "SOFTMATCHER_CACHE_MB": "0",
        }
        backend = [sys.executable, "-m", "backend"]
        service = processes.start("service", [*backend, "serve"], environment)
        processes.wait_for_http("service", f"{url}/health", timeout_s=180)
        wait_until(lambda: requests.get(f"{url}/health", timeout=30).json()["model"] == "ready")
        project = label_studio.create_project("propagation", LABEL_CONFIG)
        files = {f"photograph-{number}": photograph(number) for number in range(count)}
        tasks = upload(label_studio, project, files)
        connection = label_studio.connect_backend(project, url)
        processes.start("worker-1", [*backend, "work"], environment)
        label_studio.annotate(tasks[0], [region(0)])
        wait_until(lambda: f'softmatcher_references{{project="{project}"}} 1.0' in metrics(url))

        idle = interactive_ms(label_studio, connection, tasks[:5], 20)
        reference = (root / "data", project)
        some = [files[f"photograph-{number}"] for number in range(min(alone, count))]
        alone_rate = in_own_process(_pipeline_alone, some, reference)
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(f"pipeline alone                 {alone_rate:6.2f} tasks/s ({min(alone, count)} images)")
        figures: Json = {"alone_per_s": alone_rate, "idle_ms": idle, "load": os.getloadavg()[0]}
        for workers in (1, 2):
            if workers == 2:
                label_studio.delete_predictions(project, tasks)
                processes.restart("worker-1")
                processes.start("worker-2", [*backend, "work"], environment)
                wait_until(lambda: workers_ready(processes, ("worker-1", "worker-2")))
            status, during = propagate(label_studio, url, project, connection, tasks)
            seconds = status["finished_at"] - status["started_at"]
            per_task = [len(found) for found in label_studio.predictions(project).values()]
            rate = status["counts"]["finished"] / seconds
            print(
                f"{workers} worker{'s' if workers > 1 else ' '}                      {rate:6.2f} tasks/s "
                f"({rate / alone_rate:.0%} of the pipeline alone), {status['counts']['done']} done, "
                f"{status['counts']['empty']} empty, {status['counts']['failed']} failed, "
                f"most predictions a task {max(per_task)}; load {os.getloadavg()[0]:.1f}"
            )
            middle, at_rest = statistics.median(during), statistics.median(idle)
            print(
                f"  key point meanwhile: median {middle:.0f} ms (n {len(during)}), at rest {at_rest:.0f} ms: "
                f"{middle / at_rest:.2f} times"
            )
            figures[f"workers_{workers}"] = {"per_s": rate, "seconds": seconds, "key_point_ms": during, **status}
        print(f"service {memory_mb(service.pid):.0f} MB, worker {memory_mb(processes['worker-1'].pid):.0f} MB")
        hours = [1e6 / figures[f"workers_{workers}"]["per_s"] / 3600 for workers in (1, 2)]
        print(f"1 million tasks at these rates: {hours[0]:.0f} h with one worker, {hours[1]:.0f} h with two")
    valkey.close()
    return figures


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


def propagate(
    label_studio: LabelStudio, url: str, project: int, connection: int, tasks: list[int]
) -> tuple[Json, list[float]]:
    """Run one; its last status, and the milliseconds of key points that were asked for meanwhile."""
    started = requests.post(f"{url}/projects/{project}/propagations", json={}, timeout=60).json()
    address = f"{url}/projects/{project}/propagations/{started['id']}"
    during: list[float] = []
    while True:
        status: Json = requests.get(address, timeout=60).json()
        if not status["is_active"]:
            return status, during
        if status["counts"]["finished"] > 5:
            during += interactive_ms(label_studio, connection, tasks[:5], 1)
        time.sleep(1)


def interactive_ms(label_studio: LabelStudio, connection: int, tasks: list[int], count: int) -> list[float]:
    """Milliseconds of key points on images that were open before, through Label Studio."""
    if count > 1:
        for each in tasks:
            label_studio.interact(connection, each, [region(0)])
    times = []
    for number in range(count):
        began = time.perf_counter()
        answer = label_studio.interact(connection, tasks[number % len(tasks)], [region(0)])
        times.append(1000 * (time.perf_counter() - began))
        assert "data" in answer, answer
    return times


def in_own_process(function: Callable[..., None], *arguments: object) -> Any:
    """What the function puts into the queue that is its last argument."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    child = context.Process(target=function, args=(*arguments, results))
    child.start()
    result = results.get(timeout=3600)
    child.join()
    return result


def _pipeline_alone(contents: list[bytes], reference: tuple[Path, int], results: Any) -> None:
    """Images a second: decode, encode, match, segment, run-length encode, with the project's own reference."""
    # As the workers do: on a machine where others compute, too, their share of the cores would else not be the same.
    os.nice(NICENESS)
    from backend.labelstudio.codec import mask_to_region
    from backend.labelstudio.image_decoding import decode_image
    from backend.labelstudio.label_config import parse_label_config
    from backend.pipeline import load_softmatcher
    from backend.store import Store

    softmatcher = load_softmatcher("lite")
    data_dir, project = reference
    store = Store(f"sqlite:///{data_dir / 'softmatcher.db'}")
    key = next(record.key for record in store.projects() if record.project_id == project)
    stored = store.references(key, labels=None, signature=softmatcher.signature)
    references = {COIN: [one.reference for one in stored if one.reference is not None]}
    store.close()
    brush = parse_label_config(LABEL_CONFIG).brush_for("image", COIN)

    def predict(content: bytes) -> None:
        encoded = softmatcher.encode(decode_image(content, 120_000_000))
        for found in softmatcher.segment(encoded, references):
            mask_to_region(found.mask, brush=brush, label=found.label, score=found.score)

    for content in contents[:3]:
        predict(content)
    began = time.perf_counter()
    for content in contents:
        predict(content)
    results.put(len(contents) / (time.perf_counter() - began))


def metrics(url: str) -> str:
    return requests.get(f"{url}/metrics", timeout=30).text


def workers_ready(processes: ProcessGroup, names: tuple[str, ...]) -> bool:
    return all("models ready" in processes[name].last_lines(500) for name in names)


# -- plan


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
    from backend.projects import open_projects
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

    sa.event.listen(projects.store._engine, "before_cursor_execute", note)
    record = projects.propagations.start(KEY, PropagationFilter(), "benchmark", supersede=True)
    before_mb = _own_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    planned = projects.propagations.plan(record.id)
    seconds = time.perf_counter() - began
    peak_mb = _own_mb("VmHWM")
    assert projects.store.propagations.get(record.id).state == "running", planned
    assert projects.store.propagations.counts(record.id).total == planned["planned"]
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


if __name__ == "__main__":
    assert (HEIGHT, WIDTH) == (480, 640)
    main()
