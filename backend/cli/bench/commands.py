"""`bench`: what parts of the pipeline cost."""

from pathlib import Path
from typing import Annotated

import typer

from backend.cli.failure import clear_errors

bench = typer.Typer(help="Measure what parts of the pipeline cost.", no_args_is_help=True)


@bench.command()
@clear_errors
def matching(
    sizes: Annotated[str, typer.Option(help="Sides of the image, px, with commas.")] = "224,336,448,672,896,1120,1344",
    matchers: Annotated[str, typer.Option(help="Names with commas, or `all`.")] = "all",
    references: Annotated[
        str, typer.Option(help="Numbers of references, with commas; empty: none.")
    ] = "1,5,10,20,50,200",
    dims: Annotated[int, typer.Option(min=2, help="Dimensions of a patch's feature.")] = 768,
    patch: Annotated[int, typer.Option(min=1, help="Side of a patch, px.")] = 14,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 7,
    slowest: Annotated[float, typer.Option(min=0, help="Seconds; slower sizes of a matcher are left out.")] = 60.0,
    bank: Annotated[int, typer.Option(min=2, help="Patches of the memory bank.")] = 2560,
    threads: Annotated[int, typer.Option(min=1, help="Cores.")] = 1,
    quality: Annotated[
        Path | None, typer.Option(help="Folder as for `evaluate`: measure what each matcher finds there, too.")
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="References a class for --quality; above 1: several banks.")] = 1,
    targets: Annotated[int, typer.Option(min=1, help="Targets a class for --quality.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the features.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw time and memory into this PNG.")] = None,
) -> None:
    """Time and memory of every matcher over image sizes (Figure 2 of the paper) and numbers of references."""
    from backend.cli.bench.matching import MatchingBench, run_matching_bench

    run_matching_bench(
        MatchingBench(
            sizes=sizes, matchers=matchers, references=references, dims=dims, patch_px=patch, repeats=repeats,
            slowest_s=slowest, most_patches=bank, threads=threads, quality=quality,
            shots=shots, targets=targets, seed=seed,
        ),
        json_file,
        plot,
    )  # fmt: skip


@bench.command()
@clear_errors
def pipeline(
    profile: Annotated[list[str] | None, typer.Option(help="Which profiles; repeat it. Default: lite, mobile.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    image: Annotated[list[str] | None, typer.Option(help="Image files. Default: a photograph of scikit-image.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each part, after one that does not count.")] = 5,
    bulk: Annotated[
        int, typer.Option(min=0, help="Images that each worker predicts with its own code, for images a second.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that do so side by side.")] = 1,
    json_file: Annotated[str | None, typer.Option("--json", help="Write the figures there.")] = None,
    chart: Annotated[str | None, typer.Option("--png", help="Draw a chart there (needs matplotlib).")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of one model call; 0: as the service.")] = 0,
) -> None:
    """Time every part of a prediction, cold and warm; random weights where real ones are missing."""
    from backend.cli.bench.pipeline import bench_pipeline as run
    from backend.settings import load_settings

    run(
        load_settings(), profile or ["lite", "mobile"], device=device, images=image or [], repeats=repeats,
        bulk=bulk, workers=workers, json_file=json_file, chart=chart, threads=threads,
    )  # fmt: skip
