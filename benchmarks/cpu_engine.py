"""How much processor time does OpenVINO save beside PyTorch?

    python -m benchmarks.cpu_engine [--runs 20] [--json FILE]

Both engines encode the same images in turn, on one thread of one process, so that whatever else the machine does hits
both. Printed are medians of processor time, their ratio, and by how much the features differ at most. The images are
noise: time does not depend on what they show. Weights are those of `lite`; MobileSAM's image encoder has random ones.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backend.core.types import Image
from backend.models.cpu_engine import CpuEngine
from backend.models.encoders.efficientnet_lite import EfficientNetLiteEncoder
from backend.models.sam.networks import build_sam
from backend.models.sam.options import SamOptions
from backend.models.sam.segmenter import sam_segmenter

SIZE_HW = (480, 640)
ENGINES = (CpuEngine("torch", threads=1), CpuEngine("openvino", threads=1))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    encoders = [EfficientNetLiteEncoder(engine=engine).encode for engine in ENGINES]
    sams = [_mobile_sam(engine) for engine in ENGINES]
    networks: dict[str, Sequence[Callable[[Image], NDArray[np.float32]]]] = {
        "EfficientNet-Lite2 (lite)": encoders,
        "MobileSAM's TinyViT (mobile)": sams,
    }
    rows = [compare(name, image, both, given.runs) for name, both in networks.items()]
    for row in rows:
        print(f"{row['network']}: torch {row['torch_ms']:.0f} ms, openvino {row['openvino_ms']:.0f} ms, ", end="")
        print(f"{row['ratio']:.2f} of the time; features differ by {row['difference']:.1g} at most")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


def _mobile_sam(engine: CpuEngine) -> Callable[[Image], NDArray[np.float32]]:
    sam = sam_segmenter(build_sam("mobile_sam", None), "mobile_sam", SamOptions(is_half=False), engine=engine)
    return lambda image: np.asarray(sam.embed(image)["image_embedding"], np.float32)


def compare(
    name: str, image: Image, encoders: Sequence[Callable[[Image], NDArray[np.float32]]], runs: int
) -> dict[str, Any]:
    """Run both encoders in turn."""
    features = [encode(image) for encode in encoders]  # the first call is slower
    times: list[list[float]] = [[] for _ in encoders]
    for _ in range(runs):
        for own, encode in zip(times, encoders, strict=True):
            started = time.process_time()
            encode(image)
            own.append(1000 * (time.process_time() - started))
    by_torch, by_openvino = (statistics.median(own) for own in times)
    return {
        "network": name,
        "torch_ms": by_torch,
        "openvino_ms": by_openvino,
        "ratio": statistics.median(new / old for old, new in zip(*times, strict=True)),
        "difference": float(np.abs(features[0] - features[1]).max()),
    }


if __name__ == "__main__":
    main()
