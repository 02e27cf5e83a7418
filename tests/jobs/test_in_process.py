"""The queue of a backend that is one process."""

import threading
from collections.abc import Iterator

import pytest

from backend.errors import QueueUnavailableError
from backend.jobs import tasks
from backend.jobs.in_process import InProcessQueue
from backend.jobs.queue import MOST_VISIBLE, REFERENCES, TILES

KEY = "1.1"


@pytest.fixture
def queue() -> Iterator[InProcessQueue]:
    made = InProcessQueue()
    yield made
    made.close(10)
    tasks.use_projects(None)


@pytest.mark.slow
def test_annotations_go_before_tiles_and_failures_end_nothing(
    queue: InProcessQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    is_over = threading.Event()

    def fail(project_key: str) -> None:
        done.append("tiles")
        raise RuntimeError("a bug")

    monkeypatch.setattr(tasks, "refresh_tiles", fail)
    monkeypatch.setattr(tasks, "ingest_annotation", lambda key, number: done.append(f"annotation {number}"))
    monkeypatch.setattr(tasks, "accept_predictions", lambda *args: is_over.set())
    queue.accept_predictions(KEY, 0.5, "batch")
    assert queue.refresh_tiles(KEY) == queue.refresh_tiles(KEY), "once"
    queue.ingest_annotation(KEY, 1)
    assert queue.ingest_annotation(KEY, 2) == queue.ingest_annotation(KEY, 2)
    assert queue.waiting()[REFERENCES] == 2
    assert queue.has_references_waiting()
    queue.start()
    assert is_over.wait(10)
    assert done == ["annotation 1", "annotation 2", "tiles"]
    assert not queue.has_labelers_waiting()


def test_visible_tasks_are_bounded_and_the_last_named_come_first(queue: InProcessQueue) -> None:
    queue.note_visible(KEY, range(1, 200))
    queue.note_visible(KEY, [7, 3])
    seen = queue.visible(KEY)
    assert len(seen) == MOST_VISIBLE
    assert seen[:2] == [7, 3]
    assert queue.visible("2.2") == []


def test_what_is_between_the_jobs_gives_way(queue: InProcessQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    idle, is_over = threading.Event(), threading.Event()
    monkeypatch.setattr(tasks, "refresh_tiles", lambda key: is_over.set())

    def when_idle() -> bool:
        idle.set()
        while not queue.has_work_waiting():
            idle.wait(0.01)
        return True

    queue.when_idle = when_idle
    queue.start()
    assert idle.wait(10)
    queue.refresh_tiles(KEY)
    assert is_over.wait(10)
    assert queue.waiting()[TILES] == 0


def test_nothing_is_taken_after_the_end(queue: InProcessQueue) -> None:
    queue.start()
    queue.close(10)
    with pytest.raises(QueueUnavailableError, match="about to end"):
        queue.refresh_tiles(KEY)
    assert queue.has_work_waiting(), "what runs between the jobs ends, too"


def test_a_job_that_the_end_interrupts_is_no_error(
    queue: InProcessQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs, ends = threading.Event(), threading.Event()

    def interrupted(project_key: str) -> None:
        runs.set()
        ends.wait(10)
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(tasks, "refresh_tiles", interrupted)
    queue.refresh_tiles(KEY)
    queue.start()
    assert runs.wait(10)
    queue.close(0)
    with caplog.at_level("INFO"):
        ends.set()
        queue.close(10)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "not finished" in caplog.text
