"""Figures on the pages: each names a command that the page shows, and one that differs is found."""

import importlib.util
import json
import sys
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from backend.cli.demo.sample_projects import SampleProject
from backend.cli.demo.scenario import LabelResult, ProjectResult, results_table

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def load_script() -> ModuleType:
    """docs/ is no package: its script is loaded from its file."""
    spec = importlib.util.spec_from_file_location("docs_figures", ROOT / "docs" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = load_script()


def test_every_figure_has_a_source_whose_command_its_page_shows() -> None:
    found = [figure for page in PAGES for figure in script.figures_in(page)]
    assert {figure.source for figure in found} == set(script.SOURCES)
    for figure in found:
        command = script.SOURCES[figure.source].command
        assert f"`{command}`" in " ".join(figure.page.read_text().split()), f"{figure.page.name} lacks {command}"


def test_no_marked_figure_escapes_the_pattern() -> None:
    """A typing error in a comment would take its figure out of the check."""
    for page in PAGES:
        assert page.read_text().count("<!--") == len(script.figures_in(page)), page.name


def test_readme_and_pages_show_the_same() -> None:
    shown: dict[tuple[str, str], set[str]] = {}
    for page in PAGES:
        for figure in script.figures_in(page):
            shown.setdefault((figure.source, figure.key), set()).add(figure.shown)
    for key, texts in shown.items():
        decimals = min(len(text.partition(".")[2]) for text in texts)
        assert len({f"{float(text):.{decimals}f}" for text in texts}) == 1, f"{key}: {texts}"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text("| coins | 0.86<!--= demo coins.all 0.02 --> |\n| wrong | 0<!--= demo wrong 0 --> of 7 |\n")
    return path


@pytest.mark.parametrize(("iou", "wrong", "problems"), [(0.88, 0, 0), (0.90, 0, 1), (0.83, 0, 1), (0.86, 1, 1)])
def test_a_figure_beyond_its_spread_is_a_problem(page: Path, iou: float, wrong: int, problems: int) -> None:
    measured = {"demo": {"coins": {"all": iou}, "wrong": wrong}}
    found = script.compare(script.figures_in(page), measured)
    assert len(found) == problems
    assert all("page.md:" in line and "measured" in line for line in found)


def test_a_key_that_the_output_lacks_is_a_problem(page: Path) -> None:
    (first, second) = script.compare(script.figures_in(page), {"demo": {"coins": {}}})
    assert "coins.all" in first
    assert "wrong" in second


def test_measured_figures_are_written_with_the_decimals_of_the_page(page: Path) -> None:
    text = script.with_measured(page.read_text(), {"demo": {"coins": {"all": 0.9149}, "wrong": 2}})
    assert text == "| coins | 0.91<!--= demo coins.all 0.02 --> |\n| wrong | 2<!--= demo wrong 0 --> of 7 |\n"
    assert script.with_measured(text, {}) == text


def test_the_demo_is_read_as_it_prints() -> None:
    sample = SampleProject(
        title="Steel",
        labels=("Rust", "Scuff"),
        tasks=(),
        marked="a",
        scribbles=(),
        said="",
        source="",
        min_mean_iou=0.5,
    )
    results = (
        LabelResult("b", "Rust", is_there=True, regions=1, score=0.8, iou=0.9, milliseconds=1.0),
        LabelResult("b", "Scuff", is_there=True, regions=1, score=0.8, iou=0.5, milliseconds=1.0),
        LabelResult("c", "Rust", is_there=False, regions=1, score=0.3, iou=None, milliseconds=1.0),
        LabelResult("c", "Scuff", is_there=False, regions=0, score=None, iou=None, milliseconds=1.0),
    )
    console = Console(file=StringIO(), width=120)
    console.print(results_table(ProjectResult(sample, 1, 1.0, results)))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert script.read_demo(printed) == {"steel": {"rust": 0.9, "scuff": 0.5, "all": 0.7}, "wrong": 1}


def test_without_data_sets_what_needs_them_is_said_to_be_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["figures.py", "--only", "one,joint"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "one: SKIPPED" in printed
    assert "joint: SKIPPED" in printed
    (tmp_path / "fss_mini").mkdir()
    assert script.why_skipped("joint", tmp_path, tmp_path) == f"{tmp_path} has no via_objects"


def test_outputs_in_the_folder_of_results_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "joint.json").write_text(json.dumps({"joint": {"sets": {}}}))
    monkeypatch.setattr(sys, "argv", ["figures.py", "--only", "joint", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 1
    assert "joint.sets.fss_mini.miou" in capsys.readouterr().out


def test_a_command_reads_the_classes_of_its_figures_alone(tmp_path: Path) -> None:
    for name, count in (("fss_mini/apple", 3), ("via_objects/cat", 2), ("via_objects/dog", 3), ("other/cow", 3)):
        (tmp_path / "all" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "all" / name / f"{number}.jpg").touch()
    source = script.Source("evaluate DIR", ("fss_mini", "via_objects"))
    folder = script.link_sets(source, tmp_path / "all", tmp_path / "chosen")
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("*/*")) == [
        "fss_mini/apple", "via_objects/cat", "via_objects/dog",
    ]  # fmt: skip
    few = script.Source("evaluate DIR", ("fss_mini", "via_objects"), least_images=3)
    folder = script.link_sets(few, tmp_path / "all", tmp_path / "large")
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("*/*")) == ["fss_mini/apple", "via_objects/dog"]
