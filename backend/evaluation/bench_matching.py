"""Measures the processor time and memory of matching: every matcher over image sizes and numbers of references.

The setting is that of Figure 2 in Frick et al., IJCAI 2024: patches of 14 px, 768 dimensions, one core, as many
reference patches as target patches, all of them inside the mask. Features are drawn by a seed: smooth over the image
as an encoder's are, of unit length.
"""

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from backend.core.feature_scale import FeatureScale
from backend.core.matchers import make_matcher
from backend.core.matching import ReferenceBank
from backend.core.memory_bank import build_bank
from backend.core.types import MatcherName, Reference

ASSIGNMENT = "assignment"
"""Not a matcher: one `linear_sum_assignment`, what the paper compares with; `hungarian` solves two."""
PAIRWISE = "softmatcher-pairwise"
"""The paper's score as it is written, the oracle of the tests: what the closed form saves."""
SIZES_PX = (224, 336, 448, 672, 896, 1120, 1344)
REFERENCE_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.05
_GROWTH = {ASSIGNMENT: 3.0, "hungarian": 3.0}
"""Power of the number of patches that the next size's time is foretold by; 2 for the others."""

OnRow = Callable[["MatchingRow"], None]


@dataclass(frozen=True)
class MatchingRow:
    """One measurement.

    Attributes:
        matcher: its name.
        size_px: side of the target image.
        patches: of the target.
        references: images behind the bank, each with as many patches.
        bank_patches: of the bank.
        seconds_median: processor time of one match of one target.
        seconds_iqr: distance of the quartiles.
        peak_mb: memory on top of what was in use before.
        prepare_seconds: to build the bank, once for a set of references.
    """

    matcher: str
    size_px: int
    patches: int
    references: int
    bank_patches: int
    seconds_median: float
    seconds_iqr: float
    peak_mb: float
    prepare_seconds: float = 0.0


def bench_sizes(
    matchers: Sequence[str],
    sizes_px: Sequence[int] = SIZES_PX,
    *,
    patch_px: int = 14,
    dims: int = 768,
    repeats: int = 7,
    slowest_s: float = 60.0,
    seed: int = 0,
    on_row: OnRow | None = None,
) -> list[MatchingRow]:
    """Measure every matcher at every size, from small to large. At a size all of them take turns, run by run.

    Args:
        matchers: names of `MATCHERS`, `assignment`, `softmatcher-pairwise`.
        sizes_px: sides of the target and of the one reference image.
        patch_px: side of a patch.
        dims: of a patch's feature.
        repeats: timed runs after one to warm up; more of them up to 0.3 s, fewer where one takes more than a second.
        slowest_s: a matcher is left out from the size on where one run is foretold to take longer.
        seed: of the features.
        on_row: called with each row as it comes.
    """
    rows: list[MatchingRow] = []
    last: dict[str, MatchingRow] = {}
    for size_px in sorted(sizes_px):
        side = size_px // patch_px
        features, target = _smooth_features(side, dims, seed), _smooth_features(side, dims, seed + 1)
        everything = ReferenceBank(features, np.ones(len(features), np.float32), np.zeros(len(features), np.float32))
        runs: dict[str, Callable[[], object]] = {}
        for name in matchers:
            if name in last:
                growth = (len(target) / last[name].patches) ** _GROWTH.get(name, 2.0)
                if last[name].seconds_median * growth > slowest_s:
                    continue
            runs[name] = partial(_run, name, everything, target)
        for name, (seconds, peak_mb) in measure_in_turns(runs, repeats).items():
            row = _row(name, size_px, len(target), 1, len(features), seconds, peak_mb)
            last[name] = row
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return rows


def bench_references(
    matchers: Sequence[MatcherName],
    counts: Sequence[int] = REFERENCE_COUNTS,
    *,
    most_patches: int | None,
    size_px: int = 448,
    patch_px: int = 14,
    dims: int = 768,
    repeats: int = 7,
    slowest_s: float = 60.0,
    seed: int = 0,
    on_row: OnRow | None = None,
) -> list[MatchingRow]:
    """Measure one target against more and more reference images, a quarter of each inside the mask.

    Args:
        matchers: as for `bench_sizes`; at a number of references they take turns.
        counts: numbers of references.
        most_patches: bound of the memory bank; None to keep every patch.
        size_px: side of the images.
        patch_px: side of their patches.
        dims: of the features.
        repeats: runs that are measured, after the first.
        slowest_s: a matcher whose run takes longer is left out from then on.
        seed: of the features.
        on_row: called with each row as soon as it is measured.
    """
    rows: list[MatchingRow] = []
    last: dict[str, MatchingRow] = {}
    side = size_px // patch_px
    target = _smooth_features(side, dims, seed)
    inside = np.zeros((side, side), np.float16)
    inside[side // 4 : side // 4 + side // 2, side // 4 : side // 4 + side // 2] = 1
    known = np.ones(side * side, np.float16)
    references: list[Reference] = []
    for count in sorted(counts):
        while len(references) < count:
            features = _smooth_features(side, dims, seed + 1 + len(references)).astype(np.float16)
            references.append(Reference(features, inside.ravel(), known, "bench"))
        start = time.process_time()
        bank = build_bank(references, "bench", most_patches=most_patches or max(2, count * side * side))
        prepare_s = time.process_time() - start
        runs: dict[str, Callable[[], object]] = {}
        for name in matchers:
            if name in last:
                growth = (len(bank.features) / last[name].bank_patches) ** _GROWTH.get(name, 1.0)
                if last[name].seconds_median * growth > slowest_s:
                    continue
            runs[name] = partial(_run, name, bank, target)
        for measured, (seconds, peak_mb) in measure_in_turns(runs, repeats).items():
            row = _row(measured, size_px, len(target), count, len(bank.features), seconds, peak_mb, prepare_s)
            last[measured] = row
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return rows


def speedups(rows: Sequence[MatchingRow], over: str = ASSIGNMENT) -> dict[str, dict[int, float]]:
    """Return matcher -> size -> how many times faster it is than `over` there."""
    slow = {row.size_px: row.seconds_median for row in rows if row.matcher == over}
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.size_px in slow:
            found.setdefault(row.matcher, {})[row.size_px] = slow[row.size_px] / row.seconds_median
    return found


def growth_in_patches(rows: Sequence[MatchingRow], matcher: str) -> float | None:
    """Return the power of the number of patches that the time grows with, over all sizes; None below two sizes."""
    own = [row for row in rows if row.matcher == matcher]
    if len({row.patches for row in own}) < 2:
        return None
    return float(np.polyfit(np.log([row.patches for row in own]), np.log([row.seconds_median for row in own]), 1)[0])


def settings_of_run(threads: int, dims: int, patch_px: int, seed: int) -> dict[str, object]:
    """Return what has to be known to repeat a run."""
    return {
        "threads": threads,
        "dims": dims,
        "patch_px": patch_px,
        "seed": seed,
        "temperature": TEMPERATURE,
        "machine": platform.machine(),
        "processor": _processor(),
        "torch": torch.__version__,
    }


def _run(name: str, bank: ReferenceBank, target: NDArray[np.float32]) -> object:
    if name == ASSIGNMENT:
        from scipy.optimize import linear_sum_assignment

        return linear_sum_assignment(bank.features @ target.T, maximize=True)
    if name == PAIRWISE:
        logits = bank.features @ target.T / TEMPERATURE
        return softmax(log_softmax(logits, axis=1).mean(axis=0))
    return make_matcher(name, FeatureScale(TEMPERATURE))(bank, target)


def _row(
    name: str,
    size_px: int,
    patches: int,
    references: int,
    bank_patches: int,
    seconds: Sequence[float],
    peak_mb: float,
    prepare_s: float = 0.0,
) -> MatchingRow:
    low, high = np.quantile(seconds, (0.25, 0.75))
    median = statistics.median(seconds)
    return MatchingRow(name, size_px, patches, references, bank_patches, median, float(high - low), peak_mb, prepare_s)


def measure_in_turns(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, tuple[list[float], float]]:
    """Measure several calls that take turns, so that whatever else the machine does meets all of them alike.

    Args:
        runs: name -> call.
        repeats: timed runs of each after one to warm up; more of them up to 0.3 s, fewer where one takes more than a
            second.

    Returns:
        Name -> processor time of each run after the first, s, and the peak memory of the first in MB on top of what was
        there.
    """
    peaks, counts = {}, {}
    for name, run in runs.items():
        start = time.process_time()
        peaks[name] = _peak_mb(run)
        first_s = max(time.process_time() - start, 1e-6)
        # A millisecond says little by itself on a machine that does other things.
        counts[name] = max(repeats, int(0.3 / first_s)) if first_s < 1 else max(1, min(repeats, int(10 / first_s)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(max(counts.values(), default=0)):
        for name, run in runs.items():
            if turn < counts[name]:
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
    return {name: (seconds[name], peaks[name]) for name in runs}


def _peak_mb(run: Callable[[], object]) -> float:
    """Return what `run` adds to the process' resident memory at most; NaN if the system does not report it."""
    try:
        # Freed memory that the allocator keeps would hide what is taken from it again.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident_mb()[0]
    except OSError:
        run()
        return float("nan")
    run()
    return max(0.0, _resident_mb()[1] - before)


def _resident_mb() -> tuple[float, float]:
    """Return the resident memory now, and its peak since it was last set back."""
    figures = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return tuple(int(figures[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def _smooth_features(side: int, dims: int, seed: int) -> NDArray[np.float32]:
    """Make features, (side * side, dims) float32 of unit length: a few directions over an image, and noise."""
    shared = torch.randn(1, dims, 6, 6, generator=torch.Generator().manual_seed(12345))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(36, generator=generator)
    coarse = shared.flatten(2)[:, :, order].reshape(1, dims, 6, 6)
    field = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    field = field + 0.5 * torch.randn(1, dims, side, side, generator=generator)
    return np.asarray(F.normalize(field[0].flatten(1).T.contiguous(), dim=1).numpy())


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
