import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import requests

from backend.cli.process.embedded_valkey import EmbeddedValkey
from backend.cli.process.signals import signals_as_interrupt
from backend.cli.process.supervisor import ChildProcess, ProcessFailedError, ProcessGroup, Program, free_port
from backend.errors import ConfigurationError

ENVIRONMENT = {"PATH": os.environ["PATH"]}
SLEEP = (sys.executable, "-c", "import time; time.sleep(100)")
# A parent with a child of its own, which ignores the polite signal; prints the child's id.
FAMILY = (
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import signal, time\\n"
    'signal.signal(signal.SIGTERM, signal.SIG_IGN)\\nprint("deaf", flush=True)\\ntime.sleep(100)\'])\n'
    "print(child.pid, flush=True)\ntime.sleep(100)",
)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[ProcessGroup]:
    with ProcessGroup(tmp_path / "logs", grace_s=3) as group:
        yield group


def is_alive(pid: int) -> bool:
    """Zombies are not alive: an orphan's new parent may take its time to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(*pids: int, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not any(is_alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def start_family(processes: ProcessGroup) -> tuple[int, int]:
    """Ids of a process and of its own child, once the child ignores SIGTERM."""
    parent = processes.start("family", FAMILY, ENVIRONMENT)
    processes.wait_until("family", lambda: "deaf" in parent.last_lines(), timeout_s=20, what="was not ready")
    child = next(int(line) for line in parent.last_lines().splitlines() if line.isdigit())
    return parent.pid, child


def test_output_goes_to_the_log(processes: ProcessGroup, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr)"]
    processes.start("talker", command, ENVIRONMENT).wait(20)
    log = (tmp_path / "logs" / "talker.log").read_text()
    assert sorted(log.split()) == ["err", "out"]


def test_the_environment_is_only_what_was_given(processes: ProcessGroup) -> None:
    command = [sys.executable, "-c", "import os; print(sorted(os.environ))"]
    child = processes.start("looker", command, {"ONLY": "this", "LC_CTYPE": "C.UTF-8"})
    child.wait(20)
    assert "ONLY" in child.last_lines()
    assert "HOME" not in child.last_lines()


def test_waiting_for_a_process_that_ends_shows_its_last_lines(processes: ProcessGroup) -> None:
    processes.start("broken", [sys.executable, "-c", "raise SystemExit('no such model')"], ENVIRONMENT)
    with pytest.raises(ProcessFailedError, match=r"broken ended with code 1.*(?s:.)*no such model"):
        processes.wait_for_http("broken", f"http://127.0.0.1:{free_port()}/health", timeout_s=20)


@pytest.mark.slow
def test_waiting_has_an_end(processes: ProcessGroup) -> None:
    processes.start("silent", SLEEP, ENVIRONMENT)
    port = free_port()
    with pytest.raises(ProcessFailedError, match=f"silent did not answer at http://127.0.0.1:{port}/ within 1 s"):
        processes.wait_for_http("silent", f"http://127.0.0.1:{port}/", timeout_s=1)


def test_waiting_for_a_web_server(processes: ProcessGroup, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    processes.start("web", command, ENVIRONMENT)
    processes.wait_for_http("web", f"http://127.0.0.1:{port}/", timeout_s=20)
    assert requests.get(f"http://127.0.0.1:{port}/", timeout=5).status_code == 200


def test_a_program_that_is_not_there_is_named(processes: ProcessGroup) -> None:
    with pytest.raises(ProcessFailedError, match="nobody: cannot run /no/such/program"):
        processes.start("nobody", ["/no/such/program"], ENVIRONMENT)


def test_a_second_process_of_the_same_name_is_rejected(processes: ProcessGroup) -> None:
    processes.start("one", SLEEP, ENVIRONMENT)
    with pytest.raises(ProcessFailedError, match="one runs already"):
        processes.start("one", SLEEP, ENVIRONMENT)


def test_leaving_ends_children_of_children_that_ignore_sigterm(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path, grace_s=1) as group:
        parent, child = start_family(group)
    assert wait_until_gone(parent, child, timeout_s=2)


def test_restart_runs_the_same_program_again(processes: ProcessGroup) -> None:
    first = processes.start("sleeper", SLEEP, ENVIRONMENT).pid
    second = processes.restart("sleeper")
    assert second.pid != first
    assert second.exit_code is None
    assert wait_until_gone(first)


def test_a_killed_process_is_among_the_ended_and_can_be_restarted(processes: ProcessGroup) -> None:
    processes.start("sleeper", SLEEP, ENVIRONMENT)
    assert processes.ended() == []
    processes.kill("sleeper")
    assert [(child.name, child.exit_code) for child in processes.ended()] == [("sleeper", -signal.SIGKILL)]
    processes.restart("sleeper")
    assert processes.ended() == []


@pytest.mark.parametrize(
    ("how", "ignored"),
    [
        (signal.SIGKILL, ()),
        (signal.SIGTERM, ()),
        (signal.SIGINT, ()),
        (signal.SIGHUP, ()),
        pytest.param(signal.SIGINT, (signal.SIGINT,), id="in a shell's background"),
        pytest.param(signal.SIGTERM, (signal.SIGINT, signal.SIGHUP), id="under nohup, in the background"),
    ],
)
@pytest.mark.slow
def test_no_orphans_when_the_parent_is_told_to_end(
    tmp_path: Path, how: signal.Signals, ignored: tuple[signal.Signals, ...]
) -> None:
    # Who runs the tests may have signals ignored: the program has to be started as the case says.
    script = f"""
import signal, sys, time
for number in (signal.SIGINT, signal.SIGHUP):
    heard = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, signal.SIG_IGN if number in {tuple(map(int, ignored))} else heard)
from pathlib import Path
from backend.cli.process.signals import signals_as_interrupt
from backend.cli.process.supervisor import ProcessGroup
family = {FAMILY!r}
with signals_as_interrupt(), ProcessGroup(Path({str(tmp_path)!r}), grace_s=1) as group:
    parent = group.start("family", family, {ENVIRONMENT!r})
    group.wait_until("family", lambda: "deaf" in parent.last_lines(), timeout_s=20, what="was not ready")
    print(parent.pid, parent.last_lines().replace("deaf", ""), flush=True)
    time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as starter:
        assert starter.stdout is not None
        pids: list[int] = []
        while len(pids) < 2:
            line = starter.stdout.readline()
            assert line, "the program ended before it had started the others"
            pids += [int(word) for word in line.split()]
        assert all(is_alive(pid) for pid in pids)
        starter.send_signal(how)
        try:
            starter.wait(20)
        finally:
            starter.kill()
    assert wait_until_gone(*pids, timeout_s=15)


def test_free_port_prefers_the_port_it_is_asked_for() -> None:
    port = free_port()
    assert free_port(port) == port


def test_free_port_avoids_a_port_that_is_taken(processes: ProcessGroup, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    processes.start("web", command, ENVIRONMENT)
    processes.wait_for_http("web", f"http://127.0.0.1:{port}/", timeout_s=20)
    assert free_port(port) != port


@pytest.mark.slow
def test_valkey_keeps_what_is_queued_across_a_crash(tmp_path: Path) -> None:
    for is_first in (True, False):
        with ProcessGroup(tmp_path / "logs") as group:
            valkey = EmbeddedValkey(group, tmp_path / "valkey")
            with redis.Redis.from_url(valkey.url) as connection:
                if is_first:
                    connection.rpush("jobs", "one", "two")
                    # The append-only file is written once a second.
                    time.sleep(1.5)
                    group.kill("valkey")
                else:
                    assert connection.lrange("jobs", 0, -1) == [b"one", b"two"]
        valkey.close()


def test_valkey_is_not_on_the_network_and_only_for_this_user(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path / "logs") as group:
        valkey = EmbeddedValkey(group, tmp_path / "valkey")
        with redis.Redis.from_url(valkey.url) as connection:
            assert connection.config_get("port") == {"port": "0"}
        folder = Path(valkey.url.removeprefix("unix://")).parent
        assert folder.stat().st_mode & 0o077 == 0
    valkey.close()
    assert not folder.exists()


def test_a_second_valkey_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path / "logs") as group:
        valkey = EmbeddedValkey(group, tmp_path / "valkey")
        with pytest.raises(ConfigurationError, match=r"another queue runs on .*valkey.*SOFTMATCHER_DATA_DIR"):
            EmbeddedValkey(group, tmp_path / "valkey")
    valkey.close()


def test_ctrl_c_while_a_process_starts_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    class InterruptedChild(ChildProcess):
        def __init__(self, program: Program, log_path: Path) -> None:
            super().__init__(program, log_path)
            started.append(self.pid)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("backend.cli.process.supervisor.ChildProcess", InterruptedChild)
    with pytest.raises(KeyboardInterrupt), signals_as_interrupt(), ProcessGroup(tmp_path / "logs", grace_s=3) as group:
        group.start("one", SLEEP, ENVIRONMENT)
    assert len(started) == 1
    assert wait_until_gone(*started)
