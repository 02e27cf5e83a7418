"""The matching benchmark on sizes of some patches: rows, ratios, files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from typer.testing import CliRunner

from backend.cli import app
from backend.core.matchers import MATCHERS
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.bench_matching import (
    ASSIGNMENT,
    PAIRWISE,
    MatchingRow,
    bench_references,
    bench_sizes,
    growth_in_patches,
    speedups,
)
from backend.evaluation.matching_quality import measure_quality, soft_iou
from backend.evaluation.plot import Chart, draw_charts
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter
from tests.engine.test_softmatcher import ColourEncoder, scene

CALIBRATION = read_calibration("lite.json")


def _row(matcher: str, patches: int, seconds: float) -> MatchingRow:
    return MatchingRow(matcher, patches, patches, 1, patches, seconds, 0.0, 1.0)


@pytest.mark.slow
def test_every_matcher_is_timed_at_every_size() -> None:
    names = [ASSIGNMENT, PAIRWISE, *MATCHERS]
    rows = bench_sizes(names, (42, 56), dims=8, repeats=2)
    assert {(row.matcher, row.size_px, row.patches) for row in rows} == {
        (name, size, (size // 14) ** 2) for name in names for size in (42, 56)
    }
    assert all(row.seconds_median > 0 and row.seconds_iqr >= 0 for row in rows)


def test_what_would_take_too_long_is_left_out() -> None:
    rows = bench_sizes([ASSIGNMENT], (140, 1400), dims=4, repeats=1, slowest_s=0.2)
    assert [row.size_px for row in rows] == [140]


def test_the_bank_bounds_the_patches() -> None:
    rows = bench_references(["posterior"], (1, 4), most_patches=60, size_px=70, dims=8, repeats=1)
    assert [(row.references, row.bank_patches) for row in rows] == [(1, 25), (4, 60)]
    rows = bench_references(["posterior"], (4,), most_patches=None, size_px=70, dims=8, repeats=1)
    assert rows[0].bank_patches == 100


def test_ratios_and_growth() -> None:
    rows = [_row(ASSIGNMENT, 10, 1.0), _row("x", 10, 0.01), _row(ASSIGNMENT, 100, 1000.0), _row("x", 100, 0.1)]
    assert speedups(rows)["x"] == pytest.approx({10: 100, 100: 10000})
    assert growth_in_patches(rows, "x") == pytest.approx(1)
    assert growth_in_patches(rows, ASSIGNMENT) == pytest.approx(3)
    assert growth_in_patches(rows[:1], ASSIGNMENT) is None


@pytest.mark.slow
def test_memory_of_the_pairwise_form_grows_with_the_matrix() -> None:
    rows = bench_sizes([PAIRWISE], (448, 896), dims=8, repeats=1)
    if np.isnan(rows[0].peak_mb):
        pytest.skip("the system does not tell a process' peak memory")
    # 1024 and 4096 patches squared, float32: 4 and 64 MB, of which two or three are held at once.
    assert rows[0].peak_mb < 32 < 100 < rows[1].peak_mb < 320


def test_charts_are_drawn_even_of_nothing() -> None:
    lines = {"a": [(1.0, 2.0), (100.0, 0.5), (3.0, 0.0)], "b": [(10.0, float("nan"))]}
    picture = draw_charts([Chart("Time", "patches", "s", lines), Chart("Empty", "x", "y", {})])
    assert picture.width > picture.height / 2
    assert len(picture.getcolors(maxcolors=10**6) or []) > 5


def test_soft_iou_counts_parts_of_patches() -> None:
    covered = np.array([1.0, 0.5, 0.0], np.float32)
    assert soft_iou(np.array([True, True, False]), covered) == pytest.approx(1.5 / 2)
    assert soft_iou(np.zeros(3, bool), np.zeros(3, np.float32)) == 1.0


def test_quality_on_drawn_images(tmp_path: Path) -> None:
    folder = tmp_path / "drawn" / "disc"
    folder.mkdir(parents=True)
    for index, x in enumerate((50, 80, 110)):
        image, masks = scene(red=(x, 80, 30))
        PillowImage.fromarray(image).save(folder / f"{index}.jpg", quality=95)
        PillowImage.fromarray(masks["red"]).save(folder / f"{index}.png")
    found = measure_quality(
        tmp_path,
        ["posterior", "softmatcher-rff"],
        load=lambda profile: Softmatcher(ColourEncoder(), LiteSegmenter(), CALIBRATION),
    )
    assert [one.matcher for one in found] == ["posterior", "softmatcher-rff"]
    assert all(one.iou > 0.6 and one.best_iou >= one.iou - 1e-6 and one.auroc > 0.95 for one in found)
    assert found[0].posterior_error == 0 < found[1].posterior_error < 0.1


@pytest.mark.slow
def test_command_writes_json_and_plot(tmp_path: Path) -> None:
    figures, plot = tmp_path / "a" / "b.json", tmp_path / "c" / "d.png"
    threads = torch.get_num_threads()
    try:
        done = CliRunner().invoke(
            app,
            ["bench", "matching", "--sizes", "42,56", "--references", "1,2", "--dims", "8", "--repeats", "1",
             "--json", str(figures), "--plot", str(plot)],
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    written = json.loads(figures.read_text())
    assert {"matcher", "size_px", "patches", "seconds_median", "seconds_iqr", "peak_mb"} <= set(written["rows"][0])
    assert {row["matcher"] for row in written["rows"]} == {ASSIGNMENT, PAIRWISE, *MATCHERS}
    assert {row["references"] for row in written["references"]} == {1, 2}
    with PillowImage.open(plot) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("arguments", [["--matchers", "magic"], ["--sizes", "x"], ["--sizes", "7"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["bench", "matching", *arguments])
    assert done.exit_code != 0
    assert "Traceback" not in done.output
