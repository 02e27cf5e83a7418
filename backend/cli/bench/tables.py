"""Tables and a chart of `bench pipeline`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from backend.cli.bench.timing import PARTS
from backend.errors import ConfigurationError


def table(profile: str, figures: Mapping[str, Any]) -> Table:
    """Milliseconds by part, cold and warm."""
    runs = ("click cold", "click warm", "predict cold", "predict warm")
    table = Table(
        "part", *runs, title=f"{profile}: median milliseconds at {figures['image_hw'][1]} x {figures['image_hw'][0]}"
    )
    for part in PARTS:
        table.add_row(part, *(f"{figures[run]['parts_ms'][part]:.1f}" for run in runs))
    table.add_section()
    table.add_row("total", *(f"{figures[run]['total_ms']:.1f}" for run in runs))
    if figures["prompt_ms"]:
        table.add_row("not in a forward pass", *(f"{100 * figures[run]['overhead_share']:.1f} %" for run in runs))
    ratio = figures["click cold"]["total_ms"] / figures["click warm"]["total_ms"]
    table.add_row("click: cold / warm", f"{ratio:.1f}", "", "", "")
    if figures["prompt_ms"]:
        alone, of_eight = figures["prompt_ms"]["alone"], figures["prompt_ms"]["of eight"]
        table.add_row("a prompt alone / of eight", f"{alone:.0f} / {of_eight:.0f}", "", "", "")
    return table


def bulk_table(profile: str, figures: Mapping[str, Any]) -> Table:
    """Images a second of many images."""
    workers = f", {figures['workers']} workers" if figures["workers"] > 1 else ""
    title = f"{profile}: {figures['images']} images in bulk, {figures['at_once']} at a time{workers}"
    table = Table("what", "images/s", title=title)
    table.add_row("file to region", f"{figures['images_per_s']:.2f}")
    table.add_row("the two encoders alone", f"{figures['encoders_alone_images_per_s']:.2f}")
    if figures["encoders_share"] is not None:
        table.add_row("share of the time in the encoders", f"{100 * figures['encoders_share']:.1f} %")
    return table


def require_matplotlib() -> None:
    """Fail before anything is measured, not after.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigurationError("a chart needs matplotlib, which is not installed: pip install matplotlib") from error


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Each part's share of the time, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = [
        (f"{profile}\n{run}", of[run]["parts_ms"])
        for profile, of in figures["profiles"].items()
        for run in ("click cold", "click warm", "predict cold", "predict warm")
    ]
    figure, axes = pyplot.subplots(figsize=(1.6 + 1.2 * len(runs), 5), layout="constrained")
    bottoms = np.zeros(len(runs))
    for part, colour in zip(PARTS, pyplot.get_cmap("tab10").colors, strict=False):
        heights = np.array([parts[part] for _, parts in runs])
        # Shares: seconds of a cold prediction would leave nothing to see of a warm one.
        totals = np.array([sum(parts.values()) for _, parts in runs])
        axes.bar([name for name, _ in runs], 100 * heights / totals, bottom=bottoms, label=part, color=colour)
        bottoms += 100 * heights / totals
    for position, (_, parts) in enumerate(runs):
        axes.text(position, 101, f"{sum(parts.values()):.0f} ms", ha="center", fontsize=8)
    axes.set_ylabel("share of the time, %")
    axes.set_ylim(0, 110)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    machine = figures["machine"]
    axes.set_title(f"Median of {figures['repeats']} runs, {machine['device']}, {machine['cores']} cores", fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
