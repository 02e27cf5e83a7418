"""`propagate`: start a propagation at the service, and watch it."""

import time
from urllib.parse import urljoin

import requests
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from backend.cli.service_address import service_address
from backend.core.types import Json
from backend.errors import (
    BadInputError,
    ConflictError,
    LabelStudioError,
    NotFoundError,
    QueueUnavailableError,
    SoftmatcherError,
)
from backend.own_http import Session, proxy_advice
from backend.settings import Settings

_POLL_S = 1.0
_PATIENCE_S = 300.0
"""A service that restarts is waited for: the propagation itself goes on."""


class ServiceAwayError(SoftmatcherError):
    """The service does not answer."""


def propagate(
    settings: Settings,
    project: int,
    *,
    service: str | None,
    only_unlabeled: bool,
    labels: list[str],
    limit: int | None,
    supersede: bool,
    is_dry_run: bool,
    is_watched: bool,
) -> bool:
    """Start one, or say how many tasks it would have.

    Returns:
        False if it was watched and did not end as `done` without failures.

    Raises:
        ServiceAwayError: the service does not answer.
        ConflictError, NotFoundError, BadInputError, LabelStudioError: it refuses, with its own words.
    """
    console = Console(highlight=False)
    client = Service(service or service_address(settings), settings)
    wanted = {"only_unlabeled": only_unlabeled, "labels": labels or None, "limit": limit}
    path = f"/projects/{project}/propagations"
    if is_dry_run:
        total = client.call("POST", path, {**wanted, "dry_run": True})["total"]
        console.print(f"{total} tasks would be predicted; nothing was started")
        return True
    status = client.call("POST", path, {**wanted, "supersede": supersede, "started_by": "command line"})
    console.print(f"propagation {status['id']} of project {project}: {client.url}/projects/{project}")
    if not is_watched:
        return True
    status = watch(client, f"{path}/{status['id']}", console)
    return bool(status["state"] == "done" and not status["counts"]["failed"])


class Service:
    """The running service, asked over HTTP."""

    def __init__(self, url: str, settings: Settings) -> None:
        """Ask nothing yet."""
        self.url = url.rstrip("/")
        self._session = Session(is_own=self.url == service_address(settings))
        if settings.basic_auth_user is not None and settings.basic_auth_pass is not None:
            self._session.auth = (settings.basic_auth_user, settings.basic_auth_pass.get_secret_value())

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """Return its JSON answer.

        Raises:
            ServiceAwayError: it does not answer.
            SoftmatcherError: it refuses, with its own words.
        """
        try:
            answer = self._session.request(method, urljoin(self.url, path), json=body, timeout=60)
        except requests.RequestException as error:
            raise ServiceAwayError(
                f"the service at {self.url} does not answer ({type(error).__name__}): start it (`make up`), or name "
                f"its address with --service{proxy_advice(self.url)}"
            ) from error
        if answer.ok:
            found: Json = answer.json()
            return found
        raise _refusal(answer)


def _refusal(answer: requests.Response) -> SoftmatcherError:
    try:
        message = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        advice = proxy_advice(answer.url)
        message = f"{answer.url} answered {answer.status_code}: is this the service's address?{advice}"
    if answer.status_code >= 502:
        return ServiceAwayError(message)
    kinds = {404: NotFoundError, 409: ConflictError, 422: BadInputError, 503: QueueUnavailableError}
    return kinds.get(answer.status_code, LabelStudioError)(message)


def watch(client: Service, path: str, console: Console) -> Json:
    """Show a propagation's progress until it ends, and return its last status; Ctrl-C leaves it running."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TextColumn("ETA {task.fields[eta]}"), TimeElapsedColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    asking = Retrying(
        retry=retry_if_exception_type(ServiceAwayError), stop=stop_after_delay(_PATIENCE_S), wait=wait_fixed(2.0),
        reraise=True,
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        shown = progress.add_task("planning", total=None, rate="", eta="-", note="")
        try:
            while True:
                status = asking(lambda: client.call("GET", path))
                counts = status["counts"]
                progress.update(
                    shown,
                    description=status["state"],
                    total=counts["total"] or None,
                    completed=counts["finished"],
                    rate=f"{status['rate_per_s']:.2f}/s",
                    eta=_duration(status["eta_s"]),
                    note=(status["problem"] or "")[:80],
                )
                if not status["is_active"]:
                    break
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            console.print("It goes on without being watched; the project's page shows it, and cancels it.")
            raise
    console.print(
        f"{status['state']}: {counts['made_anew']} with new masks, {counts['kept']} with masks as before, "
        f"{counts['empty']} without the object, "
        f"{counts['failed']} failed, {counts['cancelled']} cancelled; {status['rate_per_s']:.2f} tasks/s"
    )
    for failure in status["failures"]:
        console.print(f"  {failure['count']:5d}  {failure['reason']}  (task {failure['first_task']})", markup=False)
    if status["problem"]:
        console.print(f"  {status['problem']}", markup=False)
    return status


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
