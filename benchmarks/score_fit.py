"""Do scores agree better with the masks once they are fitted on a project's own few annotated images?

    python -m benchmarks.score_fit DIR [--references 5] [--targets 5] [--seeds 0]

DIR has <set>/<class>/<n>.jpg with the mask <n>.png beside it. Each class is a project: every reference image is
predicted from the others, the offset of the score is fitted on what that gives, and the targets are scored with and
without it. Masks that would not be returned take no part.
"""

import argparse
from pathlib import Path

import numpy as np

from backend.core.calibration import MaskFeatures
from backend.core.calibration_fit import fit_score_offset
from backend.core.masks import iou, mask_to_size
from backend.core.score_metrics import calibration_errors, worst_third
from backend.core.types import EncodedImage, Reference
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.datasets import Episode, draw_episode, find_classes, read_image, read_mask

Measured = tuple[MaskFeatures, float]
"""Measurements on a mask, and its IoU."""
Pair = tuple[float, float]
"""Score and IoU of a mask."""


def main() -> None:
    """Print the errors of the score with the profile's calibration alone, and with the offset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--targets", type=int, default=5)
    parser.add_argument("--seeds", default="0")
    given = parser.parse_args()
    engine = load_softmatcher("lite")
    plain: dict[str, list[Pair]] = {}
    fitted: dict[str, list[Pair]] = {}
    gaps: list[Pair] = []
    for one in find_classes(given.directory):
        for seed in map(int, given.seeds.split(",")):
            episode = draw_episode(one, shots=given.references, seed=seed, limit=given.targets)
            if len(episode.references) < given.references:
                continue
            left_out, found = predict(engine, episode)
            offset = fit_score_offset(
                [engine.calibration.expected_iou(features) for features, _ in left_out],
                [reached for _, reached in left_out],
            )
            targets, corrected = (
                [(engine.calibration.expected_iou(features, added), reached) for features, reached in found]
                for added in (0.0, offset)
            )
            plain.setdefault(one.set_name, []).extend(targets)
            fitted.setdefault(one.set_name, []).extend(corrected)
            if targets:
                gaps.append((bias(targets), bias(corrected)))
    before, after = np.mean(gaps, axis=0)
    print(f"{len(gaps)} projects: mean score and mean IoU of the targets differ by {before:.3f}, fitted {after:.3f}")
    for name, pairs in (("profile", plain), ("fitted", fitted)):
        errors = calibration_errors(pairs)
        score, reached = np.array([pair for some in pairs.values() for pair in some]).T
        print(
            f"{name:8} mean |score - IoU| {np.abs(score - reached).mean():.3f}, calibration error of a set "
            f"{np.mean(list(errors.values())):.3f}, worst third {worst_third(list(errors.values())):.3f}"
        )


def bias(pairs: list[Pair]) -> float:
    """Return how far the mean score is off the mean IoU."""
    score, reached = np.array(pairs).T
    return float(abs(score.mean() - reached.mean()))


def predict(engine: Softmatcher, episode: Episode) -> tuple[list[Measured], list[Measured]]:
    """Return what was measured on left-out reference images, and on targets from all references."""
    encoded = [engine.encode(read_image(path)) for path in episode.references]
    references = [
        engine.describe(read_image(path), features, read_mask(path), is_complete=True)
        for path, features in zip(episode.references, encoded, strict=True)
    ]

    def measure(path: Path, target: EncodedImage, used: list[Reference]) -> list[Measured]:
        found = engine.label_candidates(target, [engine.gather(used)], MatchOptions())[0]
        if not found.is_there(MatchOptions()):
            return []
        truth = read_mask(path)
        return [(found.features, iou(mask_to_size(found.mask, (truth.shape[0], truth.shape[1])), truth))]

    left_out = [
        one
        for index, (path, target) in enumerate(zip(episode.references, encoded, strict=True))
        for one in measure(path, target, references[:index] + references[index + 1 :])
    ]
    targets = [one for path in episode.targets for one in measure(path, engine.encode(read_image(path)), references)]
    return left_out, targets


if __name__ == "__main__":
    main()
