"""Masks as polygons, in the two conventions that readers follow.

Readers of COCO take a polygon as the edge of an area: a pixel (x, y) is the square from (x, y) to (x+1, y+1).
Ultralytics draws it with OpenCV, which takes its points as pixels and paints the line, too. One list of points cannot
be right for both.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Mask

Ring = NDArray[np.float64]
"""(N, 2) float64: x, y in px; closed by itself, the last point is not the first."""

_MOST_REBUILDS = 100
"""Rebuilds of the search tree while rings are joined: a mask of noise has thousands of them."""


def edge_polygons(mask: Mask, tolerance_px: float) -> list[Ring]:
    """Return outlines along the edges of pixels: one polygon a component, its holes cut in.

    A hole hangs on the outline by a line that is walked there and back and encloses nothing.

    Args:
        mask: (H, W) bool.
        tolerance_px: no point of an outline lies farther from its polygon than this. With 0 the polygons enclose
            exactly the mask.

    Returns:
        [] for an empty mask.
    """
    return [_join(rings) for rings in _components(mask, tolerance_px, is_edge=True)]


def pixel_polygon(mask: Mask, tolerance_px: float) -> Ring:
    """Draw a mask as one polygon through the centres of its outermost pixels, for readers that paint its line.

    Holes and further components hang on it by lines that are walked there and back: readers paint those between
    components as lines of one pixel. Ultralytics' own converter does the same.

    Args:
        mask: (H, W) bool, not empty.
        tolerance_px: no outermost pixel lies farther from the polygon than this.

    Returns:
        (N, 2), N >= 4, centres of pixels: (x + 0.5, y + 0.5) for pixel (x, y). Reading back, readers cut off to
        (x, y), where an exact number could come out as the pixel before.
    """
    joined = _join([_join(rings) for rings in _components(mask, tolerance_px, is_edge=False)])
    if len(joined) < 3 or not np.ptp(joined, axis=0).all():
        # A line or a point has no area, and readers drop boxes without one: within the pixels it gets a little.
        quarter = np.array([0.25, 0.25])
        joined = np.concatenate([joined - quarter, joined[::-1] + quarter])
    missing = max(0, 4 - len(joined))
    return np.concatenate([joined, joined[-1:].repeat(missing, axis=0)]) + 0.5


def _components(mask: Mask, tolerance_px: float, *, is_edge: bool) -> list[list[Ring]]:
    """Return the rings of each component, the outer one first; components from the largest outline down."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return []
    top, left = int(rows[0]), int(columns[0])
    window = np.ascontiguousarray(mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]).view(np.uint8)
    if is_edge:
        # Of each pixel four: then every contour point says on which side of its pixel the edge runs.
        window = window.repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    found: list[list[Ring]] = []
    for number in sorted(_outer(hierarchy), key=lambda each: -len(contours[each])):
        rings, hole = [contours[number]], int(hierarchy[0][number][2])
        while hole >= 0:
            rings.append(contours[hole])
            hole = int(hierarchy[0][hole][0])
        corner = np.array([left, top])
        found.append([_simplify(ring, tolerance_px, is_edge=is_edge) + corner for ring in rings])
    return found


def _outer(hierarchy: NDArray[np.int32]) -> list[int]:
    return [number for number, (_, _, _, parent) in enumerate(hierarchy[0]) if parent < 0]


def _simplify(contour: NDArray[np.int32], tolerance_px: float, *, is_edge: bool) -> Ring:
    if is_edge:
        contour = (contour + 1) // 2
    simple: Ring = cv2.approxPolyDP(contour, tolerance_px, closed=True).reshape(-1, 2).astype(np.float64)
    if len(simple) < 3 and is_edge:
        # Thinner than the tolerance: the whole outline is better than an area of nothing.
        simple = cv2.approxPolyDP(contour, 0, closed=True).reshape(-1, 2).astype(np.float64)
    return simple


def _join(rings: Sequence[Ring]) -> Ring:
    """Join rings to one: each hangs on the nearest point of what there is by a line there and back."""
    if len(rings) == 1:
        return rings[0]
    # (ring, point) -> the (ring, point) that hang there.
    hanging: dict[tuple[int, int], list[tuple[int, int]]] = {}
    starts = np.cumsum([0, *(len(ring) for ring in rings)])
    batch = math.ceil(len(rings) / _MOST_REBUILDS)
    for first in range(1, len(rings), batch):
        from scipy.spatial import cKDTree  # half a second, which most commands need not wait

        tree = cKDTree(np.concatenate(rings[:first]))
        for number in range(first, min(first + batch, len(rings))):
            distances, nearest = tree.query(rings[number])
            start = int(np.argmin(distances))
            point = int(nearest[start])
            ring = int(np.searchsorted(starts, point, side="right")) - 1
            hanging.setdefault((ring, point - int(starts[ring])), []).append((number, start))
    return np.array([rings[number][point] for number, point in _walk(rings, hanging)])


def _walk(
    rings: Sequence[Ring], hanging: Mapping[tuple[int, int], Sequence[tuple[int, int]]]
) -> Iterator[tuple[int, int]]:
    """Walk around the first ring; where another hangs, around that one, back to where it hangs, and on."""
    path = [iter([(0, point) for point in range(len(rings[0]))])]
    seen: set[tuple[int, int]] = set()
    while path:
        at = next(path[-1], None)
        if at is None:
            path.pop()
            continue
        yield at
        if at in seen:
            continue
        seen.add(at)
        for number, start in reversed(hanging.get(at, ())):
            count = len(rings[number])
            around = [(number, (start + step) % count) for step in range(count + 1)]
            path.append(iter([*around, at]))


def tolerance_note(tolerance_px: float) -> str:
    """Return the sentence that says how close polygons are to the masks' outlines."""
    return f"Polygons keep within {tolerance_px:g} px of the masks' outlines."
