"""The three sample projects of the demo: what a labeler marks in each, and what is known to be on the other tasks."""

from dataclasses import dataclass

import cv2
import numpy as np

from backend.cli.demo.coins import COIN, SampleTask, sample_tasks
from backend.cli.demo.garage import MOTORCYCLE, garage_tasks, paint_strokes
from backend.cli.demo.label_studio_server import brush, key_point
from backend.cli.demo.steel import CORROSION, SCUFF, surface_tasks
from backend.core.types import Json, Mask
from backend.labelstudio.sample_label_config import make_label_config

_STROKE_PX = 10


@dataclass(frozen=True)
class SampleProject:
    """One project of the demo.

    Attributes:
        title: of the project in Label Studio.
        labels: that are to be found.
        tasks: its images with their known masks.
        marked: name of the task that is annotated.
        scribbles: the regions of that annotation.
        said: what was scribbled, in words.
        source: where the known masks come from.
        min_mean_iou: what the demo asks for, over all labels that are on the other tasks.
        first_colour: of the labels, where the first one of all would not show on the images.
    """

    title: str
    labels: tuple[str, ...]
    tasks: tuple[SampleTask, ...]
    marked: str
    scribbles: tuple[Json, ...]
    said: str
    source: str
    min_mean_iou: float
    first_colour: int = 0

    @property
    def label_config(self) -> str:
        """For Label Studio."""
        return make_label_config(*self.labels, first_colour=self.first_colour)


def sample_projects() -> tuple[SampleProject, ...]:
    """Coins, a motorcycle, and steel with two kinds of defects."""
    return (_coins(), _garage(), _steel())


def _coins() -> SampleProject:
    tasks = sample_tasks()
    marked = tasks[1]
    return SampleProject(
        title="Coins",
        labels=(COIN,),
        tasks=tuple(tasks),
        marked=marked.name,
        scribbles=(_point_in(_object_of(marked, COIN, 1), COIN),),
        said="one key point on one coin",
        source="watershed, looked at coin by coin",
        min_mean_iou=0.8,
    )


def _garage() -> SampleProject:
    tasks = garage_tasks()
    marked = tasks[0]
    return SampleProject(
        title="Garage",
        labels=(MOTORCYCLE,),
        tasks=tuple(tasks),
        marked=marked.name,
        scribbles=(brush(paint_strokes(marked.size_hw), MOTORCYCLE),),
        said="brush strokes on the motorcycle",
        source="depth measured by stereo",
        min_mean_iou=0.65,
        first_colour=1,
    )


def _steel() -> SampleProject:
    tasks = surface_tasks()
    marked = tasks[0]
    return SampleProject(
        title="Steel",
        labels=(CORROSION, SCUFF),
        tasks=tuple(tasks),
        marked=marked.name,
        scribbles=(
            _point_in(_object_of(marked, CORROSION, 0), CORROSION),
            brush(_stroke_along(_object_of(marked, SCUFF, 0)), SCUFF),
        ),
        said="a key point on one spot of corrosion, a stroke along one scuff",
        source="drawn",
        min_mean_iou=0.65,
    )


def _object_of(task: SampleTask, label: str, index: int) -> Mask:
    numbers = np.unique(task.objects[task.masks[label]])
    return np.asarray(task.objects == numbers[index])


def _point_in(mask: Mask, label: str) -> Json:
    """A key point where the object is thickest."""
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    row, column = np.unravel_index(int(depth.argmax()), mask.shape)
    return key_point((float(column) + 0.5, float(row) + 0.5), (mask.shape[0], mask.shape[1]), label)


def _stroke_along(mask: Mask) -> Mask:
    """A stroke through the middle of a long object, three quarters of its length."""
    rows, columns = np.nonzero(mask)
    points = np.stack([columns, rows], axis=1).astype(float)
    middle = points.mean(axis=0)
    axis = np.linalg.svd(points - middle, full_matrices=False)[2][0]
    reach = 0.75 * np.abs((points - middle) @ axis).max()
    ends = [tuple(int(value) for value in middle + sign * reach * axis) for sign in (-1, 1)]
    canvas = np.zeros(mask.shape, np.uint8)
    cv2.line(canvas, ends[0], ends[1], color=255, thickness=_STROKE_PX)
    return canvas > 0
