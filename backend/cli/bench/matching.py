"""`bench matching`: reads its options, runs the benchmark, writes table, JSON and plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from backend.core.matchers import MATCHERS
from backend.core.types import MatcherName
from backend.errors import BadInputError
from backend.evaluation.bench_matching import (
    ASSIGNMENT,
    PAIRWISE,
    MatchingRow,
    bench_references,
    bench_sizes,
    growth_in_patches,
    settings_of_run,
    speedups,
)
from backend.evaluation.matching_quality import MatchingQuality, measure_quality
from backend.evaluation.plot import Chart, draw_charts
from backend.models.device.placement import set_threads

_BANKLESS: tuple[MatcherName, ...] = ("posterior", "softmatcher", "softmatcher-rff", "prototype")


@dataclass(frozen=True)
class MatchingBench:
    """The options of the command, as typed."""

    sizes: str
    matchers: str
    references: str
    dims: int
    patch_px: int
    repeats: int
    slowest_s: float
    most_patches: int
    threads: int
    quality: Path | None
    shots: int
    targets: int
    seed: int


def run_matching_bench(options: MatchingBench, json_file: Path | None, plot: Path | None) -> None:
    """Measure, print, write.

    Raises:
        BadInputError: an unknown matcher, sizes or numbers that are none, no data set.
    """
    matchers = _matchers(options.matchers)
    known = [name for name in MATCHERS if name in matchers]
    console = Console(stderr=True)
    set_threads(options.threads)
    torch.set_num_threads(options.threads)
    sizes_px, counts = _numbers(options.sizes), _numbers(options.references)
    if any(size_px < options.patch_px for size_px in sizes_px):
        raise BadInputError(
            f"sizes must be at least one patch of {options.patch_px} px, got {options.sizes}; raise them"
        )
    shared: dict[str, Any] = {
        "patch_px": options.patch_px, "dims": options.dims, "repeats": options.repeats,
        "slowest_s": options.slowest_s, "seed": options.seed,
    }  # fmt: skip

    def tell(row: MatchingRow) -> None:
        console.print(
            f"{row.matcher:22} {row.size_px:5} px {row.references:4} references {1000 * row.seconds_median:11.2f} ms "
            f"± {1000 * row.seconds_iqr:8.2f} {row.peak_mb:8.1f} MB"
        )

    rows = bench_sizes(matchers, sizes_px, on_row=tell, **shared)
    with_bank = (
        bench_references(known, counts, most_patches=options.most_patches, on_row=tell, **shared) if counts else []
    )
    whole = [name for name in known if name in _BANKLESS]
    without = bench_references(whole, counts, most_patches=None, on_row=tell, **shared) if counts else []
    quality = []
    if options.quality is not None:
        sizes = (None,) if options.shots == 1 else (None, options.most_patches, 1024, 512)
        quality = measure_quality(
            options.quality, known, seed=options.seed, shots=options.shots, targets=options.targets, banks=sizes
        )
    Console().print(_table(rows))
    if quality:
        Console().print(_quality_table(quality))
    growth = {name: growth_in_patches(rows, name) for name in matchers}
    if json_file is not None:
        figures = {
            "rows": [asdict(row) for row in rows],
            "references": [asdict(row) for row in with_bank],
            "references_without_bank": [asdict(row) for row in without],
            "quality": [asdict(one) for one in quality],
            "times_faster_than_assignment": speedups(rows),
            "growth_in_patches": growth,
            "settings": settings_of_run(options.threads, options.dims, options.patch_px, options.seed),
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        draw_charts(_charts(rows, with_bank, without)).save(plot)


def _matchers(text: str) -> list[str]:
    every = [ASSIGNMENT, PAIRWISE, *MATCHERS]
    if text == "all":
        return every
    named = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in named if name not in every]
    if unknown or not named:
        raise BadInputError(f"matchers must be of {', '.join(every)}, got {text!r}; or say all")
    return named


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise BadInputError(f"expected whole numbers above 0 with commas between, got {text!r}")
    return numbers


def _table(rows: Sequence[MatchingRow]) -> Table:
    table = Table("matcher", title="One target, milliseconds (times faster than the assignment)")
    sizes_px = sorted({row.size_px for row in rows})
    for size_px in sizes_px:
        table.add_column(f"{size_px} px", justify="right")
    table.add_column("grows with patches ^", justify="right")
    faster = speedups(rows)
    for name in dict.fromkeys(row.matcher for row in rows):
        own = {row.size_px: row for row in rows if row.matcher == name}
        cells = []
        for size_px in sizes_px:
            ratio = faster.get(name, {}).get(size_px)
            times = f" ({ratio:.0f}x)" if ratio is not None and name != ASSIGNMENT else ""
            cells.append(f"{1000 * own[size_px].seconds_median:.2f}{times}" if size_px in own else "-")
        growth = growth_in_patches(rows, name)
        table.add_row(name, *cells, "-" if growth is None else f"{growth:.2f}")
    return table


def _quality_table(quality: Sequence[MatchingQuality]) -> Table:
    table = Table(
        "matcher", "shots", "bank", "best IoU", "IoU at 0.5", "AUROC", "error", "ms", title="On the patch grid"
    )
    for one in quality:
        table.add_row(
            one.matcher, str(one.shots), str(one.most_patches or "all"), f"{one.best_iou:.3f}", f"{one.iou:.3f}",
            f"{one.auroc:.3f}", f"{one.posterior_error:.3f}", f"{one.milliseconds:.1f}",
        )  # fmt: skip
    return table


def _charts(
    rows: Sequence[MatchingRow], with_bank: Sequence[MatchingRow], without: Sequence[MatchingRow]
) -> list[Chart]:
    def lines(some: Sequence[MatchingRow], x: str, y: str) -> dict[str, list[tuple[float, float]]]:
        names = dict.fromkeys(row.matcher for row in some)
        return {name: [(getattr(row, x), getattr(row, y)) for row in some if row.matcher == name] for name in names}

    charts = [
        Chart("Time over image size", "patches", "seconds", lines(rows, "patches", "seconds_median")),
        Chart("Memory over image size", "patches", "MB", lines(rows, "patches", "peak_mb")),
    ]
    if with_bank:
        bounded = lines(with_bank, "references", "seconds_median")
        whole = lines(without, "references", "seconds_median")
        charts.append(Chart("Time over references, memory bank", "references", "seconds", bounded))
        charts.append(Chart("Time over references, every patch", "references", "seconds", whole))
    return charts
