"""What the service does beside its requests: due reconciliations, credentials on webhooks."""

from pathlib import Path

import pytest

from backend.errors import LabelStudioError, QueueUnavailableError
from backend.jobs import tasks
from backend.settings import shared_settings
from backend.web.access import former_webhook_authorization, webhook_authorization
from backend.web.maintenance import Maintenance
from testing.fakes import LABEL_CONFIG, Backend, FakeLabelStudio, make_backend

URL = "http://127.0.0.1:9090"


def _connect(backend: Backend) -> None:
    backend.projects.setup(
        backend.label_studio.key,
        label_config=LABEL_CONFIG,
        extra_params=None,
        hostname=None,
        access_token=None,
        backend_url=URL,
    )


def test_new_project_is_looked_through_once(backend: Backend) -> None:
    _connect(backend)
    maintenance = Maintenance(backend.projects, backend.queue)  # type: ignore[arg-type]
    maintenance.reconcile_due()
    maintenance.reconcile_due()
    assert backend.queue.jobs == [("reconcile", (backend.label_studio.key,))]


def test_reconciliation_stays_due_while_the_queue_is_away(backend: Backend) -> None:
    _connect(backend)
    maintenance = Maintenance(backend.projects, backend.queue)  # type: ignore[arg-type]
    backend.queue.is_down = True
    with pytest.raises(QueueUnavailableError):
        maintenance.reconcile_due()
    backend.queue.is_down = False
    maintenance.reconcile_due()
    assert len(backend.queue.jobs) == 1


def test_webhook_gets_the_credentials_and_keeps_its_other_headers(tmp_path: Path) -> None:
    label_studio = FakeLabelStudio()
    label_studio.hooks = [
        {"id": 1, "url": f"{URL}/webhook", "headers": {"X-Team": "cats"}},
        {"id": 2, "url": "http://elsewhere.example/webhook", "headers": {}},
    ]
    backend = make_backend(tmp_path, label_studio, basic_auth_user="ls", basic_auth_pass="secret")
    _connect(backend)
    Maintenance(backend.projects, backend.queue).authorize_webhooks()  # type: ignore[arg-type]
    headers = label_studio.hooks[0]["headers"]
    assert headers == {"X-Team": "cats", "Authorization": webhook_authorization(backend.settings, label_studio.key)}
    assert "secret" not in str(headers)
    assert "bHM6c2VjcmV0" not in str(headers), "whoever may edit the project sees these headers, but not the password"
    assert label_studio.hooks[1]["headers"] == {}


def test_former_secrets_are_replaced_at_the_start_and_what_was_refused_is_made_up_for(tmp_path: Path) -> None:
    label_studio = FakeLabelStudio()
    backend = make_backend(tmp_path, label_studio, basic_auth_user="ls", basic_auth_pass="secret")
    former = former_webhook_authorization(backend.settings) or ""
    label_studio.hooks = [
        {"id": 1, "url": "http://any.example/webhook", "headers": {"Authorization": former}},
        {"id": 2, "url": "http://elsewhere.example/webhook", "headers": {"Authorization": "Bearer other"}},
    ]
    backend.projects.store.save_project(label_studio.key, needs_reconcile=False)
    Maintenance(backend.projects, backend.queue).authorize_webhooks()  # type: ignore[arg-type]
    wanted = webhook_authorization(backend.settings, label_studio.key)
    assert [hook["headers"]["Authorization"] for hook in label_studio.hooks] == [wanted, "Bearer other"]
    assert backend.projects.store.project(label_studio.key).needs_reconcile  # type: ignore[union-attr]


def test_what_was_announced_and_not_taken_in_is_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue may have lost its last minute, or was away for a project that is not known yet."""
    backend = make_backend(tmp_path, FakeLabelStudio())
    backend.projects.store.mark_pending("1.2", 7)
    maintenance = Maintenance(backend.projects, backend.queue)  # type: ignore[arg-type]
    maintenance.ingest_pending()
    assert backend.queue.jobs == [], "its job may just be running"
    monkeypatch.setattr("backend.web.maintenance.PENDING_AGAIN_S", 0.0)
    Maintenance(backend.projects, backend.queue).ingest_pending()  # type: ignore[arg-type]
    assert backend.queue.jobs == [("ingest_annotation", ("1.2", 7))]


def test_projects_are_looked_for_one_at_a_time(tmp_path: Path) -> None:
    backend = make_backend(tmp_path, FakeLabelStudio())
    for key in (backend.label_studio.key, "1.7"):
        backend.projects.store.save_project(key)
    maintenance = Maintenance(backend.projects, backend.queue)  # type: ignore[arg-type]
    for _ in range(3):
        maintenance.look_for_gone()
    gone = {project.key: project.gone_since is not None for project in backend.projects.store.projects()}
    assert gone == {backend.label_studio.key: False, "1.7": True}


def test_webhook_that_label_studio_registers_later_is_found_later(tmp_path: Path) -> None:
    backend = make_backend(tmp_path, FakeLabelStudio(), basic_auth_user="ls", basic_auth_pass="secret")
    _connect(backend)
    maintenance = Maintenance(backend.projects, backend.queue)  # type: ignore[arg-type]
    maintenance.authorize_webhooks()
    backend.label_studio.is_down = True
    maintenance.authorize_webhooks()
    backend.label_studio.is_down = False
    backend.label_studio.hooks = [{"id": 1, "url": f"{URL}/webhook", "headers": {}}]
    maintenance.authorize_webhooks()
    assert "Authorization" in backend.label_studio.hooks[0]["headers"]


def test_token_that_is_refused_is_tried_again_and_not_all_the_time(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _connect(backend)
    maintenance = Maintenance(backend.projects, backend.queue)  # type: ignore[arg-type]
    maintenance.reconcile_due()

    def refuse(project_id: int) -> None:
        raise LabelStudioError("token refused: set LABEL_STUDIO_API_KEY")

    monkeypatch.setattr(backend.label_studio, "project", refuse)
    name, (key,) = backend.queue.jobs.pop()
    assert tasks.reconcile(key) == {"failed": "token refused: set LABEL_STUDIO_API_KEY"}
    project = backend.projects.store.project(key)
    assert project
    assert project.needs_reconcile
    maintenance.reconcile_due()
    assert backend.queue.jobs == [], "not at once"
    monkeypatch.setattr("backend.web.maintenance.time.monotonic", lambda: 10.0**9)
    maintenance.reconcile_due()
    assert backend.queue.jobs == [(name, (key,))]


def test_settings_are_told_again_and_again_and_one_failure_keeps_nothing_else_from_being_done(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    maintenance = Maintenance(backend.projects, backend.queue)  # type: ignore[arg-type]
    maintenance.do_all()
    assert backend.queue.told == shared_settings(backend.settings)
    backend.queue.told = {}  # the queue lost its data
    maintenance.do_all()
    assert backend.queue.told == shared_settings(backend.settings)
    looked: list[bool] = []
    monkeypatch.setattr(maintenance, "look_for_gone", lambda: looked.append(True))
    backend.queue.is_down = True
    maintenance.do_all()
    assert looked == [True], "Label Studio is asked though the queue is away"
