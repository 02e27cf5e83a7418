"""`faults`: what happens to a propagation when something breaks in the middle of it.

A real Label Studio (its own process, really killed), embedded Valkey with its append-only file, a service and two
workers (profile lite) that are started again when they end, as `up` does. Each fault strikes when a quarter of the
tasks is finished. Afterwards Label Studio is asked what it has: every task exactly one prediction of this backend, or
a failure with its reason. The disk fault needs the right to mount. Between backend and Label Studio stands a proxy, for
the faults of proxies.
"""

import json
import os
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests
from redis import Redis
from rich.console import Console

from backend.cli.demo.coins import LABEL_CONFIG
from backend.cli.up import Restarts
from backend.core.types import Json
from benchmarks.faulty_proxy import Answer, FaultyProxy
from benchmarks.propagation_scene import Scene, markdown, open_scene, photographs
from benchmarks.service import region, wait_until

_WORKERS = 2
_CACHE_MB, _DISK_MB = 60, 120
_BUDGET_S = 10
_CLIENT_WAITS_S = 30
"""For an answer of Label Studio."""
_LATE_S = 60
_TIDIED_WITHIN_S = 420
"""After an import without an answer surplus predictions are looked for once more, 300 s later."""
_IMPORTS = "/import/predictions"
_TOO_MANY = 3


@dataclass
class Case:
    """One propagation that something happens to.

    Attributes:
        scene: the running parts.
        proxy: between the backend and Label Studio.
        project: id in Label Studio.
        tasks: their ids.
        propagation: its id.
        remarks: for the table.
        afterwards: waits until what the fault left behind is over, when the propagation has ended.
    """

    scene: Scene
    proxy: FaultyProxy
    project: int
    tasks: list[int]
    propagation: int = 0
    remarks: list[str] = field(default_factory=list)
    afterwards: Callable[[], None] = lambda: None

    def status(self) -> Json:
        return self.scene.status(self.project, self.propagation)

    def until(self, condition: Callable[[Json], bool], timeout_s: float = 300) -> None:
        wait_until(lambda: condition(self.status()), timeout_s)

    def post(self, what: str, body: Json) -> Json:
        return self.scene.post(f"/projects/{self.project}/propagations/{self.propagation}/{what}", body)


def kill_worker(case: Case) -> None:
    """kill -9 of one of two workers while it has tasks."""
    began = time.monotonic()
    log_path = case.scene.folder / "logs" / "service.log"
    before = log_path.read_text().count("came back from a job that ended")
    case.scene.processes.kill(case.scene.workers[-1])
    with suppress(TimeoutError):
        wait_until(lambda: log_path.read_text().count("came back from a job that ended") > before, 60)
        case.remarks.append(f"its tasks were back after {time.monotonic() - began:.0f} s")


def end_worker(case: Case) -> None:
    """SIGTERM to both workers while they have tasks."""
    workers = [case.scene.processes[name] for name in case.scene.workers]
    began = time.monotonic()
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    while any(Path(f"/proc/{worker.pid}/exe").exists() for worker in workers):
        time.sleep(0.05)
    case.remarks.append(f"both had ended after {time.monotonic() - began:.1f} s")


def kill_service(case: Case) -> None:
    """kill -9 of the service; it is started again."""
    case.scene.processes.kill("service")


def kill_valkey(case: Case) -> None:
    """kill -9 of the queue, which keeps its data in an append-only file; it is started again."""
    case.scene.processes.kill("valkey")


def kill_label_studio(case: Case) -> None:
    """kill -9 of Label Studio, which comes back a minute later."""
    case.scene.server.kill("label-studio")
    pauses: list[bool] = []
    back_at = time.monotonic() + 60
    while time.monotonic() < back_at:
        with suppress(requests.RequestException):
            until = case.status()["paused_until"]
            if until is not None and (not pauses or until > pauses[-1] + 0.5):
                pauses.append(until)
        time.sleep(0.5)
    case.scene.server.restart("label-studio")
    case.remarks.append(f"paused {len(pauses)} times in that minute, each time longer")


def fill_disk(case: Case) -> None:
    """The disk of the workers' feature cache becomes full."""
    cache = case.scene.folder / "data" / "features"
    held = sum(1 for path in cache.rglob("*") if path.is_file())
    with suppress(OSError), (cache / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(1 << 16))
    case.remarks.append(f"{held} images were in the cache")


def lock_database(case: Case) -> None:
    """Another program holds SQLite's write lock for 10 s."""
    with closing(
        sqlite3.connect(case.scene.folder / "data" / "softmatcher.db", isolation_level=None, timeout=30)
    ) as db:
        db.execute("BEGIN IMMEDIATE")
        time.sleep(10)
        db.execute("ROLLBACK")


def delete_reference(case: Case) -> None:
    """One of two references is deleted."""
    annotations = case.scene.label_studio.call("GET", f"/api/tasks/{case.tasks[1]}/annotations/")
    case.scene.label_studio.delete_annotation(annotations[0]["id"])
    case.remarks.append("later tasks are predicted from the one that is left")


def cancel(case: Case) -> None:
    """Cancelled, looked at, and gone on with."""
    case.post("cancel", {})
    case.until(lambda status: status["counts"]["running"] == 0)
    status = case.status()
    assert status["state"] == "cancelled", status
    problem = verify(case, status)
    assert problem is None, problem
    case.remarks.append(f"cancelled after {status['counts']['done']}, the other {status['counts']['cancelled']} later")
    case.post("retry", {"what": "unfinished"})


def rename_brush(case: Case) -> None:
    """The brush gets another name in the label config: Label Studio drops predictions for the old one in silence."""
    dropped: list[int] = []

    def count(path: str, body: bytes, answer: Answer) -> None:
        if path.split("?")[0].endswith(_IMPORTS) and answer.status == 201:
            dropped.append(len(json.loads(body)) - int(json.loads(answer.body)["created"]))

    case.proxy.seen = count
    renamed = LABEL_CONFIG.replace('<BrushLabels name="brush"', '<BrushLabels name="mask"')
    assert renamed != LABEL_CONFIG
    # As one who has no webhook sees it: the imports themselves have to tell.
    for hook in case.scene.label_studio.webhooks(case.project):
        case.scene.label_studio.call("PATCH", f"/api/webhooks/{hook['id']}/", json={**hook, "is_active": False})
    case.scene.label_studio.update_project(case.project, label_config=renamed)
    case.afterwards = lambda: case.remarks.append(f"Label Studio dropped {sum(dropped)} predictions of imports")


def import_late(case: Case) -> None:
    """One import is done by Label Studio half a minute after the client has given up."""
    is_first, is_done, held = threading.Lock(), threading.Event(), list[Json]()

    def hold(method: str, path: str, body: bytes) -> Answer | None:
        if not path.split("?")[0].endswith(_IMPORTS) or not is_first.acquire(blocking=False):
            return None
        held.extend(json.loads(body))
        time.sleep(_LATE_S)
        done = case.scene.label_studio.call("POST", path, json=held)
        is_done.set()
        return Answer(201, json.dumps(done).encode(), {"Content-Type": "application/json"})

    case.proxy.fault = hold

    def wait() -> None:
        assert is_done.wait(_LATE_S + _CLIENT_WAITS_S), "no import was held"
        twice = [task for task, found in case.scene.label_studio.predictions(case.project).items() if len(found) > 1]
        began = time.monotonic()
        with suppress(TimeoutError):
            wait_until(lambda: max(map(len, case.scene.label_studio.predictions(case.project).values())) == 1,
                       _TIDIED_WITHIN_S)  # fmt: skip
        case.remarks.append(
            f"{len(held)} predictions came {_LATE_S - _CLIENT_WAITS_S} s after they were given up; {len(twice)} tasks "
            f"had two at the end, for {time.monotonic() - began:.0f} s"
        )

    case.afterwards = wait


def answer_404(case: Case) -> None:
    """A proxy answers every request for 20 s in Label Studio's place."""
    case.proxy.fault = lambda method, path, body: Answer(404, b"default backend - 404", {"Content-Type": "text/plain"})
    time.sleep(20)
    case.proxy.fault = None


def lock_images(case: Case) -> None:
    """Label Studio answers images with its login page for 7.5 s, then with its own 404 for 7.5 s."""

    def login(method: str, path: str, body: bytes) -> Answer | None:
        return Answer(302, b"", {"Location": f"/user/login/?next={path}"}) if path.startswith("/data/") else None

    def missing(method: str, path: str, body: bytes) -> Answer | None:
        answer = Answer(404, b'{"detail": "Not found."}', {"Content-Type": "application/json"})
        return answer if path.startswith("/data/") else None

    for case.proxy.fault in (login, missing):
        time.sleep(7.5)
    case.proxy.fault = None


def refuse_large(case: Case) -> None:
    """A proxy refuses imports of more than three predictions, and one task's always, until the end."""
    refused: list[int] = []

    def refuse(method: str, path: str, body: bytes) -> Answer | None:
        if method != "POST" or not path.split("?")[0].endswith((_IMPORTS, "/api/predictions/")):
            return None
        sent = json.loads(body)
        sent = sent if isinstance(sent, list) else [sent]
        if len(sent) <= _TOO_MANY and case.tasks[-1] not in [each["task"] for each in sent]:
            return None
        refused.append(len(sent))
        return Answer(413, b"<html><h1>413 Request Entity Too Large</h1></html>", {"Content-Type": "text/html"})

    case.proxy.fault = refuse
    case.afterwards = lambda: case.remarks.append(f"refused {len(refused)} times")


def empty_queue(case: Case) -> None:
    """Everything in the queue is gone: jobs, registered workers, settings."""
    with Redis.from_url(case.scene.environment["REDIS_URL"]) as queue:
        queue.flushall()


def nothing(case: Case) -> None:
    """The broken images are among the tasks from the beginning."""


def retrieve(scene: Scene, proxy: FaultyProxy, count: int, number: int) -> Json:
    """No propagation asked for: Label Studio's own «Retrieve predictions» of all tasks, more than fit into its time."""
    project, _, tasks = scene.new_project(photographs(count, seed=number + 1))
    before, before_in_service = predicted(scene), predicted(scene, "softmatcher_tasks_total")
    began = time.monotonic()
    scene.label_studio.retrieve_predictions(project, tasks)
    answered_s = time.monotonic() - began
    answered = sum(len(found) for found in scene.label_studio.predictions(project).values())
    case = Case(scene, proxy, project, tasks, scene.get(f"/projects/{project}/propagations")["propagations"][0]["id"])
    case.until(lambda status: not status["is_active"], 900)
    status, seconds = case.status(), time.monotonic() - began
    time.sleep(6)
    by_task = scene.label_studio.predictions(project)
    per_task = [len(by_task.get(task, [])) for task in tasks]
    in_service = predicted(scene, "softmatcher_tasks_total") - before_in_service
    return {
        "tasks": count,
        "done": sum(per_task),
        "failed": status["counts"]["failed"],
        "again": round(predicted(scene) - before + in_service) - sum(per_task),
        "seconds": seconds,
        "remarks": [f"answered after {answered_s:.0f} s", f"{status['counts']['total']} tasks went to the workers",
                    f"{answered} predictions were there at the answer"],
        "wrong": None if per_task == [1] * count else f"predictions a task: {sorted(set(per_task))}",
    }  # fmt: skip


FAULTS: dict[str, tuple[str, Callable[[Case], None]]] = {
    "none": ("nothing", nothing),
    "worker": ("a worker killed (-9)", kill_worker),
    "term": ("both workers asked to end", end_worker),
    "service": ("the service killed (-9)", kill_service),
    "valkey": ("Valkey killed (-9)", kill_valkey),
    "label-studio": ("Label Studio killed (-9), away for 60 s", kill_label_studio),
    "disk": ("disk of the feature cache full", fill_disk),
    "images": ("one image 404, one corrupt", nothing),
    "database": ("database locked for 10 s", lock_database),
    "reference": ("a reference deleted", delete_reference),
    "cancel": ("cancelled and gone on with", cancel),
    "validation": ("the brush renamed, no webhook", rename_brush),
    "late": ("an import done 60 s late", import_late),
    "ingress": ("a proxy's 404 to everything for 20 s", answer_404),
    "login": ("images: login page, then 404, for 15 s", lock_images),
    "413": ("a proxy's 413 for more than 3 predictions, and for one task", refuse_large),
    "flush": ("the queue emptied", empty_queue),
    "retrieve": ("«Retrieve predictions» instead, 10 s for the answer", nothing),
}


def measure_faults(count: int, names: list[str]) -> Json:
    """Run the faults one after the other.

    Raises:
        SystemExit: a task was lost, or predicted twice; after the table.
    """
    rows, figures = [], dict[str, Json]()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(FaultyProxy()) as proxy,
        small_disk(Path(folder) / "data" / "features") as has_disk,
        open_scene(
            Path(folder),
            through=proxy.lead_to,
            SOFTMATCHER_CACHE_MB=str(_CACHE_MB),
            SOFTMATCHER_PREDICT_BUDGET_S=str(_BUDGET_S),
        ) as scene,
        kept_running(scene),
    ):
        scene.start_workers(_WORKERS)
        for number, name in enumerate(names):
            if name == "disk" and not has_disk:
                print("disk: left out, this machine does not allow to mount a small one", flush=True)
                continue
            figures[name] = one = (
                retrieve(scene, proxy, count, number) if name == "retrieve" else run(scene, proxy, count, number, name)
            )
            rows.append(
                [FAULTS[name][0], one["tasks"], one["done"], one["failed"], one["again"], f"{one['seconds']:.0f}",
                 "; ".join(one["remarks"])]
            )  # fmt: skip
            print(f"{name}: {one}", flush=True)
    header = ["in the middle of it", "tasks", "one prediction", "failed, with reason", "predicted again", "s", ""]
    print(markdown(header, rows))
    wrong = {name: one["wrong"] for name, one in figures.items() if one["wrong"]}
    if wrong:
        raise SystemExit(f"wrong: {wrong}")
    return figures


def run(scene: Scene, proxy: FaultyProxy, count: int, number: int, name: str) -> Json:
    files = photographs(count, seed=number + 1)
    if name == "images":
        files[next(reversed(files))] = b"this is no image"
    project, _, tasks = scene.new_project(files)
    if name == "images":
        # Not read from Label Studio before: it would ask for a prediction of the task, as on opening it.
        gone = {"data": {"image": f"/data/upload/{project}/00000000-gone.jpg"}}
        scene.label_studio.call("PATCH", f"/api/tasks/{tasks[-2]}/", json=gone)
    if name == "reference":
        scene.label_studio.annotate(tasks[1], [region(1)])
        wait_until(lambda: scene.references(project) == 2.0)
    case = Case(scene, proxy, project, tasks)
    before = predicted(scene)
    case.propagation = int(scene.post(f"/projects/{project}/propagations", {})["id"])
    case.until(lambda status: status["counts"]["finished"] >= count // 4)
    at_fault = case.status()["counts"]["finished"]
    assert at_fault < count, f"{name}: it was over before anything could happen"
    FAULTS[name][1](case)
    case.until(lambda status: not status["is_active"], 900)
    case.afterwards()
    proxy.fault = proxy.seen = None
    status = case.status()
    # What workers counted reaches the queue with their heartbeats.
    time.sleep(6)
    counts = status["counts"]
    return {
        "tasks": counts["total"],
        "at_fault": at_fault,
        "done": counts["done"],
        "failed": counts["failed"],
        "again": max(0, round(predicted(scene) - before) - counts["done"]),
        "seconds": status["finished_at"] - status["created_at"],
        "remarks": case.remarks + [f"{one['count']}: {one['reason']}" for one in status["failures"]],
        "wrong": verify(case, status),
    }


def verify(case: Case, status: Json) -> str | None:
    """What is wrong with an ended propagation; None if every task has one prediction, or failed with a reason."""
    counts = status["counts"]
    by_task = case.scene.label_studio.predictions(case.project)
    per_task = [len(by_task.get(task, [])) for task in case.tasks]
    if counts["total"] != len(case.tasks) or counts["pending"] or counts["running"]:
        return f"tasks are missing or unfinished: {counts} of {len(case.tasks)}"
    if max(per_task) > 1 or sum(per_task) != counts["done"]:
        return f"{sum(per_task)} predictions, at most {max(per_task)} a task, for {counts}"
    if sum(one["count"] for one in status["failures"] if one["reason"]) != counts["failed"]:
        return f"failures without a reason: {status['failures']}"
    return None


def predicted(scene: Scene, figure: str = "softmatcher_worker_tasks_total") -> float:
    """Tasks that workers, or the service, have found something on so far."""
    with suppress(requests.RequestException):
        lines = requests.get(f"{scene.url}/metrics", timeout=30).text.splitlines()
        name = f'{figure}{{outcome="found"}}'
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)
    return 0.0


@contextmanager
def kept_running(scene: Scene) -> Iterator[None]:
    """What ends is started again, as `up` does it."""
    is_over = threading.Event()
    restarts = Restarts(scene.processes, Console(quiet=True))

    def look() -> None:
        while not is_over.wait(0.5):
            restarts.restart_ended()

    keeper = threading.Thread(target=look, daemon=True)
    keeper.start()
    yield
    is_over.set()
    keeper.join()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk with a little more room than the feature cache may take; False if this machine does not allow that."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True)
    yield mounted.returncode == 0
    if mounted.returncode == 0:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
