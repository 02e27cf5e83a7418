"""How does matching compare with the ways that others do it, with many references?

    python -m benchmarks.peer_matchers [--references 1,5,20] [--patches 1024] [--dims 768] [--runs 5] [--json FILE]

Each way gets the same references, a quarter of each inside its mask, and one target; all take turns in one process.
Processor time (with OPENBLAS_NUM_THREADS=1), and peak of memory. The others are written from their papers, for this:

- pairwise softmax: the score of Frick et al. (IJCAI 2024) as it is written, over every pair of patches;
- two assignments: the forward and the reverse assignment of Matcher (Liu et al., ICLR 2024), SciPy's solver;
- entropic transport: Sinkhorn's iterations of POT (Cuturi, NIPS 2013) over foreground and target patches.

Ours: the default `posterior` on a memory bank of 2,560 patches, and the closed form `softmatcher` of the paper's score.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import ot
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax, softmax

from backend.core.matching import ReferenceBank, gather_references, match_posterior, match_softmatcher
from backend.core.memory_bank import build_bank
from backend.core.types import Reference
from backend.evaluation.bench_matching import TEMPERATURE, measure_in_turns

BANK_PATCHES = 2560
REGULARISATION = 0.1
ITERATIONS = 100
SIGNATURE = "bench"

Floats = NDArray[np.float32]


def references_of(count: int, patches: int, dims: int) -> list[Reference]:
    """Return references of random directions, the first quarter of each inside the mask."""
    chance = np.random.default_rng(0)
    made = []
    for _ in range(count):
        features = chance.standard_normal((patches, dims), np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        coverage = (np.arange(patches) < patches // 4).astype(np.float16)
        made.append(Reference(features.astype(np.float16), coverage, np.ones(patches, np.float16), SIGNATURE))
    return made


def pairwise_softmax(bank: ReferenceBank, target: Floats) -> Floats:
    """Return the geometric mean over foreground patches of the softmax over target patches, (T,)."""
    logits = bank.features[bank.foreground > 0] @ target.T / TEMPERATURE
    return np.asarray(softmax(log_softmax(logits, axis=1).mean(axis=0)), np.float32)


def two_assignments(bank: ReferenceBank, target: Floats) -> NDArray[np.bool_]:
    """Return which target patches the foreground is assigned to and come back into it, (T,) bool."""
    similarity = bank.features @ target.T
    inside = bank.foreground > 0
    _, found = linear_sum_assignment(similarity[inside], maximize=True)
    senders, back = linear_sum_assignment(similarity[:, found].T, maximize=True)
    kept = np.zeros(len(target), np.bool_)
    kept[found[senders[inside[back]]]] = True
    return kept


def entropic_transport(bank: ReferenceBank, target: Floats) -> Floats:
    """Return the mass that each target patch gets of its most similar foreground patch, (T,)."""
    inside = bank.features[bank.foreground > 0]
    cost = (1 - inside @ target.T).astype(np.float64)
    sent, received = np.full(len(inside), 1 / len(inside)), np.full(len(target), 1 / len(target))
    plan = ot.sinkhorn(sent, received, cost, REGULARISATION, numItermax=ITERATIONS, warn=False)
    received_most: Floats = np.asarray(plan, np.float32).max(axis=0)
    return received_most


def measure(count: int, patches: int, dims: int, runs: int) -> dict[str, dict[str, float]]:
    """Return name -> figures with so many references."""
    references = references_of(count, patches, dims)
    whole, bank = gather_references(references, SIGNATURE), build_bank(references, SIGNATURE, most_patches=BANK_PATCHES)
    target = np.roll(whole.features[:patches], 7, axis=1)
    ways: dict[str, Callable[[], object]] = {
        "posterior (ours)": partial(match_posterior, bank, target, temperature=TEMPERATURE, similarity_floor=0.3),
        "softmatcher (ours)": partial(match_softmatcher, bank, target, temperature=TEMPERATURE),
        "pairwise softmax": partial(pairwise_softmax, whole, target),
        "two assignments": partial(two_assignments, whole, target),
        "entropic transport": partial(entropic_transport, whole, target),
    }
    return {
        name: {"ms": 1000 * statistics.median(seconds), "peak_mb": peak_mb}
        for name, (seconds, peak_mb) in measure_in_turns(ways, runs).items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", default="1,5,20")
    parser.add_argument("--patches", type=int, default=1024)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {}
    for count in (int(one) for one in arguments.references.split(",")):
        figures[count] = measure(count, arguments.patches, arguments.dims, arguments.runs)
        for name, row in figures[count].items():
            print(f"{count:4} references  {name:20} {row['ms']:10.2f} ms {row['peak_mb']:8.1f} MB", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
