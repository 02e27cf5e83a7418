"""The processes that `up`, `demo` and the end-to-end tests start: logs, health, restarts, and no orphans."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import requests

from backend.cli.process import orphan_guard
from backend.cli.process.signals import ignored_signals, postponed_signals
from backend.errors import ConfigurationError, SoftmatcherError
from backend.own_http import Session

LOOPBACK = "127.0.0.1"
LAST_LINES = 25


class ProcessFailedError(SoftmatcherError):
    """A process that was started did not come up, or ended; the message has the last lines of its log."""


def free_port(preferred: int | None = None) -> int:
    """Return a TCP port that is free on loopback: `preferred` if it is, else one that the system chooses."""
    for port in (preferred or 0, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            # As the servers do it: the remains of closed connections do not make a port taken.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                listener.bind((LOOPBACK, port))
                return int(listener.getsockname()[1])
    raise ConfigurationError("no free TCP port on 127.0.0.1")


@dataclass(frozen=True)
class Program:
    """A program to run.

    Attributes:
        name: in messages and log files.
        command: program and arguments.
        environment: all of it.
        ends_last: True for what the others need until they have ended.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ends_last: bool = False


class ChildProcess:
    """A running process, leader of a process group of its own, with its output in a log file."""

    def __init__(self, program: Program, log_path: Path) -> None:
        self.program = program
        self.log_path = log_path
        with log_path.open("ab") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    program.command,
                    env=program.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Its own group: Ctrl-C reaches our process alone, which then ends the others in order.
                    start_new_session=True,
                )
            except OSError as error:
                raise ProcessFailedError(f"{program.name}: cannot run {program.command[0]}: {error}") from error

    @property
    def name(self) -> str:
        """Return the program's name."""
        return self.program.name

    @property
    def pid(self) -> int:
        """Process id, also the id of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -n if signal n ended it."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        """SIGTERM, to the process alone: it ends what it started."""
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended, at most `timeout_s` seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, timeout_s))

    def end_group(self) -> None:
        """SIGKILL to it and to all that it started and left."""
        orphan_guard.signal_groups({self.pid}, signal.SIGKILL)
        self._process.wait()

    def last_lines(self, count: int = LAST_LINES) -> str:
        """Return the end of its log."""
        with suppress(OSError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-count:])
        return ""

    def failure(self, what: str) -> ProcessFailedError:
        """Return an error that says what went wrong and shows the end of the log."""
        return ProcessFailedError(f"{self.name} {what}. The end of {self.log_path}:\n{self.last_lines()}")


class ProcessGroup:
    """Starts named processes and ends all of them on leaving, also if this process is killed.

    Args:
        log_dir: folder of the log files, one a process; created.
        grace_s: seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, log_dir: Path, *, grace_s: float = 10.0) -> None:
        self._log_dir = log_dir
        self._grace_s = grace_s
        self._children: dict[str, ChildProcess] = {}
        self._guard: subprocess.Popen[str] | None = None

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_all()

    def __getitem__(self, name: str) -> ChildProcess:
        return self._children[name]

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, ends_last: bool = False
    ) -> ChildProcess:
        """Start a process; its output is appended to `<log_dir>/<name>.log`.

        Raises:
            ProcessFailedError: the program cannot be run, or a process of that name runs already.
        """
        return self._run(Program(name, tuple(command), dict(environment), ends_last))

    def restart(self, name: str) -> ChildProcess:
        """End the process if it still runs, and start it again as before."""
        program = self._children[name].program
        self.stop(name)
        return self._run(program)

    def stop(self, name: str) -> None:
        """End one process and all that it started."""
        self._end([self._children[name]])

    def kill(self, name: str) -> None:
        """End one process and all that it started at once, as a crash would; `ended` then has it."""
        self._children[name].end_group()

    def stop_all(self) -> None:
        """End every process. A Ctrl-C meanwhile is ignored: it would leave half of them behind."""
        with ignored_signals():
            for ends_last in (False, True):
                self._end([child for child in self._children.values() if child.program.ends_last is ends_last])
            if self._guard is not None and self._guard.stdin is not None:
                self._guard.stdin.close()
                self._guard.wait()
                self._guard = None

    def ended(self) -> list[ChildProcess]:
        """Return the processes that have ended without having been stopped."""
        return [child for child in self._children.values() if child.exit_code is not None]

    def wait_for_http(
        self, name: str, url: str, *, timeout_s: float, basic_auth: tuple[str, str] | None = None
    ) -> None:
        """Wait until `url` answers 200.

        Raises:
            ProcessFailedError: the process ended, or did not answer in time.
        """

        def is_up() -> bool:
            with suppress(requests.RequestException), Session(is_own=True) as session:
                return session.get(url, timeout=2, auth=basic_auth).status_code == 200
            return False

        self.wait_until(name, is_up, timeout_s=timeout_s, what=f"did not answer at {url}")

    def wait_until(self, name: str, condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
        """Wait until `condition()` holds while the process runs.

        Raises:
            ProcessFailedError: the process ended, or the condition did not hold in time.
        """
        child = self._children[name]
        deadline = time.monotonic() + timeout_s
        while not condition():
            if child.exit_code is not None:
                raise child.failure(f"ended with code {child.exit_code}")
            if time.monotonic() > deadline:
                raise child.failure(f"{what} within {timeout_s:.0f} s")
            time.sleep(0.2)

    def _run(self, program: Program) -> ChildProcess:
        if program.name in self._children and self._children[program.name].exit_code is None:
            raise ProcessFailedError(f"{program.name} runs already")
        self._log_dir.mkdir(parents=True, exist_ok=True)
        with postponed_signals():
            child = ChildProcess(program, self._log_dir / f"{program.name}.log")
            self._children[program.name] = child
            self._tell_guard(f"+{child.pid}")
        return child

    def _end(self, children: Sequence[ChildProcess]) -> None:
        for child in children:
            child.ask_to_end()
        deadline = time.monotonic() + self._grace_s
        for child in children:
            child.wait(deadline - time.monotonic())
        for child in children:
            child.end_group()
            self._tell_guard(f"-{child.pid}")
            del self._children[child.name]

    def _tell_guard(self, line: str) -> None:
        if self._guard is None:
            self._guard = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", orphan_guard.__file__],
                stdin=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        if self._guard.stdin is not None:
            # A guard that somebody killed must not keep us from ending the rest.
            with suppress(BrokenPipeError):
                self._guard.stdin.write(f"{line}\n")
                self._guard.stdin.flush()
