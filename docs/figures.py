"""Measure the figures of quality and of the demo again; fail if a page differs by more than the stated spread.

    .venv/bin/python docs/figures.py [DIR] [--only demo,one] [--results FOLDER] [--write]

`make figures DATASETS=DIR` does the same. `DIR` holds the data sets, `<set>/<class>/<n>.jpg` with the mask `<n>.png`
beside each; without it, what needs them is skipped. Everything took two to three hours on two busy
cores, the demo alone two minutes on idle ones.

A figure on a page is followed by a comment that names its source, its key in the source's output, and its spread:

    0.865<!--= demo coins 0.02 -->

`SOURCES` holds the commands; each page shows the command of every figure that it has. With `--results` the outputs of
the commands are kept in that folder, and those found there are compared without a new run. `--write` puts the measured
figures into the pages.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parents[1]
ALL_SETS = (
    "camvid", "coco_mini", "coffee_leaf", "davis_video", "facade", "fss_mini", "mvtec_mini", "nuclei", "road_crack",
    "steel_strip", "via_objects",
)  # fmt: skip
CONSOLE = Console(highlight=False, markup=False, soft_wrap=True)
FIGURE = re.compile(r"(?P<shown>-?\d+(?:\.\d+)?)<!--= (?P<source>\S+) (?P<key>\S+) (?P<spread>\d+(?:\.\d+)?) -->")


class MeasurementError(Exception):
    """A command failed, or its output has no such figure."""


@dataclass(frozen=True)
class Source:
    """A command that prints figures.

    Attributes:
        command: as the pages show it; `DIR` stands for the folder of data sets.
        sets: the data sets that it reads; empty if it needs none.
        least_images: classes with fewer are left out.
    """

    command: str
    sets: tuple[str, ...] = ()
    least_images: int = 1


SOURCES = {
    "demo": Source("make demo ONCE=1"),
    "one": Source("python -m backend evaluate DIR --shots 1 --seeds 0,1,2", ALL_SETS),
    "five": Source("python -m backend evaluate DIR --shots 5 --seeds 0,1,2", ALL_SETS),
    "ten": Source("python -m backend evaluate DIR --shots 10 --seeds 0,1,2", ALL_SETS, least_images=11),
    "markings": Source("python -m backend evaluate DIR --limit 2 --seeds 0,1 --markings", ALL_SETS),
    "joint": Source("python -m backend evaluate DIR --joint --limit 3 --seeds 0,1,2", ("fss_mini", "via_objects")),
}


@dataclass(frozen=True)
class Figure:
    """One figure on a page.

    Attributes:
        page: the file.
        line: counted from 1.
        shown: the number as the page writes it.
        source: name of the command that prints it.
        key: dotted path in the command's output.
        spread: largest difference that is accepted, in the figure's unit.
    """

    page: Path
    line: int
    shown: str
    source: str
    key: str
    spread: float

    @property
    def decimals(self) -> int:
        """Digits after the point."""
        return len(self.shown.partition(".")[2])

    def differs_from(self, measured: float) -> bool:
        """Return whether the page is off by more than the spread, apart from rounding."""
        return abs(float(self.shown) - measured) > self.spread + 0.5 * 10.0 ** (-self.decimals)


def figures_in(page: Path) -> list[Figure]:
    """Return all figures of a page that have a source."""
    return [
        Figure(page, number, found["shown"], found["source"], found["key"], float(found["spread"]))
        for number, line in enumerate(page.read_text().splitlines(), start=1)
        for found in FIGURE.finditer(line)
    ]


def look_up(figures: Mapping[str, object], key: str) -> float:
    """Return the number at a dotted path.

    Raises:
        MeasurementError: nothing there, or no number.
    """
    value: object = figures
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MeasurementError(
            f"the command's output must have a number at {key}, got {value!r}; correct the page's key"
        )
    return float(value)


def read_demo(text: str) -> dict[str, object]:
    """Return what the demo printed: the mean IoU of each project and label, and `wrong`, regions where nothing is."""
    found: dict[str, object] = {"wrong": 0}
    labels: dict[str, object] = {}
    project = ""
    wrong = 0
    for line in text.splitlines():
        title = re.match(r"\s*(\w+): predictions as Label Studio stores them", line)
        if title is not None:
            project, labels = title[1].lower(), {}
            found[project] = labels
        cells = [cell.strip() for cell in re.split("[│┃|]", line)[1:-1]]
        if not project or len(cells) != 6:
            continue
        task, label, regions, _, iou, _ = cells
        if task == "mean":
            labels[label.lower() or "all"] = float(iou)
        wrong += iou == "not there" and regions != "0"
    return found | {"wrong": wrong}


def link_sets(source: Source, data_sets: Path, folder: Path) -> Path:
    """Make a folder with links to the classes of a source alone: others would change its means."""
    for one in sorted(path for name in source.sets for path in (data_sets / name).iterdir() if path.is_dir()):
        if len(list(one.glob("*.jpg"))) >= source.least_images:
            place = folder / one.parent.name / one.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(one.resolve())
    return folder


def measure(name: str, data_sets: Path | None, results: Path) -> Mapping[str, object]:
    """Run the command of a source, or read what it left in `results`.

    Raises:
        MeasurementError: the command failed.
    """
    source, is_demo = SOURCES[name], name == "demo"
    output = results / (f"{name}.txt" if is_demo else f"{name}.json")
    if output.exists():
        CONSOLE.print(f"{name}: from {output}, of {datetime.fromtimestamp(output.stat().st_mtime):%Y-%m-%d %H:%M}")
    else:
        CONSOLE.print(f"{name}: {source.command}")
        with tempfile.TemporaryDirectory() as temporary:
            if is_demo:
                arguments = ["demo", "--once"]
            else:
                assert data_sets is not None
                sets = link_sets(source, data_sets, Path(temporary) / "sets")
                words = source.command.replace("python -m backend ", "").split()
                arguments = [str(sets) if word == "DIR" else word for word in words] + ["--json", str(output)]
            done = subprocess.run(  # noqa: S603  # our own commands
                [sys.executable, "-m", "backend", *arguments],
                cwd=ROOT,
                env={**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"},
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                check=False,
            )
        if done.returncode:
            raise MeasurementError(f"{name}: exit code {done.returncode}; {done.stdout[-2000:]}")
        if is_demo:
            output.write_text(done.stdout, encoding="utf-8")
    if is_demo:
        return read_demo(output.read_text(encoding="utf-8"))
    figures: Mapping[str, object] = json.loads(output.read_text())
    return figures


def why_skipped(name: str, data_sets: Path | None, results: Path) -> str | None:
    """Return why a source cannot be measured; None if it can."""
    source = SOURCES[name]
    if not source.sets or (results / f"{name}.json").exists():
        return None
    if data_sets is None:
        return "no folder of data sets was given"
    missing = [one for one in source.sets if not (data_sets / one).is_dir()]
    return f"{data_sets} has no {', '.join(missing)}" if missing else None


def compare(figures: Sequence[Figure], measured: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Return one line for each figure that differs, with expected, got and what to do."""
    problems = []
    for figure in figures:
        place = f"{figure.page.name}:{figure.line}: {figure.source} {figure.key}"
        try:
            value = look_up(measured[figure.source], figure.key)
        except MeasurementError as error:
            problems.append(f"{place}: {error}")
            continue
        if figure.differs_from(value):
            problems.append(
                f"{place}: the page has {figure.shown} +-{figure.spread:g}, measured {value:.4f}; "
                "find the reason, then write the new figure (--write) and the date"
            )
    return problems


def with_measured(text: str, measured: Mapping[str, Mapping[str, object]]) -> str:
    """Return a page's text with the measured figures, in as many decimals as before."""

    def replaced(found: re.Match[str]) -> str:
        if found["source"] not in measured:
            return found[0]
        value = look_up(measured[found["source"]], found["key"])
        decimals = len(found["shown"].partition(".")[2])
        return f"{value:.{decimals}f}{found[0][len(found['shown']) :]}"

    return FIGURE.sub(replaced, text)


def main() -> None:
    """Measure, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_sets", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("--only", default=",".join(SOURCES), help="names of sources, comma-separated")
    parser.add_argument("--results", type=Path, help="keep the outputs here, and use those that are here")
    parser.add_argument("--write", action="store_true", help="put the measured figures into the pages")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(SOURCES):
        parser.error(f"--only must be of {', '.join(SOURCES)}, got {', '.join(sorted(unknown))}")
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    figures = [figure for page in pages for figure in figures_in(page)]
    measured: dict[str, Mapping[str, object]] = {}
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        results = arguments.results or Path(temporary)
        results.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            reason = why_skipped(name, arguments.data_sets, results.resolve())
            if reason is not None:
                count = sum(figure.source == name for figure in figures)
                CONSOLE.print(f"{name}: SKIPPED with its {count} figures: {reason}")
                continue
            try:
                measured[name] = measure(name, arguments.data_sets, results.resolve())
            except MeasurementError as error:
                problems.append(str(error))
    compared = [figure for figure in figures if figure.source in measured]
    problems += compare(compared, measured)
    for page in pages if arguments.write else ():
        page.write_text(with_measured(page.read_text(), measured))
    CONSOLE.print(f"{len(compared)} of {len(figures)} figures compared, {len(problems)} problems")
    for problem in problems:
        CONSOLE.print(problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
