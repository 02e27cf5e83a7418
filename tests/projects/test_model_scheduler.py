"""The queue for the models: who goes first, how long it may be, and what nobody waits for any more."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from backend.core import cancellation
from backend.core.cancellation import CancelledWorkError, cancellable
from backend.errors import ModelUnavailableError
from backend.metrics import Metrics
from backend.projects.model_scheduler import ModelScheduler


class _Held:
    """A gate that a batch call holds until `release`."""

    def __init__(self, scheduler: ModelScheduler) -> None:
        self._may_end, is_held = threading.Event(), threading.Event()

        def hold() -> None:
            with scheduler.slot():
                is_held.set()
                self._may_end.wait(10)

        self._thread = threading.Thread(target=hold)
        self._thread.start()
        assert is_held.wait(5)

    def release(self) -> None:
        self._may_end.set()
        self._thread.join(5)


def _start(call: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.05)
    return thread


def test_prefetch_goes_after_everything_and_equals_in_their_order() -> None:
    scheduler, order = ModelScheduler(Metrics()), list[str]()
    held = _Held(scheduler)

    def call(name: str, **kind: Any) -> None:
        with scheduler.slot(**kind):
            order.append(name)

    threads = [
        _start(lambda: call("prefetch", is_prefetch=True)),
        _start(lambda: call("batch 1")),
        _start(lambda: call("batch 2")),
        _start(lambda: call("click 1", is_interactive=True)),
        _start(lambda: call("click 2", is_interactive=True)),
    ]
    held.release()
    for thread in threads:
        thread.join(5)
    assert order == ["click 1", "click 2", "batch 1", "batch 2", "prefetch"]


def test_batch_call_that_an_interactive_one_depends_on_is_as_urgent() -> None:
    scheduler, order = ModelScheduler(Metrics()), list[str]()
    held, is_awaited = _Held(scheduler), threading.Event()

    def call(name: str, is_urgent: Callable[[], bool] | None = None) -> None:
        with scheduler.slot(is_urgent=is_urgent):
            order.append(name)

    threads = [_start(lambda: call("batch")), _start(lambda: call("awaited", is_awaited.is_set))]
    is_awaited.set()
    held.release()
    for thread in threads:
        thread.join(5)
    assert order == ["awaited", "batch"]


def test_running_prefetch_gives_way_to_a_click() -> None:
    scheduler, started, outcome = ModelScheduler(Metrics()), threading.Event(), list[str]()

    def look_ahead() -> None:
        try:
            with scheduler.slot(is_prefetch=True):
                started.set()
                for _ in range(1000):
                    cancellation.check()
                    time.sleep(0.005)
        except CancelledWorkError:
            outcome.append("interrupted")

    thread = _start(look_ahead)
    assert started.wait(5)
    with scheduler.slot(is_interactive=True):
        pass
    thread.join(5)
    assert outcome == ["interrupted"]


def test_a_full_queue_refuses_at_once() -> None:
    scheduler = ModelScheduler(Metrics(), most_waiting=2)
    held = _Held(scheduler)

    def call() -> None:
        with scheduler.slot():
            pass

    threads = [_start(call), _start(call)]
    with pytest.raises(ModelUnavailableError, match="2 calls wait"), scheduler.slot(is_interactive=True):
        pass
    held.release()
    for thread in threads:
        thread.join(5)
    with scheduler.slot():
        pass


def test_a_client_that_went_away_leaves_the_queue() -> None:
    metrics = Metrics()
    scheduler, is_gone, outcome = ModelScheduler(metrics), threading.Event(), list[str]()
    held = _Held(scheduler)

    def call() -> None:
        try:
            with cancellable(is_gone.is_set), scheduler.slot(is_interactive=True):
                outcome.append("ran")
        except CancelledWorkError:
            outcome.append("left")

    thread = _start(call)
    assert b"softmatcher_model_waiting 1.0" in metrics.render()
    is_gone.set()
    thread.join(5)
    assert outcome == ["left"]
    assert b"softmatcher_model_waiting 0.0" in metrics.render()
    held.release()
    with scheduler.slot():
        pass
    assert b'softmatcher_model_wait_seconds_count{kind="batch"} 2.0' in metrics.render()


def test_several_calls_at_a_time_where_that_is_more_answers_a_second() -> None:
    scheduler = ModelScheduler(Metrics(), at_a_time=2)
    first, second = _Held(scheduler), _Held(scheduler)
    is_in = threading.Event()

    def call() -> None:
        with scheduler.slot():
            is_in.set()

    third = _start(call)
    assert not is_in.is_set()
    first.release()
    assert is_in.wait(5)
    third.join(5)
    second.release()
