"""Maintenance: periodic work of the service beside its requests."""

import logging
import threading
import time
from urllib.parse import urlsplit

from backend.errors import QueueUnavailableError, SoftmatcherError
from backend.jobs.redis_queue import RedisQueue
from backend.projects.composition import Projects
from backend.projects.propagation.backoff import is_paused
from backend.settings import shared_settings
from backend.store.records import ProjectKey, PropagationFilter
from backend.web.access import former_webhook_authorization, webhook_authorization

logger = logging.getLogger(__name__)

_EVERY_S = 5.0
_RECONCILE_AGAIN_S = 15.0
_WEBHOOK_TRIES = 12
PENDING_AGAIN_S = 30.0
_PENDING_AT_A_TIME = 100
_WRITE_AGAIN_S = 15.0
_SCALE_AGAIN_S = 60.0
_LOOK_AGAIN_S = 6 * 3600.0
_PRUNE_AGAIN_S = 6 * 3600.0
"""Vectors of phrases are deleted seldom, and never by an inference: a phrase in the editor is not kept yet."""


class Maintenance:
    """Queues reconciliations and propagations that are due; gives Label Studio's webhooks the credentials they lack.

    Label Studio registers `<backend>/webhook` itself on connecting, but without basic auth, even if the backend has it
    (recorded with 1.23.2). So after a project's /setup its webhook gets the header through Label Studio's API.
    """

    def __init__(self, projects: Projects, queue: RedisQueue) -> None:
        self._projects = projects
        self._queue = queue
        self._tries: dict[tuple[str, str], int] = {}
        self._reconcile_after: dict[str, float] = {}
        self._look_after: dict[str, float] = {}
        self._pending_after = 0.0
        self._write_after = 0.0
        self._scale_after: dict[str, float] = {}
        self._prune_after = 0.0

    def start(self) -> None:
        """Run until the process ends."""
        threading.Thread(target=self._run, name="maintenance", daemon=True).start()

    def _run(self) -> None:
        wait = threading.Event()
        while not wait.wait(_EVERY_S):
            self.do_all()

    def do_all(self) -> None:
        """Do what is due; what fails is logged, and keeps nothing else from being done."""
        failed = set()
        for work in (
            self.publish_settings,
            self.reconcile_due,
            self.ingest_pending,
            self.propagate_due,
            self.write_due,
            self.authorize_webhooks,
            self.look_for_gone,
            self.tend_phrases,
            self.prune_phrases,
        ):
            try:
                work()
            except SoftmatcherError as error:
                failed.add(str(error))
            except Exception:
                logger.exception("maintenance")
        for reason in sorted(failed):
            logger.warning("maintenance: %s", reason)

    def publish_settings(self) -> None:
        """Leave the settings for workers, again and again: the queue may lose its data."""
        self._queue.shared_state.publish_settings(shared_settings(self._projects.settings))

    def reconcile_due(self) -> None:
        """Queue a reconciliation of each project that is marked, and take the mark off."""
        for project in self._projects.store.projects():
            if project.needs_reconcile and time.monotonic() >= self._reconcile_after.get(project.key, 0.0):
                # The mark goes first: the job may set it again before this thread goes on.
                self._projects.store.save_project(project.key, needs_reconcile=False)
                try:
                    self._queue.reconcile(project.key)
                except QueueUnavailableError:
                    self._projects.store.mark_for_reconcile(project.key)
                    raise
                # A project whose every reconciliation fails does not fill queue and log.
                self._reconcile_after[project.key] = time.monotonic() + _RECONCILE_AGAIN_S

    def ingest_pending(self) -> None:
        """Queue annotations again that were announced and not taken in: the queue was away, or lost its data."""
        if time.monotonic() < self._pending_after:
            return
        self._pending_after = time.monotonic() + PENDING_AGAIN_S
        for project_key, annotation_id in self._projects.store.left_pending(PENDING_AGAIN_S, _PENDING_AT_A_TIME):
            self._queue.ingest_annotation(project_key, annotation_id)

    def propagate_due(self) -> None:
        """Start what is to start by itself, and see that everything that is unfinished has jobs.

        A job may be lost with a worker that was killed, with Redis' last second, or with a service that ended between
        the store and the queue; a pause ends by itself. What remains is in the store, and is handled here.
        """
        projects, queue = self._projects, self._queue
        propagations = projects.propagations
        for project_key in propagations.due_projects():
            propagations.start(project_key, PropagationFilter(), "new references", supersede=False)
        for record in projects.store.propagations.due_to_tidy():
            queue.tidy_propagation(record.project_key, record.id)
        for record in projects.store.propagations.active():
            if is_paused(projects.store, record):
                continue
            if record.state == "planning":
                queue.ensure_planned(record.project_key, record.id)
                continue
            projects.propagation_work.give_back_dead(record.id, queue.is_lease_alive)
            counts = projects.store.propagation_tasks.counts(record.id)
            if counts.pending or not counts.running:
                queue.ensure_propagation_jobs(record.project_key, record.id, counts.pending)

    def write_due(self) -> None:
        """Have predictions written that tiles show already: Label Studio was away, or a worker ended meanwhile."""
        if time.monotonic() >= self._write_after:
            self._write_after = time.monotonic() + _WRITE_AGAIN_S
            for project_key in self._projects.store.unwritten.projects():
                self._queue.write_tiles(project_key)

    def look_for_gone(self) -> None:
        """Ask Label Studio for one project that was not asked for lately: its deletion is announced to nobody."""
        now = time.monotonic()
        for project in self._projects.store.projects():
            if now >= self._look_after.get(project.key, 0.0):
                self._look_after[project.key] = now + _LOOK_AGAIN_S
                self._projects.forget_gone(project.key)
                return

    def tend_phrases(self) -> None:
        """Encode phrases that no text encoder has seen, and queue the measurement of scales that are missing."""
        for project_key in self._projects.texts.tend():
            due = time.monotonic() >= self._scale_after.get(project_key, 0.0)
            if due and self._projects.phrase_scales.missing(project_key):
                self._queue.scale_phrases(project_key)
                self._scale_after[project_key] = time.monotonic() + _SCALE_AGAIN_S

    def prune_phrases(self) -> None:
        """Delete the vectors of phrases that nobody uses any more."""
        if time.monotonic() < self._prune_after or self._projects.texts.text_space is None:
            return
        self._prune_after = time.monotonic() + _PRUNE_AGAIN_S
        if pruned := self._projects.texts.prune():
            logger.info("phrases: %d vectors that nothing uses are deleted", pruned)

    def authorize_webhooks(self) -> None:
        """Put its secret on the webhook of every project that called /setup since the start, or has a former secret."""
        former = former_webhook_authorization(self._projects.settings)
        if former is None:
            return
        known = [(project.key, "") for project in self._projects.store.projects() if project.gone_since is None]
        for project_key, backend_url in (*known, *self._projects.connected_urls()):
            tries = self._tries.get((project_key, backend_url), 0)
            if tries >= _WEBHOOK_TRIES:
                continue
            self._tries[project_key, backend_url] = tries + 1
            try:
                is_done = self._authorize(project_key, backend_url, former)
            except SoftmatcherError as error:
                logger.warning("project=%s its webhook cannot be given credentials: %s", project_key, error)
                continue
            if is_done:
                self._tries[project_key, backend_url] = _WEBHOOK_TRIES

    def _authorize(self, project_key: ProjectKey, backend_url: str, former: str) -> bool:
        client = self._projects.client_for(project_key)
        header = webhook_authorization(self._projects.settings, project_key) or ""
        found = not backend_url  # only a former secret is looked for
        for webhook in client.webhooks(int(project_key.split(".")[0])):
            headers = dict(webhook.get("headers") or {})
            is_former = headers.get("Authorization") == former
            if is_former:
                # What it announced was refused meanwhile.
                self._projects.store.mark_for_reconcile(project_key)
            if is_former or _same_address(str(webhook.get("url")), f"{backend_url}/webhook"):
                found = True
                if headers.get("Authorization") != header:
                    client.set_webhook_headers(webhook, {**headers, "Authorization": header})
                    logger.info("project=%s webhook=%s has credentials now", project_key, webhook.get("id"))
        return found


def _same_address(one: str, other: str) -> bool:
    first, second = urlsplit(one), urlsplit(other)
    return (first.hostname, first.port, first.path) == (second.hostname, second.port, second.path)
