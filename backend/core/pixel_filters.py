"""Filter responses of pixels at several scales: what a classifier of pixels tells thin and textured things by."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core import cancellation
from backend.core.types import Image

OCTAVES = 5
"""Scales: the filters see the image at its own size, at half of it, and so on."""
FILTERS_PER_OCTAVE = 10
FILTER_COUNT = OCTAVES * FILTERS_PER_OCTAVE
_SIGMA_PX = 1.0
"""Of the Gaussian that each octave is smoothed with before its derivatives are taken."""
_WINDOW_SIGMA_PX = 1.5
"""Of the Gaussian window of structure tensor and local spread."""
ALIGNMENT_PX = 2 ** (OCTAVES - 1)
"""Sides of the image are filled up to multiples of this, so that every octave halves the one before."""
REACH_PX = 6 * ALIGNMENT_PX
"""How far from a pixel the image still changes its responses noticeably."""


TILE_PX = 640
"""Side of the tiles that an image is filtered in: bounds the memory, 150 MB for a tile with its margin."""


def tiled_responses(image: Image) -> Iterator[tuple[tuple[slice, slice], NDArray[np.float32]]]:
    """Yield the filter responses of an image of any size tile by tile, as `filter_responses` has them.

    Yields:
        Rows and columns of the tile, and its responses, (FILTER_COUNT, h, w) float32.
    """
    for top in range(0, image.shape[0], TILE_PX):
        for left in range(0, image.shape[1], TILE_PX):
            # The margin begins at a multiple of the coarsest octave's pixels: each tile sees the very same octaves.
            row, column = max(0, top - REACH_PX), max(0, left - REACH_PX)
            seen = image[row : top + TILE_PX + REACH_PX, column : left + TILE_PX + REACH_PX]
            inside = filter_responses(seen)[:, top - row :, left - column :][:, :TILE_PX, :TILE_PX]
            yield (slice(top, top + inside.shape[1]), slice(left, left + inside.shape[2])), inside


def filter_responses(image: Image) -> NDArray[np.float32]:
    """Return the filter responses of each pixel.

    At each octave: the smoothed colour in Lab, the difference of its lightness to that of the coarsest octave, and of
    the lightness the gradient's magnitude, both eigenvalues of the Hessian and of the structure tensor, and the local
    spread. Differences do not change with the light, colours do: a classifier has both.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (FILTER_COUNT, H, W) float32.

    Raises:
        CancelledWorkError: see `cancellation.check`; asked before each octave.
    """
    height, width = image.shape[:2]
    filled = cv2.copyMakeBorder(image, 0, -height % ALIGNMENT_PX, 0, -width % ALIGNMENT_PX, cv2.BORDER_REPLICATE)
    lab = cv2.cvtColor(filled.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB) / np.float32(100)
    octaves = [lab]
    for _ in range(OCTAVES - 1):
        octaves.append(cv2.resize(octaves[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    coarsest = cv2.GaussianBlur(octaves[-1][..., 0], (0, 0), 2 * _SIGMA_PX)
    found = np.empty((FILTER_COUNT, height, width), np.float32)
    for octave, picture in enumerate(octaves):
        cancellation.check()
        for index, one in enumerate(_octave_responses(picture, coarsest)):
            natural = cv2.resize(one, filled.shape[1::-1], interpolation=cv2.INTER_LINEAR) if octave else one
            found[octave * FILTERS_PER_OCTAVE + index] = natural[:height, :width]
    return found


def _octave_responses(lab: NDArray[np.float32], coarsest: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    smooth = cv2.GaussianBlur(lab, (0, 0), _SIGMA_PX)
    light = np.ascontiguousarray(smooth[..., 0])
    around = cv2.resize(coarsest, (light.shape[1], light.shape[0]), interpolation=cv2.INTER_LINEAR)
    x, y = cv2.Sobel(light, -1, 1, 0, scale=1 / 8), cv2.Sobel(light, -1, 0, 1, scale=1 / 8)
    xx, yy = cv2.Sobel(light, -1, 2, 0, scale=1 / 8), cv2.Sobel(light, -1, 0, 2, scale=1 / 8)
    xy = cv2.Sobel(light, -1, 1, 1, scale=1 / 4)
    window = cv2.GaussianBlur(np.dstack([x * x, y * y, x * y]), (0, 0), _WINDOW_SIGMA_PX)
    raw = np.ascontiguousarray(lab[..., 0])
    mean = cv2.GaussianBlur(np.dstack([raw, raw * raw]), (0, 0), _WINDOW_SIGMA_PX)
    spread = np.sqrt(np.maximum(mean[..., 1] - mean[..., 0] ** 2, 0.0))
    return [
        *(smooth[..., channel] for channel in range(3)),
        light - around,
        np.hypot(x, y),
        *_eigenvalues(xx, yy, xy),
        *(np.sqrt(np.maximum(one, 0.0)) for one in _eigenvalues(window[..., 0], window[..., 1], window[..., 2])),
        spread,
    ]


def _eigenvalues(
    xx: NDArray[np.float32], yy: NDArray[np.float32], xy: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    half_trace = (xx + yy) / 2
    half_gap = np.sqrt(((xx - yy) / 2) ** 2 + xy * xy)
    return half_trace + half_gap, half_trace - half_gap
