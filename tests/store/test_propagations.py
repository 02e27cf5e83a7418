"""Propagations in the store: the migration from version 1, claims between threads, what ends with what."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from backend.errors import ConflictError, NotFoundError
from backend.store import Store, tables
from backend.store.propagation_tasks import MAX_ATTEMPTS, PropagationTaskStore
from backend.store.propagations import PropagationStore
from backend.store.records import PropagationFilter, TaskOutcome
from tests.store.test_store import KEY, OTHER_KEY, store, url  # noqa: F401

ALL = PropagationFilter()


@pytest.fixture
def propagations(store: Store) -> PropagationStore:  # noqa: F811
    return store.propagations


@pytest.fixture
def tasks(store: Store) -> PropagationTaskStore:  # noqa: F811
    return store.propagation_tasks


def _new(propagations: PropagationStore, *task_ids: int, key: str = KEY) -> int:
    return propagations.create(key, ALL, "test", supersede=False, planned_tasks=task_ids).id


@pytest.mark.slow
def test_database_of_version_1_is_migrated_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    new = {"propagations", "propagation_tasks", "quality_estimates"}
    engine = sa.create_engine(f"sqlite:///{path}")
    tables.metadata.create_all(engine, tables=[each for each in tables.metadata.sorted_tables if each.name not in new])
    with engine.begin() as connection:
        connection.execute(sa.insert(tables.schema).values(id=1, version=1))
        connection.execute(
            sa.insert(tables.projects).values(
                key=KEY, project_id=1, created=1, label_config="<View/>", needs_reconcile=False, updated_at=1.0
            )
        )
    engine.dispose()
    with closing(Store(f"sqlite:///{path}")) as migrated:
        migrated.create_tables()
        migrated.create_tables()
        project = migrated.project(KEY)
        assert project is not None
        assert project.label_config == "<View/>"
        identifier = _new(migrated.propagations, 1, 2)
        assert migrated.propagation_tasks.counts(identifier).pending == 2
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(tables.SCHEMA_VERSION,)]


def test_record_comes_back_as_it_was_made(propagations: PropagationStore) -> None:
    wanted = PropagationFilter(only_unlabeled=True, labels=("Cat", "Dög"), limit=7)
    made = propagations.create(KEY, wanted, "me", supersede=False)
    assert propagations.get(made.id) == made
    assert (made.wanted, made.state, made.started_by, made.is_planned) == (wanted, "planning", "me", False)
    with pytest.raises(NotFoundError):
        propagations.get(made.id + 1)


def test_one_runs_a_project_and_projects_do_not_meet(propagations: PropagationStore) -> None:
    first = _new(propagations, 1)
    with pytest.raises(ConflictError):
        _new(propagations, 1)
    other = _new(propagations, 1, key=OTHER_KEY)
    assert [record.id for record in propagations.active()] == [first, other]
    assert [record.id for record in propagations.active(OTHER_KEY)] == [other]


def test_starts_at_once_leave_one(propagations: PropagationStore) -> None:
    def start(_: int) -> bool:
        try:
            _new(propagations, 1)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(start, range(6))) == 1


@pytest.mark.slow
def test_each_task_is_claimed_once_however_many_claim(
    propagations: PropagationStore, tasks: PropagationTaskStore
) -> None:
    identifier = _new(propagations, *range(1, 201))

    def claim_all(number: int) -> list[int]:
        claimed: list[int] = []
        while some := tasks.lease(identifier, f"w{number}:1", 7):
            claimed += some
        return claimed

    with ThreadPoolExecutor(6) as pool:
        claimed = [task_id for some in pool.map(claim_all, range(6)) for task_id in some]
    assert sorted(claimed) == list(range(1, 201))


def test_only_the_holder_of_a_claim_finishes(propagations: PropagationStore, tasks: PropagationTaskStore) -> None:
    identifier = _new(propagations, 1, 2)
    tasks.lease(identifier, "a:1", 2)
    assert tasks.finish(identifier, "b:1", [TaskOutcome(1, "done")]) == 0
    assert tasks.finish(identifier, "a:1", [TaskOutcome(1, "done", 0.5, "v1"), TaskOutcome(2, "empty")]) == 2
    assert tasks.finish(identifier, "a:1", [TaskOutcome(1, "failed")]) == 0
    row = tasks.task(identifier, 1)
    assert row is not None
    assert (row.state, row.score, row.model_version) == ("done", 0.5, "v1")


def test_suspects_are_claimed_alone_and_not_for_ever(
    propagations: PropagationStore, tasks: PropagationTaskStore
) -> None:
    identifier = _new(propagations, 1, 2, 3)
    for _ in range(MAX_ATTEMPTS):
        claimed = tasks.lease(identifier, "a:1", 10)
        tasks.release(identifier, ["a:1"], counts_as_attempt=True)
    assert claimed == [1]
    while claimed := tasks.lease(identifier, "a:1", 10):
        assert len(claimed) == 1
        tasks.finish(identifier, "a:1", [TaskOutcome(claimed[0], "done")])
    counts = tasks.counts(identifier)
    assert (counts.done, counts.failed) == (2, 1)


def test_being_asked_to_end_is_no_attempt(propagations: PropagationStore, tasks: PropagationTaskStore) -> None:
    identifier = _new(propagations, 1, 2, 3)
    for _ in range(2 * MAX_ATTEMPTS):
        assert tasks.lease(identifier, "a:1", 10) == [1, 2, 3]
        tasks.release(identifier, ["a:1"], counts_as_attempt=False)


def test_finish_is_for_one_and_only_when_nothing_is_left(
    propagations: PropagationStore, tasks: PropagationTaskStore
) -> None:
    identifier = _new(propagations, 1)
    tasks.lease(identifier, "a:1", 1)
    assert not propagations.try_finish(identifier)
    tasks.finish(identifier, "a:1", [TaskOutcome(1, "done")])
    assert [propagations.try_finish(identifier) for _ in range(2)] == [True, False]
    assert propagations.defer(KEY, [2], "v", "test") == identifier
    assert not propagations.complete(identifier), "a task came in between"
    assert propagations.get(identifier).state == "running"


@pytest.mark.slow
def test_project_takes_its_propagations_along(store: Store) -> None:  # noqa: F811
    identifier = _new(store.propagations, 1, 2)
    store.quality.save(KEY, "v", {"iou": 0.5})
    store.drop_project(KEY)
    with pytest.raises(NotFoundError):
        store.propagations.get(identifier)
    assert store.propagation_tasks.counts(identifier).total == 0
    assert store.quality.newest(KEY) is None


@pytest.mark.slow
def test_old_propagations_are_forgotten(propagations: PropagationStore) -> None:
    made = []
    for _ in range(25):
        made.append(_new(propagations, 1))
        propagations.cancel(made[-1])
    kept = [record.id for record in propagations.latest(KEY, 100)]
    assert kept == made[:-21:-1]


def test_reasons_are_grouped_and_scores_sorted(propagations: PropagationStore, tasks: PropagationTaskStore) -> None:
    identifier = _new(propagations, *range(1, 7))
    while tasks.lease(identifier, "a:1", 10):
        pass
    outcomes = [TaskOutcome(number, "failed", reason="404") for number in (3, 1)]
    outcomes += [TaskOutcome(2, "failed", reason="text")]
    outcomes += [TaskOutcome(number, "done", 1 / number, "v") for number in (4, 5, 6)]
    tasks.finish(identifier, "a:1", outcomes)
    found = [(group.reason, group.count, group.first_task_id) for group in tasks.failures(identifier)]
    assert found == [("404", 2, 1), ("text", 1, 2)]
    assert [row.task_id for row in tasks.lowest_scored(identifier, 2)] == [6, 5]
    assert tasks.count_outdated(identifier, "v") == 0
    assert tasks.count_outdated(identifier, "w") == 3
    assert tasks.done_among(identifier, [1, 4, 99]) == {4}
