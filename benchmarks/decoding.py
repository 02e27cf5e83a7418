"""What does it save to decode large JPEGs at a part of their size, and do the masks stay the same?

    python -m benchmarks.decoding DIR [--limit 30] [--megapixels 12] [--runs 5] [--json FILE]

DIR is a folder as `evaluate` takes it. Up to `--limit` classes: an image of each is the reference, another one is
enlarged, gets the noise of a sensor, and is written as a JPEG of so many megapixels, as a camera would. It is decoded
whole and reduced, as targets are, and segmented with `lite`. Printed: processor time of decoding in this process (the
library alone), agreement of the features, and the mIoU of both ways with each other and with the known mask.
"""

import argparse
import io
import json
import statistics
import time
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from backend.core.masks import iou, mask_to_size
from backend.core.types import Image, Mask
from backend.engine.loading import load_softmatcher
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.datasets import find_classes, read_image, read_mask
from backend.labelstudio.decoding_pool import DecodedFile
from backend.labelstudio.image_decoding import decode_image, decode_reduced

QUALITY = 90
SENSOR_NOISE = 3.0
"""Standard deviation, in steps of 8 bits."""


def as_photograph(image: Image, megapixels: float, seed: int) -> bytes:
    """Return an image as the JPEG of a camera with so many pixels."""
    scale = (megapixels * 1e6 / (image.shape[0] * image.shape[1])) ** 0.5
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    large = np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BICUBIC))
    noise = np.random.default_rng(seed).normal(0, SENSOR_NOISE, large.shape).astype(np.float32)
    buffer = io.BytesIO()
    PIL.Image.fromarray((large + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def decoding_ms(data: bytes, least_side_px: int, runs: int) -> dict[str, float]:
    """Return the processor time of the library's decoding, whole and reduced, in interleaved runs.

    The floor is an eighth of the size in grey: all compressed bits are read, hardly a pixel is made of them.
    """
    reduced = decode_reduced(data, least_side_px=least_side_px).pixels.shape
    spent: dict[str, list[float]] = {"whole": [], "reduced": [], "floor": []}
    for _ in range(runs):
        for way, times in spent.items():
            began = time.process_time()
            with PIL.Image.open(io.BytesIO(data)) as image:
                if way == "reduced":
                    image.draft(None, (reduced[1], reduced[0]))
                if way == "floor":
                    image.draft("L", (image.width // 8, image.height // 8))
                np.asarray(image if way == "floor" else image.convert("RGB"))
            times.append(1000 * (time.process_time() - began))
    return {way: statistics.median(times) for way, times in spent.items()}


def masks(engine: Softmatcher, reference: tuple[Image, Mask], decoded: DecodedFile) -> tuple[Mask, NDArray[np.float32]]:
    """Return the mask that is found on a decoded target, and its features."""
    image, known = reference
    described = engine.describe(image, engine.encode(image), known, is_complete=True)
    encoded = engine.encode(decoded.pixels, size_hw=decoded.size_hw)
    found = engine.segment(encoded, {"it": [described]})
    mask = found[0].mask if found else np.zeros(decoded.size_hw, bool)
    return mask, encoded.features.astype(np.float32)


def measure(folder: Path, limit: int, megapixels: float, runs: int) -> dict[str, float]:
    """Return the figures over the classes of a folder."""
    engine = load_softmatcher("lite")
    rows: list[dict[str, float]] = []
    classes = find_classes(folder)
    for number, one_class in enumerate(classes[:: max(1, len(classes) // limit)][:limit]):
        reference, target = one_class.images[0], one_class.images[-1]
        data = as_photograph(read_image(target), megapixels, number)
        reduced = decode_reduced(data, least_side_px=engine.decode_side_px)
        whole = DecodedFile(decode_image(data), reduced.size_hw, "JPEG", has_orientation=False)
        known = read_image(reference), read_mask(reference)
        (one, its), (other, others) = (masks(engine, known, way) for way in (whole, reduced))
        truth = mask_to_size(read_mask(target), reduced.size_hw)
        same = its.shape == others.shape
        rows.append(
            decoding_ms(data, engine.decode_side_px, runs)
            | {"agreement": iou(one, other), "whole_iou": iou(one, truth), "reduced_iou": iou(other, truth)}
            | {"similarity": float((its * others).sum(axis=2).mean()) if same else float("nan")}
        )
        figures = ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items())
        print(f"{target.parent.name}: {figures}", flush=True)
    return {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]} | {"classes": len(rows)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--limit", type=int, default=30)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments.folder, arguments.limit, arguments.megapixels, arguments.runs)
    print("mean: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
