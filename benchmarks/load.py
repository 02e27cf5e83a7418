"""Does the service stay up, quick and small under 50 clients at once?

    python -m benchmarks.load [--clients 50] [--minutes 5] [--json FILE]

A real service and worker (profile lite, embedded Valkey), a stub of Label Studio that serves the images. Each client
sends one request after the other without a pause: 40 % key points, 20 % one task predicted, 5 % batches of four, 15 %
webhooks, 20 % /health; seeded. What a client may get is the answer, or a 503 with Retry-After, which it keeps to;
anything else is an error, and the exit code is 1. Memory is told from when the first minute has gone.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests

from backend.cli.demo.coins import LABEL_CONFIG
from backend.cli.process.embedded_valkey import EmbeddedValkey
from backend.cli.process.supervisor import LOOPBACK, ProcessGroup, free_port
from benchmarks.service import (
    ANNOTATION,
    KEY,
    PROJECT,
    LabelStudioStub,
    memory_mb,
    region,
    task,
    wait_until,
)

IMAGES = 300
ANNOTATIONS = 40
MIX = {"key point": 40, "one task": 20, "batch of 4": 5, "webhook": 15, "health": 20}
WARM_UP_S = 60.0
SAMPLED_EVERY_S = 5.0


class Stub(LabelStudioStub):
    """With as many annotations as are announced, all on the same task."""

    def do_GET(self) -> None:  # noqa: N802
        name = self.path.split("?")[0]
        if name.startswith("/api/annotations/"):
            number = int(name.split("/")[3])
            return self._answer(json.dumps({**ANNOTATION, "id": number}).encode(), "application/json")
        return super().do_GET()


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


@dataclass
class Seen:
    """What the clients got; threads append."""

    milliseconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    busy: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


def requests_of(
    url: str, session: requests.Session, choose: random.Random
) -> dict[str, Callable[[], requests.Response]]:
    def predict(*numbers: int, context: object = None) -> requests.Response:
        body = {"tasks": [task(number) for number in numbers], "project": KEY, "label_config": LABEL_CONFIG}
        return session.post(f"{url}/predict", json={**body, "params": {"context": context}}, timeout=100)

    def key_point() -> requests.Response:
        number = choose.randrange(IMAGES)
        return predict(number, context={"result": [region(number)]})

    def webhook() -> requests.Response:
        event = {
            "action": "ANNOTATION_UPDATED",
            "project": PROJECT,
            "annotation": {"id": choose.randint(1, ANNOTATIONS)},
        }
        return session.post(f"{url}/webhook", json=event, timeout=100)

    return {
        "key point": key_point,
        "one task": lambda: predict(choose.randrange(IMAGES)),
        "batch of 4": lambda: predict(*(choose.randrange(IMAGES) for _ in range(4))),
        "webhook": webhook,
        "health": lambda: session.get(f"{url}/health", timeout=100),
    }


def client(url: str, seed: int, until: float, seen: Seen) -> None:
    choose = random.Random(seed)
    while time.monotonic() < until:
        (kind,) = choose.choices(list(MIX), list(MIX.values()))
        started = time.perf_counter()
        try:
            with requests.Session() as session:  # a connection a request, as Label Studio makes them
                response = requests_of(url, session, choose)[kind]()
            problem = what_is_wrong(kind, response)
        except requests.RequestException as error:
            response, problem = None, type(error).__name__
        milliseconds = 1000 * (time.perf_counter() - started)
        if problem:
            seen.errors[f"{kind}: {problem}"] += 1
        elif response is not None and response.status_code == 503:
            seen.busy[kind] += 1
            time.sleep(float(response.headers["Retry-After"]) * choose.uniform(0.8, 1.2))
        else:
            seen.milliseconds[kind].append(milliseconds)


def what_is_wrong(kind: str, response: requests.Response) -> str | None:
    if response.status_code == 503:
        return None if response.headers.get("Retry-After") else "503 without Retry-After"
    if response.status_code not in (200, 201):
        return f"{response.status_code} {response.text[:200]}"
    answer = response.json()
    if kind == "health" and answer["status"] != "UP":
        return "not up"
    if kind == "key point" and not answer["results"][0]["result"]:
        return "no mask"
    wanted = {"one task": 1, "batch of 4": 4}.get(kind)
    return f"{len(answer['results'])} results" if wanted and len(answer["results"]) != wanted else None


def sample(pids: dict[str, int], until: float, samples: list[dict[str, float]]) -> None:
    begun = time.monotonic()
    while time.monotonic() < until:
        files = sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in family(pids["service"]))
        memory = {name: memory_mb(pid) for name, pid in pids.items()}
        samples.append({"s": time.monotonic() - begun, "files": files, **memory})
        time.sleep(SAMPLED_EVERY_S)


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def run(url: str, pids: dict[str, int], clients: int, duration_s: float) -> dict[str, Any]:
    samples: list[Any] = []
    seen, until = Seen(), time.monotonic() + duration_s
    threads = [threading.Thread(target=client, args=(url, seed, until, seen)) for seed in range(clients)]
    threads.append(threading.Thread(target=sample, args=(pids, until, samples)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = {}
    for kind, times in sorted(seen.milliseconds.items()):
        ordered = sorted(times)
        percentiles = {f"p{p}": ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] for p in (50, 90, 95, 99)}
        rows[kind] = {"answered": len(times), "busy": seen.busy[kind], **percentiles, "max": ordered[-1]}
    settled = [each for each in samples if each["s"] >= min(WARM_UP_S, duration_s / 5)]
    return {
        "clients": clients, "seconds": duration_s, "ms": rows, "errors": dict(seen.errors),
        "answers_a_second": sum(len(times) for times in seen.milliseconds.values()) / duration_s,
        "memory_mb": {name: trend([each[name] for each in settled]) for name in (*pids, "files")},
        "samples": samples,
    }  # fmt: skip


def trend(values: list[float]) -> dict[str, float]:
    """Of the first and last fifth: their medians, and what grows in between."""
    fifth = max(1, len(values) // 5)
    first, last = statistics.median(values[:fifth]), statistics.median(values[-fifth:])
    return {"early": first, "late": last, "growth_percent": 100 * (last / first - 1), "peak": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    server = Server((LOOPBACK, 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder, ProcessGroup(Path(folder) / "logs") as processes:
        valkey = EmbeddedValkey(processes, Path(folder) / "valkey")
        url = f"http://{LOOPBACK}:{free_port()}"
        environment = os.environ | {
            "LABEL_STUDIO_URL": f"http://{LOOPBACK}:{server.server_port}", "LABEL_STUDIO_API_KEY": "benchmark",
            "REDIS_URL": valkey.url, "SOFTMATCHER_DATA_DIR": f"{folder}/data",
            "SOFTMATCHER_PORT": url.rpartition(":")[2],
        }  # fmt: skip
        command = [sys.executable, "-m", "backend"]
        service = processes.start("service", [*command, "serve"], environment)
        worker = processes.start("worker", [*command, "work"], environment)
        prepare(url)
        figures = run(url, {"service": service.pid, "worker": worker.pid}, arguments.clients, 60 * arguments.minutes)
        queued = requests.get(f"{url}/metrics", timeout=30).text
        figures["jobs_waiting"] = sum(
            float(line.rsplit(" ", 1)[1]) for line in queued.splitlines() if line.startswith("softmatcher_queue_jobs{")
        )
        tracebacks = sum(path.read_text().count("Traceback") for path in (service.log_path, worker.log_path))
        figures["tracebacks_in_logs"] = tracebacks
        valkey.close()
    report(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    if figures["errors"] or tracebacks:
        raise SystemExit(1)


def prepare(url: str) -> None:
    """Wait until it is up, connect, and give it a reference."""
    session = requests.Session()
    wait_until(lambda: session.get(f"{url}/health", timeout=5).json()["model"] == "ready")
    setup = {"project": KEY, "schema": LABEL_CONFIG, "hostname": url, "extra_params": None}
    session.post(f"{url}/setup", json=setup, timeout=30).raise_for_status()
    event = {"action": "ANNOTATION_CREATED", "project": PROJECT, "annotation": {"id": 1}}
    session.post(f"{url}/webhook", json=event, timeout=30).raise_for_status()
    wait_until(lambda: 'softmatcher_references{project="1"} 1.0' in session.get(f"{url}/metrics", timeout=5).text)


def report(figures: dict[str, Any]) -> None:
    print(
        f"{figures['clients']} clients, {figures['seconds']:.0f} s, {figures['answers_a_second']:.1f} answers a second"
    )
    print(f"{'':12s} {'answered':>8s} {'busy':>6s} {'p50':>8s} {'p90':>8s} {'p95':>8s} {'p99':>8s} {'max':>8s}   ms")
    for kind, row in figures["ms"].items():
        times = " ".join(f"{row[name]:8.0f}" for name in ("p50", "p90", "p95", "p99", "max"))
        print(f"{kind:12s} {row['answered']:8d} {row['busy']:6d} {times}")
    for name, row in figures["memory_mb"].items():
        unit = "open files" if name == "files" else "MB"
        change = f"{row['early']:.0f} -> {row['late']:.0f} {unit} ({row['growth_percent']:+.1f} %)"
        print(f"{name}: {change}, peak {row['peak']:.0f}")
    print(f"jobs waiting at the end: {figures['jobs_waiting']:.0f}; tracebacks: {figures['tracebacks_in_logs']}")
    print("errors:", figures["errors"] or "none")


if __name__ == "__main__":
    main()
