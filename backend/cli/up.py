"""`up`: service, workers and queue for a Label Studio that is already there, kept running."""

import os
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress

import requests
from rich.console import Console

from backend.cli.process.embedded_valkey import EmbeddedValkey
from backend.cli.process.running_up import announced
from backend.cli.process.signals import signals_as_interrupt
from backend.cli.process.supervisor import LOOPBACK, ProcessFailedError, ProcessGroup, free_port
from backend.cli.service_address import service_address
from backend.errors import ConfigurationError
from backend.models.device.placement import may_have_gpu
from backend.own_http import Session
from backend.settings import Settings, load_settings

SERVICE = "service"
# A model may have to be read from a slow disk, and PyTorch imported on a busy machine.
START_S = 180
MODELS_S = 300
RESTARTS_A_MINUTE = 5
GPU_WORKERS = 3
"""Workers where the models run on a GPU, unless told otherwise: one of them does not keep it busy (docs/models.md)."""


def up(workers: int | None) -> None:
    """Run until Ctrl-C. Logs go to the data folder.

    Args:
        workers: how many worker processes; None: as many as suit the device.

    Raises:
        ConfigurationError: a setting is wrong, or the port is taken.
        ProcessFailedError: something did not come up.
    """
    console = Console(highlight=False)
    settings = load_settings()
    workers = workers or default_workers(settings)
    port = _own_port(settings)
    with signals_as_interrupt(), ExitStack() as stack:
        try:
            # The queue's folder is given back after its process has ended.
            queue = stack.enter_context(ExitStack())
            processes = stack.enter_context(ProcessGroup(settings.data_dir / "logs", grace_s=30))
            with console.status("Starting queue, service and workers ..."):
                redis_url = settings.redis_url
                if redis_url is None:
                    valkey = EmbeddedValkey(processes, settings.data_dir / "valkey")
                    queue.callback(valkey.close)
                    redis_url = valkey.url
                environment = os.environ | {"REDIS_URL": redis_url, "SOFTMATCHER_PORT": str(port)}
                start_backend(processes, environment, service_address(settings, port), workers)
            own_redis_url = redis_url if settings.redis_url is None else None
            stack.enter_context(announced(settings, port=port, own_redis_url=own_redis_url))
            _say_how_to_connect(console, settings, port, redis_url, workers)
            try:
                with console.status(f"Loading the models of profile {settings.profile} ..."):
                    models = wait_for_models(processes, environment, service_address(settings, port))
            except ProcessFailedError as error:
                models = f"not loaded: {error}"  # what ended is started again below
            style = "green" if models == "ready" else "yellow"
            console.print(f"Models of profile {settings.profile} {models}", style=style, markup=False, soft_wrap=True)
            keep_running(processes, console)
        except KeyboardInterrupt:
            console.print("Ending service, workers and queue ...")


def default_workers(settings: Settings) -> int:
    """Return how many workers suit the device that the models run on."""
    return GPU_WORKERS if settings.device != "cpu" and may_have_gpu() else 1


def start_backend(processes: ProcessGroup, environment: Mapping[str, str], url: str, workers: int = 1) -> None:
    """Start service and workers, and wait until the service answers.

    Args:
        processes: where they run, as `service`, `worker-1`, `worker-2`, ...
        environment: theirs, with REDIS_URL.
        url: of the service, as it is reached from here.
        workers: how many.

    Raises:
        ProcessFailedError: one did not come up.
    """
    backend = [sys.executable, "-m", "backend"]
    # A traceback of a process that is killed must not be lost in a buffer.
    # And what this process has read of `.env`, or left out of it, stands: `demo` wants none of its passwords.
    environment = {**environment, "PYTHONUNBUFFERED": "1", "SOFTMATCHER_ENV_FILE": os.devnull}
    processes.start(SERVICE, [*backend, "serve"], environment)
    of_worker = {"SOFTMATCHER_LOCAL_WORKERS": str(workers), **environment}
    for number in range(1, workers + 1):
        processes.start(f"worker-{number}", [*backend, "work"], of_worker)
    processes.wait_for_http(SERVICE, f"{url}/health", timeout_s=START_S, basic_auth=_auth(environment))


def wait_for_models(processes: ProcessGroup, environment: Mapping[str, str], url: str) -> str:
    """Wait until the service has loaded its models or failed to; return its state: `ready`, `failed: why`.

    Args:
        processes: as `start_backend` took them.
        environment: likewise.
        url: likewise.

    Raises:
        ProcessFailedError: the service ended, or still loads after minutes.
    """
    said = ["loading"]

    def is_over() -> bool:
        with suppress(requests.RequestException), Session(is_own=True) as session:
            said.append(str(session.get(f"{url}/health", timeout=5, auth=_auth(environment)).json()["model"]))
        return said[-1] != "loading"

    processes.wait_until(SERVICE, is_over, timeout_s=MODELS_S, what="did not load its models")
    return said[-1]


def _auth(environment: Mapping[str, str]) -> tuple[str, str] | None:
    user = environment.get("SOFTMATCHER_BASIC_AUTH_USER")
    return (user, environment.get("SOFTMATCHER_BASIC_AUTH_PASS", "")) if user else None


def keep_running(processes: ProcessGroup, console: Console) -> None:
    """Start again what ends; returns never, Ctrl-C leaves it."""
    restarts = Restarts(processes, console)
    while True:
        time.sleep(0.5)
        restarts.restart_ended()


class Restarts:
    """Starts processes again that have ended, at most five times a minute each.

    Args:
        processes: to look after.
        console: where it is said.
        clock: seconds.
    """

    def __init__(self, processes: ProcessGroup, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._processes = processes
        self._console = console
        self._clock = clock
        self._times: dict[str, deque[float]] = defaultdict(deque)

    def restart_ended(self) -> None:
        """Start again what has ended: at once, then 1, 2, 4, 8 s after the last time, then when a minute has gone."""
        for child in self._processes.ended():
            times, now = self._times[child.name], self._clock()
            while times and now - times[0] > 60:
                times.popleft()
            if len(times) >= RESTARTS_A_MINUTE or (times and now - times[-1] < 2.0 ** (len(times) - 1)):
                continue
            times.append(now)
            self._console.print(
                f"[yellow]{child.name} ended with code {child.exit_code}, starting it again "
                f"({len(times)} of at most {RESTARTS_A_MINUTE} times a minute). "
                f"The end of {child.log_path}:[/yellow]",
                soft_wrap=True,
            )
            self._console.print(child.last_lines(5), markup=False)
            self._processes.restart(child.name)


def _own_port(settings: Settings) -> int:
    if settings.port == 0:
        return free_port()
    if settings.host in (LOOPBACK, "localhost", "0.0.0.0") and free_port(settings.port) != settings.port:  # noqa: S104
        raise ConfigurationError(
            f"port {settings.port} is taken by another program; set SOFTMATCHER_PORT to a free one"
        )
    return settings.port


def _say_how_to_connect(console: Console, settings: Settings, port: int, redis_url: str, workers: int) -> None:
    address = settings.public_url or service_address(settings, port)
    count = f"{workers} worker{'s' if workers > 1 else ''}"
    console.print(f"[bold]Softmatcher is up[/bold] at {address}  ({count})", soft_wrap=True)
    console.print(
        f"  Label Studio  {settings.label_studio_url}" + ("" if settings.label_studio_api_key else " (no token)")
    )
    console.print(f"  queue         {redis_url}")
    console.print(f"  logs          {settings.data_dir / 'logs'}")
    console.print(
        "\nTo connect a project: in Label Studio, Settings > Model > Connect Model, the address above, switch on "
        "«Interactive preannotations».\nIf Label Studio refuses the address (403), start it with "
        "what `python -m backend label-studio-env` prints.\n"
        "Is something wrong? `python -m backend doctor`. Ctrl-C ends everything.\n",
        markup=False,
    )
