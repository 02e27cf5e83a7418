"""Does an export of many tasks stay small, and how fast is it?

    python -m benchmarks.exports [--tasks 1000 20000] [--formats coco parquet] [--download 1000 20000] [--json FILE]

A simulated Label Studio lists as many annotated tasks as are asked for, each with one brush mask on a 320 x 240 px
image of its own content. The export runs as the command does, in a process of its own: its memory after the first 200
images and its peak, seconds, size of the data set; then once more into the same folder from a run that was broken off
in the middle, which must give the same bytes. With `--download`: the same from a real service over HTTP, and what
memory the service takes for it.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import requests

from backend.cli.demo.coins import COIN, LABEL_CONFIG
from backend.cli.process.embedded_valkey import EmbeddedValkey
from backend.cli.process.supervisor import LOOPBACK, ProcessGroup, free_port
from backend.core.types import Json
from benchmarks.service import PROJECT, memory_mb, photograph, wait_until

HEIGHT, WIDTH = 240, 320
_TASK = re.compile(r"/data/upload/1/([0-9]+)\.jpg")


class _ManyAnnotations(BaseHTTPRequestHandler):
    """As much of Label Studio as an export asks for."""

    count = 0
    image = b""
    regions: ClassVar[list[list[Json]]] = []
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if found := _TASK.fullmatch(address.path):
            # What follows a JPEG's end is no part of the picture, but of the file.
            return self._answer(self.image + found[1].encode(), "image/jpeg")
        if address.path == "/api/tasks":
            return self._json(self._list(parse_qs(address.query)))
        return self._json(PROJECT | {"label_config": LABEL_CONFIG})

    def _list(self, told: dict[str, list[str]]) -> Json:
        items = json.loads(told["query"][0]).get("filters", {}).get("items", [])
        if any(item["operator"] == "equal" for item in items):
            return {"tasks": [], "total": 0}
        after = max([item["value"] for item in items if item["filter"].endswith(":id")], default=0)
        ids = range(after + 1, min(after + int(told["page_size"][0]), self.count) + 1)
        return {"tasks": [self._task(number) for number in ids], "total": self.count}

    def _task(self, number: int) -> Json:
        moment = "2026-01-01T00:00:00Z"
        annotation = {
            "id": number, "completed_by": 1, "was_cancelled": False, "created_at": moment, "updated_at": moment,
            "result": self.regions[number % len(self.regions)],
        }  # fmt: skip
        data = {"image": f"/data/upload/1/{number}.jpg"}
        return {"id": number, "project": 1, "data": data, "annotations": [annotation], "predictions": []}

    def _json(self, answer: Json) -> None:
        self._answer(json.dumps(answer).encode(), "application/json")

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No lines between the figures."""


def _serve(count: int, port: int) -> None:
    import cv2
    import numpy as np

    from backend.labelstudio.codec import mask_to_region
    from backend.labelstudio.label_config import parse_label_config

    whole = cv2.imdecode(np.frombuffer(photograph(0), np.uint8), cv2.IMREAD_COLOR)
    _ManyAnnotations.image = cv2.imencode(".jpg", cv2.resize(whole, (WIDTH, HEIGHT)))[1].tobytes()
    brush = parse_label_config(LABEL_CONFIG).brush_for("image", COIN)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(50):
        wave = 40 + number + 8 * np.sin(np.arctan2(rows - 120, columns - 160) * 7)
        mask = np.hypot(rows - 120, columns - 160) < wave
        _ManyAnnotations.regions.append([mask_to_region(mask, brush=brush, label=COIN, score=0.9)])
    _ManyAnnotations.count = count
    ThreadingHTTPServer((LOOPBACK, port), _ManyAnnotations).serve_forever()


@contextmanager
def many_annotations(count: int) -> Iterator[str]:
    """The simulated Label Studio in a process of its own; its address."""
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(count, port), daemon=True)
    server.start()
    url = f"http://{LOOPBACK}:{port}"
    wait_until(lambda: requests.get(f"{url}/api/projects/1/", timeout=5).ok)
    yield url
    server.terminate()
    server.join()


def _export(url: str, folder: str, format_: str, stop_after: int | None, results: Any) -> None:
    from backend.exports.exporter import export_to_folder
    from backend.exports.options import options_from_texts
    from backend.exports.reading import open_project
    from backend.projects.composition import open_projects
    from backend.settings import load_settings

    settings = load_settings(label_studio_url=url, label_studio_api_key="benchmark", data_dir=f"{folder}/data")
    projects = open_projects(settings)
    project = open_project(projects, 1, projects.banks.version_of)
    seen, early_mb = 0, 0.0

    def on_task() -> None:
        nonlocal seen, early_mb
        seen += 1
        if seen == 200:
            early_mb = _own_mb("VmRSS")
        if seen == stop_after:
            raise KeyboardInterrupt

    began = time.perf_counter()
    try:
        report = export_to_folder(
            project, options_from_texts({"format": format_}), settings, Path(folder) / "out", threads=8, on_task=on_task
        )
    except KeyboardInterrupt:
        results.put({"stopped": seen})
        return
    results.put(
        {
            "seconds": time.perf_counter() - began, "images": report.images, "has_resumed": report.has_resumed,
            "early_mb": early_mb, "peak_mb": _own_mb("VmHWM"),
        }
    )  # fmt: skip


def _own_mb(name: str) -> float:
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) / 1024


def _in_own_process(*arguments: object) -> Json:
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    child = context.Process(target=_export, args=(*arguments, results))
    child.start()
    result: Json = results.get(timeout=3600)
    child.join()
    return result


def measure(count: int, format_: str, *, with_break: bool) -> Json:
    """One format at one size."""
    with tempfile.TemporaryDirectory() as folder, many_annotations(count) as url:
        figures = _in_own_process(url, folder, format_, None)
        out = Path(folder) / "out"
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        figures |= {"dataset_mb": size / 1e6, "growth_mb": figures["peak_mb"] - figures["early_mb"]}
        print(
            f"{format_:9s} {count:6d} tasks: {figures['seconds']:.0f} s, {count / figures['seconds']:.0f} tasks/s; "
            f"peak {figures['peak_mb']:.0f} MB, {figures['growth_mb']:.0f} MB more than after 200 tasks; "
            f"data set {figures['dataset_mb']:.0f} MB",
            flush=True,
        )
        if with_break:
            first = hashlib.sha256((out / "SHA256SUMS").read_bytes()).hexdigest()
            out.rename(Path(folder) / "first")
            stopped = _in_own_process(url, folder, format_, count // 2)
            resumed = _in_own_process(url, folder, format_, None)
            is_same = hashlib.sha256((out / "SHA256SUMS").read_bytes()).hexdigest() == first
            assert is_same
            assert resumed["has_resumed"] == (format_ != "parquet")
            figures["resumed_s"] = resumed["seconds"]
            print(
                f"  broken off after {stopped['stopped']} tasks, gone on: {resumed['seconds']:.0f} s more, same bytes: "
                f"{is_same}",
                flush=True,
            )
    return figures


def measure_download(count: int) -> Json:
    """A zip from a real service."""
    with (
        tempfile.TemporaryDirectory() as folder,
        many_annotations(count) as label_studio,
        ProcessGroup(Path(folder) / "logs") as processes,
    ):
        valkey, port = EmbeddedValkey(processes, Path(folder) / "valkey"), free_port()
        environment = dict(os.environ) | {
            "LABEL_STUDIO_URL": label_studio, "LABEL_STUDIO_API_KEY": "benchmark", "REDIS_URL": valkey.url,
            "SOFTMATCHER_DATA_DIR": f"{folder}/data", "SOFTMATCHER_PORT": str(port),
        }  # fmt: skip
        url = f"http://{LOOPBACK}:{port}"
        service = processes.start("service", [sys.executable, "-m", "backend", "serve"], environment)
        processes.wait_for_http("service", f"{url}/health", timeout_s=180)
        wait_until(lambda: requests.get(f"{url}/health", timeout=30).json()["model"] == "ready")
        before_mb = peak_mb = memory_mb(service.pid)
        began, first_s, received = time.perf_counter(), 0.0, 0
        with requests.get(f"{url}/projects/1/export?format=coco", stream=True, timeout=600) as answer:
            answer.raise_for_status()
            for number, chunk in enumerate(answer.iter_content(1 << 20)):
                first_s = first_s or time.perf_counter() - began
                received += len(chunk)
                if number % 10 == 0:
                    peak_mb = max(peak_mb, memory_mb(service.pid))
        seconds = time.perf_counter() - began
        valkey.close()
    print(
        f"download  {count:6d} tasks: {seconds:.0f} s, {received / 1e6:.0f} MB, first bytes after {first_s:.1f} s; "
        f"service {before_mb:.0f} MB before, at most {peak_mb:.0f} MB",
        flush=True,
    )
    return {"seconds": seconds, "mb": received / 1e6, "before_mb": before_mb, "peak_mb": peak_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="*", default=[1000, 20_000])
    parser.add_argument("--formats", nargs="+", default=["coco", "parquet"])
    parser.add_argument("--download", type=int, nargs="*", default=[], metavar="TASKS")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {
        f"{format_}-{count}": measure(count, format_, with_break=count == min(arguments.tasks))
        for format_ in arguments.formats
        for count in arguments.tasks
    } | {f"download-{count}": measure_download(count) for count in arguments.download}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
