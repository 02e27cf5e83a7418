"""Propagation over fakes: every task exactly once, whatever is interrupted, refused or lost in between."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from backend.core.cancellation import WorkTimeoutError
from backend.errors import BadInputError, ConflictError, LabelStudioUnavailableError, NotFoundError
from backend.projects.propagation.work import Worked
from backend.store import tables
from backend.store.records import PropagationCounts, PropagationFilter, PropagationRecord
from backend.web.maintenance import Maintenance
from testing.fakes import LABEL_CONFIG, Backend, draw, make_backend, png

pytestmark = pytest.mark.slow

RED_BOX = (10, 10, 30, 30)
ALL = PropagationFilter()


def _point(label: str = "Cat") -> dict[str, Any]:
    value = {"x": 30, "y": 40, "width": 1, "keypointlabels": [label]}
    return {
        "id": f"point-{label}", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
        "original_height": 48, "value": value,
    }  # fmt: skip


@pytest.fixture
def key(backend: Backend) -> str:
    """A project of eight tasks: the first is annotated, the others show the object, but for task 5."""
    for number in range(1, 9):
        picture = draw(blue=RED_BOX) if number == 5 else draw(red=(10, 10, 30 + number, 30))
        backend.label_studio.add_task(number, png(picture))
    backend.label_studio.annotate(10, 1, [_point()])
    return backend.projects.note_project(backend.label_studio.project(1))


def _start(backend: Backend, key: str, wanted: PropagationFilter = ALL, **more: Any) -> PropagationRecord:
    record = backend.projects.propagations.start(key, wanted, "test", **{"supersede": False, **more})
    backend.projects.propagation_plans.plan(record.id)
    return backend.projects.store.propagations.get(record.id)


def _set(backend: Backend, record: PropagationRecord, **values: object) -> None:
    """Give a propagation's row other values, as time or another process would."""
    engine = sa.create_engine(backend.settings.store_url)
    with engine.begin() as connection:
        connection.execute(sa.update(tables.propagations).where(tables.propagations.c.id == record.id).values(**values))
    engine.dispose()


def _work(
    backend: Backend, record: PropagationRecord, *, claim: str = "w:1", should_stop: Callable[[], bool] = lambda: False
) -> Worked:
    _set(backend, record, paused_until=None)
    return backend.projects.propagation_work.run(
        record.id, claim, is_alive=backend.queue.is_lease_alive, should_stop=should_stop
    )


def _counts(backend: Backend, record: PropagationRecord) -> PropagationCounts:
    return backend.projects.store.propagation_tasks.counts(record.id)


def _state(backend: Backend, record: PropagationRecord) -> str:
    return backend.projects.store.propagations.get(record.id).state


def _after(calls: int) -> Callable[[], bool]:
    """False so often, then True."""
    left = [calls]

    def is_over() -> bool:
        left[0] -= 1
        return left[0] < 0

    return is_over


def test_every_task_is_predicted_once_and_absence_is_an_answer(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    assert _work(backend, record).left == "nothing"
    counts = _counts(backend, record)
    assert (counts.total, counts.done, counts.empty, counts.failed) == (8, 7, 1, 0)
    assert _state(backend, record) == "done"
    version = backend.projects.banks.model_version(key)
    assert [backend.label_studio.versions_of(number) for number in range(1, 9)] == [
        [version] if number != 5 else [] for number in range(1, 9)
    ]
    assert record.model_version == version


def test_two_batches_at_a_time_predict_every_task_once_too(backend: Backend, key: str) -> None:
    for number in range(9, 60):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30 + number % 8, 30))))
    record = _start(backend, key)
    worked = backend.projects.propagation_work.run(
        record.id, "w:1", is_alive=backend.queue.is_lease_alive, should_stop=lambda: False, concurrent_batches=2
    )
    assert (worked.finished, worked.left) == (59, "nothing")
    assert _state(backend, record) == "done"
    assert [len(backend.label_studio.versions_of(number)) for number in range(1, 60)] == [
        0 if number == 5 else 1 for number in range(1, 60)
    ]


def test_what_stops_one_batch_stops_the_other_and_gives_all_tasks_back(backend: Backend, key: str) -> None:
    for number in range(9, 60):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30 + number % 8, 30))))
    record = _start(backend, key)
    backend.label_studio.is_down = True
    worked = backend.projects.propagation_work.run(
        record.id, "w:1", is_alive=backend.queue.is_lease_alive, should_stop=lambda: False, concurrent_batches=2
    )
    assert worked == Worked(0, "paused")
    counts = _counts(backend, record)
    assert (counts.pending, counts.running, counts.failed) == (59, 0, 0)
    assert backend.projects.store.propagation_tasks.task(record.id, 7).attempts == 0  # type: ignore[union-attr]


def test_a_long_propagation_leaves_its_next_batch_to_another_job_if_a_small_one_waits(
    backend: Backend, key: str
) -> None:
    record, work, store = _start(backend, key), backend.projects.propagation_work, backend.projects.store
    store.save_project("2.5", label_config=LABEL_CONFIG)
    small = store.propagations.create("2.5", ALL, "test", supersede=False, planned_tasks=[21, 22])
    assert work.has_smaller(record.id, [record.id, small.id])
    assert not work.has_smaller(small.id, [record.id, small.id])

    def never(_: str) -> bool:
        return False

    waiting: list[int] = []

    def run() -> Worked:
        asked = iter([[], [small.id]])
        return work.run(
            record.id, "w:1", is_alive=never, should_stop=lambda: False,
            makes_room=lambda: work.has_smaller(record.id, waiting or next(asked)),
        )  # fmt: skip

    assert run() == Worked(4, "more"), "one batch, during which the small one came"
    waiting.append(small.id)
    assert run() == Worked(0, "more"), "none while it waits"
    store.propagations.cancel(small.id)
    assert _work(backend, record) == Worked(4, "nothing")
    assert _state(backend, record) == "done"


def test_label_studio_that_asks_for_time_gets_it(backend: Backend, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = _start(backend, key)

    def busy(*_: object) -> int:
        raise LabelStudioUnavailableError("429", retry_after_s=200.0)

    with monkeypatch.context() as patched:
        patched.setattr(backend.label_studio, "import_predictions", busy)
        assert _work(backend, record).left == "paused"
    until = backend.projects.store.propagations.get(record.id).paused_until
    assert until is not None
    assert 190 < until - time.time() <= 200
    assert _work(backend, record).left == "nothing"
    assert max(len(backend.label_studio.versions_of(number)) for number in range(1, 9)) == 1


def test_annotations_that_were_not_announced_count(backend: Backend, key: str) -> None:
    assert backend.projects.count_references() == {"1": 0}
    _start(backend, key)
    assert backend.projects.count_references() == {"1": 1}


def test_without_references_it_fails_and_says_what_to_do(backend: Backend, key: str) -> None:
    backend.label_studio.annotations.clear()
    record = _start(backend, key)
    assert record.state == "failed"
    assert "mark an object" in str(record.problem)


def test_only_older_predictions_of_this_backend_are_removed(backend: Backend, key: str) -> None:
    for version in ("softmatcher-0.0.1-lite-abc", "yolo-7"):
        for number in (2, 5):
            backend.label_studio.add_prediction(number, {"model_version": version, "result": [], "score": 0.5})
    record = _start(backend, key)
    _work(backend, record)
    assert backend.label_studio.versions_of(2) == ["yolo-7", record.model_version]
    assert backend.label_studio.versions_of(5) == ["yolo-7"], "nothing is found there any more"


def test_failed_tasks_keep_their_older_prediction_and_say_why(backend: Backend, key: str) -> None:
    backend.label_studio.images["/data/upload/1/3.png"] = b"this is no image"
    del backend.label_studio.images["/data/upload/1/4.png"]
    backend.label_studio.add_prediction(4, {"model_version": "softmatcher-0-lite-old", "result": [], "score": 0.5})
    record = _start(backend, key)
    _work(backend, record)
    reasons = {
        group.first_task_id: group.reason for group in backend.projects.store.propagation_tasks.failures(record.id)
    }
    assert set(reasons) == {3, 4}
    assert "404" in reasons[4]
    assert backend.label_studio.versions_of(4) == ["softmatcher-0-lite-old"]
    assert _counts(backend, record).done == 5

    backend.label_studio.add_task(4, png(draw(red=RED_BOX)))
    assert backend.projects.propagations.retry(record.id, "failed") == 2
    _work(backend, record)
    counts = _counts(backend, record)
    assert (counts.done, counts.failed) == (6, 1)
    assert len(backend.label_studio.versions_of(4)) == 1
    assert _state(backend, record) == "done"


def test_deleted_task_fails_with_its_reason(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    del backend.label_studio.tasks[6]
    _work(backend, record)
    (group,) = backend.projects.store.propagation_tasks.failures(record.id)
    assert (group.first_task_id, group.count) == (6, 1)
    assert "not in the project" in group.reason


def test_task_deleted_while_its_batch_is_predicted_does_not_spoil_the_batch(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    tasks_of = backend.label_studio.tasks_of

    def read_then_delete(project_id: int, task_ids: list[int]) -> list[dict[str, Any]]:
        found = tasks_of(project_id, task_ids)
        backend.label_studio.tasks.pop(6, None)
        return found

    backend.label_studio.tasks_of = read_then_delete  # type: ignore[method-assign,assignment]
    _work(backend, record)
    counts = _counts(backend, record)
    assert (counts.done, counts.empty, counts.failed) == (6, 1, 1)


def test_starting_again_predicts_nothing_anew(backend: Backend, key: str) -> None:
    _work(backend, _start(backend, key))
    imported = len(backend.label_studio.imported)
    second = _start(backend, key)
    _work(backend, second)
    assert _counts(backend, second).done == 7
    assert len(backend.label_studio.imported) == imported


def test_answer_that_gets_lost_leads_to_no_second_prediction(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    backend.label_studio.answers_get_lost = True
    assert _work(backend, record).left == "paused"
    assert _counts(backend, record).pending == 8
    backend.label_studio.answers_get_lost = False
    _work(backend, record)
    assert _counts(backend, record).done == 7
    assert all(len(backend.label_studio.versions_of(number)) == (number != 5) for number in range(1, 9))


def test_prediction_that_label_studio_added_meanwhile_is_one_too_many(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    import_predictions = backend.label_studio.import_predictions

    def import_beside_retrieval(project_id: int, predictions: list[dict[str, Any]]) -> int:
        backend.label_studio.add_prediction(3, {**predictions[0], "task": 3})
        return import_predictions(project_id, predictions)

    backend.label_studio.import_predictions = import_beside_retrieval  # type: ignore[method-assign]
    _work(backend, record)
    assert backend.label_studio.versions_of(3) == [record.model_version]
    assert _state(backend, record) == "done"


def test_label_studio_away_pauses_longer_and_longer_and_goes_on(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    backend.label_studio.is_down = True
    pauses = []
    for _ in range(6):
        assert _work(backend, record).left == "paused"
        paused = backend.projects.store.propagations.get(record.id)
        pauses.append((paused.paused_until or 0) - time.time())
    assert [round(pause_s) for pause_s in pauses] == [5, 10, 20, 40, 60, 60]
    assert "does not answer" in str(paused.problem)
    assert _counts(backend, record).pending == 8
    backend.label_studio.is_down = False
    assert _work(backend, record).finished == 8
    ended = backend.projects.store.propagations.get(record.id)
    assert (ended.state, ended.problem, ended.paused_until) == ("done", None, None)


def test_image_host_away_fails_its_tasks_only(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    fetch = backend.label_studio.fetch

    def fetch_but_one(url: str, task_id: int | None) -> bytes:
        if task_id == 2:
            raise LabelStudioUnavailableError("images.example did not answer")
        return fetch(url, task_id)

    backend.label_studio.fetch = fetch_but_one  # type: ignore[method-assign]
    _work(backend, record)
    counts = _counts(backend, record)
    assert (counts.done, counts.failed) == (6, 1)


def test_an_image_that_a_proxy_says_is_missing_waits_with_all_of_label_studio(backend: Backend, key: str) -> None:
    """The first request that an ingress answers itself may be one for an image: that is no word of Label Studio's."""
    record = _start(backend, key, PropagationFilter(limit=1))
    fetch = backend.label_studio.fetch

    def fetch_from_a_proxy(url: str, task_id: int | None) -> bytes:
        backend.label_studio.is_down = True
        raise NotFoundError("the image does not exist (404)")

    images = dict(backend.label_studio.images)
    backend.label_studio.images.clear()
    backend.label_studio.fetch = fetch_from_a_proxy  # type: ignore[method-assign]
    assert _work(backend, record).left == "paused"
    assert _counts(backend, record).failed == 0
    backend.label_studio.is_down = False
    backend.label_studio.images.update(images)
    backend.label_studio.fetch = fetch  # type: ignore[method-assign]
    _work(backend, record)
    assert (_counts(backend, record).finished, _counts(backend, record).failed) == (1, 0)


def test_planning_goes_on_where_it_was_interrupted(backend: Backend, key: str) -> None:
    record = backend.projects.propagations.start(key, ALL, "test", supersede=False)
    pages = []

    def cut_off() -> None:
        pages.append(1)
        backend.label_studio.is_down = len(pages) == 2

    outcome = backend.projects.propagation_plans.plan(record.id, on_page=cut_off)
    assert outcome["paused_s"] == 5
    assert _counts(backend, record).total == 6
    backend.label_studio.is_down = False
    _set(backend, record, paused_until=None)
    assert backend.projects.propagation_plans.plan(record.id) == {"planned": 2}
    assert _counts(backend, record).total == 8
    assert _state(backend, record) == "running"


def test_filters(backend: Backend, key: str) -> None:
    unlabeled = _start(backend, key, PropagationFilter(only_unlabeled=True))
    assert _counts(backend, unlabeled).total == 7
    few = _start(backend, key, PropagationFilter(limit=4), supersede=True)
    assert _counts(backend, few).total == 4
    assert _state(backend, unlabeled) == "superseded"
    assert _counts(backend, unlabeled).cancelled == 7
    assert backend.projects.propagations.count(key, PropagationFilter(limit=5)) == 5
    assert backend.projects.propagations.count(key, PropagationFilter(only_unlabeled=True)) == 7


def test_a_brush_with_another_name_gets_its_predictions_anew(backend: Backend, key: str) -> None:
    """Label Studio shows nothing of a region whose brush is not in the label config any more."""
    _work(backend, _start(backend, key))
    before = backend.label_studio.versions_of(2)

    def set_config(config: str) -> str:
        backend.label_studio.label_config = config
        return backend.projects.note_project(backend.label_studio.project(1))

    # Another label, without references, changes no prediction.
    set_config(
        LABEL_CONFIG.replace(
            '<Label value="Dog"/></BrushLabels>', '<Label value="Dog"/><Label value="Owl"/></BrushLabels>'
        )
    )
    assert [backend.projects.banks.model_version(key)] == before
    set_config(LABEL_CONFIG.replace('name="brush"', 'name="mask"'))
    record = _start(backend, key)
    _work(backend, record)
    assert (_state(backend, record), _counts(backend, record).done) == ("done", 7)
    (prediction,) = backend.label_studio.tasks[2]["predictions"]
    assert [region["from_name"] for region in prediction["result"]] == ["mask"]
    assert prediction["model_version"] not in before


def test_one_label_alone(backend: Backend, key: str) -> None:
    backend.label_studio.annotate(11, 5, [_point("Dog")])
    record = _start(backend, key, PropagationFilter(labels=("Dog",)))
    _work(backend, record)
    counts = _counts(backend, record)
    assert (counts.done, counts.empty) == (1, 7)
    assert record.model_version != backend.projects.banks.model_version(key)
    with pytest.raises(BadInputError, match="Cat, Dog"):
        _start(backend, key, PropagationFilter(labels=("Elephant",)), supersede=True)


def test_second_start_is_refused_or_replaces(backend: Backend, key: str) -> None:
    first = _start(backend, key)
    with pytest.raises(ConflictError, match="supersede"):
        _start(backend, key)
    second = _start(backend, key, supersede=True)
    _work(backend, first)
    _work(backend, second)
    assert (_state(backend, first), _state(backend, second)) == ("superseded", "done")
    assert len(backend.label_studio.imported) == 7


def test_cancel_keeps_what_is_done_and_can_be_taken_back(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    _work(backend, record, should_stop=_after(4))
    done = _counts(backend, record).finished
    assert 0 < done < 8
    assert backend.projects.store.propagations.cancel(record.id)
    assert not backend.projects.store.propagations.cancel(record.id)
    _work(backend, record)
    counts = _counts(backend, record)
    assert (counts.finished, counts.cancelled, counts.unfinished) == (8, 8 - done, 0)
    assert len(backend.label_studio.imported) == counts.done
    backend.projects.propagations.retry(record.id, "unfinished")
    _work(backend, record)
    assert _counts(backend, record).done == 7
    assert _state(backend, record) == "done"


def test_cancel_in_the_middle_of_a_batch_writes_nothing_more(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    fetch = backend.label_studio.fetch

    def fetch_then_cancel(url: str, task_id: int | None) -> bytes:
        backend.projects.store.propagations.cancel(record.id)
        return fetch(url, task_id)

    backend.label_studio.fetch = fetch_then_cancel  # type: ignore[method-assign]
    _work(backend, record)
    assert backend.label_studio.imported == []
    assert _counts(backend, record).cancelled == 8


def test_tasks_of_a_killed_worker_go_to_the_next(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    assert backend.projects.store.propagation_tasks.lease(record.id, "dead:1", 3) == [1, 2, 3]
    assert backend.projects.store.propagation_tasks.lease(record.id, "alive:2", 3) == [4, 5, 6]
    backend.queue.live_claims.add("alive:2")
    _work(backend, record, claim="next:3")
    counts = _counts(backend, record)
    assert (counts.running, counts.pending, counts.finished) == (3, 0, 5)
    assert _state(backend, record) == "running"
    backend.queue.live_claims.clear()
    _work(backend, record, claim="next:3")
    assert _counts(backend, record).finished == 8
    assert len(backend.label_studio.imported) == 7


def test_worker_that_was_given_up_on_writes_nothing_late(backend: Backend, key: str) -> None:
    """It hung; its tasks went to another; it comes back."""
    record = _start(backend, key)
    fetch = backend.label_studio.fetch
    is_first = [True]

    def hang_once(url: str, task_id: int | None) -> bytes:
        if is_first[0]:
            is_first[0] = False
            backend.label_studio.fetch = fetch  # type: ignore[method-assign]
            _work(backend, record, claim="other:2")
        return fetch(url, task_id)

    backend.label_studio.fetch = hang_once  # type: ignore[method-assign]
    _work(backend, record, claim="hung:1")
    assert len(backend.label_studio.imported) == 7
    assert _state(backend, record) == "done"


def test_task_that_takes_its_worker_down_ends_as_failed_and_takes_no_other_with_it(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    segment = backend.projects.models.get(1)[0].segment

    def die_on_four(encoded: Any, *rest: Any) -> Any:
        if encoded.embedding["image"][15, 33].tolist() == [200, 30, 30] and (
            encoded.embedding["image"][15, 34].tolist() != [200, 30, 30]
        ):
            raise KeyboardInterrupt
        return segment(encoded, *rest)

    backend.projects.models.get(1)[0].segment = die_on_four  # type: ignore[method-assign, assignment]
    for _ in range(20):
        try:
            if _work(backend, record).left == "nothing":
                break
        except KeyboardInterrupt:
            continue
    counts = _counts(backend, record)
    assert (counts.done, counts.empty, counts.failed) == (6, 1, 1)
    (group,) = backend.projects.store.propagation_tasks.failures(record.id)
    assert group.first_task_id == 4
    assert "worker ended" in group.reason


def test_last_reference_deleted_meanwhile(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    backend.projects.store.delete_annotations(key, [10])
    _work(backend, record)
    (group,) = backend.projects.store.propagation_tasks.failures(record.id)
    assert group.count == 8
    assert "no reference left" in group.reason


def test_references_that_change_meanwhile_leave_outdated_tasks(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    _work(backend, record, should_stop=_after(4))
    backend.label_studio.annotate(11, 5, [_point("Dog")])
    backend.projects.references.ingest(key, 11)
    _work(backend, record)
    now = backend.projects.propagations.version_now(record)
    outdated = backend.projects.store.propagation_tasks.count_outdated(record.id, now)
    assert 0 < outdated < 8
    assert backend.projects.propagations.retry(record.id, "outdated") == outdated
    _work(backend, record)
    assert backend.projects.store.propagation_tasks.count_outdated(record.id, now) == 0
    assert all(backend.label_studio.versions_of(number) == [now] for number in range(1, 9))


def test_handed_on_tasks_are_predicted_once(backend: Backend, key: str) -> None:
    record = _start(backend, key, PropagationFilter(limit=4))
    propagations = backend.projects.propagations
    assert propagations.defer(key, [3, 4, 5, 6]) == record.id
    assert _counts(backend, record).total == 6
    _work(backend, record)
    other = propagations.defer(key, [6, 7])
    assert other not in (None, record.id)
    assert propagations.defer(key, [6, 7]) == other
    assert propagations.defer(key, []) is None
    _work(backend, backend.projects.store.propagations.get(other or 0))
    assert sorted(item["task"] for item in backend.label_studio.imported) == [1, 2, 3, 4, 6, 7]


def test_starts_by_itself_after_enough_references(backend: Backend, key: str) -> None:
    propagations = backend.projects.propagations
    backend.projects.references.reconcile(key)
    assert propagations.due_projects() == [], "it is off unless it is asked for"
    eager = make_backend(backend.settings.data_dir, backend.label_studio, propagate_after_references=2)
    propagations = eager.projects.propagations
    assert propagations.due_projects() == []
    backend.label_studio.annotate(11, 5, [_point("Dog")])
    backend.projects.references.ingest(key, 11)
    assert propagations.due_projects() == [key]
    record = _start(backend, key)
    assert propagations.due_projects() == []
    _work(backend, record)
    assert propagations.due_projects() == [], "none of them is new any more"
    eager.projects.close()


def test_database_operations_a_task_do_not_grow(backend: Backend) -> None:
    def statements(count: int, first: int) -> float:
        for number in range(first, first + count):
            backend.label_studio.add_task(number, png(draw(red=RED_BOX)))
        backend.label_studio.annotate(10, 1, [_point()])
        key = backend.projects.note_project(backend.label_studio.project(1))
        executed: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            executed.append(statement)

        sa.event.listen(sa.Engine, "before_cursor_execute", note)
        record = _start(backend, key, supersede=True)
        while _work(backend, record).left == "more":
            pass
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
        assert _counts(backend, record).done == first + count - 1
        return len(executed) / (first + count - 1)

    backend.label_studio.page = 100
    few, many = statements(100, 1), statements(700, 101)
    assert many < 1.2 * few


def test_a_replaced_image_is_predicted_anew_and_the_others_are_only_asked(backend: Backend, key: str) -> None:
    _work(backend, _start(backend, key))
    before = [list(backend.label_studio.tasks[number]["predictions"]) for number in range(1, 9)]
    backend.label_studio.images["/data/upload/1/3.png"] = png(draw(red=(5, 5, 15, 15)))
    backend.label_studio.images["/data/upload/1/4.png"] = png(draw(blue=RED_BOX))
    fetches, imported = backend.label_studio.fetches, len(backend.label_studio.imported)
    record = _start(backend, key)
    _work(backend, record)

    assert [one["task"] for one in backend.label_studio.imported[imported:]] == [3]
    assert backend.label_studio.versions_of(3) == [record.model_version]
    assert backend.label_studio.versions_of(4) == [], "the object is not there any more"
    after = [list(backend.label_studio.tasks[number]["predictions"]) for number in range(1, 9)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [
        number not in (3, 4) for number in range(1, 9)
    ]
    assert backend.label_studio.fetches == fetches + 4, "the two that changed, to be compared and to be predicted"

    third = _start(backend, key)
    _work(backend, third)
    assert len(backend.label_studio.imported) == imported + 1, "what was kept is known too"
    assert (_counts(backend, third).done, _counts(backend, third).empty) == (6, 2)


def test_a_prediction_of_unknown_origin_is_made_anew_once(backend: Backend, key: str) -> None:
    backend.projects.references.reconcile(key)
    version = backend.projects.banks.model_version(key)
    backend.label_studio.add_prediction(2, {"model_version": version, "result": [], "score": 0.5})
    _work(backend, _start(backend, key))
    assert backend.label_studio.versions_of(2) == [version]
    assert backend.label_studio.tasks[2]["predictions"][0]["result"]


def test_a_prediction_stays_while_its_image_cannot_be_had(backend: Backend, key: str) -> None:
    _work(backend, _start(backend, key))
    kept = list(backend.label_studio.tasks[3]["predictions"])
    content = backend.label_studio.images.pop("/data/upload/1/3.png")
    record = _start(backend, key)
    _work(backend, record)
    assert _counts(backend, record).failed == 1
    assert backend.label_studio.tasks[3]["predictions"] == kept
    backend.label_studio.images["/data/upload/1/3.png"] = content


def test_an_address_that_changed_in_the_task_is_another_image(backend: Backend, key: str) -> None:
    _work(backend, _start(backend, key))
    imported = len(backend.label_studio.imported)
    backend.label_studio.tasks[3]["data"] = {"image": "/data/upload/1/8.png"}
    _work(backend, _start(backend, key))
    assert [one["task"] for one in backend.label_studio.imported[imported:]] == [3]


def _all_are_old(backend: Backend) -> None:
    """Each task has a prediction of an older version of this backend."""
    for number in range(1, 9):
        old = {"model_version": "softmatcher-0.0.1+old", "result": [], "score": 0.1, "task": number}
        backend.label_studio.add_prediction(number, old)


def _versions(backend: Backend) -> list[list[str]]:
    return [backend.label_studio.versions_of(number) for number in range(1, 9)]


def test_what_label_studio_drops_without_a_word_fails_with_its_reason_and_keeps_the_old(
    backend: Backend, key: str
) -> None:
    """Its import answers 201 and creates fewer than were sent."""
    _all_are_old(backend)
    backend.label_studio.refused_tasks = {3, 6}
    record = _start(backend, key)
    _work(backend, record)
    counts = _counts(backend, record)
    assert (counts.done, counts.empty, counts.failed) == (5, 1, 2)
    assert _state(backend, record) == "done"
    reasons = backend.projects.store.propagation_tasks.failures(record.id)
    assert ["does not take the prediction: from_name" in reason.reason for reason in reasons] == [True]
    version = backend.projects.banks.model_version(key)
    assert _versions(backend) == [
        ["softmatcher-0.0.1+old"] if number in (3, 6) else [] if number == 5 else [version] for number in range(1, 9)
    ]


def test_a_brush_renamed_in_the_middle_is_predicted_with_the_new_name(
    backend: Backend, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _all_are_old(backend)
    record = _start(backend, key)
    renamed = LABEL_CONFIG.replace('name="brush"', 'name="painter"')
    backend.label_studio.label_config = renamed
    _work(backend, record)
    counts = _counts(backend, record)
    assert (counts.done, counts.empty, counts.failed, counts.pending) == (7, 1, 0, 0)
    project = backend.projects.store.project(key)
    assert project
    assert (project.label_config, project.needs_reconcile) == (renamed, True)
    for number in (1, 2, 3, 4, 6, 7, 8):
        (prediction,) = backend.label_studio.tasks[number]["predictions"]
        assert {region["from_name"] for region in prediction["result"]} == {"painter"}


def test_an_import_done_after_it_was_given_up_leaves_one_prediction(backend: Backend, key: str) -> None:
    """A slow Label Studio did one 75 s after the client had stopped waiting."""
    record = _start(backend, key)
    backend.label_studio.is_late = True
    assert _work(backend, record).left == "paused"
    backend.label_studio.is_late = False
    assert _work(backend, record).left == "nothing"
    assert _state(backend, record) == "done"
    for prediction in backend.label_studio.late:
        backend.label_studio.add_prediction(prediction["task"], prediction)
    assert len(backend.label_studio.versions_of(2)) == 2
    store = backend.projects.store.propagations
    assert store.due_to_tidy() == []
    assert backend.projects.propagation_work.tidy_late(record.id) == 0, "not yet"
    store.note_lost_answer(record.id, time.time() - 1)
    Maintenance(backend.projects, backend.queue).propagate_due()  # type: ignore[arg-type]
    assert ("tidy_propagation", (key, record.id)) in backend.queue.jobs
    assert backend.projects.propagation_work.tidy_late(record.id) == len(backend.label_studio.late) > 0
    assert store.due_to_tidy() == []
    version = backend.projects.banks.model_version(key)
    assert _versions(backend) == [[version] if number != 5 else [] for number in range(1, 9)]


def test_a_late_import_of_an_older_version_does_not_win(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    _work(backend, record)
    old = {"model_version": "softmatcher-0.0.1+old", "result": [], "score": 0.1, "task": 2}
    backend.label_studio.add_prediction(2, old)
    backend.projects.store.propagations.note_lost_answer(record.id, time.time() - 1)
    backend.projects.propagation_work.tidy_late(record.id)
    assert backend.label_studio.versions_of(2) == [backend.projects.banks.model_version(key)]


def test_images_that_fail_alike_for_a_while_are_waited_for(backend: Backend, key: str) -> None:
    """A login page or a 404 of Label Studio itself for 15 s: nothing has failed for good."""
    record = _start(backend, key)
    images = dict(backend.label_studio.images)
    _set(backend, record, pauses=0)
    for url in images:
        backend.label_studio.images[url] = b"<!doctype html><title>Log in</title>"
    assert _work(backend, record).left == "paused"
    counts = _counts(backend, record)
    assert (counts.failed, counts.pending) == (0, 8)
    assert "images in a row" in str(backend.projects.store.propagations.get(record.id).problem)
    backend.label_studio.images.update(images)
    _work(backend, record)
    assert (_counts(backend, record).done, _counts(backend, record).failed) == (7, 0)


def test_few_images_that_fail_at_the_edge_of_such_a_time_are_looked_at_again(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    fetch, failing = backend.label_studio.fetch, {2: 1, 4: 1, 6: 9}

    def fetch_or_fail(url: str, task_id: int | None) -> bytes:
        if task_id is not None and failing.get(task_id, 0):
            failing[task_id] -= 1
            raise NotFoundError(f"image of task {task_id} does not exist (404)")
        return fetch(url, task_id)

    backend.label_studio.fetch = fetch_or_fail  # type: ignore[method-assign]
    _work(backend, record)
    (failure,) = backend.projects.store.propagation_tasks.failures(record.id)
    assert failure.count == 1
    assert (_counts(backend, record).failed, _counts(backend, record).finished, failing[6]) == (1, 8, 7)


def test_images_that_stay_away_fail_in_the_end_and_can_be_retried(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    images = dict(backend.label_studio.images)
    backend.label_studio.images.clear()
    rounds = 0
    while _work(backend, record).left == "paused":
        rounds += 1
        assert rounds < 10
    assert rounds == 4
    assert (_counts(backend, record).failed, _state(backend, record)) == (8, "done")
    backend.label_studio.images.update(images)
    assert backend.projects.propagations.retry(record.id, "failed") == 8
    _work(backend, record)
    assert (_counts(backend, record).done, _counts(backend, record).empty) == (7, 1)


def test_a_proxy_that_takes_little_at_a_time_gets_little(backend: Backend, key: str) -> None:
    backend.label_studio.takes_at_a_time = 2
    record = _start(backend, key)
    _work(backend, record)
    assert (_counts(backend, record).done, _counts(backend, record).failed) == (7, 0)
    assert all(len(versions) <= 1 for versions in _versions(backend))


def test_a_prediction_that_is_too_large_even_alone_fails_alone(backend: Backend, key: str) -> None:
    backend.label_studio.takes_at_a_time = 0
    record = _start(backend, key)
    _work(backend, record)
    counts = _counts(backend, record)
    assert (counts.done, counts.empty, counts.failed) == (0, 1, 7)
    assert [reason.reason for reason in backend.projects.store.propagation_tasks.failures(record.id)] == ["413"]


def test_what_was_kept_is_told_from_what_was_made_anew(backend: Backend, key: str) -> None:
    first = _start(backend, key)
    _work(backend, first)
    told = backend.projects.propagations.status(backend.projects.store.propagations.get(first.id))
    assert (told["counts"]["made_anew"], told["counts"]["kept"], told["percent"]) == (7, 0, 100)
    del backend.label_studio.tasks[2]["predictions"][:]
    second = _start(backend, key)
    _work(backend, second)
    told = backend.projects.propagations.status(backend.projects.store.propagations.get(second.id))
    assert (told["counts"]["made_anew"], told["counts"]["kept"], told["counts"]["empty"]) == (1, 6, 1)


def test_a_cancelled_propagation_is_as_far_as_it_came(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    backend.projects.store.propagations.cancel(record.id)
    told = backend.projects.propagations.status(backend.projects.store.propagations.get(record.id))
    assert (told["percent"], told["counts"]["cancelled"]) == (0, 8)


def test_a_planning_that_fails_three_times_ends_as_failed(
    backend: Backend, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = backend.projects.propagations.start(key, ALL, "test", supersede=False)

    def stumble(_: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(backend.projects.references, "reconcile", stumble)
    for _ in range(3):
        assert backend.projects.propagation_plans.plan(record.id)["failed"] == "ZeroDivisionError"
        assert _state(backend, record) == "planning"
    backend.projects.propagation_plans.plan(record.id)
    ended = backend.projects.store.propagations.get(record.id)
    assert (ended.state, "ZeroDivisionError" in str(ended.problem)) == ("failed", True)


def test_pauses_while_planning_are_no_failures(backend: Backend, key: str) -> None:
    record = backend.projects.propagations.start(key, ALL, "test", supersede=False)
    backend.label_studio.is_down = True
    for _ in range(6):
        backend.projects.propagation_plans.plan(record.id)
        _set(backend, record, paused_until=None)
    assert _state(backend, record) == "planning"
    backend.label_studio.is_down = False
    assert backend.projects.propagation_plans.plan(record.id) == {"planned": 8}


def test_label_studio_away_while_it_is_asked_for_the_reason_fails_nothing(
    backend: Backend, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _all_are_old(backend)
    backend.label_studio.refused_tasks = {2}
    record = _start(backend, key)

    def away(_: object) -> None:
        raise LabelStudioUnavailableError("503")

    with monkeypatch.context() as patched:
        patched.setattr(backend.label_studio, "create_prediction", away)
        assert _work(backend, record).left == "paused"
    assert _counts(backend, record).failed == 0
    assert "softmatcher-0.0.1+old" in backend.label_studio.versions_of(2)
    backend.label_studio.refused_tasks = set()
    _work(backend, record)
    assert (_counts(backend, record).done, _counts(backend, record).empty) == (7, 1)


def test_an_image_host_that_is_down_for_a_while_is_waited_for_too(backend: Backend, key: str) -> None:
    record = _start(backend, key)
    backend.label_studio.away.update(backend.label_studio.images)
    assert _work(backend, record).left == "paused"
    assert (_counts(backend, record).failed, _counts(backend, record).pending) == (0, 8)
    backend.label_studio.away.clear()
    _work(backend, record)
    assert (_counts(backend, record).done, _counts(backend, record).empty) == (7, 1)


def test_of_two_predictions_the_one_stays_that_was_last_made(backend: Backend, key: str) -> None:
    """References may change in the middle of a run: what it was planned with is then not what a task got last."""
    record = _start(backend, key)
    backend.label_studio.annotate(11, 2, [_point()])
    backend.projects.references.ingest(key, 11)
    _work(backend, record)
    planned, last = str(record.model_version), backend.projects.banks.model_version(key)
    assert planned != last
    assert backend.label_studio.versions_of(3) == [last]
    backend.label_studio.add_prediction(3, {"model_version": planned, "result": [], "score": 0.1, "task": 3})
    backend.projects.store.propagations.note_lost_answer(record.id, time.time() - 1)
    assert backend.projects.propagation_work.tidy_late(record.id) == 1
    assert backend.label_studio.versions_of(3) == [last]


def test_a_planning_whose_job_has_no_time_left_does_not_count(
    backend: Backend, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of annotations may be taken in anew before it; each attempt goes on where the last one was."""
    record = backend.projects.propagations.start(key, ALL, "test", supersede=False)

    def slow(_: str) -> None:
        raise WorkTimeoutError

    with monkeypatch.context() as patched:
        patched.setattr(backend.projects.references, "reconcile", slow)
        for _ in range(6):
            with pytest.raises(WorkTimeoutError):
                backend.projects.propagation_plans.plan(record.id)
    assert backend.projects.propagation_plans.plan(record.id) == {"planned": 8}
