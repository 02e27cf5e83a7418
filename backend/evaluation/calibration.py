"""Rows that a calibration is fitted on, from a data set of images with masks."""

from collections.abc import Callable, Sequence
from pathlib import Path

from backend.core.calibration_fit import Row
from backend.core.masks import iou, mask_to_size
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.class_images import ClassImages
from backend.evaluation.datasets import draw_absent_target, draw_episode, find_classes, read_image, read_mask


def collect_rows(
    engine: Softmatcher,
    directory: Path,
    *,
    seeds: Sequence[int] = (0, 1),
    targets: int = 4,
    shots: int = 1,
    on_class: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Row]:
    """Predict targets of every class of a data set from its references, and half as many images without the object.

    Args:
        engine: what predicts.
        directory: see `find_classes`.
        seeds: each draws other references and targets.
        targets: up to this many per class and seed.
        shots: references per class.
        on_class: called after each class with its name, the number of classes done, and of all.

    Raises:
        BadInputError: no data set in the directory.
    """
    classes = find_classes(directory)
    rows: list[Row] = []
    for number, one in enumerate(classes, 1):
        images = ClassImages(engine, is_complete=True)
        for seed in seeds:
            episode = draw_episode(one, shots=shots, seed=seed, limit=targets)
            bank = engine.gather([images.reference(path) for path in episode.references])
            drawn = [draw_absent_target(one, classes, seed=1000 + 10 * seed + n) for n in range(max(1, targets // 2))]
            absent = [path for path in drawn if path is not None]
            for path in [*episode.targets, *absent]:
                is_present = path in episode.targets
                image = read_image(path)
                encoded = images.target(path, {one.class_name: bank}) if is_present else engine.encode(image)
                found = engine.label_candidates(encoded, [bank], MatchOptions(), pixels=image)[0]
                truth = read_mask(path)
                natural = mask_to_size(found.mask, (truth.shape[0], truth.shape[1]))
                rows.append(Row(one.set_name, is_present, iou(natural, truth) if is_present else 0.0, found.features))
        on_class(one.name, number, len(classes))
    return rows
