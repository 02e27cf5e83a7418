"""The second sample project: a motorcycle in a garage, the stereo photographs inside scikit-image's wheel.

The pair comes with measured depth, and depth says which pixels are the motorcycle: it stands on the floor, before all
else. Two of the tasks are close-ups cut from the right photograph, three show no motorcycle at all.

Source: D. Scharstein et al., "High-resolution stereo datasets with subpixel-accurate ground truth", GCPR 2014
(Middlebury "Motorcycle", at a quarter of its size), as `skimage.data.stereo_motorcycle`.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data
from skimage.morphology import remove_small_holes

from backend.cli.demo.coins import SampleTask
from backend.core.types import Image, Mask

MOTORCYCLE = "Motorcycle"

_BEFORE_THE_WALL = 36.0
"""Disparity, px: the bench and the shelves are at less, the motorcycle at more."""
_ABOVE_THE_FLOOR = 1.2
_RIGHT_OF_THE_WHEEL_X = 686
"""Beyond it the pair was measured wrong: a piece of floor floats."""
_CLOSE_UPS_X = {"front": (320, 680), "rear": (60, 400)}
_STROKE_PX = 12
_STROKES = (
    ((140, 215), (135, 290), (150, 350), (200, 385), (255, 360), (270, 310)),
    ((160, 180), (250, 200), (340, 225), (470, 190)),
    ((115, 225), (150, 215), (230, 245), (275, 275)),
    ((240, 340), (330, 360), (440, 350), (465, 310)),
    ((300, 300), (350, 330), (430, 260)),
    ((190, 320), (270, 345)),
    ((520, 330), (535, 370), (570, 425), (640, 445), (672, 400), (650, 340), (610, 290)),
    ((530, 285), (590, 280), (630, 300)),
    ((500, 230), (560, 350)),
    ((560, 215), (575, 270)),
    ((540, 150), (490, 130), (510, 100)),
    ((385, 155), (420, 130), (470, 160)),
    ((595, 400), (590, 340), (620, 390)),
)
"""What a labeler paints on the left photograph: along wheels, saddle, tank, engine, exhaust, fork, lamp; (x, y), px."""


def garage_tasks() -> list[SampleTask]:
    """Return the two photographs, the two close-ups, and three photographs of other things."""
    left, right, disparity = data.stereo_motorcycle()
    in_left, in_right = find_motorcycle(disparity)
    tasks = [_task("motorcycle-left", left, in_left), _task("motorcycle-right", right, in_right)]
    for name, (first, last) in _CLOSE_UPS_X.items():
        window = np.s_[:, first:last]
        tasks.append(_task(f"motorcycle-{name}", np.ascontiguousarray(right[window]), in_right[window]))
    for name, photograph in (("cup", data.coffee()), ("cat", data.chelsea()), ("rocket", data.rocket())):
        tasks.append(_task(name, photograph, np.zeros(photograph.shape[:2], np.bool_)))
    return tasks


def find_motorcycle(disparity: NDArray[np.float32]) -> tuple[Mask, Mask]:
    """Return where the motorcycle is on the left photograph, and, moved by its disparity, on the right one.

    Args:
        disparity: (H, W) px, infinite where it was not measured: by how much a pixel lies further left on the right
            photograph.

    Returns:
        Two masks, (H, W) bool.
    """
    is_measured = np.isfinite(disparity)
    near = np.where(is_measured, disparity, 0.0)
    y, x = np.mgrid[: disparity.shape[0], : disparity.shape[1]]
    on_floor = is_measured & (((x < 110) & (y > 320)) | (y > 465))
    plane = np.stack([y[on_floor], x[on_floor], np.ones(int(on_floor.sum()))], axis=1)
    a, b, c = np.linalg.lstsq(plane, near[on_floor], rcond=None)[0]
    stands_out = is_measured & (near > a * y + b * x + c + _ABOVE_THE_FLOOR) & (near > _BEFORE_THE_WALL)
    stands_out[:, _RIGHT_OF_THE_WHEEL_X:] = False
    in_left = _largest_piece(ndimage.binary_closing(stands_out, iterations=2))
    in_left = remove_small_holes(in_left, max_size=60)

    nearest = ndimage.distance_transform_edt(~is_measured, return_distances=False, return_indices=True)
    rows, columns = np.nonzero(in_left)
    moved = np.round(columns - near[tuple(nearest)][rows, columns]).astype(int)
    in_right = np.zeros_like(in_left)
    in_right[rows[moved >= 0], moved[moved >= 0]] = True
    return in_left, remove_small_holes(ndimage.binary_closing(in_right), max_size=60)


def paint_strokes(size_hw: tuple[int, int]) -> Mask:
    """Return the labeler's strokes on the left photograph, (H, W) bool."""
    canvas = np.zeros(size_hw, np.uint8)
    for stroke in _STROKES:
        cv2.polylines(canvas, [np.array(stroke, np.int32)], isClosed=False, color=255, thickness=_STROKE_PX)
    return canvas > 0


def _largest_piece(mask: Mask) -> Mask:
    pieces, count = ndimage.label(mask)
    sizes = ndimage.sum_labels(mask, pieces, range(1, count + 1))
    return np.asarray(pieces == 1 + int(np.argmax(sizes)))


def _task(name: str, image: Image, mask: Mask) -> SampleTask:
    return SampleTask(name, image, {MOTORCYCLE: mask}, mask.astype(np.int32))
