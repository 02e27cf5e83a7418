"""References are read once per version, patch by patch, and banks are kept within a bound."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from backend.core.types import Reference
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.projects.prediction.reference_banks import PredictionContext
from backend.store import AnnotationRecord, NewReference, ProjectRecord, tables
from backend.store.records import PropagationFilter
from testing.fakes import LABEL_CONFIG, Backend, FakeLabelStudio, make_backend

SIGNATURE = "colours-1"
CONFIG = parse_label_config(LABEL_CONFIG)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    made = make_backend(tmp_path / "data", FakeLabelStudio())
    yield made
    made.projects.close()


class Counted:
    """Counts the statements that read patches."""

    def __init__(self, backend: Backend) -> None:
        self.count = 0
        sa.event.listen(backend.projects.store.engine, "before_cursor_execute", self._count)

    def _count(self, _connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        self.count += statement.startswith("SELECT") and tables.reference_patches.name in statement


def project(backend: Backend, number: int = 1) -> ProjectRecord:
    return backend.projects.store.save_project(f"{number}.1795365244", label_config=LABEL_CONFIG)


def annotate(backend: Backend, number: int, *, label: str = "Cat", key: str = "1.1795365244") -> None:
    rng = np.random.default_rng(number)
    features, inside = rng.random((30, 3)).astype(np.float16), rng.random(30).astype(np.float16)
    reference = Reference(features, inside, np.ones(30, np.float16), SIGNATURE)
    record = AnnotationRecord(key, number, number, "2026-11-22T10:00:00Z", SIGNATURE, "content")
    new = NewReference(label, "image", f"{number:064x}", rng.random((7, 9)) > 0.5, reference)
    assert backend.projects.store.replace_references(record, [new])


def context(backend: Backend, of: ProjectRecord, config: LabelConfig = CONFIG) -> PredictionContext:
    return backend.projects.banks.context(of, config)


def test_threads_that_ask_at_once_read_a_version_once(backend: Backend) -> None:
    own = project(backend)
    annotate(backend, 1)
    read, barrier = Counted(backend), threading.Barrier(6)

    def ask(_: int) -> PredictionContext:
        barrier.wait()
        return context(backend, own)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(6)))
    assert read.count == 1
    assert all(one.banks is found[0].banks for one in found)


@pytest.mark.slow
def test_twenty_projects_in_turn_stay_warm(backend: Backend) -> None:
    projects = [project(backend, number) for number in range(1, 21)]
    for number, one in enumerate(projects, 1):
        annotate(backend, number, key=one.key)
        context(backend, one)
    read = Counted(backend)
    for one in projects * 2:
        assert set(context(backend, one).banks["image"]) == {"Cat"}
    assert read.count == 0


def test_banks_are_bounded_by_bytes(tmp_path: Path) -> None:
    backend = make_backend(tmp_path / "data", FakeLabelStudio(), banks_mb=0.004)
    projects = [project(backend, number) for number in range(1, 5)]
    for number, one in enumerate(projects, 1):
        annotate(backend, number, key=one.key)
        context(backend, one)
    read = Counted(backend)
    context(backend, projects[-1])
    assert read.count == 0
    context(backend, projects[0])
    assert read.count == 1
    backend.projects.close()


def test_a_new_reference_of_one_label_leaves_the_other_labels_bank(backend: Backend) -> None:
    own = project(backend)
    annotate(backend, 1)
    annotate(backend, 2, label="Dog")
    before = context(backend, own)
    annotate(backend, 3)
    after = context(backend, own)
    assert after.version != before.version
    assert after.banks["image"]["Dog"] is before.banks["image"]["Dog"]
    assert len(after.banks["image"]["Cat"].features) == 60


def test_one_more_reference_reads_its_own_patches_alone(backend: Backend) -> None:
    own = project(backend)
    annotate(backend, 1)
    annotate(backend, 2)
    before = context(backend, own)
    patch, columns = tables.reference_patches.c, tables.references.c
    with backend.projects.store.write() as connection:
        known = sa.select(columns.id).where(columns.annotation_id <= 2)
        connection.execute(sa.delete(tables.reference_patches).where(patch.reference_id.in_(known)))
    annotate(backend, 3)
    after = context(backend, own)
    kept = {tuple(row) for row in before.banks["image"]["Cat"].features.tolist()}
    assert kept < {tuple(row) for row in after.banks["image"]["Cat"].features.tolist()}
    assert len(after.banks["image"]["Cat"].features) == 90


def test_a_damaged_reference_leaves_the_others(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    own = project(backend)
    annotate(backend, 1)
    annotate(backend, 2)
    patch = tables.reference_patches
    with backend.projects.store.write() as connection:
        first = connection.scalar(sa.select(sa.func.min(patch.c.reference_id)))
        connection.execute(sa.update(patch).where(patch.c.reference_id == first).values(patches=b"0" * 300))
    assert len(context(backend, own).banks["image"]["Cat"].features) == 30
    assert f"reference {first} is damaged" in caplog.text


def test_the_version_of_a_propagation_reads_no_references(backend: Backend) -> None:
    own = project(backend)
    annotate(backend, 1)
    expected = context(backend, own).version
    read = Counted(backend)
    backend.projects.banks._kept.clear()
    version, _, has_any = backend.projects.propagation_plans.versions(own, PropagationFilter())
    assert (version, has_any, read.count) == (expected, True, 0)
    assert not backend.projects.propagation_plans.versions(own, PropagationFilter(labels=("Dog",)))[2]
