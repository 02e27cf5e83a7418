"""What text features cost beside the features of matching, at full size on random weights.

    python -m benchmarks.text_features [--profiles text,clip] [--repeats 9] [--side-px 448] [--json FILE]

One image of 3:4 is encoded in turns without and with text features. Processor time, median and quartiles; the cost is
the median of the ratios of neighbours, minus 1. The same in operations of linear layers, which no other program
disturbs (attention itself, which text features leave out, is not among them). The calls of every block of the network
are counted: with text features it is passed once, as without them. A second pass would cost 100 %.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from backend.models.encoders.timm_encoder import TimmEncoder, VitOptions
from backend.models.loading import TEXT_SPACES
from backend.models.profiles import find_profile

_WARM_UP = 2


def measure(name: str, repeats: int, side_px: int | None) -> dict[str, Any]:
    """Return what both kinds of encoding took in one profile, and how often its blocks were called."""
    profile = find_profile(name)
    options = VitOptions(side_px or profile.side_px)
    encoder = TimmEncoder(profile.encoder, None, options, text=TEXT_SPACES[profile.encoder](None))
    network: Any = encoder.runner.network
    calls: list[int] = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    prepared = [encoder.prepare(pixels)]

    def plain() -> object:
        return encoder.encode_async(prepared)()

    def both() -> object:
        return encoder.encode_both_async(prepared)()

    taken: dict[str, list[float]] = {"without": [], "with": []}
    passes: dict[str, float] = {}
    for turn in range(repeats + _WARM_UP):
        for kind, call in (("without", plain), ("with", both)):
            calls.clear()
            milliseconds = _processor_ms(call)
            passes[kind] = len(calls) / len(network.blocks)
            if turn >= _WARM_UP:
                taken[kind].append(milliseconds)
    operations = {kind: _operations(call) for kind, call in (("without", plain), ("with", both))}
    ratios = [new / old for old, new in zip(taken["without"], taken["with"], strict=True)]
    return {
        "encoder": profile.encoder,
        "side_px": options.side_px,
        "threads": torch.get_num_threads(),
        "passes": passes,
        **{f"{kind}_ms": [round(one, 1) for one in statistics.quantiles(of, n=4)] for kind, of in taken.items()},
        "operations": operations,
        "cost_in_operations": operations["with"] / operations["without"] - 1,
        "cost": statistics.median(ratios) - 1,
        "cost_quartiles": [round(one - 1, 4) for one in statistics.quantiles(ratios, n=4)],
    }


def _processor_ms(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return 1000 * (time.process_time() - started)


def _operations(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def main() -> None:
    """Print a line for each profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", default="text,clip")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--side-px", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {name: measure(name, arguments.repeats, arguments.side_px) for name in arguments.profiles.split(",")}
    for name, one in figures.items():
        print(
            f"{name}: {one['without_ms'][1]:.0f} ms without text features, {one['with_ms'][1]:.0f} ms with them, "
            f"{100 * one['cost']:.1f} % more (quartiles {one['cost_quartiles']}); "
            f"{100 * one['cost_in_operations']:.1f} % more operations; forward passes {one['passes']}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
