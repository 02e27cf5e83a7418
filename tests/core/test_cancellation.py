"""Work that takes too long ends where it asks, and says so to whoever gave it."""

import pytest

from backend.core import cancellation
from backend.core.cancellation import CancelledWorkError, cancellable, time_limit
from backend.errors import BadInputError


def test_work_ends_at_its_time_limit_with_its_message() -> None:
    clock = iter(range(10))
    done = []

    def work() -> None:
        for step in range(10):
            cancellation.check()
            done.append(step)

    with (
        pytest.raises(BadInputError, match="fewer marks"),
        time_limit(3, "draw fewer marks", clock=lambda: next(clock)),
    ):
        work()
    assert done == [0, 1, 2]
    cancellation.check()  # the limit ended with its block


def test_work_that_nobody_waits_for_is_not_too_long() -> None:
    with (
        pytest.raises(CancelledWorkError),
        cancellable(lambda: True),
        time_limit(0, "too long", clock=lambda: 1.0),
    ):
        cancellation.check()
