"""What the documentation names exists: links, commands and their flags, settings, figures of /metrics, routes."""

import configparser
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from backend.cli import app
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.text_area import TEXT_AREA
from backend.metrics import Metrics, PropagationCounters
from backend.settings import Settings, environment_name
from backend.web.app import create_app
from testing.fakes import Backend

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")])
README = ROOT / "README.md"
MOST_README_LINES = 160
README_HEADINGS = [
    "# Softmatcher for Label Studio",
    "## Two commands",
    "## Connect your Label Studio in five minutes",
    "## Scribble well",
    "## A whole project at once",
    "## What it finds",
    "## Profiles",
    "## Limits",
    "## Documentation",
    "## Licence",
]
MAX_PICTURE_BYTES = 300_000
# Variables of the test run, and Label Studio's own that the documentation explains.
OTHER_VARIABLES = ("SOFTMATCHER_TEST_", "SOFTMATCHER_REQUIRE_ALL")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", without_code_blocks(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def without_code_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def code_in(page: Path) -> Iterator[str]:
    """Lines of code blocks, and code inside of sentences."""
    text = page.read_text()
    for block in re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    yield from re.findall(r"`([^`]+)`", without_code_blocks(text))


def test_the_readme_is_short_and_has_its_parts_in_order() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) < MOST_README_LINES
    assert [line for line in lines if line.startswith("#")] == README_HEADINGS


def test_the_readme_says_what_is_not_measured_where_it_first_names_other_models() -> None:
    """In the first screen, and again beside the table of profiles."""
    sentence = "o real SAM or DINOv2 weights were at hand"
    before_commands, _, rest = README.read_text().partition("## Two commands")
    assert f"{sentence}: not measured**" in before_commands
    assert sentence in rest.partition("## Profiles")[2].partition("|")[0]


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code_blocks(page.read_text())):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links {target}"
        assert file.is_relative_to(ROOT.resolve()), f"{page.name} links {target}, which is not in the repository"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links {target}; {file.name} has {sorted(anchors(file))}"


def test_pages_that_the_code_names_exist() -> None:
    files = [*ROOT.glob("*.yml"), *ROOT.glob("docker/*"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    files += [
        path for folder in ("backend", "benchmarks", "testing", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    for file in files:
        for name in re.findall(r"docs/[\w./-]+\.(?:md|py|png|svg)", file.read_text() if file.is_file() else ""):
            assert (ROOT / name).is_file(), f"{file.relative_to(ROOT)} names {name}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s]+\.md)[)#]", page.read_text()):
            if not target.startswith("http"):
                waiting += [found for found in [(page.parent / target).resolve()] if found not in reached]
    assert [page.relative_to(ROOT).as_posix() for page in PAGES if page.resolve() not in reached] == []


def test_pictures_are_small_and_used() -> None:
    everything = "".join(page.read_text() for page in PAGES)
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.stat().st_size <= MAX_PICTURE_BYTES, picture.name
        assert picture.name in everything, f"{picture.name} is on no page"


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words run, and the words after its name."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words, f"{command.name} needs a command"
        assert words[0] in command.commands, f"no command {words[0]!r} among {sorted(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@each_page
def test_commands_and_their_flags_exist(page: Path) -> None:
    for line in code_in(page):
        for call in re.findall(r"python -m backend ([a-z][^#|;&>]*)", line):
            words = call.split()
            if words[-1] == "...":
                continue
            command, rest = command_of([word.strip("[],()") for word in words])
            known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
            for flag in rest:
                if flag.startswith("--"):
                    assert flag.partition("=")[0] in known, f"{page.name}: {call}: no {flag} among {sorted(known)}"


def check_scripts(where: str, line: str) -> None:
    """Scripts that a line calls are there, have its flags, and are called in the one way that finds their imports."""
    assert "python benchmarks/" not in line, f"{where}: {line.strip()}: say python -m benchmarks.NAME"
    for module, path, rest in re.findall(r"python (?:-m benchmarks\.(\w+)|(docs/\w+\.py))([^#|;&>]*)", line):
        file = ROOT / (path or f"benchmarks/{module}.py")
        assert file.exists(), f"{where} names {file}"
        text = file.read_text()
        for flag in re.findall(r"--[a-z][a-z-]*", rest):
            assert f'"{flag}"' in text, f"{where}: {file.name} has no {flag}"


@each_page
def test_scripts_and_their_flags_exist(page: Path) -> None:
    for line in code_in(page):
        check_scripts(page.name, line)


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda script: script.stem)
def test_benchmarks_say_how_they_are_called(script: Path) -> None:
    for line in script.read_text().split('"""')[1].splitlines():
        check_scripts(script.name, line)


@each_page
def test_make_targets_and_variables_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in code_in(page):
        for target, rest in re.findall(r"(?:^|[`( ])make ([a-z-]+)((?: [A-Z]+=\S+)*)", line):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"
            for variable in re.findall(r"([A-Z]+)=", rest):
                assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), f"{page.name}: make {variable}="


@each_page
def test_settings_exist(page: Path) -> None:
    known = {environment_name(field) for field in Settings.model_fields}
    for name in re.findall(r"\bSOFTMATCHER_[A-Z_]*[A-Z]\b", page.read_text()):
        assert name in known or name.startswith(OTHER_VARIABLES), f"{page.name}: {name} is no setting"


@each_page
def test_figures_of_metrics_exist(page: Path) -> None:
    metrics = Metrics()
    metrics.read_from(
        references=lambda: {"1": 1},
        cache=lambda: dict.fromkeys(CACHE, 0.0),
        queue=lambda: {"q": 0},
        workers=lambda: 1,
        shared=dict,
        propagations=lambda: PropagationCounters({"running": 1}, {"pending": 1}, 0.0),
    )
    known = re.findall(r"^# TYPE (\S+)", metrics.render().decode(), re.MULTILINE)
    for name in re.findall(r"\bsoftmatcher_[a-z_]+", page.read_text()):
        stem = re.sub(r"_(bucket|sum|count|created)$", "", name)
        assert name in known or stem in known or name == TEXT_AREA, f"{page.name}: {name} is not among {known}"


CACHE = ("hits", "misses", "evictions", "bytes")


@each_page
def test_routes_exist(page: Path, backend: Backend) -> None:
    service = create_app(backend.projects, backend.queue)  # type: ignore[arg-type]
    urls = service.url_map.bind("127.0.0.1")
    for method, path in re.findall(r"`(GET|POST|DELETE) (/[\w/.]+)", page.read_text()):
        if "..." not in path:
            assert urls.test(re.sub(r"/[NM](?=[/.]|$)", "/1", path), method), f"{page.name}: {method} {path}"


def test_the_picture_of_the_rooms_is_the_import_contract() -> None:
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    layers = contract["importlinter:contract:layers"]["layers"].split("\n")
    expected = [[name.strip() for name in layer.split("|")] for layer in layers if layer.strip()]
    text = (ROOT / "docs" / "architecture.md").read_text()
    (picture,) = re.findall(r"^## Rooms\n.*?^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    drawn = [[part.split()[0].rstrip("/") for part in line.split("|")] for line in picture.splitlines()]
    assert drawn == expected


def test_files_of_the_code_that_pages_name_exist() -> None:
    for page in PAGES:
        if page.name != "CHANGELOG.md":  # of releases that had them
            for name in re.findall(r"`((?:backend|tests|testing|benchmarks|docker)/[\w./-]*)`", page.read_text()):
                assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_every_package_is_among_the_dependencies_with_its_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[<>=~! ]", line)[0] for line in project["dependencies"]}
    for extra in project["optional-dependencies"].values():
        wanted |= {re.split(r"[\[<>=~! ]", line)[0] for line in extra}
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE
    )
    named = {name for packages, _, _ in rows for name in re.findall(r"[\w-]+", packages)}
    assert wanted - named == set()
    assert all(text.strip() for row in rows for text in row)


def test_the_label_config_to_copy_is_one_that_the_backend_reads() -> None:
    (config,) = re.findall(r"```xml\n(.*?)```", (ROOT / "docs" / "connecting.md").read_text(), re.DOTALL)
    read = parse_label_config(config)
    for prompt in read.prompts:
        assert any(set(prompt.labels) <= set(brush.labels) for brush in read.brushes)
    assert {prompt.kind for prompt in read.prompts} >= {"keypoint"}


NO_IMPORTS_OF = {
    "tests": "benchmarks",
    "benchmarks": "tests",
    "testing": "tests|benchmarks",
    "backend": "tests|benchmarks|testing",
}


@pytest.mark.parametrize(("folder", "banned"), NO_IMPORTS_OF.items())
def test_tests_benchmarks_and_the_backend_do_not_import_each_other(folder: str, banned: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in re.findall(rf"^[ ]*(?:from|import) (?:{banned})\b.*", path.read_text(), re.MULTILINE)
    ]
    assert not found, "what both need belongs in testing/"
