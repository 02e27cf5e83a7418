import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from backend.cli.process.supervisor import ProcessGroup
from backend.cli.up import GPU_WORKERS, Restarts, default_workers, start_backend
from backend.models.device import placement
from backend.settings import load_settings

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


def test_workers_are_told_how_many_share_the_cores() -> None:
    started: dict[str, Mapping[str, str]] = {}

    class Recorded:
        def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
            started[name] = environment

        def wait_for_http(self, name: str, url: str, **options: Any) -> None:
            assert (name, url) == ("service", "http://127.0.0.1:9/health")

    for asked, expected in (({}, "3"), ({"SOFTMATCHER_LOCAL_WORKERS": "5"}, "5")):
        start_backend(Recorded(), asked, "http://127.0.0.1:9", 3)  # type: ignore[arg-type]
        assert list(started) == ["service", "worker-1", "worker-2", "worker-3"]
        assert {started[f"worker-{number}"]["SOFTMATCHER_LOCAL_WORKERS"] for number in (1, 2, 3)} == {expected}


@pytest.mark.parametrize(
    ("has_driver", "device", "workers"), [(True, "auto", GPU_WORKERS), (True, "cpu", 1), (False, "auto", 1)]
)
def test_a_gpu_gets_several_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_driver: bool, device: str, workers: int
) -> None:
    driver = tmp_path / "driver"
    if has_driver:
        driver.touch()
    monkeypatch.setattr(placement, "_DRIVERS", (driver,))
    assert default_workers(load_settings(device=device)) == workers
