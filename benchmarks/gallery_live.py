"""How long after *Submit* do the tiles of the project's page show the new masks?

    python -m benchmarks.gallery_live --submits 20 --tiles 24

A real Label Studio, service, queue and one worker (profile lite) on loopback, features cached. Each submit is an
annotation through Label Studio's API; a page is imitated by its own requests: what is visible, and the counter.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import requests

from benchmarks.propagation_scene import Scene, open_scene, photographs
from benchmarks.service import region, wait_until

_POLL_S = 0.25
"""As the page does while something is under way; it asks once a second otherwise."""


def main() -> None:
    """Print the seconds until the first and until all tiles are new, and the processor time of a submit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--submits", type=int, default=20)
    parser.add_argument("--tiles", type=int, default=24)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_scene(Path(folder)) as scene:
        scene.start_workers(1)
        _measure(scene, arguments.submits, arguments.tiles)


def _measure(scene: Scene, submits: int, count: int) -> None:
    project, _, tasks = scene.new_project(photographs(count))
    _see(scene, project, tasks)
    wait_until(lambda: _versions(scene, project, tasks) is not None, 300)
    first_s, all_s = [], []
    before = scene.cpu_s()
    for number in range(submits):
        known = _by_task(scene, project, tasks)
        scene.label_studio.annotate(tasks[1 + number % (count - 1)], [region(1 + number % (count - 1))])
        submitted = time.perf_counter()
        first: float | None = None
        while True:
            found = _by_task(scene, project, tasks)
            fresh = [task for task in tasks if found[task] != known[task]]
            if fresh and first is None:
                first = time.perf_counter() - submitted
            if len(fresh) == len(tasks) and first is not None:
                break
            time.sleep(_POLL_S)
        first_s.append(first)
        all_s.append(time.perf_counter() - submitted)
        _see(scene, project, tasks)
        wait_until(lambda: not scene.get(f"/projects/{project}/gallery/changes")["is_busy"], 120)
    used = {name: (after - before[name]) / submits for name, after in scene.cpu_s().items()}
    for name, seconds in (("first tile", first_s), ("all tiles", all_s)):
        worst = sorted(seconds)[max(0, int(0.9 * len(seconds)) - 1)]
        print(f"{name} of {count}: median {statistics.median(seconds):.2f} s, 90 % within {worst:.2f} s")
    print("processor seconds a submit:", ", ".join(f"{name} {seconds:.2f}" for name, seconds in used.items()))
    started = scene.cpu_s()["service"]
    for _ in range(300):
        scene.get(f"/projects/{project}/gallery/changes")
    spent = scene.cpu_s()["service"] - started
    print(f"30 open pages ask 30 times a second: {spent / 10:.3f} of a core in the service")


def _see(scene: Scene, project: int, tasks: list[int]) -> None:
    scene.post(f"/projects/{project}/gallery/visible", {"ids": tasks})


def _by_task(scene: Scene, project: int, tasks: list[int]) -> dict[int, str | None]:
    ids = ",".join(map(str, tasks))
    answer = requests.get(f"{scene.url}/projects/{project}/gallery/tiles?ids={ids}", timeout=60).json()
    return {one["id"]: one["version"] for one in answer["tiles"]}


def _versions(scene: Scene, project: int, tasks: list[int]) -> str | None:
    versions = set(_by_task(scene, project, tasks).values())
    return next(iter(versions)) if len(versions) == 1 else None


if __name__ == "__main__":
    main()
