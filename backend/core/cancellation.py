"""Work that nobody waits for any more ends early.

A caller says when its work is no longer wanted (`cancellable`); what works for long asks now and then (`check`). The
condition belongs to the calling thread, so nothing has to be passed through the layers in between.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backend.errors import BadInputError

_calling = threading.local()


class CancelledWorkError(Exception):
    """Raised where the current work is cancelled: no fault of anyone; the code that set the condition catches it."""


class WorkTimeoutError(Exception):
    """Raised where the current work has used up its time, which states nothing about its input: let it pass.

    Whoever runs work with a limit (a job queue) raises a subclass of it, at any place.
    """


class TimeLimitError(BadInputError):
    """Raised where one input's work has used up the time that a `time_limit` gives it."""


@contextmanager
def cancellable(is_unwanted: Callable[[], bool]) -> Iterator[None]:
    """Let `check` raise inside the block as soon as `is_unwanted` (or an enclosing block's condition) is true."""
    outer = getattr(_calling, "is_unwanted", None)
    _calling.is_unwanted = is_unwanted if outer is None else lambda: outer() or is_unwanted()
    try:
        yield
    finally:
        _calling.is_unwanted = outer


def check() -> None:
    """Raise if this thread's work is cancelled or out of time; costs a microsecond if no condition is set.

    Raises:
        CancelledWorkError: the condition of an enclosing `cancellable` is true.
    """
    is_unwanted = getattr(_calling, "is_unwanted", None)
    if is_unwanted is not None and is_unwanted():
        raise CancelledWorkError("nobody waits for this any more")


@contextmanager
def time_limit(until: float, message: str, *, clock: Callable[[], float] = time.thread_time) -> Iterator[None]:
    """Let `check` raise inside the block from a time on.

    Args:
        until: what the clock shows then.
        message: for whoever gave the work.
        clock: of seconds; by default this thread's processor time, so that a busy machine makes nothing too long.

    Raises:
        TimeLimitError: with the message, from `check`.
        CancelledWorkError: an enclosing block's condition is true.
    """
    try:
        with cancellable(lambda: clock() >= until):
            yield
    except CancelledWorkError as error:
        check()
        raise TimeLimitError(message) from error


@contextmanager
def shield() -> Iterator[None]:
    """Let `check` pass inside the block: for work that must be done as a whole."""
    outer = getattr(_calling, "is_unwanted", None)
    _calling.is_unwanted = None
    try:
        yield
    finally:
        _calling.is_unwanted = outer
