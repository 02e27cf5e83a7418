"""Names of workers that tell on which host and by which process they are.

RQ's heartbeats say after some tens of seconds that a worker is gone, from wherever one looks. Who looks from the same
host can see at once that there is no such process any more.
"""

import hashlib
import os
from pathlib import Path
from uuid import uuid4

_PROC = Path("/proc")
_ENDED_STATES = ("Z", "X")
_STATE, _STARTED = 0, 19


def own_name() -> str:
    """Return a name for this process' worker, like no other's."""
    host, started = _this_host(), _started(os.getpid())
    return f"{host}.{os.getpid()}.{started}" if host and started else uuid4().hex


def has_ended(name: str) -> bool:
    """Return whether the process of a worker of this host has ended; False if nobody can tell."""
    host, pid, started = (*name.split("."), "", "")[:3]
    if not started or not pid.isdigit() or host != _this_host():
        return False
    # A process of that id that began at another time is another one.
    return _started(int(pid)) != started


def _this_host() -> str | None:
    """Return a name of this boot of this kernel and its process ids; None if it cannot be told (not Linux)."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return None
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:12]


def _started(pid: int) -> str | None:
    """Return when a process began, in clock ticks since the boot; None if it has ended."""
    try:
        # The name in brackets may hold anything, brackets too.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in _ENDED_STATES else fields[_STARTED]
