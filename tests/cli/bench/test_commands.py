"""`bench pipeline` gives a table, JSON and a chart."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from backend.cli import app
from backend.cli.bench.bulk import BulkWork, in_processes
from backend.errors import ConfigurationError

RUNS = ("click cold", "click warm", "predict cold", "predict warm")


@pytest.mark.slow
def test_every_part_is_timed_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("SOFTMATCHER_DATA_DIR", str(tmp_path))
    figures_path, chart = tmp_path / "bench.json", tmp_path / "bench.png"
    done = CliRunner().invoke(
        app,
        [
            "bench", "pipeline", "--profile", "lite", "--repeats", "1", "--bulk", "3", "--json", str(figures_path),
            "--png", str(chart),
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(figures_path.read_text())
    lite = figures["profiles"]["lite"]
    assert lite["random_weights"] == []
    assert lite["image_hw"] == [480, 640]
    for run in RUNS:
        parts = lite[run]["parts_ms"]
        assert sum(parts.values()) == pytest.approx(lite[run]["total_ms"], rel=0.02)
    assert lite["click cold"]["parts_ms"]["encode"] > 0
    assert lite["click warm"]["parts_ms"]["encode"] == lite["predict warm"]["parts_ms"]["encode"] == 0
    assert lite["predict cold"]["parts_ms"]["match"] > 0
    bulk = lite["bulk"]
    assert bulk["with_masks"] == bulk["images"] == 3
    assert 0 < bulk["encoders_share"] <= bulk["of_the_encoders_alone"]
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert "click: cold / warm" in done.output


@pytest.mark.slow
def test_workers_are_timed_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMATCHER_DATA_DIR", str(tmp_path))
    figures_path = tmp_path / "bench.json"
    options = ["--profile", "lite", "--repeats", "1", "--bulk", "3", "--workers", "2", "--json", str(figures_path)]
    done = CliRunner().invoke(app, ["bench", "pipeline", *options])
    assert done.exit_code == 0, done.output
    bulk = json.loads(figures_path.read_text())["profiles"]["lite"]["bulk"]
    assert bulk["workers"] == 2
    assert bulk["with_masks"] == bulk["images"] == 6
    assert bulk["images_per_s"] > 0
    assert bulk["encoders_share"] is None
    assert bulk["parts_ms_an_image"]["match"] > 0
    assert "2 workers" in done.output


@pytest.mark.slow
def test_a_worker_that_cannot_begin_ends_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMATCHER_DATA_DIR", str(tmp_path))
    work = BulkWork("huge", torch.device("cpu"), tmp_path, [b""], images=2, workers=2, threads=1)
    with pytest.raises(ConfigurationError, match="huge"):
        in_processes(work)


def test_what_cannot_be_benched_says_why(tmp_path: Path) -> None:
    unknown = CliRunner().invoke(app, ["bench", "pipeline", "--profile", "huge"])
    assert unknown.exit_code == 2
    assert "lite, mobile, base, large" in unknown.stderr
    absent = CliRunner().invoke(app, ["bench", "pipeline", "--profile", "lite", "--image", str(tmp_path / "x.jpg")])
    assert absent.exit_code == 2
    assert "can be read" in absent.stderr
