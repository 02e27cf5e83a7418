"""Real processes for the end-to-end tests: one Label Studio, one queue, and backends, each with its own data folder."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from backend.cli.demo.coins import LABEL_CONFIG
from backend.cli.demo.label_studio_server import (
    PASSWORD,
    TOKEN,
    USERNAME,
    LabelStudio,
    label_studio_program,
    start_label_studio,
)
from backend.cli.label_studio_env import protection_but
from backend.cli.process.embedded_valkey import EmbeddedValkey
from backend.cli.process.supervisor import LOOPBACK, ProcessGroup, free_port
from backend.core.types import Image
from backend.errors import ConfigurationError, LabelStudioError
from backend.settings import load_settings
from backend.web.access import former_webhook_authorization
from tests.e2e.editor import SLOW_MS
from tests.e2e.scene import HOSTS_NETWORK, MARKED, SAMPLES, TARGETS, Backend, Project, own_environment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    # It reads what all the others have logged.
    items.sort(key=lambda item: item.path == Path(__file__).parent / "test_logs.py")


@pytest.fixture(scope="session")
def secrets() -> set[str]:
    """Every token and password that a backend of this run was given."""
    return {TOKEN}


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessGroup]:
    with ProcessGroup(tmp_path_factory.mktemp("logs")) as group:
        yield group


@pytest.fixture(scope="session")
def label_studio_command() -> Path:
    try:
        return label_studio_program()
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def local_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that Label Studio serves as local files, to projects with a storage below it."""
    return tmp_path_factory.mktemp("local-files")


@pytest.fixture(scope="session")
def label_studio(
    processes: ProcessGroup, label_studio_command: Path, tmp_path_factory: pytest.TempPathFactory, local_files: Path
) -> Iterator[LabelStudio]:
    folder = tmp_path_factory.mktemp("label-studio")
    # Loopback, and the network between the hosts of test_two_hosts; all else stays refused.
    allowed = protection_but(["127.0.0.0/8", HOSTS_NETWORK])
    serving = {
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(local_files),
    }
    with start_label_studio(processes, label_studio_command, folder, free_port(), {**allowed, **serving}) as server:
        yield server


StartBackend = Callable[..., Backend]


@pytest.fixture(scope="session")
def new_backend(
    processes: ProcessGroup,
    label_studio: LabelStudio,
    tmp_path_factory: pytest.TempPathFactory,
    secrets: set[str],
) -> Iterator[StartBackend]:
    """Make a backend with a queue and a data folder of its own: `new_backend(name, VARIABLE=value, ...)`."""
    queues: list[EmbeddedValkey] = []

    def make(name: str, *, module: str = "backend", **changes: str) -> Backend:
        folder = tmp_path_factory.mktemp(name)
        queue = EmbeddedValkey(processes, folder / "valkey", name=f"{name}-valkey")
        queues.append(queue)
        port = free_port()
        environment = own_environment(
            LABEL_STUDIO_URL=label_studio.url,
            LABEL_STUDIO_API_KEY=TOKEN,
            REDIS_URL=queue.url,
            SOFTMATCHER_DATA_DIR=str(folder / "data"),
            SOFTMATCHER_HOST=LOOPBACK,
            SOFTMATCHER_PORT=str(port),
            # On a busy machine an annotation takes longer than labelers would wait for.
            SOFTMATCHER_REFERENCE_WAIT_S="10",
            PYTHONUNBUFFERED="1",
        )
        environment |= changes
        given = load_settings(
            basic_auth_user=changes.get("SOFTMATCHER_BASIC_AUTH_USER"),
            basic_auth_pass=changes.get("SOFTMATCHER_BASIC_AUTH_PASS"),
        )
        told = [changes.get("SOFTMATCHER_BASIC_AUTH_PASS"), changes.get("LABEL_STUDIO_API_KEY")]
        secrets.update(filter(None, [*told, (former_webhook_authorization(given) or "").removeprefix("Bearer ")]))
        user = changes.get("SOFTMATCHER_BASIC_AUTH_USER")
        auth = (user, changes["SOFTMATCHER_BASIC_AUTH_PASS"]) if user else None
        backend = Backend(name, f"http://{LOOPBACK}:{port}", processes, environment, auth, module)
        backend.start()
        return backend

    yield make
    for queue in queues:
        queue.close()


@pytest.fixture(scope="session")
def backend(new_backend: StartBackend) -> Backend:
    """The backend of most tests."""
    return new_backend("main")


@pytest.fixture
def start_other_backend(new_backend: StartBackend) -> Iterator[StartBackend]:
    """As `new_backend`, ended after the test."""
    started: list[Backend] = []

    def make(name: str, *, module: str = "backend", **changes: str) -> Backend:
        started.append(new_backend(name, module=module, **changes))
        return started[-1]

    yield make
    for each in started:
        each.stop()


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Chromium."""
    program = os.environ.get("CHROMIUM") or "/usr/bin/chromium"
    if not Path(program).exists():
        pytest.skip(f"no Chromium at {program}: install it (apt-get install chromium) or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def page(label_studio: LabelStudio, browser: Browser) -> Page:
    """A browser that is logged in at Label Studio."""
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(SLOW_MS)
    page.goto(f"{label_studio.url}/user/login/")
    page.fill("input[name=email]", USERNAME)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url)
    return page


NewProject = Callable[..., Project]


@pytest.fixture
def new_project(label_studio: LabelStudio, request: pytest.FixtureRequest) -> Iterator[NewProject]:
    """Make a project with images and connect a backend: `new_project(backend, images)`; deleted after the test."""
    made: list[int] = []

    def make(
        backend: Backend,
        images: Mapping[str, Image | bytes] | None = None,
        *,
        is_connected: bool = True,
        label_config: str = LABEL_CONFIG,
    ) -> Project:
        if images is None:
            images = {name: sample.image for name, sample in SAMPLES.items()}
        identifier = label_studio.create_project(request.node.name[:50], label_config)
        made.append(identifier)
        tasks = label_studio.upload_images(identifier, images)
        connection = 0
        if is_connected:
            connection = label_studio.connect_backend(identifier, backend.url, basic_auth=backend.auth)
        return Project(label_studio, backend, identifier, connection, tasks)

    yield make
    for identifier in made:
        try:
            label_studio.call("DELETE", f"/api/projects/{identifier}/")
        except LabelStudioError as error:
            if ": 404 " not in str(error):  # the test deleted it
                raise


@pytest.fixture
def project(new_project: NewProject, backend: Backend) -> Project:
    """A project with all tiles of coins, connected to the main backend."""
    return new_project(backend)


@pytest.fixture
def small_project(new_project: NewProject, backend: Backend) -> Project:
    """As `project`, with the marked tile and one other."""
    return new_project(backend, {name: SAMPLES[name].image for name in (MARKED, TARGETS[0])})
