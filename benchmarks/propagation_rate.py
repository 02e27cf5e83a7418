"""`rate`: tasks a second with one worker and with two, beside the pipeline alone, and what labelers wait meanwhile.

A real Label Studio, service and workers (profile lite, embedded Valkey) on 640 x 480 px photographs made of
scikit-image's astronaut, no two the same; no feature cache on disk. In this order:

1. key points at rest, through Label Studio;
2. the pipeline alone on the same files, in a process of a worker's priority, nothing else running: one image at a time
   on all cores, and two at a time on half of them each, as a worker does it;
3. all tasks with one worker; all tasks with two; nobody asks for anything meanwhile but the status every 2 s;
4. a part of the tasks with two workers, and a key point asked for every second;
5. the pipeline alone once more: a machine's speed drifts.

Every process' processor time is counted: Label Studio itself computes on the same cores.
"""

import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from backend.cli.demo.coins import COIN, LABEL_CONFIG
from backend.cli.demo.label_studio_server import LabelStudio
from backend.core.types import Json
from backend.jobs.worker import NICENESS
from backend.settings import CONCURRENT_BATCHES
from benchmarks.propagation_scene import Scene, in_own_process, markdown, open_scene, photographs
from benchmarks.service import region

_WITH_KEY_POINTS = 150
"""Tasks of the propagation beside which key points are asked for."""


def measure_rate(count: int, alone: int) -> Json:
    with tempfile.TemporaryDirectory() as folder, open_scene(Path(folder), SOFTMATCHER_CACHE_MB="0") as scene:
        files = photographs(count)
        scene.start_workers(1)
        project, connection, tasks = scene.new_project(files)
        idle = key_points_ms(scene.label_studio, connection, tasks[:5], 20)
        some = list(files.values())[: min(alone, count)]
        figures: Json = {"tasks": count, "cores": os.cpu_count(), "load": os.getloadavg()[0], "idle_ms": idle}
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        figures["alone"] = {
            concurrent_batches: [measure_alone(some, scene, project, concurrent_batches)]
            for concurrent_batches in (1, CONCURRENT_BATCHES)
        }
        for workers, limit, with_key_points in (
            (1, count, False),
            (2, count, False),
            (2, min(count, _WITH_KEY_POINTS), True),
        ):
            scene.start_workers(workers)
            name = f"{workers} worker{'s' if workers > 1 else ''}{', key points' if with_key_points else ''}"
            figures[name] = measure_propagation(scene, project, connection, tasks, limit, with_key_points)
            print(f"{name}: {_line(figures[name])}", flush=True)
            scene.label_studio.delete_predictions(project, tasks)
        for name in scene.workers:
            scene.processes.stop(name)
        scene.workers.clear()
        for concurrent_batches, measured in figures["alone"].items():
            measured.append(measure_alone(some, scene, project, concurrent_batches))
    print(table(figures))
    return figures


def measure_propagation(
    scene: Scene, project: int, connection: int, tasks: list[int], limit: int, with_key_points: bool
) -> Json:
    """Run one to its end, and look in Label Studio what came of it."""
    during: list[float] = []
    before_s, began = scene.cpu_s(), time.monotonic()
    started = scene.post(f"/projects/{project}/propagations", {"limit": limit})
    while (status := scene.status(project, started["id"]))["is_active"]:
        if with_key_points and status["counts"]["finished"] > 5:
            during += key_points_ms(scene.label_studio, connection, tasks[:5], 1)
            time.sleep(1)
        else:
            time.sleep(2)
    after_s, wall_s = scene.cpu_s(), time.monotonic() - began
    seconds = status["finished_at"] - status["started_at"]
    per_task = [len(found) for found in scene.label_studio.predictions(project).values()]
    return {
        "per_s": status["counts"]["finished"] / seconds,
        "seconds": seconds,
        "wall_s": wall_s,
        "counts": status["counts"],
        "predictions": sum(per_task),
        "most_a_task": max(per_task, default=0),
        "cpu_s": {name: after_s[name] - before_s[name] for name in after_s},
        "key_point_ms": during,
        "load": os.getloadavg()[0],
    }


def measure_alone(contents: list[bytes], scene: Scene, project: int, concurrent_batches: int) -> Json:
    figures: Json = in_own_process(_pipeline_alone, contents, scene.folder / "data", project, concurrent_batches)
    print(
        f"pipeline alone, {concurrent_batches} image{'s' if concurrent_batches > 1 else ''} at a time: "
        f"{figures['per_s']:.2f} images/s, {figures['cpu_s']:.2f} s of processor an image",
        flush=True,
    )
    return figures


def key_points_ms(label_studio: LabelStudio, connection: int, tasks: list[int], count: int) -> list[float]:
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


def _pipeline_alone(contents: list[bytes], data_dir: Path, project: int, concurrent_batches: int, results: Any) -> None:
    """Images a second: decode, encode, match, segment, run-length encode, with the project's own reference."""
    # As the workers do: on a machine where others compute, too, their share of the cores would else not be the same.
    os.nice(NICENESS)
    from backend.engine.loading import load_softmatcher
    from backend.labelstudio.codec import mask_to_region
    from backend.labelstudio.image_decoding import decode_image
    from backend.labelstudio.label_config import parse_label_config
    from backend.models.device.placement import choose_device, good_threads, set_threads
    from backend.store import Store

    set_threads(good_threads(choose_device("cpu"), concurrent_batches))
    softmatcher = load_softmatcher("lite")
    store = Store(f"sqlite:///{data_dir / 'softmatcher.db'}")
    key = next(record.key for record in store.projects() if record.project_id == project)
    stored = store.references(key, labels=None, signature=softmatcher.signature)
    bank = {COIN: softmatcher.gather([one.reference for one in stored if one.reference is not None])}
    store.close()
    brush = parse_label_config(LABEL_CONFIG).brush_for("image", COIN)

    def predict(content: bytes) -> None:
        encoded = softmatcher.encode(decode_image(content, 120_000_000))
        for found in softmatcher.segment(encoded, bank):
            mask_to_region(found.mask, brush=brush, label=found.label, score=found.score)

    with ThreadPoolExecutor(concurrent_batches) as pool:
        list(pool.map(predict, contents[:4]))
        began, cpu_began = time.perf_counter(), time.process_time()
        list(pool.map(predict, contents))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    results.put({"per_s": len(contents) / seconds, "cpu_s": cpu_s / len(contents), "images": len(contents)})


def _line(one: Json) -> str:
    counts = one["counts"]
    shares = ", ".join(f"{name} {seconds / one['wall_s']:.2f}" for name, seconds in one["cpu_s"].items())
    return (
        f"{one['per_s']:.2f} tasks/s over {one['seconds']:.0f} s; {counts['done']} done, {counts['empty']} empty, "
        f"{counts['failed']} failed, at most {one['most_a_task']} predictions a task; cores in use: {shares}; "
        f"load {one['load']:.1f}"
    )


def table(figures: Json) -> str:
    """The table of the documentation."""
    alone = {
        concurrent_batches: statistics.mean(one["per_s"] for one in measured)
        for concurrent_batches, measured in figures["alone"].items()
    }
    rest_ms = statistics.median(figures["idle_ms"])
    rows: list[list[object]] = []
    for concurrent_batches, measured in figures["alone"].items():
        both = " and ".join(f"{one['per_s']:.2f}" for one in measured)
        name = f"pipeline alone, {concurrent_batches} image{'s' if concurrent_batches > 1 else ''} at a time ({both})"
        rows.append(
            [name, f"{alone[concurrent_batches]:.2f}", "", "", f"{1e6 / alone[concurrent_batches] / 3600:.0f} h", ""]
        )
    for name in ("1 worker", "2 workers", "2 workers, key points"):
        one = figures[name]
        during = one["key_point_ms"]
        wait = f"{statistics.median(during):.0f} ms, {statistics.median(during) / rest_ms:.2f} times" if during else ""
        server = one["cpu_s"]["label-studio"] / one["counts"]["finished"]
        shares = ", ".join(f"{one['per_s'] / alone[concurrent_batches]:.0%}" for concurrent_batches in alone)
        rows.append(
            [name, f"{one['per_s']:.2f}", shares, f"{server:.3f} s", f"{1e6 / one['per_s'] / 3600:.0f} h", wait]
        )
    header = ["", "tasks/s", "of alone", "Label Studio's processor time a task", "1 million tasks"]
    return markdown([*header, f"key point (at rest {rest_ms:.0f} ms)"], rows)
