"""How programs that start other programs meet SIGINT, SIGTERM and SIGHUP."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def heed_interrupt() -> None:
    """Let SIGINT raise KeyboardInterrupt again if the starter had it ignored.

    A shell without job control (a script's `make up &`) starts what runs in the background with SIGINT ignored, and
    Python then installs no handler of its own: `kill -INT` would do nothing.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt inside, as Ctrl-C does, so that `finally` and `with` clean up.

    SIGINT does so too, even if the starter had it ignored. An ignored SIGHUP stays so: that is what `nohup` is for.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    heed_interrupt()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignored_signals() -> Iterator[None]:
    """Ignore signals inside, so that an impatient second Ctrl-C does not leave half of the processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def postponed_signals() -> Iterator[None]:
    """Make signals wait until the block's end: a process that is started and not yet noted would be left behind.

    It uses handlers: signals that are ignored or masked would be so in the new process too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {
        number: signal.signal(number, lambda signum, frame: arrived.append(signum))
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for signum in arrived:
            signal.raise_signal(signum)
