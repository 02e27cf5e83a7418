"""`doctor`: looks at everything between Label Studio and the models, and says for each what to do."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from backend.errors import SoftmatcherError
from backend.jobs import JobQueue
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.label_config import parse_label_config
from backend.projects import Projects, open_projects
from backend.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One line of the report: `is_ok` None means that it could not be looked at, or does not matter here."""

    name: str
    is_ok: bool | None
    finding: str


def run_doctor(settings: Settings, project_id: int | None, console: Console | None = None) -> bool:
    """Print the report; True if nothing is wrong."""
    table = Table("", "what", "finding", title="softmatcher doctor")
    is_ok = True
    for check in _checks(settings, project_id):
        mark = {True: "[green]ok[/green]", False: "[red]wrong[/red]", None: "[yellow]-[/yellow]"}[check.is_ok]
        table.add_row(mark, check.name, check.finding)
        is_ok &= check.is_ok is not False
    (console or Console()).print(table)
    return is_ok


def _checks(settings: Settings, project_id: int | None) -> Iterator[Check]:
    try:
        projects = open_projects(settings)
    except (SoftmatcherError, OSError) as error:
        yield Check("store", False, f"{error}. Check DATABASE_URL and that SOFTMATCHER_DATA_DIR can be written")
        return
    count = sum(projects.store.count_references().values())
    yield Check(
        "store",
        True,
        f"{settings.store_url.split('@')[-1]}: {len(projects.store.projects())} projects, {count} references",
    )
    yield _try("models", lambda: f"profile {settings.profile}: {projects.models.get(120.0)[0].signature}")
    yield _queue(settings)
    yield from _label_studio(settings, projects, project_id)
    projects.close()


def _queue(settings: Settings) -> Check:
    if settings.redis_url is None:
        return Check(
            "queue", None, "REDIS_URL is unset: `up` and `demo` start an embedded Valkey; `serve` and `work` need it"
        )
    url = settings.redis_url

    def look() -> str:
        queue = JobQueue(url)
        queue.ping()
        workers = queue.count_workers()
        waiting = sum(queue.waiting().values())
        if not workers:
            raise _FindingError("no worker is running: start one with `python -m backend work`, or `make up`")
        return f"{workers} workers, {waiting} jobs waiting"

    return _try("queue", look)


def _label_studio(settings: Settings, projects: Projects, project_id: int | None) -> Iterator[Check]:
    keys = {project.project_id: project.key for project in projects.store.projects()}
    key = keys.get(project_id, "") if project_id is not None else next(iter(keys.values()), "")

    def sign_in() -> str:
        client = projects.client_for(key)
        return f"{settings.label_studio_url} version {client.version()}, signed in as {client.whoami()}"

    check = _try("Label Studio and token", sign_in)
    yield check
    if not check.is_ok:
        return
    if project_id is None:
        project_id = next(iter(keys), None)
    if project_id is None:
        yield Check(
            "project",
            None,
            "no project has connected yet: add the backend under Settings > Model, or name one with --project",
        )
        return
    yield from _project(projects, key, project_id)


def _project(projects: Projects, key: str, project_id: int) -> Iterator[Check]:
    client = projects.client_for(key)
    found: dict[str, Any] = {}

    def look() -> str:
        found.update(client.project(project_id))
        config = parse_label_config(found["label_config"])
        if not any(prompt.kind == "keypoint" for prompt in config.prompts):
            raise _FindingError('has no KeyPointLabels: add one with smart="true", so that a click gives a mask')
        missing = [
            f"{prompt.name}: {label}"
            for prompt in config.prompts
            for label in prompt.labels
            if not any(label in brush.labels for brush in config.brushes if brush.to_name == prompt.to_name)
        ]
        if missing:
            raise _FindingError(f"labels without a BrushLabels of the same image: {', '.join(missing)}; add them there")
        return f"labels {', '.join(config.labels)}"

    check = _try(f"label config of project {project_id}", look)
    yield check
    if found:
        yield _try("image of a task", lambda: _image(projects, key, project_id, found["label_config"]))

    def backend() -> str:
        urls = [str(item.get("url")) for item in client.ml_backends(project_id)]
        if not urls:
            raise _FindingError(
                "no ML backend is connected: Settings > Model > Connect Model, with this service's address"
            )
        return ", ".join(urls)

    yield _try("ML backend", backend)

    def webhook() -> str:
        hooks = [hook for hook in client.webhooks(project_id) if str(hook.get("url", "")).endswith("/webhook")]
        if not hooks:
            raise _FindingError(
                "none: annotations reach the backend only by reconciliation. Start Label Studio with "
                "SSRF_PROTECTION_ENABLED=false if the backend has a private address, then connect it again"
            )
        header = projects.basic_auth_header()
        if header and not any((hook.get("headers") or {}).get("Authorization") == header for hook in hooks):
            raise _FindingError("carries no basic auth yet: the running service adds it within a minute of connecting")
        return ", ".join(str(hook["url"]) for hook in hooks)

    yield _try("webhook", webhook)


def _image(projects: Projects, key: str, project_id: int, label_config: str) -> str:
    task = next(projects.client_for(key).all_tasks(project_id), None)
    if task is None:
        raise _FindingError("the project has no task yet: import images")
    tag = parse_label_config(label_config).images[0]
    content = projects.fetcher_for(key).fetch(tag.address(task["data"]), int(task["id"]))
    height, width = decode_image(content, int(projects.settings.max_image_mpx * 1e6)).shape[:2]
    return f"task {task['id']}: {width} x {height} px, {len(content) / 1e6:.2f} MB"


class _FindingError(SoftmatcherError):
    """Something is wrong that no exception of the code under it says."""


def _try(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except SoftmatcherError as error:
        return Check(name, False, str(error))
    except Exception as error:  # a check that breaks is a finding too, and the others go on
        logger.debug("doctor: %s", name, exc_info=True)
        return Check(name, False, f"{type(error).__name__}: {error}")
