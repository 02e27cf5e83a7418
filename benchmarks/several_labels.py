"""What do ten labels cost beside one, to match and to describe?

    python -m benchmarks.several_labels [--labels 1,2,5,10] [--images 1,3] [--runs 5] [--json FILE]

A photograph with a mask for each label (areas of scikit-image's coffee picture) is described; it, and for `--images 3`
two crops of it, are the references of every label. Processor time of matching another photograph, each label alone and
again beside the others, as a target with several present labels is; before: a product per label and pass. Then the
processor time to describe the photograph for all labels, beside encoding the mirrored view for each. All with `lite`,
in interleaved runs. The posteriors of both ways are compared.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from skimage import data

from backend.core.matching import ReferenceBank, match_posterior, match_posteriors
from backend.core.shared_matching import LabelPatches, SharedPatches, share_patches, sum_labels
from backend.core.types import EncodedImage, Image, Mask, Reference
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def masks_of(image: Image, count: int) -> list[Mask]:
    """Return masks of so many areas of an image, one beside the other."""
    height, width = image.shape[:2]
    masks: list[Mask] = []
    for number in range(count):
        mask: Mask = np.zeros((height, width), np.bool_)
        left = round((number + 0.1) * width / count)
        mask[height // 3 : height // 3 + height // 4, left : round((number + 0.9) * width / count)] = True
        masks.append(mask)
    return masks


def references_of(engine: Softmatcher, images: Sequence[Image], count: int) -> list[list[Reference]]:
    """Return the references of so many labels, each on all images."""
    encoded = [engine.encode(image) for image in images]
    masks = [masks_of(image, count) for image in images]
    return [
        [
            engine.describe(image, features, own[label], is_complete=True)
            for image, features, own in zip(images, encoded, masks, strict=True)
        ]
        for label in range(count)
    ]


def match_apart(engine: Softmatcher, banks: Sequence[ReferenceBank], target: Floats) -> list[Floats]:
    """Return all posteriors, alone and then beside the others, with one product per label and pass."""
    temperature, floor = engine.scale.temperature, engine.scale.similarity_floor
    alone = [match_posterior(bank, target, temperature=temperature, similarity_floor=floor) for bank in banks]
    several = banks if len(banks) > 1 else []
    beside = match_posteriors(several, target, temperature=temperature, similarity_floor=floor) if several else []
    return [one.posterior for one in [*alone, *beside]]


def match_together(engine: Softmatcher, shared: SharedPatches, target: Floats) -> list[Floats]:
    """Return the same of one product."""
    scale = engine.scale
    sums = sum_labels(shared, target, temperature=scale.temperature, similarity_floor=scale.similarity_floor)
    labels = range(len(sums.foreground))
    return [sums.alone(n) for n in labels] + ([sums.beside(n) for n in labels] if len(labels) > 1 else [])


def describe(engine: Softmatcher, image: Image, encoded: Sequence[EncodedImage], masks: Sequence[Mask]) -> None:
    """Describe an image for each label."""
    for one, mask in zip(encoded, masks, strict=True):
        engine.describe(image, one, mask, is_complete=True)


def spent(run: Callable[[], object]) -> float:
    """Return the processor time of a call, ms."""
    began = time.process_time()
    run()
    return 1000 * (time.process_time() - began)


def measure(engine: Softmatcher, labels: int, images: int, runs: int) -> dict[str, float]:
    """Return the figures of so many labels on so many reference images."""
    cup = data.coffee()
    pictures = [cup, cup[40:, 60:], cup[:-30, :-90]][:images]
    references = references_of(engine, [np.ascontiguousarray(one) for one in pictures], labels)
    banks = [engine.gather(own, MatchOptions(classifier=False)) for own in references]
    parts = [LabelPatches(bank.features, bank.foreground, bank.background) for bank in banks]
    encoded = engine.encode(np.ascontiguousarray(cup[20:, ::-1][:, 40:]))
    target = encoded.features.astype(np.float32).reshape(-1, encoded.features.shape[2])
    times: dict[str, list[float]] = {name: [] for name in ("match", "before", "share", "describe", "describe_before")}
    shared = share_patches(parts)
    pairs = zip(match_together(engine, shared, target), match_apart(engine, banks, target), strict=True)
    furthest = max(float(np.abs(one - other).max()) for one, other in pairs)
    for _ in range(runs):
        times["share"].append(spent(lambda: share_patches(parts)))
        times["match"].append(spent(lambda: match_together(engine, shared, target)))
        times["before"].append(spent(lambda: match_apart(engine, banks, target)))
    own, masks = engine.encode(cup), masks_of(cup, labels)
    # A copy of the encoded image for each label is another image: its mirrored view is encoded anew.
    others = [EncodedImage(own.size_hw, own.features, own.embedding, own.signature) for _ in masks]
    for _ in range(runs):
        again = EncodedImage(own.size_hw, own.features, own.embedding, own.signature)
        times["describe"].append(spent(partial(describe, engine, cup, [again] * labels, masks)))
        times["describe_before"].append(spent(lambda: describe(engine, cup, others, masks)))
    return {
        "labels": labels,
        "images": images,
        "patches": sum(len(bank.features) for bank in banks),
        "different": shared.count,
        **{f"{name}_ms": statistics.median(values) for name, values in times.items()},
        "furthest": furthest,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default="1,2,5,10")
    parser.add_argument("--images", default="1,3")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    softmatcher = load_softmatcher("lite")
    rows = []
    for images in (int(one) for one in arguments.images.split(",")):
        for labels in (int(one) for one in arguments.labels.split(",")):
            rows.append(measure(softmatcher, labels, images, arguments.runs))
            print(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
