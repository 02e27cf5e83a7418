"""SAM's mask decoder, ours against segment-anything's, in one process and in turns.

    python -m benchmarks.mask_decoder [--model mobile_sam] [--repeats 15] [--seed 0] [--json FILE]

Both have the same weights (random) and are asked the same: prompts of three points and one mask input, of one image.
The package's is called as its `SamPredictor` does, on the image and its prompts, in passes of as many prompts as ours.
Milliseconds a prompt, median and quartiles, and the largest difference of the logits. Times of both include the prompt
encoder; ours includes what the prompts share, once an image.
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
from torch import Tensor

from backend.models.sam.networks import build_sam
from backend.models.sam.options import SamOptions
from backend.models.sam.prompts import SamPrompt
from backend.models.sam.segmenter import sam_segmenter

PROMPTS = (1, 2, 5, 8)
AT_ONCE = 2
"""Prompts of a pass: what `SamSegmenter` takes on a CPU."""


def measure(model: str, repeats: int, seed: int) -> dict[str, Any]:
    """For each number of prompts what both took."""
    package: Any = build_sam(model, None).eval()
    segmenter = sam_segmenter(build_sam(model, None), model, SamOptions(is_half=False), device=torch.device("cpu"))
    rng = np.random.default_rng(seed)
    channels, cells = package.prompt_encoder.embed_dim, package.prompt_encoder.image_embedding_size[0]
    image = rng.normal(size=(channels, cells, cells)).astype(np.float32)
    embedding = {"image_embedding": image, "input_hw": np.array([768, 1024])}
    mask = rng.normal(size=(4 * cells, 4 * cells)).astype(np.float32)
    points = rng.uniform(0, 768, (max(PROMPTS), 3, 2)).astype(np.float32)
    prompts = [SamPrompt(one, np.ones(3, np.float32), None, mask) for one in points]

    def ours(count: int) -> Tensor:
        return torch.stack(
            [one.logits for one in segmenter.decode_prompts(embedding, prompts[:count], is_multimask=True)]
        )

    def theirs(count: int) -> Tensor:
        answers = []
        with torch.inference_mode():
            for start in range(0, count, AT_ONCE):
                own = torch.from_numpy(points[start : min(start + AT_ONCE, count)])
                given = own, torch.ones(own.shape[:2])
                masks = torch.from_numpy(mask).expand(len(own), 1, -1, -1)
                sparse, dense = package.prompt_encoder(points=given, boxes=None, masks=masks)
                logits, _ = package.mask_decoder(
                    image_embeddings=torch.from_numpy(image)[None],
                    image_pe=package.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=True,
                )
                answers.append(logits)
        return torch.cat(answers)

    figures: dict[str, Any] = {"model": model, "seed": seed, "threads": torch.get_num_threads(), "prompts": {}}
    for count in PROMPTS:
        taken: dict[str, list[float]] = {"ours": [], "package": []}
        for slot in range(repeats + 2):  # the first two of each warm up
            for name, call in (("ours", ours), ("package", theirs)):
                milliseconds = _timed(call, count) / count
                if slot > 1:
                    taken[name].append(milliseconds)
        apart = float((ours(count) - theirs(count)).abs().max())
        figures["prompts"][count] = {
            **{name: [round(one, 1) for one in statistics.quantiles(of, n=4)] for name, of in taken.items()},
            "ratio": statistics.median(taken["package"]) / statistics.median(taken["ours"]),
            "largest_difference": apart,
        }
    return figures


def _timed(call: Callable[[int], Tensor], count: int) -> float:
    started = time.perf_counter()
    call(count)
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Print a line for each number of prompts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobile_sam")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments.model, arguments.repeats, arguments.seed)
    for count, one in figures["prompts"].items():
        print(
            f"{count} prompts: ours {one['ours']} ms each, the package's {one['package']} (quartiles), "
            f"{one['ratio']:.2f} times; logits {one['largest_difference']:.1e} apart"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
