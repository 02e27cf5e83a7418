"""A small world of pictures and words: text features are colours, phrases are colour words, and both share a space.

What the encoder sees by itself is a texture, plain or striped: it knows no colours. So a striped red disc is found by a
reference as much as a striped blue one, and by the words «red» as much as a plain red one; only both together know it.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.arrays import CPU, unit
from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.types import Image, Mask

TEXT_SPACE = "colour-words"
PATCH_PX = 8
COLOURS = {"red": (200, 40, 40), "blue": (40, 40, 200), "green": (40, 150, 40), "grey": (120, 120, 120)}
_STRIPES_PX = 2
_STRIPE = 40


class ColourWordsEncoder:
    """A patch of 8 px has its texture as a feature, and its colour as a text feature.

    Args:
        sees_colours: the features are the colours, too.
    """

    text_space: str | None = TEXT_SPACE
    temperature = 0.05
    similarity_floor = 0.3
    object_feature_space = ObjectFeatureSpace()
    device = CPU
    batch_size = 1

    def __init__(self, *, sees_colours: bool = False) -> None:
        self.signature = f"colour-words:{sees_colours}"
        self.passes = 0
        self._sees_colours = sees_colours

    def encode(self, image: Image) -> NDArray[np.float32]:
        self.passes += 1
        colours = _colours(image)
        return colours if self._sees_colours else _textures(image)

    def prepare(self, image: Image) -> Image:
        return np.array(image)

    def encode_async(
        self, prepared: Sequence[Image], *, is_half: bool = False
    ) -> Callable[[], list[NDArray[np.float32]]]:
        return lambda: [self.encode(one).astype(np.float16 if is_half else np.float32) for one in prepared]

    def encode_both_async(
        self, prepared: Sequence[Image], *, is_half: bool = False
    ) -> Callable[[], list[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
        dtype = np.float16 if is_half else np.float32
        return lambda: [(self.encode(one).astype(dtype), _colours(one).astype(dtype)) for one in prepared]


class ColourWords:
    """Knows the words of `COLOURS`; a phrase without any of them means nothing that can be seen."""

    text_space = TEXT_SPACE

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, phrases: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(list(phrases))
        vectors = np.zeros((len(phrases), 4), np.float32)
        for vector, phrase in zip(vectors, phrases, strict=True):
            known = [np.array(COLOURS[word], np.float32) - 100 for word in phrase.lower().split() if word in COLOURS]
            vector[:3] = sum(known) if known else 0.0
            vector[3] = 0.0 if known else 1.0
            vector /= np.linalg.norm(vector)
        return vectors


def draw_discs(
    *discs: tuple[str, str, int, int, int], size_hw: tuple[int, int] = (160, 208)
) -> tuple[Image, list[Mask]]:
    """A plain grey image with discs (colour, `plain` or `striped`, x, y, radius), and the mask of each."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    image = np.full((*size_hw, 3), COLOURS["grey"], np.int16)
    stripes = np.where((np.arange(size_hw[1]) // _STRIPES_PX) % 2, _STRIPE, -_STRIPE)[None, :, None]
    masks = []
    for colour, texture, centre_x, centre_y, radius in discs:
        mask = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
        painted = np.array(COLOURS[colour]) + (stripes if texture == "striped" else 0) + np.zeros_like(image)
        image[mask] = painted[mask]
        masks.append(mask)
    image += np.random.default_rng(0).integers(-4, 5, image.shape).astype(np.int16)
    return np.clip(image, 0, 255).astype(np.uint8), masks


def _squares(image: Image) -> NDArray[np.float32]:
    rows, columns = (max(1, side // PATCH_PX) for side in image.shape[:2])
    cut = image[: rows * PATCH_PX, : columns * PATCH_PX].astype(np.float32)
    if min(image.shape[:2]) < PATCH_PX:
        cut = cv2.resize(image, (columns * PATCH_PX, rows * PATCH_PX)).astype(np.float32)
    return cut.reshape(rows, PATCH_PX, columns, PATCH_PX, 3).transpose(0, 2, 1, 3, 4)


def _colours(image: Image) -> NDArray[np.float32]:
    """(H_p, W_p, 4) float32: the mean colour of each square, and how little of a colour it has."""
    means = _squares(image).mean(axis=(2, 3)) - np.float32(100)
    greyness = (60.0 - means.std(axis=2, keepdims=True, ddof=1)).clip(min=1.0)
    return np.asarray(unit(np.concatenate([means, greyness], axis=2)))


def _textures(image: Image) -> NDArray[np.float32]:
    """(H_p, W_p, 3) float32: how much each square's brightness changes from column to column, and whether it is dark
    or coloured at all."""
    squares = _squares(image)
    stripes = np.abs(np.diff(squares.mean(axis=4), n=2, axis=3)).mean(axis=(2, 3))
    coloured = squares.mean(axis=(2, 3)).std(axis=2)
    return np.asarray(unit(np.stack([stripes, coloured, np.full_like(stripes, 15.0)], axis=2)))
