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
    bank: Annotated[int, typer.Option(min=2, help="Patches of the memory bank.")] = 3072,
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
    from backend.cli.bench_matching import MatchingBench, run_matching_bench

    run_matching_bench(
        MatchingBench(
            sizes=sizes, matchers=matchers, references=references, dims=dims, patch_px=patch, repeats=repeats,
            slowest_s=slowest, most_patches=bank, threads=threads, quality=quality,
            shots=shots, targets=targets, seed=seed,
        ),
        json_file,
        plot,
    )  # fmt: skip
