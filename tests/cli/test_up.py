import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from backend.cli.processes import ProcessGroup
from backend.cli.up import Restarts, threads_of_workers

ENDS = (sys.executable, "-S", "-c", "print('out of luck'); raise SystemExit(3)")
STAYS = (sys.executable, "-S", "-c", "import time; time.sleep(100)")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[ProcessGroup]:
    with ProcessGroup(tmp_path, grace_s=2) as group:
        yield group


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_what_ended_is_started_again_and_said(processes: ProcessGroup) -> None:
    console = Console(file=io.StringIO(), width=200)
    processes.start("steady", STAYS, {})
    processes.start("worker-1", ENDS, {}).wait(20)
    steady, ended = processes["steady"].pid, processes["worker-1"].pid
    Restarts(processes, console).restart_ended()
    assert processes["steady"].pid == steady
    assert processes["worker-1"].pid != ended
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "worker-1 ended with code 3, starting it again (1 of at most 5 times a minute)" in said
    assert "out of luck" in said
    assert "steady" not in said


def test_a_process_that_always_ends_is_started_five_times_a_minute(processes: ProcessGroup) -> None:
    clock = Clock()
    restarts = Restarts(processes, Console(file=io.StringIO()), clock)
    processes.start("hopeless", ENDS, {})
    starts_s: list[float] = []
    for _ in range(65):
        processes["hopeless"].wait(20)
        before = processes["hopeless"].pid
        restarts.restart_ended()
        if processes["hopeless"].pid != before:
            starts_s.append(clock.now_s - 1000)
        clock.now_s += 1
    assert starts_s == [0, 1, 3, 7, 15, 61]


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert threads_of_workers(1) == {}, "a worker alone knows by itself"
    assert threads_of_workers(2) == {"SOFTMATCHER_TORCH_THREADS": "4"}
    assert threads_of_workers(20) == {"SOFTMATCHER_TORCH_THREADS": "1"}
