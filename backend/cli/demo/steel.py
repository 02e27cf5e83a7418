"""The sample project of technical inspection: brushed steel with corrosion and scuffs, drawn with a seed.

What is drawn is what a camera over a machined part sees: brush marks, lamp and vignette, grain, sensor noise. The masks
are known because the defects are drawn: where their paint covers the steel by more than half.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from backend.cli.demo.coins import SampleTask
from backend.core.types import Image, Mask

CORROSION, SCUFF = "Corrosion", "Scuff"
SEED = 20
SIZE_HW = (480, 640)
_LEAST_PX, _APART_PX = 800, 14

Plane = NDArray[np.float64]
"""(H, W) or (H, W, 3) float64: brightness from 0 to 1, or how much of a pixel is covered."""
Draw = Callable[[Plane, np.random.Generator], tuple[Plane, Mask]]
"""Draws a defect on (H, W, 3) at a place it chooses: the new image, and where the defect is."""


@dataclass(frozen=True)
class Part:
    """The parts and defects of one image.

    Attributes:
        corrosion: spots of it.
        scuffs: places of it.
        lamp_xy: where the light is brightest, in parts of width and height.
        holes: drilled holes, which are no defects.
    """

    corrosion: int
    scuffs: int
    lamp_xy: tuple[float, float]
    holes: int = 0


PARTS = (
    Part(corrosion=2, scuffs=2, lamp_xy=(0.3, 0.3)),
    Part(corrosion=1, scuffs=2, lamp_xy=(0.7, 0.2)),
    Part(corrosion=3, scuffs=0, lamp_xy=(0.5, 0.9), holes=1),
    Part(corrosion=0, scuffs=3, lamp_xy=(0.1, 0.6)),
    Part(corrosion=2, scuffs=1, lamp_xy=(0.9, 0.8), holes=1),
    Part(corrosion=0, scuffs=0, lamp_xy=(0.4, 0.5), holes=1),
    Part(corrosion=1, scuffs=1, lamp_xy=(0.5, 0.1)),
)
"""The first is the one that is marked; the sixth is without defect."""


def surface_tasks() -> list[SampleTask]:
    """Return the images of `PARTS`, always the same ones."""
    return [_task(number, part) for number, part in enumerate(PARTS, start=1)]


def _task(number: int, part: Part) -> SampleTask:
    rng = np.random.default_rng((SEED, number))
    steel = _brushed_steel(rng)
    colour = np.repeat(steel[..., None], 3, axis=2) * (0.97, 0.99, 1.02)
    objects = np.zeros(SIZE_HW, np.int32)
    for _ in range(part.holes):
        colour = _drill(colour, rng)
    masks: dict[str, Mask] = {}
    for label, count, draw in ((CORROSION, part.corrosion, _corrode), (SCUFF, part.scuffs, _scuff)):
        masks[label] = np.zeros(SIZE_HW, np.bool_)
        for _ in range(count):
            colour, mask = _apart(draw, colour, objects > 0, rng)
            objects[mask] = objects.max() + 1
            masks[label] |= mask
    return SampleTask(f"steel-{number}", _photograph(colour, part.lamp_xy, rng), masks, objects)


def _brushed_steel(rng: np.random.Generator) -> Plane:
    """Streaks along x of several lengths, slow unevenness, and single deeper brush marks."""
    streaks = 0.022 * _streaks(rng, 15) + 0.025 * _streaks(rng, 60) + 0.02 * _streaks(rng, 120)
    marks = np.where(rng.random(SIZE_HW[0]) < 0.04, rng.normal(0, 0.03, SIZE_HW[0]), 0.0)
    steel: Plane = 0.55 + streaks + 0.03 * _noise(rng, 70) + marks[:, None]
    return steel


def _streaks(rng: np.random.Generator, length_px: int) -> Plane:
    noise = ndimage.gaussian_filter1d(rng.standard_normal(SIZE_HW), 0.6, axis=0)
    # Three running means are as good as a Gaussian, and as quick for long streaks as for short ones.
    for _ in range(3):
        noise = ndimage.uniform_filter1d(noise, 2 * length_px, axis=1)
    return _unit(noise)


def _corrode(colour: Plane, rng: np.random.Generator) -> tuple[Plane, Mask]:
    """A spot of rust: ragged, mottled, dark in its middle, with small spots around it."""
    height, width = SIZE_HW
    y, x = np.mgrid[:height, :width]
    centre_x, centre_y = _place(rng)
    radius = rng.uniform(30, 62)
    distance = np.hypot((x - centre_x) / rng.uniform(0.9, 1.5), y - centre_y) / radius
    coarse = _noise(rng, radius / 4)
    fine = _noise(rng, 2.5)
    depth = 1 - distance + 0.22 * coarse + 0.09 * fine
    coverage = np.clip(depth / 0.12 + 0.5, 0, 1)
    near = np.where(distance < 1.7, 1.0, 0.0)
    coverage *= near
    specks = _noise(rng, 1.6)
    mottle = 1 + 0.16 * specks + 0.1 * coarse
    darkness = np.clip(1.05 - 0.45 * np.clip(depth, 0, 1), 0.5, 1.1)
    rust = np.array((0.47, 0.29, 0.17)) * (mottle * darkness)[..., None]
    return colour * (1 - 0.93 * coverage[..., None]) + rust * 0.93 * coverage[..., None], coverage > 0.5


def _scuff(colour: Plane, rng: np.random.Generator) -> tuple[Plane, Mask]:
    """A place where something dragged across the brush marks: a ragged band of short bright and dark scratches."""
    length, breadth, angle = rng.uniform(120, 220), rng.uniform(34, 60), rng.uniform(0.5, np.pi - 0.5)
    along, across = _turned(*_place(rng), angle)
    ragged = _noise(rng, 9.0)
    end = 1 - np.abs(2 * along / length) ** 3
    depth = np.minimum(end, 1 - np.abs(2 * across / breadth)) + 0.16 * ragged
    coverage = np.clip(depth / 0.2 + 0.5, 0, 1)
    # Scratches run along the drag: noise drawn on an upright band and turned with it.
    band = ndimage.gaussian_filter(rng.standard_normal((512, 512)), (0.8, 14))
    scratches = ndimage.map_coordinates(band / band.std(), (across + 256, along + 256), order=1, mode="wrap")
    torn = colour * 0.88 + 0.085 * np.clip(scratches, -2, 3)[..., None]
    return colour * (1 - coverage[..., None]) + torn * coverage[..., None], coverage > 0.5


def _place(rng: np.random.Generator) -> tuple[float, float]:
    height, width = SIZE_HW
    return rng.uniform(0.17, 0.83) * width, rng.uniform(0.2, 0.8) * height


def _turned(centre_x: float, centre_y: float, angle: float) -> tuple[Plane, Plane]:
    """Coordinates of every pixel along and across a line through the centre, px."""
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    x, y = x - centre_x, y - centre_y
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _noise(rng: np.random.Generator, size_px: float) -> Plane:
    """Noise of mean 0 and deviation 1 whose spots are about `size_px` large; drawn small and enlarged: it is smooth."""
    coarseness = max(1, int(size_px / 2.5))
    height, width = (side // coarseness + 3 for side in SIZE_HW)
    noise = ndimage.gaussian_filter(rng.standard_normal((height, width)), size_px / coarseness)
    return _unit(ndimage.zoom(noise, coarseness, order=1)[: SIZE_HW[0], : SIZE_HW[1]])


def _drill(colour: Plane, rng: np.random.Generator) -> Plane:
    height, width = SIZE_HW
    y, x = np.mgrid[:height, :width]
    radius = rng.uniform(24, 34)
    centre_x, centre_y = rng.uniform(0.1, 0.9) * width, rng.choice((0.12, 0.88)) * height
    away = np.hypot(x - centre_x, y - centre_y)
    inside = np.clip(radius - away + 0.5, 0, 1)[..., None]
    chamfer = (np.exp(-(((away - radius - 3) / 2.5) ** 2)) * 0.22 * np.sign(y - centre_y + 0.1))[..., None]
    drilled: Plane = (colour + chamfer) * (1 - inside) + 0.07 * inside
    return drilled


def _apart(draw: Draw, colour: Plane, taken: Mask, rng: np.random.Generator) -> tuple[Plane, Mask]:
    """Draw until it is apart from all other defects."""
    for _ in range(50):
        drawn, mask = draw(colour, rng)
        if mask.sum() > _LEAST_PX and not (ndimage.binary_dilation(mask, iterations=_APART_PX) & taken).any():
            return drawn, mask
    raise AssertionError("no place found for another defect")


def _photograph(colour: Plane, lamp_xy: tuple[float, float], rng: np.random.Generator) -> Image:
    """Light that falls off from the lamp, the lens's vignette and softness, grain of shot and reading, 8 bits."""
    height, width = SIZE_HW
    y, x = np.mgrid[:height, :width]
    lamp = np.hypot(x / width - lamp_xy[0], 0.75 * (y / height - lamp_xy[1]))
    corner = np.hypot(x / width - 0.5, 0.75 * (y / height - 0.5))
    light = (1.22 - 0.55 * lamp**1.3) * (1 - 0.25 * corner**2)
    seen = ndimage.gaussian_filter(colour * light[..., None], (0.7, 0.7, 0))
    seen = seen + rng.standard_normal(seen.shape) * (0.008 + 0.014 * np.sqrt(np.clip(seen, 0, 1)))
    image: Image = np.clip(255 * seen + 0.5, 0, 255).astype(np.uint8)
    return image


def _unit(noise: Plane) -> Plane:
    """Scaled to mean 0 and deviation 1."""
    scaled: Plane = (noise - noise.mean()) / (noise.std() + 1e-12)
    return scaled
