"""Run as a script: ends the process groups it was told of when whoever started it is gone, however that came about.

Reads lines from standard input: `+<pgid>` watch, `-<pgid>` forget. End of input means that the parent has ended or was
killed. Standard library only, and no import of `backend`: it has to start at once and to stay small.
"""

import contextlib
import os
import signal
import sys
import time

GRACE_S = 5.0


def watch() -> None:
    """Read until the parent is gone, then end what is left: SIGTERM, after `GRACE_S` seconds SIGKILL."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    end_groups(groups, GRACE_S)


def is_group_alive(group: int) -> bool:
    """Return whether any process of the group is there."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end_groups(groups: set[int], grace_s: float) -> None:
    """SIGTERM to every group, SIGKILL to those still there after `grace_s` seconds."""
    signal_groups(groups, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(is_group_alive(group) for group in groups):
        time.sleep(0.05)
    signal_groups(groups, signal.SIGKILL)


def signal_groups(groups: set[int], number: signal.Signals) -> None:
    """Send a signal to every process of the groups; a group that is gone is left out."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


if __name__ == "__main__":
    watch()
