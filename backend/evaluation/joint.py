"""Several labels at once: the classes of a set as labels of one project, against each label alone in the same run."""

import hashlib
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.core.masks import iou
from backend.core.matching import ReferenceBank
from backend.core.types import LabelMask, Mask
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError
from backend.evaluation.class_images import ClassImages
from backend.evaluation.datasets import ImageClass, draw_episode, find_classes, read_mask
from backend.evaluation.results import OnProgress

EXCLUSIVE_SETS = {
    "fss_mini": "one object class fills each photograph",
    "via_objects": "photographs of one kind of thing each, from twelve collections",
}
"""Sets whose labels exclude each other on an image, with the reason; checked by eye. On the others (streets,
facades, kitchens, parts with two faults) a region of another class may be right, so wrong ones are not counted."""
ALSO_SHOWN = {
    "via_objects/dog/4.jpg": {"cat"},
    "via_objects/safety_vest/2.jpg": {"helmet"},
    "via_objects/safety_vest/6.jpg": {"helmet"},
    "via_objects/safety_vest/8.jpg": {"helmet"},
    "via_objects/safety_vest/9.jpg": {"helmet"},
    "via_objects/safety_vest/10.jpg": {"helmet"},
}
"""Images of exclusive sets that show another of their labels without a mask of it: `set/class/file` -> labels; checked
by eye. A region of such a label is not wrong."""


@dataclass(frozen=True)
class JointTarget:
    """The result of one target.

    Attributes:
        seed: of the draw.
        target: `set/class/file`.
        joint_iou: of the true label's mask, all labels looked for together.
        alone_iou: of the true label's mask, that label looked for alone.
        wrong_labels: how many other labels came back that this image does not show.
        unmarked_labels: these, and those that it shows without a mask (`ALSO_SHOWN`).
    """

    seed: int
    target: str
    joint_iou: float
    alone_iou: float
    wrong_labels: int
    unmarked_labels: int


@dataclass(frozen=True)
class JointSet:
    """One set: its targets, how many labels were looked for together, whether they exclude each other."""

    name: str
    labels: int
    is_exclusive: bool
    targets: Sequence[JointTarget]

    def to_json(self) -> dict[str, object]:
        """Return the figures as JSON values; the mean over classes of the mean over targets."""
        miou = _mean_over_classes(self.targets, lambda one: one.joint_iou)
        alone = _mean_over_classes(self.targets, lambda one: one.alone_iou)
        return {
            "labels": self.labels,
            "exclusive": self.is_exclusive,
            "miou": miou,
            "alone_miou": alone,
            "loss": alone - miou,
            "wrong_labels_per_image": self._per_image(lambda one: one.wrong_labels),
            "unmarked_labels_per_image": self._per_image(lambda one: one.unmarked_labels),
            "targets": len(self.targets),
        }

    def _per_image(self, count: Callable[[JointTarget], int]) -> float | None:
        return statistics.fmean(map(count, self.targets)) if self.is_exclusive else None


def evaluate_joint(
    directory: Path,
    *,
    profile: str = "lite",
    shots: int = 1,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    labels: int | None = None,
    options: MatchOptions | None = None,
    is_complete: bool = True,
    on_progress: OnProgress | None = None,
    load: Callable[[str, Callable[[str, float], None]], Softmatcher] = load_softmatcher,
) -> list[JointSet]:
    """Measure each set of a directory with all its classes as labels of one project.

    Args:
        directory: `<set>/<class>/<n>.jpg` with `<n>.png`.
        profile: which models.
        shots: references per class.
        seeds: each draws other references.
        limit: up to this many targets per class and seed.
        labels: up to this many classes of a set, drawn by the seed; None for all.
        options: of the matching; None for the profile's own.
        is_complete: the masks of the data set are all there is of the class on their images.
        on_progress: called before each set and at the end.
        load: makes the engine (tests bring their own).

    Raises:
        BadInputError: no set of two classes there, or labels below 2.
    """
    if labels is not None and labels < 2:
        raise BadInputError(f"labels must be 2 or more, got {labels}: one label alone is what evaluate measures")
    by_set: dict[str, list[ImageClass]] = {}
    for one in find_classes(directory):
        by_set.setdefault(one.set_name, []).append(one)
    several = {name: classes for name, classes in by_set.items() if len(classes) > 1}
    if not several:
        raise BadInputError(f"expected a set of two classes or more in {directory}, got none: give its root folder")
    engine = load(profile, lambda *_: None)
    results = []
    for index, (name, classes) in enumerate(several.items()):
        if on_progress is not None:
            on_progress(name, index, len(several))
        images = ClassImages(engine, is_complete=is_complete)
        targets: list[JointTarget] = []
        for seed in seeds:
            drawn = (
                classes
                if labels is None
                else random.Random(f"{name} {seed}").sample(classes, min(labels, len(classes)))
            )
            targets += _one_seed(engine, images, drawn, seed, shots, limit, options)
        count = len(classes) if labels is None else min(labels, len(classes))
        if not targets:
            continue  # each of its images is some label's reference
        results.append(JointSet(name, count, name in EXCLUSIVE_SETS, targets))
    if on_progress is not None:
        on_progress("done", len(several), len(several))
    return results


def joint_to_json(results: Sequence[JointSet]) -> dict[str, object]:
    """Return the figures of all sets.

    The means are over the exclusive sets (over all, if none is), and again by number of labels. Sets whose labels occur
    together on an image have means of their own.

    Raises:
        BadInputError: no results.
    """
    if not results:
        raise BadInputError("every image is a reference of some label: give sets of more images, or fewer shots")
    exclusive = [one for one in results if one.is_exclusive]
    together = [one for one in results if not one.is_exclusive]
    return {
        **_means(exclusive or results),
        "by_labels": _by_labels(exclusive),
        "occurring_together": {**_means(together), "by_labels": _by_labels(together)} if together else None,
        "labels": {one.name: one.labels for one in results},
        "left_out": [one.name for one in together],
        "sets": {one.name: one.to_json() for one in results},
    }


def _by_labels(sets: Sequence[JointSet]) -> dict[str, object]:
    counts = sorted({one.labels for one in sets})
    return {str(count): _means([one for one in sets if one.labels == count]) for count in counts}


def _means(sets: Sequence[JointSet]) -> dict[str, float | None]:
    figures = [one.to_json() for one in sets]

    def mean(name: str) -> float | None:
        values = [value for each in figures if isinstance(value := each[name], float)]
        return statistics.fmean(values) if values else None

    names = ("miou", "alone_miou", "loss", "wrong_labels_per_image", "unmarked_labels_per_image")
    return {name: mean(name) for name in names}


def _one_seed(
    engine: Softmatcher,
    images: ClassImages,
    classes: Sequence[ImageClass],
    seed: int,
    shots: int,
    limit: int | None,
    options: MatchOptions | None,
) -> list[JointTarget]:
    episodes = {one.class_name: draw_episode(one, shots=shots, seed=seed, limit=limit) for one in classes}
    banks: dict[str, ReferenceBank] = {
        name: engine.gather([images.reference(path) for path in episode.references], options)
        for name, episode in episodes.items()
    }
    marked = _classes_by_content(classes)
    references = {_digest(path) for episode in episodes.values() for path in episode.references}
    found_targets = []
    for one in classes:
        for path in episodes[one.class_name].targets:
            if _digest(path) in references:
                continue  # the same photograph is another label's reference
            truth = read_mask(path)
            target = images.target(path, banks)
            together = engine.segment(target, banks, options)
            alone = engine.segment(target, {one.class_name: banks[one.class_name]}, options)
            name = f"{one.name}/{path.name}"
            unmarked = {item.label for item in together} - marked[_digest(path)]
            found_targets.append(
                JointTarget(
                    seed,
                    name,
                    joint_iou=_iou_of(together, one.class_name, truth),
                    alone_iou=_iou_of(alone, one.class_name, truth),
                    wrong_labels=len(unmarked - ALSO_SHOWN.get(name, set())),
                    unmarked_labels=len(unmarked),
                )
            )
    return found_targets


def _classes_by_content(classes: Sequence[ImageClass]) -> Mapping[str, set[str]]:
    """Return the digest of each image -> the classes that have it."""
    marked: dict[str, set[str]] = {}
    for one in classes:
        for path in one.images:
            marked.setdefault(_digest(path), set()).add(one.class_name)
    return marked


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _iou_of(found: Sequence[LabelMask], label: str, truth: Mask) -> float:
    mask = next((item.mask for item in found if item.label == label), None)
    return float(not truth.any()) if mask is None else iou(mask, truth)


def _mean_over_classes(targets: Sequence[JointTarget], value: Callable[[JointTarget], float]) -> float:
    by_class: dict[str, list[float]] = {}
    for one in targets:
        by_class.setdefault(one.target.rpartition("/")[0], []).append(value(one))
    return statistics.fmean(statistics.fmean(values) for values in by_class.values())
