"""How long after `try` is started are masks on the images of a folder?

    python -m benchmarks.try_folder [FOLDER] --point 0.5,0.5

Starts `python -m backend try` (profile lite), asks as the page does, draws one point on the first image as soon as the
page is there, keeps the mask, and waits until all tiles of the page are predicted. Without a folder: 24 photographs cut
of scikit-image's, as the benchmarks of propagations have them.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from backend.cli.process.supervisor import free_port
from benchmarks.propagation_scene import photographs
from benchmarks.service import wait_until

_TILES = 24


def main() -> None:
    """Print the seconds from the start until the page, the first mask, and all masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--point", default="0.5,0.5", help="on the object of the first image, shares of its sides")
    arguments = parser.parse_args()
    x, y = map(float, arguments.point.split(","))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.folder is None:
            for name, content in photographs(_TILES).items():
                (Path(folder) / f"{name}.jpg").write_bytes(content)
        _measure(arguments.folder or Path(folder), (x, y))


def _measure(folder: Path, point: tuple[float, float]) -> None:
    started = time.perf_counter()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {what}", flush=True)

    with _running(folder) as url:
        wait_until(lambda: _is_up(url), 120)
        say("the page is there")
        ids = list(range(1, _TILES + 1))
        requests.post(f"{url}/gallery/visible", json={"ids": ids}, timeout=60).raise_for_status()
        drawn = _post(f"{url}/tasks/1/preview", {"label": "Object", "strokes": [{"points": [list(point)]}]})
        say("mask of the point")
        shown = _post(f"{url}/gallery/preview", {"name": drawn["name"], "ids": [2, 3, 4, 5]})["tiles"]
        say(f"{len(shown)} more images show what they would become")
        _post(f"{url}/gallery/keep", {"name": drawn["name"]})
        wait_until(lambda: sum(one != "unknown" for one in _states(url, ids)) > 1, 300)
        say("the first of the other tiles has its masks")
        wait_until(lambda: "unknown" not in _states(url, ids), 300)
        found = _states(url, ids)
        say(f"all {len(found)} tiles are predicted: {found.count('masks')} with masks, {found.count('empty')} without")


def _states(url: str, ids: list[int]) -> list[str]:
    answer = requests.get(f"{url}/gallery/tiles?ids={','.join(map(str, ids))}", timeout=60)
    return [one["state"] for one in answer.json()["tiles"] if not one["name"].startswith("task ")]


def _post(url: str, body: object) -> Any:
    answer = requests.post(url, json=body, timeout=120)
    answer.raise_for_status()
    return answer.json()


def _is_up(url: str) -> bool:
    try:
        return requests.get(url, timeout=60).ok
    except requests.RequestException:
        return False


@contextmanager
def _running(folder: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "backend", "try", str(folder), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}/projects/1"
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
