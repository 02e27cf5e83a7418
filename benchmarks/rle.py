"""How long brush RLE takes: ours (backend.labelstudio.rle) and label_studio_sdk.converter.brush's, in one process.

    python -m benchmarks.rle [--runs 5] [--sdk-limit-mpx 7] [--json FILE]

Masks are blobs with the outline of a real segmentation, and the same with 1 % of single wrong pixels (the worst seen).
Reported: median and spread (least to most) over the runs after one warm-up, milliseconds; ints of the RLE; the peak
memory of the process so far. Bytes and masks of both are compared. The SDK is left out above `--sdk-limit-mpx`: it
needs gigabytes and minutes there.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from label_studio_sdk.converter import brush as sdk

from backend.core.types import Mask
from backend.labelstudio.rle import decode_mask, encode_mask

SIZES_HW = [(480, 640), (1024, 1024), (2000, 3000), (9000, 12000)]


def blobs(height: int, width: int, noise: float) -> Mask:
    rng = np.random.default_rng(0)
    coarse = rng.random((12, 16)).astype(np.float32)
    mask = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) > 0.6
    if noise:
        wrong = rng.integers(0, mask.size, int(mask.size * noise))
        mask.reshape(-1)[wrong] ^= True
    return np.asarray(mask, np.bool_)


def timed(call: Callable[[], object], runs: int) -> tuple[float, float, float]:
    call()
    spent_ms = []
    for _ in range(runs):
        begun = time.perf_counter()
        call()
        spent_ms.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(spent_ms), min(spent_ms), max(spent_ms)


def measure(height: int, width: int, noise: float, runs: int, *, with_sdk: bool) -> dict[str, object]:
    mask = blobs(height, width, noise)
    rle = encode_mask(mask)
    assert np.array_equal(decode_mask(rle, (mask.shape[0], mask.shape[1])), mask)
    row: dict[str, object] = {"mask": f"{width}x{height}" + (" +1% noise" if noise else ""), "ints": len(rle)}
    row["encode_ms"] = timed(lambda: encode_mask(mask), runs)
    row["decode_ms"] = timed(lambda: decode_mask(rle, (mask.shape[0], mask.shape[1])), runs)
    if with_sdk:
        gray = mask.astype(np.uint8) * 255
        assert sdk.mask2rle(gray) == rle
        alpha = sdk.decode_rle(rle).reshape(height, width, 4)[:, :, 3]
        assert np.array_equal(alpha > 127, mask)
        row["sdk_encode_ms"] = timed(lambda: sdk.mask2rle(gray), runs)
        row["sdk_decode_ms"] = timed(lambda: sdk.decode_rle(rle), runs)
    row["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def shown(spent: object) -> str:
    if not isinstance(spent, tuple):
        return "-"
    middle, least, most = spent
    return f"{middle:.1f} ({least:.1f}-{most:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sdk-limit-mpx", type=float, default=7.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    columns = ["encode_ms", "sdk_encode_ms", "decode_ms", "sdk_decode_ms"]
    print(f"| mask | ints | {' | '.join(columns)} | peak RSS MB |\n|{'---|' * 7}")
    for height, width in SIZES_HW:
        for noise in (0.0, 0.01):
            if noise and height * width > 10e6:
                continue
            with_sdk = height * width <= options.sdk_limit_mpx * 1e6
            row = measure(height, width, noise, options.runs, with_sdk=with_sdk)
            rows.append(row)
            times = " | ".join(shown(row.get(column)) for column in columns)
            print(f"| {row['mask']} | {row['ints']} | {times} | {row['peak_rss_mb']} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
