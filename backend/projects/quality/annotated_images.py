"""The annotated images of a project: which labels are on them, and which are known not to be."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backend.core.types import Mask
from backend.projects.task_source import TaskSource
from backend.store import ProjectRecord, Store, StoredReference

MOST_WITHOUT_OBJECTS = 20
"""Number of images without any object that are looked up in Label Studio at most."""


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image of a task that somebody annotated.

    Attributes:
        task_id: of the task.
        image_tag: which of its images.
        image_sha256: of the file; "" for an image without any object, whose file was not read yet.
        masks: label -> all that is marked of it, (H, W) bool.
        absent: labels that somebody said are not there.
        is_empty: somebody said that there is nothing at all.
    """

    task_id: int
    image_tag: str
    image_sha256: str
    masks: Mapping[str, Mask]
    absent: frozenset[str] = frozenset()
    is_empty: bool = False

    def shows(self, label: str, *, is_complete: bool) -> bool | None:
        """Return whether a label is there; None if nobody knows.

        Args:
            label: of the project.
            is_complete: annotators mark every object.
        """
        if label in self.masks:
            return True
        return False if is_complete or self.is_empty or label in self.absent else None


def annotated_images(references: Sequence[StoredReference]) -> list[AnnotatedImage]:
    """Return the images that references were made of, in an order in which every label comes early."""
    grouped: dict[tuple[str, str], list[StoredReference]] = defaultdict(list)
    for one in references:
        grouped[one.image_sha256, one.image_tag].append(one)
    images = []
    for (sha256, tag), some in grouped.items():
        masks: dict[str, Mask] = {}
        for one in [each for each in some if each.mask.any()]:
            known = masks.get(one.label)
            same_size = known is not None and known.shape == one.mask.shape
            masks[one.label] = np.asarray(known | one.mask) if same_size and known is not None else one.mask
        # A reference without a mask says that its label is absent.
        absent = frozenset(one.label for one in some) - masks.keys()
        images.append(AnnotatedImage(some[0].task_id, tag, sha256, masks, absent))
    return _in_turn(images)


def images_without_objects(
    store: Store, client: TaskSource, project: ProjectRecord, image_tags: Sequence[str]
) -> list[AnnotatedImage]:
    """Return the images of tasks whose annotations have no region: nothing of any label is on them.

    Raises:
        LabelStudioError: Label Studio cannot be asked.
    """
    marked = {one.task_id for one in store.list_references(project.key)}
    silent = {one.task_id for one in store.annotations(project.key) if one.problem is None} - marked
    task_ids = sorted(silent)[:MOST_WITHOUT_OBJECTS]
    found = []
    for task in client.tasks_of(project.project_id, task_ids):
        annotations = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
        if annotations and not any(one.get("result") for one in annotations):
            found += [AnnotatedImage(int(task["id"]), tag, "", {}, is_empty=True) for tag in image_tags]
    return found


def _in_turn(images: Sequence[AnnotatedImage]) -> list[AnnotatedImage]:
    """Order images so that the label with the fewest images so far comes next; depends on content only."""
    left = sorted(images, key=lambda one: (one.image_sha256, one.image_tag))
    seen: dict[str, int] = defaultdict(int)
    ordered = []
    while left:
        chosen = min(left, key=lambda one: min((seen[label] for label in one.masks), default=0))
        left.remove(chosen)
        ordered.append(chosen)
        for label in chosen.masks:
            seen[label] += 1
    return ordered
