"""A crack by a few clicks: the path between them that keeps to the ridge, and the ridge's own width.

A ridge is a line darker, or brighter, than both its sides. Its strength at scale s is the normalised second derivative
of the lightness across it less its slope, `s^1.5 max(0, +-lambda - |gradient| / s)`, lambda the eigenvalue of the
Hessian at s; the scale at which it is strongest gives the width.
Source: Lindeberg, "Edge detection and ridge detection with automatic scale selection", IJCV 1998; the path by
scikit-image's `route_through_array`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core import cancellation
from backend.core.types import Image, Mask, ScoredMask

SCALES_PX = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
LONGEST_SIDE_PX = 640
"""Of the part of an image that is searched: larger ones are made smaller."""
MARGIN = 0.3
"""Around the clicks, as a share of the longer side of their box: a crack may bulge."""
BAR_HALF_WIDTH = 3**0.5
"""Half the width of a bar over the scale at which it is strongest: a bar of half width h spreads by h / sqrt(3)."""
LEAST_MARGIN_PX = 96
STRONG_QUANTILE = 0.9
"""A ridge stands out where it is stronger than this share of the part of the image."""
STRENGTH_SHARE, LEAST_COST = 10.0, 0.02
"""A pixel of strength a costs `0.02 + 1 / (1 + 10 a^2)`."""
LEAST_STRENGTH = 0.75
"""Of clicks, and of all but a quarter of the path's pixels: a path that is weaker follows nothing."""
LEAST_SHARE = 0.25
"""Of the weaker click's strength, likewise: two lines are joined by nothing as strong as they are."""
SMOOTH_PX = 7
LEAST_ELONGATION, MOST_WIDTH = 15.0, 0.03
"""A mask is of lines if these are its length over its width, and its width over the side of a square image. Of 68
classes crack, tile_crack, scratches, kite_surf and paragliding_launch are (the ropes of a kite)."""
MEASURED_SIDE_PX = 512
EXPECTED_IOU = 0.45
"""Of the masks: their mean on cracks, scratches and cracked tiles (benchmarks/line_clicks.py)."""


class _Path(NamedTuple):
    """A path through clicks.

    Attributes:
        strength: mean over its pixels.
        runs: (n, 2) row and column of its pixels, for each part that is joined.
        half_widths: (n,) float32 for each of them, px.
    """

    strength: float
    runs: list[NDArray[np.intp]]
    half_widths: list[NDArray[np.float32]]


def is_line(mask: Mask) -> bool:
    """Return whether a mask, (H, W) bool, shows thin lines: cracks, scratches, cables.

    Half the width h of a piece is the mean distance of its skeleton from its border, its elongation `area / 4 h^2`: the
    length of a bar over its width. Pieces count by their area.
    """
    # Imported here: scikit-image takes a third of the start of a command that never needs it.
    from skimage.morphology import skeletonize

    scale = min(1.0, MEASURED_SIDE_PX / max(mask.shape))
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    inside = cv2.distanceTransform(np.pad(small, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    count, pieces = cv2.connectedComponents(small, connectivity=8)
    skeleton = skeletonize(small > 0)
    area = np.bincount(pieces.ravel(), minlength=count)[1:].astype(np.float64)
    pixels = np.bincount(pieces[skeleton], minlength=count)[1:]
    half = np.bincount(pieces[skeleton], weights=inside[skeleton], minlength=count)[1:] / np.maximum(pixels, 1)
    measured = half > 0
    if not measured.any():
        return False
    area, half = area[measured], half[measured]
    elongation, width = (float(np.average(one, weights=area)) for one in (area / (4 * half**2), 2 * half))
    return elongation >= LEAST_ELONGATION and width <= MOST_WIDTH * float(np.sqrt(small.size))


def ridge_path(image: Image, points_xy: NDArray[np.floating]) -> ScoredMask | None:
    """Return the thin thing that clicks run along.

    Args:
        image: (H, W, 3) uint8 RGB.
        points_xy: (N, 2), px: clicks in their order. Two clicks in turn that no ridge joins are on two things.

    Returns:
        Its mask at natural size, with `EXPECTED_IOU`. None where a click has a ridge to neither side: that is no thin
        thing.

    Raises:
        CancelledWorkError: see `cancellation.check`; asked before each part of the path.
    """
    if len(points_xy) < 2:
        return None
    height, width = image.shape[:2]
    points_xy = np.clip(np.asarray(points_xy, np.float32), 0, (width - 1, height - 1))
    window = _window(points_xy, (height, width))
    part = image[window]
    scale = min(1.0, LONGEST_SIDE_PX / max(part.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in part.shape[:2])
    lightness = cv2.cvtColor(cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB)[..., 0]
    moved = (np.asarray(points_xy, np.float32) - (window[1].start, window[0].start)) * scale
    points = [(int(y), int(x)) for x, y in np.clip(moved, 0, (width - 1, height - 1))]
    paths = [path for path in (one.follow(points) for one in _both_polarities(lightness)) if path is not None]
    if not paths:
        return None
    best = max(paths, key=lambda path: path.strength)
    drawn = np.zeros((height, width), np.uint8)
    for run, half_width in zip(best.runs, best.half_widths, strict=True):
        for (row, column), radius in zip(run, half_width, strict=True):
            cv2.circle(drawn, (int(column), int(row)), max(0, round(radius)), 1, cv2.FILLED)
    mask = np.zeros(image.shape[:2], bool)
    natural = cv2.resize(drawn, (part.shape[1], part.shape[0]), interpolation=cv2.INTER_NEAREST)
    mask[window] = natural > 0
    return ScoredMask(mask, EXPECTED_IOU)


def _window(points_xy: NDArray[np.floating], size_hw: tuple[int, int]) -> tuple[slice, slice]:
    low, high = points_xy.min(axis=0), points_xy.max(axis=0)
    margin = max(MARGIN * float((high - low).max()), LEAST_MARGIN_PX)
    (left, top), (right, bottom) = low - margin, high + margin
    return (
        slice(max(0, int(top)), min(size_hw[0], int(bottom) + 1)),
        slice(max(0, int(left)), min(size_hw[1], int(right) + 1)),
    )


class _Ridges:
    """The ridges of one polarity.

    Args:
        strength: (h, w): 1 for a ridge that stands out.
        scale_px: (h, w) float32: where it is strongest.
    """

    def __init__(self, strength: NDArray[np.floating], scale_px: NDArray[np.float32]) -> None:
        # A click may miss a thin line by a pixel.
        self._strength = cv2.dilate(strength.astype(np.float32), np.ones((3, 3)))
        self._half_width = scale_px * BAR_HALF_WIDTH
        self._cost = LEAST_COST + 1 / (1 + STRENGTH_SHARE * self._strength**2)

    def follow(self, points: Sequence[tuple[int, int]]) -> _Path | None:
        """Return the path through clicks (row, column); None where one of them is on no ridge that leads to another."""
        from skimage.graph import route_through_array

        runs: list[list[NDArray[np.intp]]] = []
        joins_last = False
        for number, (one, other) in enumerate(pairwise(points)):
            cancellation.check()
            found, _ = route_through_array(self._cost, one, other, fully_connected=True, geometric=True)
            pixels = np.asarray(found)
            strength = self._strength[tuple(pixels.T)]
            ends, on_the_way = min(strength[0], strength[-1]), np.quantile(strength, 0.25)
            if min(ends, on_the_way) >= LEAST_STRENGTH and on_the_way >= LEAST_SHARE * ends:
                if not joins_last:
                    runs.append([])
                runs[-1].append(pixels)
                joins_last = True
            elif not joins_last or number == len(points) - 2:
                return None
            else:
                joins_last = False
        joined = [np.concatenate(run) for run in runs]
        strength = float(self._strength[tuple(np.concatenate(joined).T)].mean())
        return _Path(strength, joined, [self._half_widths(run) for run in joined])

    def _half_widths(self, pixels: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return half the ridge's width at each pixel of a path: the median of those around it, as noise has widths."""
        widths = self._half_width[tuple(pixels.T)]
        padded = np.pad(widths, SMOOTH_PX, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * SMOOTH_PX + 1)
        return np.asarray(np.median(windows, axis=1), np.float32)


def _both_polarities(lightness: NDArray[np.uint8]) -> tuple[_Ridges, _Ridges]:
    """Return the dark and the bright ridges.

    An edge's flanks bend as much as a line, but they slope: what is as strong as its slope is no ridge.
    """
    curvatures: list[list[NDArray[np.floating]]] = [[], []]
    strengths: list[list[NDArray[np.floating]]] = [[], []]
    for scale in SCALES_PX:
        smooth = cv2.GaussianBlur(lightness.astype(np.float32), (0, 0), scale)
        slope_y, slope_x = np.gradient(smooth)
        (yy, yx), (_, xx) = np.gradient(slope_y), np.gradient(slope_x)
        half_trace, root = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
        slope = np.hypot(slope_y, slope_x) / scale
        for number, curvature in enumerate((half_trace + root, root - half_trace)):
            curvatures[number].append(curvature * scale**1.5)
            strengths[number].append(np.maximum(curvature - slope, 0) * scale**1.5)
    strongest = [np.max(one, axis=0) for one in strengths]
    # One for both: dark lines have faint bright sides, which are no ridges beside them.
    standard = max(float(np.quantile(strongest, STRONG_QUANTILE)), np.finfo(np.float32).tiny)
    scales = [np.asarray(SCALES_PX, np.float32)[np.argmax(one, axis=0)] for one in curvatures]
    dark, bright = (_Ridges(one / standard, scale) for one, scale in zip(strongest, scales, strict=True))
    return dark, bright
