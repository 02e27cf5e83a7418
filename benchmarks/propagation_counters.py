"""Do page and status stay quick with propagations of a hundred thousand tasks, and what do counters cost?

    python -m benchmarks.propagation_counters [--tasks 10000,100000] [--kept 5] [--json FILE]

A SQLite store with a project's propagations, as many as the page lists, all tasks done. Processor time of what the page
asks of them (counts of each, and how many tasks of the newest are outdated) beside counting the rows, as before, in
interleaved runs; and of a worker's lease and finish of 32 tasks.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from backend.store import Store, tables
from backend.store.propagation_counts import recount_all
from backend.store.records import PropagationFilter, TaskOutcome

KEY = "1.1795365244"
RUNS = 7
BATCH = 32
_rows = tables.propagation_tasks


def filled_store(folder: Path, tasks: int, kept: int) -> tuple[Store, list[int]]:
    """Return a store with propagations of so many done tasks, and their ids."""
    store = Store(f"sqlite:///{folder}/store.db")
    store.create_tables()
    store.save_project(KEY)
    identifiers = []
    for _ in range(kept):
        made = store.propagations.create(KEY, PropagationFilter(), "me", supersede=True, planned_tasks=range(tasks))
        identifiers.append(made.id)
        with store.write() as connection:
            done = {"state": "done", "finished_at": 1.0, "model_version": "v1", "score": 0.5}
            mine = sa.update(_rows).where(_rows.c.propagation_id == made.id)
            connection.execute(mine.values(done))
    with store.write() as connection:
        recount_all(connection)
    return store, identifiers


def counted(store: Store, identifiers: list[int]) -> list[object]:
    """Return what the page shows, as it was counted before there were counters."""
    since = time.time() - 60.0
    lately = sa.case((_rows.c.finished_at > since, 1), else_=0)
    found: list[object] = []
    for identifier in identifiers:
        grouped = sa.select(_rows.c.state, sa.func.count(), sa.func.sum(lately))
        found += store.read(grouped.where(_rows.c.propagation_id == identifier).group_by(_rows.c.state))
    mine = (_rows.c.propagation_id == identifiers[-1]) & _rows.c.state.in_(("done", "empty"))
    found += store.read(sa.select(sa.func.count()).where(mine, _rows.c.model_version != "v2"))
    return found


def kept_counters(store: Store, identifiers: list[int]) -> list[object]:
    """Return what the page shows."""
    tasks = store.propagation_tasks
    return [*(tasks.counts(one) for one in identifiers), tasks.count_outdated(identifiers[-1], "v2")]


def work(store: Store, identifier: int) -> float:
    """Return the processor time of a batch's lease and finish, s."""
    began = time.process_time()
    ids = store.propagation_tasks.lease(identifier, "w:1", BATCH)
    store.propagation_tasks.finish(identifier, "w:1", [TaskOutcome(one, "done", 0.5, "v1") for one in ids])
    return time.process_time() - began


def measure(folder: Path, tasks: int, kept: int) -> dict[str, float]:
    """Return the figures for propagations of so many tasks."""
    store, identifiers = filled_store(folder, tasks, kept)
    ways: dict[str, Callable[[Store, list[int]], list[object]]] = {"now": kept_counters, "before": counted}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(RUNS):
        for way, ask in ways.items():
            began = time.process_time()
            ask(store, identifiers)
            spent[way].append(time.process_time() - began)
    running = store.propagations.create(KEY, PropagationFilter(), "me", supersede=True, planned_tasks=range(tasks))
    batches = [work(store, running.id) for _ in range(50)]
    store.close()
    return {
        "tasks": tasks,
        "propagations": kept,
        "page_ms": 1000 * statistics.median(spent["now"]),
        "page_before_ms": 1000 * statistics.median(spent["before"]),
        "batch_ms": 1000 * statistics.median(batches),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="10000,100000")
    parser.add_argument("--kept", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for count in (int(one) for one in arguments.tasks.split(",")):
        with tempfile.TemporaryDirectory() as made:
            rows.append(measure(Path(made), count, arguments.kept))
        print(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
