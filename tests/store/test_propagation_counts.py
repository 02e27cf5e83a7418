"""Counters of a propagation's tasks: they are what counting gives, whatever happens, at once, or in between."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from backend.errors import ConflictError
from backend.store import Store, tables
from backend.store.propagation_counts import recount_all
from backend.store.records import PropagationFilter, TaskOutcome
from tests.store.test_store import KEY, store, url  # noqa: F401

_rows, _counts = tables.propagation_tasks, tables.propagation_counts
STATES = ("done", "empty", "failed", "cancelled")


def assert_counters_are_right(store: Store) -> None:  # noqa: F811
    version = sa.func.coalesce(_rows.c.model_version, "").label("model_version")
    by = (_rows.c.propagation_id, _rows.c.state, version)
    counting: sa.Select[Any] = sa.select(*by, sa.func.count().label("total")).group_by(*by)
    keeping: sa.Select[Any] = sa.select(_counts).where(_counts.c.total != 0)
    counted, kept = (
        {(row.propagation_id, row.state, row.model_version): int(row.total) for row in store.read(query)}
        for query in (counting, keeping)
    )
    assert kept == counted
    for identifier in {key[0] for key in counted}:
        counts = store.propagation_tasks.counts(identifier)
        by_state = {state: sum(n for key, n in counted.items() if key[:2] == (identifier, state)) for state in STATES}
        assert {state: getattr(counts, state) for state in STATES} == by_state
        outdated = sa.select(sa.func.count().label("total")).where(
            _rows.c.propagation_id == identifier, _rows.c.state.in_(("done", "empty")), _rows.c.model_version != "v1"
        )
        assert store.propagation_tasks.count_outdated(identifier, "v1") == store.read(outdated)[0].total


def do_anything(store: Store, seed: int, steps: int) -> None:  # noqa: F811
    chance = random.Random(seed)
    runs, tasks = store.propagations, store.propagation_tasks
    lease = f"w{seed}:1"
    for _ in range(steps):
        some = chance.sample(range(60), chance.randrange(1, 20))
        latest = runs.latest(KEY)
        identifier = chance.choice(latest).id if latest else 0
        active = runs.active(KEY)
        if active and chance.random() < 0.8:
            identifier = active[0].id
        action = chance.randrange(12)
        try:
            if action == 0 or not latest:
                planned = some if chance.random() < 0.5 else None
                runs.create(KEY, PropagationFilter(), "test", supersede=chance.random() < 0.3, planned_tasks=planned)
            elif action == 1:
                runs.add_planned(identifier, some)
                runs.finish_plan(identifier)
            elif action in (2, 3, 4):
                tasks.lease(identifier, lease, chance.randrange(1, 12))
            elif action in (5, 6, 7):
                held = sorted(tasks.still_leased(identifier, lease))[: chance.randrange(8)] + some[:2]
                version = chance.choice([None, "v1", "v2"])
                made = [TaskOutcome(one, chance.choice(STATES), model_version=version) for one in [*held, *held[:1]]]
                tasks.finish(identifier, lease, made)
            elif action == 8:
                tasks.release(identifier, [lease, "w0:1"], counts_as_attempt=chance.random() < 0.5)
            elif action == 9:
                runs.defer(KEY, some, chance.choice(["v1", "v2"]), "test")
            elif action == 10:
                runs.retry(identifier, chance.sample(STATES, 2), other_than_version=chance.choice([None, "v1"]))
            elif chance.random() < 0.3:
                runs.cancel(identifier)
            elif runs.try_finish(identifier):
                runs.complete(identifier)
        except ConflictError:
            pass


@pytest.mark.slow
def test_random_operations_leave_the_counters_right(store: Store) -> None:  # noqa: F811
    for seed in range(3):
        do_anything(store, seed, 40)
        assert_counters_are_right(store)


@pytest.mark.slow
def test_operations_at_once_leave_the_counters_right(store: Store) -> None:  # noqa: F811
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: do_anything(store, seed, 25), range(4)))
    assert_counters_are_right(store)


@pytest.mark.slow
def test_a_failure_within_a_transaction_changes_no_counter(
    store: Store,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identifier = store.propagations.create(KEY, PropagationFilter(), "me", supersede=False, planned_tasks=range(9)).id
    tasks = store.propagation_tasks

    def broken(*_: object) -> None:
        raise RuntimeError("in between")

    monkeypatch.setattr("backend.store.propagation_tasks.move", broken)
    with pytest.raises(RuntimeError):
        tasks.lease(identifier, "a:1", 4)
    monkeypatch.undo()
    assert_counters_are_right(store)
    assert tasks.counts(identifier).pending == 9


CHILD = """
import sys
from backend.store import Store
from tests.store.test_propagation_counts import do_anything

store = Store(sys.argv[1])
print("ready", flush=True)
for seed in range(10_000):
    do_anything(store, seed, 50)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_the_counters_right(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"  # noqa: F811
    with closing(Store(url)) as store:  # noqa: F811
        store.create_tables()
        store.save_project(KEY)
        child = subprocess.Popen([sys.executable, "-c", CHILD, url], stdout=subprocess.PIPE, cwd=Path.cwd())
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        while not store.propagations.latest(KEY):
            time.sleep(0.01)
        time.sleep(0.2)  # somewhere in the middle of the next operations
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert_counters_are_right(store)


@pytest.mark.slow
def test_what_an_older_release_wrote_is_counted_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"  # noqa: F811
    with closing(Store(url)) as store:  # noqa: F811
        store.create_tables()
        store.save_project(KEY)
        do_anything(store, 1, 60)
        with store.write() as connection:
            connection.execute(sa.update(tables.schema).values(version=tables.WITH_COUNTERS - 1))
            connection.exec_driver_sql("DROP TABLE propagation_counts")
    with closing(Store(url)) as store:
        store.create_tables()
        assert_counters_are_right(store)
        with store.write() as connection:
            recount_all(connection)
        assert_counters_are_right(store)
