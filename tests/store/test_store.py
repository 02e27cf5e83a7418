"""The store on real SQLite files, and on PostgreSQL where it is installed."""

import hashlib
import itertools
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from backend.core.memory_bank import build_bank, read_bank
from backend.core.types import Reference
from backend.errors import BadInputError, ConfigurationError, NotFoundError, StoreUnavailableError
from backend.store import AnnotationRecord, NewReference, Store, StoredReference, database, tables
from backend.store.packing import pack_mask, unpack_mask
from backend.store.patches import DamagedPatchesError
from backend.store.records import PropagationFilter
from testing.fakes import stored_masks

KEY = "1.1795365244"
OTHER_KEY = "2.1795365300"
SIGNATURE = "models-a"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/store.db"
        return
    server = request.getfixturevalue("postgres_url")
    schema = f"softmatcher_test_{uuid.uuid4().hex}"
    admin = sa.create_engine(sa.make_url(server).set(drivername="postgresql+psycopg"))
    with admin.begin() as connection:
        connection.execute(sa.schema.CreateSchema(schema))
    yield sa.make_url(server).update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(False)
    with admin.begin() as connection:
        connection.execute(sa.schema.DropSchema(schema, cascade=True))
    admin.dispose()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A store with two projects and nothing else."""
    with closing(Store(url)) as store:
        store.create_tables()
        store.save_project(KEY)
        store.save_project(OTHER_KEY)
        yield store


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


def annotation(annotation_id: int = 1, **changes: object) -> AnnotationRecord:
    made = AnnotationRecord(KEY, annotation_id, 10 + annotation_id, "2026-11-22T10:00:00.000001Z", SIGNATURE, "content")
    return replace(made, **changes)  # type: ignore[arg-type]


def new_reference(seed: int = 0, *, label: str = "leaf", signature: str = SIGNATURE) -> NewReference:
    rng = np.random.default_rng(seed)
    features, inside, known = (rng.random(shape).astype(np.float16) for shape in ((6, 4), 6, 6))
    reference = Reference(features, inside, known, signature)
    return NewReference(label, "image", f"{seed:064x}", rng.random((7, 9)) > 0.5, reference)


def stored(store: Store, key: str = KEY, labels: Sequence[str] | None = None) -> list[StoredReference]:
    return store.references(key, labels=labels, signature=SIGNATURE)


def digest(store: Store, labels: Sequence[str] | None = None) -> str:
    return store.references_digest(KEY, labels, SIGNATURE)


def change_blob(store: Store, column: str, content: bytes, label: str) -> None:
    table = tables.references
    with store.write() as connection:
        connection.execute(sa.update(table).where(table.c.label == label).values({column: content}))


def write_as_older_release(store: Store, new: NewReference) -> None:
    """All arrays of a reference in one value, and no patches."""
    features = safetensors.numpy.save(dict(new.reference.to_arrays()))
    values = {"features": features, "features_crc32": zlib.crc32(features), "patch_summary": None}
    mine = tables.references.c.digest == new.digest
    with store.write() as connection:
        ids = sa.select(tables.references.c.id).where(mine).scalar_subquery()
        connection.execute(sa.delete(tables.reference_patches).where(tables.reference_patches.c.reference_id == ids))
        connection.execute(sa.update(tables.references).where(mine).values(values))


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def finish(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors


class TestProjects:
    def test_none_leaves_a_field_as_it_is(self, store: Store) -> None:
        told = {"a": [1, {"b": None}], "ü": 0.5}
        store.save_project(KEY, title="Leaves", label_config="<View/>", settings=told, setup_token="t1")
        store.save_project(KEY, needs_reconcile=True)
        project = store.project(KEY)
        assert project is not None
        assert (project.project_id, project.title, project.label_config) == (1, "Leaves", "<View/>")
        assert (project.settings, project.setup_token, project.needs_reconcile) == (told, "t1", True)
        assert store.save_project(KEY, needs_reconcile=False, settings={}).settings == {}
        assert store.project(KEY).needs_reconcile is False  # type: ignore[union-attr]

    def test_the_token_is_not_in_the_repr(self, store: Store) -> None:
        project = store.save_project(KEY, setup_token="very-secret")
        assert project.setup_token == "very-secret"
        assert "very-secret" not in repr(project)
        assert "very-secret" not in str(project)

    def test_unknown_projects_are_none(self, store: Store) -> None:
        assert store.project("9.9") is None
        assert store.project_by_id(9) is None

    def test_another_project_of_an_id_drops_nothing(self, store: Store) -> None:
        store.replace_references(annotation(), [new_reference()])
        store.mark_pending(KEY, 5)
        newer = "1.1795369999"
        store.save_project(newer, title="anew")
        assert [project.key for project in store.projects()] == [KEY, newer, OTHER_KEY]
        assert len(stored(store)) == 1
        assert store.has_pending(KEY, 60)
        store.mark_gone(newer, "no such project")
        assert store.project_by_id(1).key == KEY  # type: ignore[union-attr]
        store.mark_present(newer)
        store.mark_gone(KEY, "no such project")
        assert store.project_by_id(1).key == newer  # type: ignore[union-attr]
        assert len(stored(store)) == 1

    def test_what_stays_pending_is_found(self, store: Store) -> None:
        store.mark_pending(KEY, 5)
        store.mark_pending("9.9", 6)
        assert store.left_pending(0, 10) == [(KEY, 5), ("9.9", 6)]
        assert store.left_pending(0, 1) == [(KEY, 5)]
        assert store.left_pending(60, 10) == []

    def test_a_late_message_of_an_older_project_drops_nothing(self, store: Store) -> None:
        store.replace_references(annotation(), [new_reference()])
        store.save_project("1.1600000000")
        assert len(stored(store)) == 1
        assert store.project_by_id(1).key == KEY  # type: ignore[union-attr]

    def test_dropping_leaves_other_projects_alone(self, store: Store) -> None:
        store.replace_references(annotation(project_key=OTHER_KEY), [new_reference()])
        store.drop_project(KEY)
        store.drop_project(KEY)
        assert store.count_references() == {OTHER_KEY: 1}

    @pytest.mark.parametrize("key", ["", "1", "1.", ".5", "a.5", "1.5.6", "-1.5", "1.1e9", "\u0661.5"])
    def test_a_key_of_another_form_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(BadInputError, match="unix time of creation"):
            store.save_project(key)


class TestReferences:
    @pytest.mark.parametrize("is_transposed", [False, True])
    def test_come_back_as_they_were_given(self, store: Store, is_transposed: bool) -> None:
        new = new_reference(3)
        if is_transposed:
            by_column = replace(new.reference, features=np.asfortranarray(new.reference.features))
            new = replace(new, mask=np.asfortranarray(new.mask), reference=by_column)
            assert new.digest == new_reference(3).digest
        assert store.replace_references(annotation(), [new])
        (found,) = stored(store)
        assert (found.project_key, found.annotation_id, found.task_id) == (KEY, 1, 11)
        assert (found.label, found.image_tag, found.image_sha256) == ("leaf", "image", new.image_sha256)
        assert (found.size_hw, found.digest, found.mask.dtype) == ((7, 9), new.digest, np.dtype(bool))
        assert np.array_equal(found.mask, new.mask)
        assert found.reference is not None
        assert found.reference.signature == SIGNATURE
        for name, array in new.reference.to_arrays().items():
            assert np.array_equal(found.reference.to_arrays()[name], array)

    def test_masks_can_be_had_without_features(self, store: Store) -> None:
        store.replace_references(annotation(), [new_reference(1), new_reference(2, label="stem")])
        found = store.references(KEY, labels=None, signature=SIGNATURE, with_features=False)
        assert [one.reference for one in found] == [None, None]
        assert [one.label for one in stored_masks(store, KEY)] == ["leaf", "stem"]

    def test_labels_and_signature_select(self, store: Store) -> None:
        store.replace_references(annotation(1), [new_reference(1), new_reference(2, label="stem")])
        old = [new_reference(3, signature="models-b")]
        store.replace_references(annotation(2, signature="models-b"), old)
        assert [one.label for one in stored(store)] == ["leaf", "stem"]
        assert [one.label for one in stored(store, labels=["stem", "absent"])] == ["stem"]
        assert stored(store, labels=[]) == []
        assert len(store.references(KEY, labels=None, signature="models-b")) == 1
        assert len(stored_masks(store, KEY)) == 3

    def test_projects_never_see_each_other(self, store: Store) -> None:
        store.replace_references(annotation(1), [new_reference(1)])
        store.replace_references(annotation(1, project_key=OTHER_KEY), [new_reference(2), new_reference(3)])
        assert [len(stored(store, key)) for key in (KEY, OTHER_KEY)] == [1, 2]
        assert store.count_references() == {KEY: 1, OTHER_KEY: 2}
        assert store.delete_annotations(KEY, [1]) == 1
        assert store.count_references() == {KEY: 0, OTHER_KEY: 2}

    def test_replacing_leaves_only_the_new_ones(self, store: Store) -> None:
        store.replace_references(annotation(), [new_reference(1), new_reference(2)])
        store.replace_references(annotation(content_digest="next"), [new_reference(3)])
        assert [one.image_sha256 for one in stored(store)] == [f"{3:064x}"]
        assert [record.content_digest for record in store.annotations(KEY)] == ["next"]

    def test_an_annotation_without_references_is_remembered(self, store: Store) -> None:
        store.replace_references(annotation(), [new_reference(1)])
        empty = annotation(updated_at="2026-11-22T10:00:01Z", problem="no mask found")
        assert store.replace_references(empty, [])
        assert stored(store) == []
        assert store.annotations(KEY) == [empty]

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("2026-11-22T10:00:12Z", "2026-11-22T10:00:12.300000Z"),
            ("2026-11-22T11:00:00+02:00", "2026-11-22T10:00:00Z"),
            ("2026-11-22T10:00:00", "2026-11-22T10:00:00.000001Z"),
            ("1969-12-31T23:59:59.5Z", "1970-01-01T00:00:00Z"),
        ],
    )
    def test_a_stale_writer_changes_nothing(self, store: Store, before: str, after: str) -> None:
        newer = annotation(updated_at=after)
        assert store.replace_references(newer, [new_reference(2)])
        assert not store.replace_references(annotation(updated_at=before, problem="stale"), [new_reference(1)])
        assert store.annotations(KEY) == [newer]
        assert [one.image_sha256 for one in stored(store)] == [f"{2:064x}"]
        assert store.replace_references(annotation(updated_at=after), [])

    def test_all_or_none(self, store: Store) -> None:
        store.replace_references(annotation(), [new_reference(1), new_reference(2)])
        before = [one.digest for one in stored(store)]
        with pytest.raises(BadInputError, match="cannot hold"):
            store.replace_references(annotation(), [new_reference(3), new_reference(4, label="\ud800")])
        assert [one.digest for one in stored(store)] == before

    def test_unknown_project_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFoundError, match=r"9\.9"):
            store.replace_references(annotation(project_key="9.9"), [])

    @pytest.mark.parametrize("mask", [np.ones((2, 2), np.uint8), np.ones((1, 2, 2), bool), np.array(True)])
    def test_other_masks_are_refused(self, store: Store, mask: NDArray[Any]) -> None:
        with pytest.raises(BadInputError, match=r"mask must be \(H, W\) bool"):
            store.replace_references(annotation(), [replace(new_reference(), mask=mask)])

    def test_times_and_signatures_are_checked(self, store: Store) -> None:
        with pytest.raises(BadInputError, match="ISO 8601"):
            store.replace_references(annotation(updated_at="yesterday"), [])
        with pytest.raises(ValueError, match="models-b"):
            store.replace_references(annotation(), [new_reference(signature="models-b")])

    @pytest.mark.parametrize("task_id", [2**40, 2**70])
    def test_ids_beyond_the_database_are_refused(self, store: Store, task_id: int) -> None:
        if task_id < 2**63:
            assert store.replace_references(annotation(task_id=task_id), [])
            return
        with pytest.raises(BadInputError, match="cannot hold"):
            store.replace_references(annotation(task_id=task_id), [])


class TestPatches:
    @pytest.mark.slow
    def test_a_bank_read_from_the_store_is_the_bank_of_the_references(self, store: Store) -> None:
        new = [new_reference(seed) for seed in range(12)]
        for number, one in enumerate(new):
            store.replace_references(annotation(number), [one])
        with store.patches(KEY, labels=["leaf"], signature=SIGNATURE, known={}) as snapshot:
            for most in (10, 33, 1000):
                found = read_bank(snapshot.source(list(snapshot.references.values())), SIGNATURE, most_patches=most)
                expected = build_bank([one.reference for one in new], SIGNATURE, most_patches=most)
                for name in ("features", "foreground", "background", "objects"):
                    assert np.array_equal(getattr(found, name), getattr(expected, name))

    def test_references_of_an_older_release_give_the_same_bank_and_are_written_anew(self, store: Store) -> None:
        new = [new_reference(seed) for seed in range(5)]
        store.replace_references(annotation(), new)
        write_as_older_release(store, new[2])
        assert len(stored(store)) == 5
        for _ in range(2):
            with store.patches(KEY, labels=["leaf"], signature=SIGNATURE, known={}) as snapshot:
                found = read_bank(snapshot.source(list(snapshot.references.values())), SIGNATURE, most_patches=12)
            expected = build_bank([one.reference for one in new], SIGNATURE, most_patches=12)
            assert np.array_equal(found.features, expected.features)
        with store.engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.max(sa.func.length(tables.references.c.features)))) == 0
        assert len(stored(store)) == 5

    def test_features_for_phrases_come_back(self, store: Store) -> None:
        new = new_reference(1)
        text = np.arange(12, dtype=np.float16).reshape(3, 4)
        new = replace(new, reference=replace(new.reference, text_features=text))
        store.replace_references(annotation(), [new])
        for is_old in (False, True):
            if is_old:
                write_as_older_release(store, new)
            with store.patches(KEY, labels=["leaf"], signature=SIGNATURE, known={}) as snapshot:
                assert len(snapshot.references) == 1
            (found,) = stored(store)
            assert found.reference is not None
            assert found.reference.text_features is not None
            assert np.array_equal(found.reference.text_features, text)

    def test_known_summaries_are_not_read_again(self, store: Store) -> None:
        store.replace_references(annotation(1), [new_reference(1)])
        with store.patches(KEY, labels=["leaf"], signature=SIGNATURE, known={}) as snapshot:
            known = snapshot.references
        store.replace_references(annotation(2), [new_reference(2)])
        with store.patches(KEY, labels=["leaf"], signature=SIGNATURE, known=known) as snapshot:
            assert len(snapshot.references) == 2
            (kept,) = known.values()
            assert any(one is kept for one in snapshot.references.values())

    def test_references_come_by_label_and_digest_without_those_that_are_gone(self, store: Store) -> None:
        new = [new_reference(seed, label=label) for seed, label in enumerate(("stem", "leaf", "leaf", "leaf", "stem"))]
        for number, one in enumerate(new):
            store.replace_references(annotation(number), [one])
        with store.patches(KEY, labels=["leaf", "stem"], signature=SIGNATURE, known={}) as snapshot:
            known = snapshot.references
        store.replace_references(annotation(2), [])
        left = sorted((one for number, one in enumerate(new) if number != 2), key=lambda one: (one.label, one.digest))
        with store.patches(KEY, labels=["leaf", "stem"], signature=SIGNATURE, known=known) as snapshot:
            found = [one.image_sha256 for one in snapshot.references.values()]
        assert found == [one.image_sha256 for one in left]

    def test_thin_references_keep_their_patches_at_twice_the_size(self, store: Store) -> None:
        thin, thick = new_reference(1), new_reference(2)
        rng = np.random.default_rng(3)
        features, inside, known = (rng.random(shape).astype(np.float16) for shape in ((400, 4), 400, 400))
        fine = Reference(features, inside, known * np.float16(7), SIGNATURE)
        usual_digest = thin.digest
        thin = replace(thin, reference=replace(thin.reference, fine=fine))
        assert thin.digest != usual_digest
        store.replace_references(annotation(1), [thin, thick])
        by_sha = {one.image_sha256: one.reference for one in stored(store)}
        found = by_sha[thin.image_sha256]
        assert found is not None
        assert found.fine is not None
        for one, other in ((found, thin.reference), (found.fine, fine)):
            assert np.array_equal(one.features, other.features)
            assert np.array_equal(one.foreground_coverage, other.foreground_coverage)
            assert np.array_equal(one.ignore_weight, other.ignore_weight)
        plain = by_sha[thick.image_sha256]
        assert plain is not None
        assert plain.fine is None
        with store.patches(KEY, labels=["leaf"], signature=SIGNATURE, known={}) as snapshot:
            source = snapshot.source(list(snapshot.references.values()))
            inner = source.fine()
            assert inner is not None
            assert inner.fine() is None
            assert len(inner.summaries) == 1
            stored_bank = read_bank(inner, SIGNATURE, most_patches=100)
            usual_bank = read_bank(source, SIGNATURE, most_patches=100)
        assert np.array_equal(stored_bank.features, build_bank([fine], SIGNATURE, most_patches=100).features)
        both = build_bank([thin.reference, thick.reference], SIGNATURE, most_patches=100)
        assert np.array_equal(usual_bank.features, both.features)

    def test_patches_go_with_their_reference(self, store: Store) -> None:
        store.replace_references(annotation(1), [new_reference(1), new_reference(2)])
        store.delete_annotations(KEY, [1])
        with store.engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(tables.reference_patches)) == 0


class TestDeleting:
    def test_annotations_with_their_references(self, store: Store) -> None:
        for number in (1, 2, 3):
            store.replace_references(annotation(number), [new_reference(number)])
        assert store.delete_annotations(KEY, [1, 3, 99]) == 2
        assert [record.annotation_id for record in store.annotations(KEY)] == [2]
        assert len(stored(store)) == 1
        assert store.delete_annotations(KEY, []) == 0
        assert store.delete_annotations("9.9", [2]) == 0

    @pytest.mark.slow
    def test_more_ids_than_one_statement_takes(self, store: Store) -> None:
        store.replace_references(annotation(1200), [new_reference(1)])
        assert store.delete_annotations(KEY, range(2000)) == 1
        assert stored(store) == []

    def test_a_late_writer_brings_nothing_back(self, store: Store) -> None:
        late = annotation(1, task_id=7)
        store.delete_annotations(KEY, [1])
        # The time in the recorded annotations lies before any time that a test runs at only if the clock is right.
        assert not store.replace_references(replace(late, updated_at="2020-01-01T00:00:00Z"), [new_reference(1)])
        assert store.annotations(KEY) == []
        assert store.replace_references(annotation(2, task_id=8, updated_at="2020-01-01T00:00:00Z"), [])
        assert store.replace_references(replace(late, project_key=OTHER_KEY), [new_reference(1)])

    def test_an_update_after_the_deletion_is_taken(self, store: Store) -> None:
        store.delete_annotations(KEY, [1])
        assert store.replace_references(annotation(updated_at="2099-01-01T00:00:00Z"), [new_reference(1)])

    def test_a_deletion_does_not_bind_for_ever(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        store.delete_annotations(KEY, [1])
        monkeypatch.setattr("backend.store.annotations.TOMBSTONE_S", 0.0)
        assert store.replace_references(annotation(updated_at="2020-01-01T00:00:00Z"), [new_reference(1)])


class TestDigest:
    @pytest.mark.slow
    @settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(order=st.permutations(range(5)))
    def test_is_independent_of_order_rows_and_time(
        self, tmp_path_factory: pytest.TempPathFactory, order: list[int]
    ) -> None:
        path = tmp_path_factory.mktemp("digest") / "store.db"
        with closing(Store(f"sqlite:///{path}")) as store:
            store.create_tables()
            store.save_project(KEY)
            store.replace_references(annotation(99), [new_reference(99)] * (order[0] + 1))
            store.delete_annotations(KEY, [99])
            for number in order:
                store.replace_references(
                    annotation(number + order[1]), [new_reference(number, label=f"label {number % 2}")]
                )
            fixed = [new_reference(number, label=f"label {number % 2}").digest for number in range(5)]
            assert digest(store) == hashlib.sha256("\n".join(sorted(fixed)).encode()).hexdigest()
            assert [one.digest for one in stored(store, labels=["label 0"])] == sorted(fixed[0::2])

    def test_tells_references_apart(self, store: Store) -> None:
        first = new_reference(1)
        changed = replace(first, mask=~first.mask)
        known = replace(first.reference, ignore_weight=np.zeros(6, np.float16))
        variants = [
            [],
            [first],
            [first, first],
            [changed],
            [replace(first, label="stem")],
            [replace(first, image_tag="other")],
            [replace(first, image_sha256="f" * 64)],
            [replace(first, mask=first.mask.reshape(9, 7))],
            [replace(first, reference=known)],
        ]
        seen = set()
        for references in variants:
            store.replace_references(annotation(), references)
            seen.add(digest(store))
        assert len(seen) == len(variants)

    def test_noise_in_the_features_does_not_change_it(self, store: Store) -> None:
        first = new_reference(1)
        noisy = replace(first, reference=replace(first.reference, features=first.reference.features * np.float16(1.01)))
        assert noisy.digest == first.digest

    def test_is_of_the_chosen_labels_and_models(self, store: Store) -> None:
        store.replace_references(annotation(1), [new_reference(1)])
        before = digest(store, ["leaf"])
        store.replace_references(annotation(2), [new_reference(2, label="stem")])
        store.replace_references(annotation(3, signature="models-b"), [new_reference(3, signature="models-b")])
        assert digest(store, ["leaf"]) == before
        assert digest(store) == digest(store, ["stem", "leaf"]) != before
        assert digest(store, []) == store.references_digest("9.9", None, SIGNATURE)
        assert store.reference_labels(KEY, None, SIGNATURE) == ["leaf", "stem"]
        both = store.references_digest_and_labels(KEY, ["stem", "leaf", "root"], SIGNATURE)
        assert both == (digest(store), ["leaf", "stem"])

    @pytest.mark.slow
    def test_survives_a_restart_and_is_the_same_in_another_process(self, store: Store, url: str) -> None:
        store.replace_references(annotation(), [new_reference(1), new_reference(2)])
        code = "import sys; from backend.store import Store; s = Store(sys.argv[1]); s.create_tables();"
        code += f"print(s.references_digest({KEY!r}, None, {SIGNATURE!r}), end=''); s.close()"
        process = run_python(code, url)
        output, errors = process.communicate(timeout=180)
        assert output == digest(store), errors

    def test_reads_an_index_and_never_the_blobs(self, sqlite_url: str) -> None:
        with closing(Store(sqlite_url)) as store:
            store.create_tables()
            asked: list[tuple[str, Any]] = []
            sa.event.listen(store.engine, "before_cursor_execute", lambda *args: asked.append((args[2], args[3])))
            store.references_digest(KEY, ["a", "b"], SIGNATURE)
            statement, values = asked[-1]
            with store.engine.connect() as connection:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
        searches = [row[3] for row in plan if row[3].startswith(("SEARCH", "SCAN"))]
        assert searches
        assert all("USING COVERING INDEX" in one for one in searches)
        assert any("annotation_references_digests" in one for one in searches)


class TestDamage:
    @pytest.mark.parametrize("kind", ["truncated", "flipped", "missing", "summary", "bad shapes"])
    def test_damaged_patches_cost_one_reference(
        self, store: Store, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.replace_references(annotation(), [new_reference(1, label="good"), new_reference(2, label="bad")])
        patch = tables.reference_patches.c
        with store.write() as connection:
            of_bad = sa.select(tables.references.c.id).where(tables.references.c.label == "bad").scalar_subquery()
            content = connection.scalar(sa.select(patch.patches).where(patch.reference_id == of_bad))
            assert content is not None
            contents = {"truncated": content[:-3], "flipped": content[:-1] + bytes([content[-1] ^ 1])}
            if kind == "missing":
                connection.execute(sa.delete(tables.reference_patches).where(patch.reference_id == of_bad))
            elif kind == "summary":
                of_label = sa.update(tables.references).where(tables.references.c.label == "bad")
                connection.execute(of_label.values(patch_summary=b"\x80\x04N."))
            else:
                values = {"patches": contents.get(kind, content[:-12])}
                if kind == "bad shapes":
                    values |= {"crc32": zlib.crc32(values["patches"])}
                connection.execute(
                    sa.update(tables.reference_patches).where(patch.reference_id == of_bad).values(values)
                )
        with caplog.at_level(logging.ERROR):
            assert [one.label for one in stored(store)] == ["good"]
        assert "annotation 1, label 'bad'" in caplog.text
        assert len(stored_masks(store, KEY)) == 2
        with store.patches(KEY, labels=["good", "bad"], signature=SIGNATURE, known={}) as snapshot:
            for one in snapshot.references.values():
                source = snapshot.source([one])
                if one.label == "good":
                    assert len(read_bank(source, SIGNATURE, most_patches=100).features) == 6
                else:
                    with pytest.raises(DamagedPatchesError):
                        read_bank(source, SIGNATURE, most_patches=100)

    @pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "pickle", "long header", "bad shapes"])
    def test_damaged_features_of_an_older_release_cost_one_reference(
        self, store: Store, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        good, bad = new_reference(1, label="good"), new_reference(2, label="bad")
        store.replace_references(annotation(), [good, bad])
        table = tables.references
        write_as_older_release(store, bad)
        with store.engine.connect() as connection:
            content = connection.scalar(sa.select(table.c.features).where(table.c.label == "bad"))
        assert isinstance(content, bytes)
        contents = {
            "truncated": content[:-3],
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "empty": b"",
            "pickle": b"\x80\x04N.",
            "long header": b"\xff" * 8 + content[8:],
            "bad shapes": safetensors.numpy.save(good.reference.to_arrays() | {"known": np.zeros(2)}),
        }
        change_blob(store, "features", contents[kind], "bad")
        if kind == "bad shapes":
            with store.write() as connection:
                fixed_crc = {"features_crc32": zlib.crc32(contents[kind])}
                connection.execute(sa.update(table).where(table.c.label == "bad").values(fixed_crc))
        with caplog.at_level(logging.ERROR):
            assert [one.label for one in stored(store)] == ["good"]
        assert "annotation 1, label 'bad'" in caplog.text
        assert len(stored_masks(store, KEY)) == 2

    @pytest.mark.parametrize(
        "content",
        [b"", b"no zlib", zlib.compress(b"\0"), zlib.compress(bytes(10**7)), pack_mask(np.ones((7, 9), bool))[:-2]],
    )
    def test_damaged_masks_cost_one_reference(
        self, store: Store, content: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.replace_references(annotation(), [new_reference(1, label="good"), new_reference(2, label="bad")])
        change_blob(store, "mask", content, "bad")
        with caplog.at_level(logging.ERROR):
            assert [one.label for one in stored(store)] == ["good"]
        assert "'bad'" in caplog.text

    @pytest.mark.slow
    @given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40)))
    def test_masks_round_trip(self, mask: NDArray[Any]) -> None:
        assert np.array_equal(unpack_mask(pack_mask(mask), (mask.shape[0], mask.shape[1])), mask)

    @pytest.mark.slow
    def test_a_mask_of_108_megapixels_round_trips(self) -> None:
        mask = np.zeros((9000, 12000), bool)
        mask[4000:8000, 17:11000] = True
        packed = pack_mask(mask)
        assert len(packed) < 100_000
        assert np.array_equal(unpack_mask(packed, (9000, 12000)), mask)


class TestPending:
    def test_is_marked_and_cleared(self, store: Store) -> None:
        store.mark_pending(KEY, 1)
        store.mark_pending(KEY, 1)
        store.mark_pending("77.5", 1)
        assert store.has_pending(KEY, 60)
        assert store.has_pending("77.5", 60)
        assert not store.has_pending(OTHER_KEY, 60)
        store.clear_pending(KEY, 1)
        store.clear_pending(KEY, 1)
        assert not store.has_pending(KEY, 60)

    def test_old_marks_do_not_count(self, store: Store) -> None:
        store.mark_pending(KEY, 1)
        time.sleep(0.02)
        assert not store.has_pending(KEY, 0.01)
        assert store.has_pending(KEY, 60)

    def test_a_later_announcement_stays_pending(self, store: Store) -> None:
        first = store.mark_pending(KEY, 1)
        time.sleep(0.002)
        second = store.mark_pending(KEY, 1)
        store.clear_pending(KEY, 1, first)
        assert store.has_pending(KEY, 60)
        store.clear_pending(KEY, 1, second)
        assert not store.has_pending(KEY, 60)


class TestClock:
    # All processes of a SQLite file share a machine.
    @pytest.mark.parametrize("url", ["postgresql"], indirect=True)
    @pytest.mark.parametrize("ahead_s", [-25.0, 25.0])
    def test_of_the_machine_does_not_count_on_postgresql(
        self, url: str, monkeypatch: pytest.MonkeyPatch, ahead_s: float
    ) -> None:
        with closing(Store(url)) as service, closing(Store(url)) as worker:
            service.create_tables()
            service.save_project(KEY)

            @contextmanager
            def elsewhere() -> Iterator[None]:
                real = time.time
                with monkeypatch.context() as shifted:
                    shifted.setattr(time, "time", lambda: real() + ahead_s)
                    yield

            with elsewhere():
                started = worker.now()
            service.mark_pending(KEY, 1)
            with elsewhere():
                worker.clear_pending(KEY, 1, started)
                assert worker.has_pending(KEY, 5.0), "announced after that job began: it is still to be taken in"
                worker.clear_pending(KEY, 1, worker.now())
            assert not service.has_pending(KEY, 5.0)
            run = service.propagations.create(KEY, PropagationFilter(), "test", supersede=False)
            with elsewhere():
                worker.propagations.pause(run.id, "away", first_s=10, at_most_s=10)
            paused_until = service.propagations.get(run.id).paused_until or 0.0
            assert 0 < paused_until - service.now() <= 10


class TestOpening:
    def test_the_file_is_for_its_owner_only(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "store.db"
        old_umask = os.umask(0)
        try:
            with closing(Store(f"sqlite:///{path}")) as store:
                store.create_tables()
                store.save_project(KEY, setup_token="secret")
                modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        finally:
            os.umask(old_umask)
        assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}

    def test_settings_of_sqlite(self, sqlite_url: str) -> None:
        with closing(Store(sqlite_url)) as store:
            store.create_tables()
            with store.engine.connect() as connection:
                pragmas = ("journal_mode", "foreign_keys", "busy_timeout", "page_size")
                values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
        assert values == ["wal", 1, 15000, 16384]

    @pytest.mark.slow
    def test_processes_that_start_at_once_make_the_tables_once(self, url: str) -> None:
        code = (
            "import sys, time; from backend.store import Store; s = Store(sys.argv[1]);"
            "time.sleep(max(0, float(sys.argv[2]) - time.time()));"
            f"s.create_tables(); s.create_tables(); s.save_project({KEY!r}); s.close()"
        )
        start = str(time.time() + 3)
        finish([run_python(code, url, start) for _ in range(5)])
        with closing(Store(url)) as store:
            assert [project.key for project in store.projects()] == [KEY]
            with store.engine.connect() as connection:
                assert connection.execute(sa.select(tables.schema)).all() == [(1, tables.SCHEMA_VERSION)]

    @pytest.mark.slow
    def test_threads_that_start_at_once_make_the_tables_once(self, url: str) -> None:
        barrier = threading.Barrier(6)

        def start() -> None:
            with closing(Store(url)) as store:
                barrier.wait()
                store.create_tables()

        with ThreadPoolExecutor(6) as threads:
            for done in [threads.submit(start) for _ in range(6)]:
                done.result()

    def test_an_older_database_gets_the_columns_it_lacks(self, store: Store) -> None:
        store.save_project(KEY, label_config="<View/>")
        with store.write() as connection:
            connection.exec_driver_sql("ALTER TABLE propagations DROP COLUMN problem")
            connection.execute(sa.update(tables.schema).values(version=2))
        store.create_tables()
        record = store.propagations.create(KEY, PropagationFilter(), "me", supersede=False)
        assert store.propagations.get(record.id).problem is None
        project = store.project(KEY)
        assert project is not None
        assert project.label_config == "<View/>"

    def test_a_newer_schema_is_refused_and_left_alone(self, store: Store) -> None:
        with store.write() as connection:
            connection.execute(sa.update(tables.schema).values(version=99))
            connection.execute(sa.schema.DropTable(tables.pending))
        with pytest.raises(ConfigurationError, match=r"schema version 99, .* start the newer release"):
            store.create_tables()
        assert not sa.inspect(store.engine).has_table("pending_annotations")

    def test_without_tables_the_message_says_so(self, url: str) -> None:
        with closing(Store(url)) as store, pytest.raises(ConfigurationError, match="no tables yet"):
            store.projects()

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "store.db",
            "sqlite://",
            "sqlite:///:memory:",
            "sqlite:///file:x?uri=true",
            "mysql://u:hunter2@h/d",
            "postgresql://u:hunter2@h:port/d",
        ],
    )
    def test_other_urls_are_refused_without_their_password(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="database URL must be") as refusal:
            Store(url)
        assert "hunter2" not in str(refusal.value)


class TestUnavailable:
    def test_a_locked_database(self, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.2)
        with closing(Store(sqlite_url)) as store:
            store.create_tables()
            with closing(sqlite3.connect(tmp_path / "store.db")) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreUnavailableError, match=r"store\.db cannot be used .*locked"):
                    store.save_project(KEY)
                assert store.projects() == []
                other.rollback()
            store.save_project(KEY)

    def test_a_lock_that_ends_in_time_is_waited_for(self, sqlite_url: str, tmp_path: Path) -> None:
        with closing(Store(sqlite_url)) as store:
            store.create_tables()
            with closing(sqlite3.connect(tmp_path / "store.db", check_same_thread=False)) as other:
                other.execute("BEGIN IMMEDIATE")
                release = threading.Timer(0.5, other.rollback)
                release.start()
                store.save_project(KEY)
                release.join()

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "store.db").write_bytes(b"not a database" * 1000)
        with closing(Store(f"sqlite:///{tmp_path}/store.db")) as store:
            with pytest.raises(StoreUnavailableError, match="not a database"):
                store.create_tables()
            with pytest.raises(StoreUnavailableError, match="not a database"):
                store.projects()

    def test_a_path_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        store = Store(f"sqlite:///{tmp_path}/file/store.db")
        with closing(store), pytest.raises(StoreUnavailableError, match="writable"):
            store.create_tables()

    def test_a_server_that_does_not_answer(self) -> None:
        pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed")
        store = Store("postgresql://someone:hunter2@127.0.0.1:1/nothing")
        with closing(store), pytest.raises(StoreUnavailableError, match="cannot be used") as refusal:
            store.create_tables()
        assert "hunter2" not in str(refusal.value)

    def test_the_driver_for_postgresql_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(ConfigurationError, match="pip install"):
            Store("postgres://h/d")

    def test_parameters_stay_out_of_errors(self, url: str) -> None:
        with closing(Store(url)) as store, pytest.raises(ConfigurationError) as refusal:
            store.save_project(KEY, setup_token="very-secret")
        cause = str(refusal.value.__cause__)
        assert "INSERT INTO projects" in cause
        assert "very-secret" not in cause + str(refusal.value)


class TestAtOnce:
    @pytest.mark.slow
    def test_threads_on_one_annotation_leave_the_newest(self, store: Store) -> None:
        moments = [f"2026-11-22T10:00:{second:02}Z" for second in range(24)]
        shuffled = [moments[(7 * index) % 24] for index in range(24)]

        def write(index: int) -> bool:
            pair = [new_reference(2 * moments.index(shuffled[index]) + part) for part in (0, 1)]
            return store.replace_references(annotation(updated_at=shuffled[index]), pair)

        with ThreadPoolExecutor(8) as threads:
            written = list(threads.map(write, range(24)))
        assert any(written)
        assert [record.updated_at for record in store.annotations(KEY)] == [moments[-1]]
        assert sorted(one.image_sha256 for one in stored(store)) == [f"{46:064x}", f"{47:064x}"]

    @pytest.mark.slow
    def test_readers_see_whole_annotations_only(self, store: Store) -> None:
        is_over = threading.Event()
        sizes = set()

        def read() -> None:
            while not is_over.is_set():
                sizes.add(len(stored(store)))

        reader = threading.Thread(target=read)
        store.replace_references(annotation(), [new_reference(seed) for seed in range(3)])
        reader.start()
        for round_number in range(15):
            store.replace_references(annotation(), [new_reference(round_number + seed) for seed in range(3)])
        is_over.set()
        reader.join()
        assert sizes == {3}

    @pytest.mark.slow
    def test_processes_write_side_by_side(self, store: Store, url: str) -> None:
        code = (
            "import sys; from tests.store.test_store import *\n"
            "store = Store(sys.argv[1]); first = int(sys.argv[2])\n"
            "for number in range(first, first + 15):\n"
            "    store.replace_references(annotation(number), [new_reference(number)])\n"
            "store.close()"
        )
        finish([run_python(code, url, str(first)) for first in (100, 200, 300)])
        expected = [start + number for start, number in itertools.product((100, 200, 300), range(15))]
        assert [record.annotation_id for record in store.annotations(KEY)] == expected
        assert len(stored(store)) == 45

    @pytest.mark.slow
    def test_a_killed_writer_leaves_whole_annotations(self, store: Store, url: str) -> None:
        code = (
            "import sys, itertools; from tests.store.test_store import *\n"
            "store = Store(sys.argv[1])\n"
            "for number in itertools.count():\n"
            "    store.replace_references(annotation(), [new_reference(3 * number + part) for part in range(3)])\n"
            "    print(number, flush=True)\n"
        )
        process = run_python(code, url)
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline(), process.communicate()[1]
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        numbers = sorted(int(one.image_sha256, 16) for one in stored(store))
        assert len(numbers) == 3
        assert numbers[0] % 3 == 0
        assert numbers == list(range(numbers[0], numbers[0] + 3))
        assert store.replace_references(annotation(), [])

    @pytest.mark.slow
    def test_a_forked_child_opens_its_own_connections(self, store: Store) -> None:
        store.replace_references(annotation(), [new_reference(1)])
        assert store.engine.pool.checkedin() > 0  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            is_right = False
            try:
                has_none_of_ours = store.engine.pool.checkedin() == 0  # type: ignore[attr-defined]
                is_right = (
                    has_none_of_ours
                    and len(stored(store)) == 1
                    and store.replace_references(annotation(2), [new_reference(2)])
                )
            finally:
                os._exit(0 if is_right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(stored(store)) == 2
