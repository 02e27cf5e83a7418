"""Gives calls slots of the models of one device: one at a time, or a few; what a person waits for comes first."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum

from backend.core import cancellation
from backend.errors import ModelUnavailableError
from backend.metrics import Metrics

_LOOK_EVERY_S = 0.25
"""Seconds between two looks of a waiting call at whether its client went away."""


class Priority(IntEnum):
    """Which call comes first; of equal ones, the one that waits longest."""

    INTERACTIVE = 0
    BATCH = 1
    PREFETCH = 2


@dataclass(eq=False)
class Waiter:
    """A call in the queue, with what its place depends on."""

    priority: Priority
    number: int
    is_urgent: Callable[[], bool] | None = None
    since: float = field(default_factory=time.perf_counter)

    @property
    def place(self) -> tuple[int, int]:
        """Return what the queue is sorted by: priority, then number."""
        if self.is_urgent is not None and self.is_urgent():
            return Priority.INTERACTIVE, self.number
        return self.priority, self.number


class ModelScheduler:
    """One model call at a time; an interactive call takes precedence over all others, a prefetch comes last.

    The queue is bounded: beyond `most_waiting` calls, a further one is refused at once.

    Args:
        metrics: where waits are noted.
        most_waiting: in the queue.
        at_a_time: calls that hold a slot at a time: more than one if nobody waits for any single one of them.
        on_release: called after each call that held a slot.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        most_waiting: int = 64,
        at_a_time: int = 1,
        on_release: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_release = on_release
        self._metrics = metrics
        self._most_waiting = most_waiting
        self._condition = threading.Condition()
        self._free = at_a_time
        self.waiters: list[Waiter] = []
        """The queue; benchmarks put a list of their own here, which notes who comes and goes."""
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Return whether every slot is held."""
        return not self._free

    @property
    def is_wanted(self) -> bool:
        """Return whether a call that a person or a batch waits for is in the queue: a prefetch then gives way."""
        return any(waiter.priority < Priority.PREFETCH for waiter in self.waiters)

    @contextmanager
    def slot(
        self, *, is_interactive: bool = False, is_prefetch: bool = False, is_urgent: Callable[[], bool] | None = None
    ) -> Iterator[None]:
        """Hold the models for one call (tenths of a second), not for a whole request.

        Args:
            is_interactive: somebody looks at the screen meanwhile.
            is_prefetch: nobody waits for it. It is interrupted (`core.cancellation`) once anyone else wants the models.
            is_urgent: asked while waiting: true once an interactive call depends on this one.

        Raises:
            ModelUnavailableError: too many calls wait already.
            CancelledWorkError: whoever wanted this went away while it waited.
        """
        priority = Priority.INTERACTIVE if is_interactive else Priority.PREFETCH if is_prefetch else Priority.BATCH
        self._wait(priority, is_urgent)
        try:
            if is_prefetch:
                with cancellation.cancellable(lambda: self.is_wanted):
                    yield
            else:
                yield
        finally:
            with self._condition:
                self._free += 1
                self._condition.notify_all()
            self._on_release()

    def _wait(self, priority: Priority, is_urgent: Callable[[], bool] | None) -> None:
        with self._condition:
            if len(self.waiters) >= self._most_waiting:
                raise ModelUnavailableError(
                    f"the models are busy: {len(self.waiters)} calls wait for them already; try again in some seconds"
                )
            self._count += 1
            waiter = Waiter(priority, self._count, is_urgent)
            self.waiters.append(waiter)
            self._metrics.scheduler_waiting.set(len(self.waiters))
            try:
                while not self._free or min(self.waiters, key=lambda one: one.place) is not waiter:
                    self._condition.wait(_LOOK_EVERY_S)
                    cancellation.check()
                cancellation.check()
                self._free -= 1
            finally:
                self.waiters.remove(waiter)
                self._metrics.scheduler_waiting.set(len(self.waiters))
                self._condition.notify_all()
        self._metrics.scheduler_seconds.labels(priority.name.lower()).observe(time.perf_counter() - waiter.since)
