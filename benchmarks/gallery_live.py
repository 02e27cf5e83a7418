"""How long after *Submit* do the tiles of the project's page show the new masks?

    python -m benchmarks.gallery_live --submits 20 --tiles 24

A real Label Studio, service, queue and one worker (profile lite) on loopback, features cached. Each submit is an
annotation through Label Studio's API. A page is imitated by its own requests, at its own intervals: what is visible,
the counter, and the tiles if that grew. The next submit waits until Label Studio has all predictions.
"""

import argparse
import statistics
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import requests

from backend.core.types import Json
from benchmarks.propagation_scene import Scene, open_scene, photographs
from benchmarks.service import region, wait_until

_IDLE_S, _BUSY_S, _CHANGING_S, _LIVELY_S, _VISIBLE_AGAIN_S = 1.0, 0.25, 1.5, 5.0, 20.0
"""As `gallery.js` has them."""


def main() -> None:
    """Print the seconds until the first and until all tiles are new, and the processor time of a submit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--submits", type=int, default=20)
    parser.add_argument("--tiles", type=int, default=24)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_scene(Path(folder)) as scene:
        scene.start_workers(1)
        _measure(scene, arguments.submits, arguments.tiles)


class Page:
    """An open page: asks as `gallery.js` does, and notes when each tile was drawn with which model_version."""

    def __init__(self, scene: Scene, project: int, tasks: list[int]) -> None:
        self._scene, self._project, self._tasks = scene, project, tasks
        self.drawn: dict[int, tuple[str | None, float]] = {}
        self.status: Json = {}
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._is_closed.set()
        self._thread.join()

    def _run(self) -> None:
        counter, changed_at, noted_at, wait_s = -1, 0.0, 0.0, 0.0
        while not self._is_closed.wait(wait_s):
            if time.monotonic() - noted_at > _VISIBLE_AGAIN_S:
                noted_at = time.monotonic()
                _see(self._scene, self._project, self._tasks)
            self.status = self._scene.get(f"/projects/{self._project}/gallery/changes")
            if self.status["counter"] > counter:
                counter, changed_at = self.status["counter"], time.monotonic()
                for task, version in _by_task(self._scene, self._project, self._tasks).items():
                    if task not in self.drawn or self.drawn[task][0] != version:
                        self.drawn[task] = version, time.perf_counter()
            if self.status["is_busy"]:
                changed_at = time.monotonic()
            quiet_s = time.monotonic() - changed_at
            again_s = self.status["again_ms"] / 1000
            wait_s = again_s if quiet_s < _CHANGING_S else _BUSY_S if quiet_s < _LIVELY_S else _IDLE_S


def _measure(scene: Scene, submits: int, count: int) -> None:
    project, _, tasks = scene.new_project(photographs(count))
    page = Page(scene, project, tasks)
    wait_until(lambda: _is_settled(page, tasks), 300)
    first_s, all_s = [], []
    before = scene.cpu_s()
    for number in range(submits):
        time.sleep(_LIVELY_S + 1.0 + number % 4 * _IDLE_S / 4)  # the page asks once a second again
        known = dict(page.drawn)
        scene.label_studio.annotate(tasks[1 + number % (count - 1)], [region(1 + number % (count - 1))])
        submitted = time.perf_counter()
        wait_until(partial(_is_new, page, known), 120)
        seconds = sorted(at - submitted for _, at in page.drawn.values())
        first_s.append(seconds[0])
        all_s.append(seconds[-1])
        wait_until(lambda: _is_settled(page, tasks), 120)
    used = {name: (after - before[name]) / submits for name, after in scene.cpu_s().items()}
    page.close()
    for name, times_s in (("first tile", first_s), ("all tiles", all_s)):
        worst = sorted(times_s)[max(0, int(0.9 * len(times_s)) - 1)]
        print(f"{name} of {count}: median {statistics.median(times_s):.2f} s, 90 % within {worst:.2f} s")
    print("processor seconds a submit:", ", ".join(f"{name} {seconds:.2f}" for name, seconds in used.items()))
    started = scene.cpu_s()["service"]
    for _ in range(300):
        scene.get(f"/projects/{project}/gallery/changes")
    spent = scene.cpu_s()["service"] - started
    print(f"30 open pages ask 30 times a second: {spent / 10:.3f} of a core in the service")


def _is_new(page: Page, known: dict[int, tuple[str | None, float]]) -> bool:
    return all(page.drawn[task] != one for task, one in known.items())


def _is_settled(page: Page, tasks: list[int]) -> bool:
    """Return whether all tiles are of one version, and Label Studio has their predictions."""
    versions = {version for version, _ in page.drawn.values()}
    return (
        len(page.drawn) == len(tasks)
        and None not in versions
        and len(versions) == 1
        and not (page.status["is_busy"] or page.status["unwritten"])
    )


def _see(scene: Scene, project: int, tasks: list[int]) -> None:
    scene.post(f"/projects/{project}/gallery/visible", {"ids": tasks})


def _by_task(scene: Scene, project: int, tasks: list[int]) -> dict[int, str | None]:
    ids = ",".join(map(str, tasks))
    answer = requests.get(f"{scene.url}/projects/{project}/gallery/tiles?ids={ids}", timeout=60).json()
    return {one["id"]: one["version"] for one in answer["tiles"]}


if __name__ == "__main__":
    main()
