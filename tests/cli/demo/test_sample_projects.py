import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data

from backend.cli.demo.coins import SampleTask
from backend.cli.demo.garage import MOTORCYCLE, find_motorcycle, garage_tasks, paint_strokes
from backend.cli.demo.label_studio_server import mask_of_regions
from backend.cli.demo.sample_projects import SampleProject, sample_projects
from backend.cli.demo.steel import CORROSION, PARTS, SCUFF, surface_tasks
from backend.core.types import Mask
from backend.labelstudio.label_config import parse_label_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def projects() -> dict[str, SampleProject]:
    return {project.title: project for project in sample_projects()}


def task_of(project: SampleProject) -> SampleTask:
    return next(task for task in project.tasks if task.name == project.marked)


def test_the_backend_reads_every_label_config(projects: dict[str, SampleProject]) -> None:
    for project in projects.values():
        assert parse_label_config(project.label_config).labels == project.labels


def test_names_are_unique_and_masks_fit_their_images(projects: dict[str, SampleProject]) -> None:
    for project in projects.values():
        assert len({task.name for task in project.tasks}) == len(project.tasks)
        for task in project.tasks:
            assert set(task.masks) == set(project.labels)
            assert task.image.dtype == np.uint8
            for mask in task.masks.values():
                assert task.image.shape == (*mask.shape, 3)


def test_every_label_is_scribbled_and_is_on_another_task(projects: dict[str, SampleProject]) -> None:
    for project in projects.values():
        for label in project.labels:
            assert any(label in str(region["value"]) for region in project.scribbles)
            assert any(task.masks[label].any() for task in project.tasks if task.name != project.marked)


def test_key_points_are_on_their_object(projects: dict[str, SampleProject]) -> None:
    for project in projects.values():
        task = task_of(project)
        for region in project.scribbles:
            if region["type"] == "keypointlabels":
                (label,) = region["value"]["keypointlabels"]
                row = int(region["value"]["y"] / 100 * task.size_hw[0])
                column = int(region["value"]["x"] / 100 * task.size_hw[1])
                assert task.masks[label][row, column]


def test_strokes_are_on_their_object(projects: dict[str, SampleProject]) -> None:
    for title, label in (("Garage", MOTORCYCLE), ("Steel", SCUFF)):
        task = task_of(projects[title])
        strokes = mask_of_regions(projects[title].scribbles, label, task.size_hw)
        assert strokes.any()
        assert (strokes & task.masks[label]).sum() > 0.85 * strokes.sum()


def edge_strength(image: NDArray[np.float64], mask: Mask) -> float:
    """How much brighter or darker the object's rim is than what lies outside of it."""
    rim = mask & ~ndimage.binary_erosion(mask, iterations=4)
    outside = ndimage.binary_dilation(mask, iterations=4) & ~mask
    return float(np.abs(image[rim].mean(axis=0) - image[outside].mean(axis=0)).max())


def test_the_motorcycle_is_one_thing_on_both_photographs() -> None:
    left, right = find_motorcycle(data.stereo_motorcycle()[2])
    assert 0.2 < left.mean() < 0.4
    assert right.sum() == pytest.approx(left.sum(), rel=0.05)
    # Moved to the left by its disparity, as a whole.
    moved = np.argwhere(left).mean(axis=0) - np.argwhere(right).mean(axis=0)
    assert abs(moved[0]) < 3
    assert 36 < moved[1] < 60
    strokes = paint_strokes((left.shape[0], left.shape[1]))
    assert (strokes & left).sum() > 0.85 * strokes.sum()


def test_three_photographs_have_no_motorcycle() -> None:
    assert [task.name for task in garage_tasks() if not task.masks[MOTORCYCLE].any()] == ["cup", "cat", "rocket"]


def test_surfaces_are_the_same_every_time() -> None:
    first, second = surface_tasks(), surface_tasks()
    assert all(np.array_equal(one.image, other.image) for one, other in zip(first, second, strict=True))


def test_surfaces_have_the_defects_they_should_have_apart_from_one_another() -> None:
    for part, task in zip(PARTS, surface_tasks(), strict=True):
        for label, count in ((CORROSION, part.corrosion), (SCUFF, part.scuffs)):
            assert len(np.unique(task.objects[task.masks[label]])) == count
        assert not (task.masks[CORROSION] & task.masks[SCUFF]).any()


def test_defects_can_be_seen_and_are_no_flat_paint() -> None:
    for task in surface_tasks():
        if task.masks[CORROSION].any():
            assert edge_strength(task.image.astype(float), task.masks[CORROSION]) > 20
        for label in (CORROSION, SCUFF):
            if task.masks[label].any():
                assert task.image[task.masks[label]].std() > 8
