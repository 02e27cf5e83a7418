"""Does a page of the gallery stay quick with 100,000 tasks?

    python -m benchmarks.gallery_pages --tasks 100000

Fills a SQLite store with tiles of two labels, and asks for the first and for a late page of 24, by filter and order.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from backend.store import Store, tables
from backend.store.records import TileFilter

_KEY = "1.1"
_PATH = "M" + " 10 10" * 40 + "Z"
_ROWS_A_STATEMENT = 5000


def main() -> None:
    """Print milliseconds, the median of 20 requests each, and the size of the store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    count = parser.parse_args().tasks
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{folder}/store.db")
        store.create_tables()
        store.save_project(_KEY, label_config="<View/>")
        _fill(store, count)
        for order in ("id", "score", "certainty", "change"):
            for state, label in ((None, None), ("failed", None), ("changed", None), ("annotated", None), (None, "Dog")):
                _time(store, order, state, label)
        print(f"counts by state: {_median_ms(partial(store.tiles.counts, _KEY)):.1f} ms")
        print(f"{Path(folder, 'store.db').stat().st_size / count:.0f} bytes a task")
        store.close()


def _fill(store: Store, count: int) -> None:
    chance = random.Random(0)
    for start in range(1, count + 1, _ROWS_A_STATEMENT):
        tiles, labels, annotations = [], [], []
        for task_id in range(start, min(start + _ROWS_A_STATEMENT, count + 1)):
            state = chance.choices(("masks", "empty", "failed"), (90, 9, 1))[0]
            score = chance.random()
            tiles.append({
                "project_key": _KEY, "task_id": task_id, "state": state, "score": score, "certainty": score / 2,
                "change": max(0.0, chance.random() - 0.9), "counter": 1, "model_version": "v", "is_written": True,
                "reason": None, "image_tag": "image", "height": 480, "width": 640, "updated_at": 0.0,
                "regions": f'[["Cat", {score}, "{_PATH}"]]', "before": "[]",
            })  # fmt: skip
            labels.append(
                {"project_key": _KEY, "task_id": task_id, "label": chance.choice(("Cat", "Dog")), "score": score}
            )
            if not task_id % 50:
                annotations.append({
                    "project_key": _KEY, "annotation_id": task_id, "task_id": task_id, "updated_at": "",
                    "updated_us": 0, "signature": "", "content_digest": "",
                })  # fmt: skip
        with store.write() as connection:
            for table, rows in ((tables.tiles, tiles), (tables.tile_labels, labels), (tables.annotations, annotations)):
                connection.execute(sa.insert(table), rows)


def _time(store: Store, order: str, state: str | None, label: str | None) -> None:
    first = TileFilter(order=order, state=state, label=label)
    middle = {"id": (50_000.0, 50_000), "score": (0.5, 0), "certainty": (0.25, 0), "change": (0.05, 0)}[order]
    late = TileFilter(order=order, state=state, label=label, after=middle)
    figures = [_median_ms(partial(store.tiles.page, _KEY, wanted)) for wanted in (first, late)]
    print(f"{order:10} {state or label or 'all':10} first page {figures[0]:6.1f} ms, late page {figures[1]:6.1f} ms")


def _median_ms(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    main()
