"""`doctor`: looks at everything between Label Studio and the models, and says for each what to do."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from backend.cli.doctor.checks import Check, FindingError, look, surroundings
from backend.core.types import Json
from backend.errors import SoftmatcherError
from backend.jobs.redis_queue import RedisQueue
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.label_config import parse_label_config
from backend.models.profiles import find_profile
from backend.projects.composition import Projects, open_projects
from backend.projects.options import background_labels_of, calibration_in_use, score_fit_in_use
from backend.projects.text_references import NEEDS_PROFILE
from backend.settings import Settings
from backend.store import ProjectRecord
from backend.web.access import webhook_authorization

_EXAMPLES = 3


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
    yield from surroundings(settings)
    yield look("models", lambda: f"{models_in_use(settings)}: {projects.models.get(120.0)[0].signature}")
    yield look("scores", lambda: scores_in_use(settings))
    yield check_queue(settings)
    yield from _label_studio(settings, projects, project_id)
    projects.close()


def models_in_use(settings: Settings) -> str:
    """Return the profile, and the path that SAM's networks run on if it has one.

    Raises:
        ConfigurationError: no such profile.
    """
    path = f", SAM path {settings.sam_path}" if find_profile(settings.profile).runs_sam else ""
    return f"profile {settings.profile}{path}"


def scores_in_use(settings: Settings) -> str:
    """Return what scores are fitted on, or that they are estimates, and what to do then.

    Raises:
        ConfigurationError: no such profile, or no such calibration.
    """
    calibration = calibration_in_use(settings)
    if calibration.is_fitted_for(settings.profile):
        return f"fitted on {calibration.fitted_on}"
    return (
        f"estimates: their calibration was fitted for {calibration.fitted_for}. Fit them on your own images: "
        "`python -m backend calibrate`"
    )


def check_queue(settings: Settings) -> Check:
    """Return whether Redis answers, workers run, and their settings are the service's."""
    if settings.redis_url is None:
        return Check(
            "queue", None, "REDIS_URL is unset: `up` and `demo` start an embedded Valkey; `serve` and `work` need it"
        )
    url = settings.redis_url

    def examine() -> str:
        queue = RedisQueue(url)
        queue.ping()
        workers = queue.count_workers()
        waiting = sum(queue.waiting().values())
        if not workers:
            raise FindingError("no worker is running: start one with `python -m backend work`, or `make up`")
        differences = queue.shared_state.differences()
        if differences:
            raise FindingError(
                f"workers with other settings than the service's, so predictions depend on who makes them: "
                f"{'; '.join(differences)}. Start them again with the same environment"
            )
        return f"{workers} workers, {waiting} jobs waiting"

    return look("queue", examine)


def _label_studio(settings: Settings, projects: Projects, project_id: int | None) -> Iterator[Check]:
    keys = {project.project_id: project.key for project in projects.store.projects()}
    key = keys.get(project_id, "") if project_id is not None else next(iter(keys.values()), "")

    def sign_in() -> str:
        client = projects.client_for(key)
        return f"{settings.label_studio_url} version {client.version()}, signed in as {client.whoami()}"

    check = look("Label Studio and token", sign_in)
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
    yield from project_checks(projects, key, project_id)


def _annotations(projects: Projects, project: ProjectRecord) -> str:
    unread = projects.store.unread_annotations(project.key)
    without = [one for one in unread if not one.references]
    if not unread:
        return f"{len(projects.store.annotations(project.key))} read, none has a problem"
    counted = [(len(without), "gave no reference"), (len(unread) - len(without), "gave a part only")]
    said = ", ".join(f"{count} {what}" for count, what in counted if count)
    examples = "; ".join(f"task {one.task_id}: {one.problem}" for one in unread[:_EXAMPLES])
    raise FindingError(f"{said}. {examples}{'; ...' if len(unread) > _EXAMPLES else ''}. The project's page lists all")


def _references(projects: Projects, project: ProjectRecord) -> str:
    outdated = projects.references.count_outdated(project)
    if outdated:
        raise FindingError(
            f"{outdated} references were made with other settings or another label config: they are renewed at the "
            "next Start training, or by *Renew now* on the project's page"
        )
    return f"{len(projects.store.list_references(project.key))}, all made with the present settings"


def _score_fit(fit: Json) -> str:
    return f"fitted on {fit['masks']} masks of {fit['images']} annotated images: {fit['offset']:+.2f} log-odds"


def _phrases(projects: Projects, project: ProjectRecord) -> str:
    phrases = projects.store.texts.of_project(project.key)
    if find_profile(projects.settings.profile).text_encoder is None or projects.settings.encoder is not None:
        raise FindingError(f"{len(phrases)}: {NEEDS_PROFILE}")
    return f"{len(phrases)} of labels {', '.join(sorted({one.label for one in phrases}))}"


def project_checks(projects: Projects, key: str, project_id: int) -> Iterator[Check]:
    """Look at one project: its label config, an image, backend and webhook, its annotations and references."""
    client = projects.client_for(key)
    found: dict[str, Any] = {}

    def examine() -> str:
        found.update(client.project(project_id))
        config = parse_label_config(found["label_config"])
        if not any(prompt.kind == "keypoint" for prompt in config.prompts):
            raise FindingError('has no KeyPointLabels: add one with smart="true", so that a click gives a mask')
        background = background_labels_of(config, projects.settings)
        missing = [
            f"{prompt.name}: {label}"
            for prompt in config.prompts
            for label in prompt.labels
            if label not in background
            and not any(label in brush.labels for brush in config.brushes if brush.to_name == prompt.to_name)
        ]
        if missing:
            raise FindingError(f"labels without a BrushLabels of the same image: {', '.join(missing)}; add them there")
        return f"labels {', '.join(config.labels)}"

    check = look(f"label config of project {project_id}", examine)
    yield check
    if found:
        yield look("image of a task", lambda: _image(projects, key, project_id, found["label_config"]))

    def backend() -> str:
        connected = client.ml_backends(project_id)  # for this Label Studio asks each for /health and /setup
        if not connected:
            raise FindingError(
                "no ML backend is connected: Settings > Model > Connect Model, with this service's address"
            )
        lost = [item for item in connected if item.get("state") != "CO"]
        if lost:
            raise FindingError(
                f"Label Studio does not reach {lost[0].get('url')} ({str(lost[0].get('error_message'))[:200]}): the "
                "address must be as Label Studio sees it (in Docker the service's name, not localhost), with the "
                "password of SOFTMATCHER_BASIC_AUTH_PASS"
            )
        return f"Label Studio reaches {', '.join(str(item.get('url')) for item in connected)}"

    yield look("ML backend", backend)

    def webhook() -> str:
        hooks = [hook for hook in client.webhooks(project_id) if str(hook.get("url", "")).endswith("/webhook")]
        if not hooks:
            raise FindingError(
                "none: annotations reach the backend only by reconciliation. Start Label Studio with "
                "what `python -m backend label-studio-env` prints if the backend has a private address, then connect "
                "it again"
            )
        hooks = [hook for hook in hooks if hook.get("is_active")]
        if not hooks:
            raise FindingError("is switched off: switch it on under Settings > Webhooks")
        header = webhook_authorization(projects.settings, key)
        if header and not any((hook.get("headers") or {}).get("Authorization") == header for hook in hooks):
            raise FindingError("carries no secret yet: the running service adds it within a minute of connecting")
        return ", ".join(str(hook["url"]) for hook in hooks)

    yield look("webhook", webhook)
    known = projects.store.project(key)
    if known is not None and known.label_config:
        yield look("annotations", lambda: _annotations(projects, known))
        yield look("references", lambda: _references(projects, known))
        if (fit := score_fit_in_use(projects.settings, known)) is not None:
            yield look("scores of the project", lambda: _score_fit(fit))
        if projects.store.texts.of_project(known.key):
            yield look("phrases", lambda: _phrases(projects, known))


def _image(projects: Projects, key: str, project_id: int, label_config: str) -> str:
    task = next(projects.client_for(key).all_tasks(project_id), None)
    if task is None:
        raise FindingError("the project has no task yet: import images")
    tag = parse_label_config(label_config).images[0]
    content = projects.fetcher_for(key).fetch(tag.address(task["data"]), int(task["id"]))
    height, width = decode_image(content, int(projects.settings.max_image_mpx * 1e6)).shape[:2]
    return f"task {task['id']}: {width} x {height} px, {len(content) / 1e6:.2f} MB"
