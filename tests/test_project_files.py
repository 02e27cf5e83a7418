"""Licence, version, continuous integration, templates and lists of the repository agree with what is there."""

import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend import __version__

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""Of the text that the Apache Software Foundation publishes as LICENSE-2.0.txt."""
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
RECORDED = [ROOT / "tests" / "cases", ROOT / "tests" / "payloads"]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def tracked_texts() -> list[Path]:
    """Every text file that git knows, but for recorded ones, which stay as they came."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    files = [file for file in files if file.is_file() and not set(RECORDED) & set(file.parents)]
    return [file for file in files if b"\0" not in file.read_bytes()[:8192]]


def test_the_licence_is_the_unmodified_apache_text() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]


def test_the_version_is_in_one_place_and_has_its_changes() -> None:
    assert "version" in PROJECT["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "backend.__version__"}
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d", headings[1]), headings[1]


def test_pythons_are_the_same_everywhere() -> None:
    classified = {each.rpartition(" ")[2] for each in PROJECT["classifiers"] if ":: Python :: 3." in each}
    job = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]
    assert set(job["strategy"]["matrix"]["python"]) == classified
    assert "${{ matrix.python }}" in job["container"]
    assert PROJECT["requires-python"] == ">=3.11,<3.13"
    assert classified == {"3.11", "3.12"}


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")
    # YAML 1.1 reads the key `on` as true.
    assert {"push", "pull_request"} <= set(workflow[True])
    assert workflow["permissions"] == {"contents": "read"}
    runs = {name: [step.get("run", "") for step in job["steps"]] for name, job in workflow["jobs"].items()}
    assert "bash .ci/run" in runs["test"]
    assert (ROOT / ".ci" / "run").is_file()
    for target in re.findall(r"\bmake (\w+)", str(runs)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.parametrize("form", [form for form in FORMS if form.name != "config.yml"], ids=lambda form: form.stem)
def test_issue_forms_ask_something(form: Path) -> None:
    """Keys as GitHub reads them."""
    read = read_yaml(form)
    assert set(read) == {"name", "description", "labels", "body"}
    for part in read["body"]:
        attributes = part["attributes"]
        assert "value" in attributes if part["type"] == "markdown" else attributes["label"] and part["id"]
    assert any(part.get("validations", {}).get("required") for part in read["body"])


def test_hooks_run_what_make_check_runs() -> None:
    checked = re.findall(r"^\t\$\(BIN\)/(\w+(?: check| format)?)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (repository,) = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    for hook in repository["hooks"]:
        program, *arguments = hook["entry"].split()
        assert (Path(sys.executable).parent / Path(program).name).exists(), f"{program} is not in the dev set"
        command = " ".join([Path(program).name, *(each for each in arguments if not each.startswith("-"))])
        assert command in checked


def test_text_files_are_as_the_editor_settings_say() -> None:
    """Line feeds, a last newline, no blanks at the end of a line, UTF-8."""
    settings = (ROOT / ".editorconfig").read_text()
    assert f"max_line_length = {PYPROJECT['tool']['ruff']['line-length']}\n" in settings
    for file in tracked_texts():
        text = file.read_bytes().decode()
        assert "\r" not in text, file
        assert not text or text.endswith("\n"), file
        if file.suffix in (".py", ".md", ".toml", ".yml", ".txt"):
            assert not re.search(r"[ \t]$", text, re.MULTILINE), file


def test_nobody_is_told_an_address_that_does_not_exist() -> None:
    """No mailbox or home page was made up for the project: neither exists."""
    assert all(set(author) == {"name"} for author in PROJECT["authors"])
    assert "urls" not in PROJECT
    for name in ("SECURITY.md", "CONTRIBUTING.md"):
        assert not re.search(r"[\w.+-]+@[\w-]+\.\w+|mailto:", (ROOT / name).read_text()), name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_each_benchmark_has_a_line_with_question_command_and_figure(script: Path) -> None:
    rows = (ROOT / "benchmarks" / "README.md").read_text().splitlines()
    lines = [row for row in rows if f"]({script.name})" in row]
    assert lines, f"benchmarks/README.md does not name {script.name}"
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert all(cells), line
        if "def main" in script.read_text() or len(cells) > 2:
            _, question, command, _ = cells
            assert "?" in question, line
            assert "`python " in command, line


def test_the_list_of_benchmarks_names_no_script_that_is_gone() -> None:
    named = re.findall(r"\]\((\w+\.py)\)", (ROOT / "benchmarks" / "README.md").read_text())
    assert set(named) == {script.name for script in SCRIPTS}


def test_contributing_names_folders_that_exist() -> None:
    named = re.findall(r"`((?:backend|tests|docs|benchmarks)(?:/[\w./]+)?)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 12
    for name in named:
        assert (ROOT / name).exists(), name


def test_files_that_are_no_python_are_part_of_the_package() -> None:
    """Each pattern finds something, and nothing that git knows beside the Python files is left out."""
    packed = set()
    for package, patterns in PYPROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            found = set((ROOT / package.replace(".", "/")).glob(pattern))
            assert found, f"{pattern} of {package} finds nothing"
            packed |= found
    listed = subprocess.run(["git", "ls-files", "-z", "backend"], cwd=ROOT, capture_output=True, text=True, check=True)
    others = {ROOT / name for name in listed.stdout.split("\0") if name and not name.endswith(".py")}
    assert others - packed == set()
