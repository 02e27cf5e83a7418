"""Data sets in the layout of FSS-1000: `DIR/<set>/<class>/<n>.jpg` with its mask `<n>.png` beside it."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from backend.core.types import Image, Mask
from backend.errors import BadInputError
from backend.evaluation.absent_targets import may_show

TEST_LISTS = ("fss_test_set.txt", "splits/test.txt", "test.txt")
"""File in which FSS-1000 and its users keep the names of its 240 test classes, one per line."""


@dataclass(frozen=True)
class ImageClass:
    """One class of one set: its images, sorted by name, each with a mask beside it.

    Attributes:
        set_name: the folder above.
        class_name: the folder.
        images: paths of the photographs.
    """

    set_name: str
    class_name: str
    images: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Return `set/class`."""
        return f"{self.set_name}/{self.class_name}"


@dataclass(frozen=True)
class Episode:
    """One draw: the references of a class, and the images they are tried on."""

    references: tuple[Path, ...]
    targets: tuple[Path, ...]


def find_classes(directory: Path) -> list[ImageClass]:
    """Find all classes under a directory, sorted; a class with fewer than two images is left out.

    FSS-1000 has no folders of sets: `fewshot_data/<class>/<n>.jpg` with `<n>.png`, and a list of its test classes. It
    may be given as that folder or as the one above. Where its list is there (`TEST_LISTS`, in the folder of the classes
    or above it), only the classes that it names count.

    Raises:
        BadInputError: no such directory, no class in it, or none of the list's.
    """
    classes = _classes_in(directory.glob("*/*")) or _classes_in(directory.glob("*"))
    if not classes:
        raise BadInputError(
            f"a data set must hold <set>/<class>/<n>.jpg with <n>.png, got {directory} without any; "
            "give its root folder"
        )
    folders = sorted({one.images[0].parent.parent for one in classes})
    return [
        one
        for folder in folders
        for one in _listed([one for one in classes if one.images[0].parent.parent == folder], folder)
    ]


def _classes_in(folders: Iterable[Path]) -> list[ImageClass]:
    classes = []
    for folder in sorted(path for path in folders if path.is_dir()):
        images = tuple(sorted(path for path in folder.glob("*.jpg") if path.with_suffix(".png").is_file()))
        if len(images) > 1:
            classes.append(ImageClass(folder.parent.name, folder.name, images))
    return classes


def _listed(classes: list[ImageClass], folder: Path) -> list[ImageClass]:
    lists = [place / name for place in (folder, folder.resolve().parent) for name in TEST_LISTS]
    found = next((path for path in lists if path.is_file()), None)
    if found is None:
        return classes
    wanted = {line.strip().rstrip("/").rpartition("/")[2] for line in found.read_text().splitlines() if line.strip()}
    kept = [one for one in classes if one.class_name in wanted]
    if not kept:
        raise BadInputError(f"the list {found.name} must name folders of {folder}, got none that is there; remove it")
    return kept


def draw_episode(one: ImageClass, *, shots: int, seed: int, limit: int | None = None) -> Episode:
    """Draw distinct references by the seed; all other images of the class are targets.

    Args:
        one: the class.
        shots: references wanted; one image at least is left as a target.
        seed: the same seed gives the same draw, whatever the other classes are.
        limit: at most this many targets, drawn too.

    Raises:
        BadInputError: shots or limit below 1.
    """
    if shots < 1 or (limit is not None and limit < 1):
        raise BadInputError(f"shots and limit must be at least 1, got {shots} and {limit}; raise them")
    drawn = list(one.images)
    random.Random(f"{one.name} {seed}").shuffle(drawn)
    count = min(shots, len(drawn) - 1)
    targets = drawn[count:] if limit is None else drawn[count : count + limit]
    return Episode(tuple(drawn[:count]), tuple(sorted(targets)))


def draw_absent_target(one: ImageClass, classes: Sequence[ImageClass], *, seed: int) -> Path | None:
    """Draw an image of another set and class name whose set does not show the object (`may_show`); None without any."""
    others = [
        image
        for other in classes
        if other.set_name != one.set_name
        and other.class_name != one.class_name
        and not may_show(other.set_name, one.class_name)
        for image in other.images
    ]
    return random.Random(f"absent {one.name} {seed}").choice(others) if others else None


def read_image(path: Path) -> Image:
    """Read an image: (H, W, 3) uint8 RGB."""
    with PillowImage.open(path) as image:
        return np.array(image.convert("RGB"))


def read_mask(image_path: Path) -> Mask:
    """Read the mask beside an image: (H, W) bool."""
    with PillowImage.open(image_path.with_suffix(".png")) as mask:
        return np.array(mask.convert("L")) > 127
