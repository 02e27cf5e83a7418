"""How long after `try` is started are masks on the images of a folder?

    python -m benchmarks.try_folder [FOLDER] --point 0.5,0.5
    python -m benchmarks.try_folder --drawn 10000

Starts `python -m backend try` (profile lite), asks as the page does, draws one point on the first image as soon as the
page is there, keeps the mask, and waits until all tiles of the page are predicted; then asks for pages from the first
to the last image while the others are predicted. Without a folder: 24 photographs cut of scikit-image's, as the
benchmarks of propagations have them; with --drawn, so many drawn images of 160 x 120 px, most of which show a red disc.
"""

import argparse
import html
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image, ImageDraw

from backend.cli.process.supervisor import free_port
from benchmarks.propagation_scene import photographs
from benchmarks.service import wait_until

_TILES = 24


def main() -> None:
    """Print the seconds from the start until the page, the first mask, and all masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--point", default="0.5,0.5", help="on the object of the first image, shares of its sides")
    parser.add_argument("--drawn", type=int, default=0, help="number of drawn images")
    arguments = parser.parse_args()
    x, y = map(float, arguments.point.split(","))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.drawn:
            draw_images(Path(folder), arguments.drawn)
        elif arguments.folder is None:
            for name, content in photographs(_TILES).items():
                (Path(folder) / f"{name}.jpg").write_bytes(content)
        _measure(arguments.folder or Path(folder), (x, y))


def draw_images(folder: Path, count: int) -> None:
    """Draw discs on noise, a thousand files a folder; the first disc is in the middle."""
    random = np.random.default_rng(0)
    noise = [random.normal(110, 12, (120, 160, 3)) for _ in range(16)]
    for number in range(count):
        pixels = np.clip(noise[number % 16] + random.normal(0, 4, 3), 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        pen = ImageDraw.Draw(image)
        x, y, radius = (80, 60, 20) if not number else random.integers((30, 30, 12), (130, 90, 24))
        if number % 7 != 6:
            colour = (200, int(random.integers(20, 60)), 40)
            pen.ellipse([(int(x - radius), int(y - radius)), (int(x + radius), int(y + radius))], fill=colour)
        left, top = (int(one) for one in random.integers((5, 5), (20, 90)))
        pen.rectangle([(left, top), (left + 12, top + 20)], fill=(40, 60, int(random.integers(150, 220))))
        part = folder / f"part-{number // 1000}"
        part.mkdir(exist_ok=True)
        image.save(part / f"image-{number}.jpg", quality=88)


def _measure(folder: Path, point: tuple[float, float]) -> None:
    started = time.perf_counter()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {what}", flush=True)

    with _running(folder) as (url, process):
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
        _turn_pages(url, say)
        say(f"the server's processes have used up to {', '.join(f'{each:.0f}' for each in _used_mb(process.pid))} MB")


def _used_mb(pid: int) -> list[float]:
    """Return the most memory that a process, and each one that it started, has had."""
    used = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*([int(used[1]) / 1e3] if used else []), *(each for child in children for each in _used_mb(child))]


def _turn_pages(url: str, say: Callable[[str], None]) -> None:
    """Ask for every page, from the first to the last."""
    times_s: list[float] = []
    address = url
    while address:
        started = time.perf_counter()
        page = requests.get(address, timeout=60)
        times_s.append(time.perf_counter() - started)
        page.raise_for_status()
        following = re.search(r'id="following" href="([^"]+)"', page.text)
        address = f"{url.partition('/projects')[0]}{html.unescape(following[1])}" if following else ""
    median_ms, worst_ms = 1e3 * statistics.median(times_s), 1e3 * max(times_s)
    say(f"{len(times_s)} pages: median {median_ms:.0f} ms, longest {worst_ms:.0f} ms")


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
def _running(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    port = free_port()
    command = [sys.executable, "-m", "backend", "try", str(folder), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}/projects/1", process
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
