"""Choice among regions of an image: which one is the object that a scribble means, and how sure that is."""

from dataclasses import dataclass

import numpy as np

from backend.models.graph_cut.superpixels import Flags, FloatImage, Floats, Ints, Superpixels, keep_seeded_parts


@dataclass(frozen=True, eq=False)
class Scene:
    """An image made ready for cutting.

    Attributes:
        pixels: its n superpixels.
        edges: (h, w), see `edge_strength`.
        kernel: (n, n): likeness of colours.
        levels: (rounds, n): of all merge hierarchies.
        affinity: (n,) in [0, 1] or None: how much each superpixel looks like what was marked.
        sure_out: (n,) bool: marked as not the object.
        side_px: the longer side.
    """

    pixels: Superpixels
    edges: FloatImage
    kernel: Floats
    levels: Ints
    affinity: Floats | None
    sure_out: Flags
    side_px: int


FEATURES = (
    "contrast",
    "weak_contour",
    "colour_gap",
    "texture",
    "compactness",
    "touch",
    "sides",
    "log_share",
    "log_share_squared",
    "separable",
    "seed_like_inside",
    "seed_like_around",
    "depth",
    "off_centre",
    "log_spread",
    "votes",
    "affinity_inside",
    "affinity_around",
    "box_iou",
    "box_fill",
    "box_fill_squared",
    "mirrored_compactness",
)


@dataclass(frozen=True, eq=False)
class Judgement:
    """The weights for one kind of scribble: fitted over photographs of many kinds, then rounded by hand.

    Attributes:
        weights: (len(FEATURES),): quality is their product with the features.
        score: of the agreement, of the quality and of 1, summed to the expected IoU.
    """

    weights: Floats
    score: tuple[float, float, float]


# fmt: off
ONE_POINT = Judgement(
    np.array([6.0, -2, 0.5, 3, 2.5, -3, -0.4, 0, -0.4, 14, -1, -3, 1.5, 0, 0, 0, 4.5, -5, 0, 0, 0, 0]),
    (1.0, 0.02, -0.48),
)
MANY_MARKS = Judgement(
    np.array([6.0, -2, 0.4, 2, 9, -3, -0.2, -0.2, -0.2, 13, 5, -4, 1, 0, 0, 1.5, 3.5, -2.5, 0, 0, 0, 0]),
    (0.83, 0.02, -0.29),
)
# Strokes at the image's border are rather on what it cuts off: it is no outline, and to touch it is no fault.
STROKES = Judgement(
    np.array([6.0, -2, 0.4, 2, 0, 0, -0.2, -0.2, -0.2, 13, 5, -4, 1, 0, 0, 1.5, 3.5, -2.5, 0, 0, 0, 9]),
    (0.83, 0.02, -0.29),
)
BOX = Judgement(
    np.array([7.0, 0, 0.8, 2, 4, 0, 0, 0, -0.2, 15, 0, 0, 0, 0, 0, 0, 0, 0, 6.5, 0.5, -4, 0]), (0.25, 0.04, -0.48)
)
# fmt: on


def choose(
    scene: Scene, hypotheses: Flags, seeds: Ints, box: Floats | None, *, has_strokes: bool = False
) -> tuple[Flags, float] | None:
    """Return the hypothesis with the highest expected IoU with the others, and its own expected IoU."""
    found = tidy(scene, hypotheses, seeds)
    if not len(found):
        return None
    area = found @ scene.pixels.area_px
    common = (found * scene.pixels.area_px) @ found.T.astype(np.float64)
    overlap = common / (area[:, None] + area[None] - common)
    of_many = STROKES if has_strokes else MANY_MARKS
    judgement = BOX if box is not None else ONE_POINT if len(seeds) == 1 else of_many
    quality = features(scene, found, overlap, seeds, box) @ judgement.weights
    odds = np.exp(quality - quality.max())
    best = int((overlap @ odds).argmax())
    # The choice is sure of itself; what it is worth shows in how many of the weaker hypotheses agree.
    softened = odds**0.3
    agreement = float(overlap[best] @ softened / softened.sum())
    return found[best], float(np.clip(np.dot(judgement.score, (agreement, quality[best], 1.0)), 0.02, 0.98))


def tidy(scene: Scene, hypotheses: Flags, seeds: Ints) -> Flags:
    """Return distinct hypotheses with every seed in, all negatives out, no stray parts, none nearly the whole image."""
    found = hypotheses & ~scene.sure_out
    found[:, seeds] = True
    found = keep_seeded_parts(scene.pixels, found, seeds, scene.sure_out)
    area = found @ scene.pixels.area_px
    found = found[(area > 0) & (area < 0.95 * scene.pixels.area_px.sum())]
    distinct: Flags = np.unique(found, axis=0)
    return distinct


def features(scene: Scene, found: Flags, overlap: Floats, seeds: Ints, box: Floats | None) -> Floats:
    """Return what tells an object from an arbitrary region, (k, len(FEATURES))."""
    pixels = scene.pixels
    zero: Floats = np.zeros(len(found))
    area = found @ pixels.area_px
    total = pixels.area_px.sum()
    radius = np.sqrt(area / np.pi)
    first, second = found[:, pixels.pairs[:, 0]], found[:, pixels.pairs[:, 1]]
    rim = (first != second) * pixels.contact_px
    inner = (first & second) * pixels.contact_px
    length = np.maximum(1, rim.sum(axis=1))
    gap = np.linalg.norm(pixels.colour[pixels.pairs[:, 0], :3] - pixels.colour[pixels.pairs[:, 1], :3], axis=1)
    touch = found @ pixels.rim_px
    perimeter = 0.8 * length + touch
    log_share = np.log(area / total / 0.1)
    grown = _dilate(pixels, _dilate(pixels, found))
    ring = (grown & ~found) * pixels.area_px
    inside = found * pixels.area_px
    ring_area = np.maximum(1, ring.sum(axis=1))
    density_inside = inside @ scene.kernel / area[:, None] + 1e-6
    density_around = ring @ scene.kernel / ring_area[:, None] + 1e-6
    posterior = density_inside / (density_inside + density_around)
    separable = (posterior * inside).sum(axis=1) / area + ((1 - posterior) * ring).sum(axis=1) / ring_area
    low = np.where(found[..., None], pixels.extent_xyxy[None, :, :2], np.inf).min(axis=1)
    high = np.where(found[..., None], pixels.extent_xyxy[None, :, 2:], -np.inf).max(axis=1)
    sides = (low <= 0).sum(axis=1) + (high >= np.array(pixels.labels.shape[::-1])).sum(axis=1)
    depth = off_centre = log_spread = seed_like_inside = seed_like_around = zero
    if len(seeds):
        seed_xy = pixels.centre_xy[seeds]
        away = np.linalg.norm(pixels.centre_xy[:, None] - seed_xy[None], axis=2)
        nearest_out = np.where(found[:, :, None], np.inf, away[None]).min(axis=1)
        depth = np.minimum(1, nearest_out.mean(axis=1) / np.maximum(1, radius))
        middle_xy = seed_xy.mean(axis=0)
        centre_xy = inside @ pixels.centre_xy / area[:, None]
        off_centre = np.linalg.norm(centre_xy - middle_xy, axis=1) / np.maximum(1, radius)
        spread = np.linalg.norm(seed_xy - middle_xy, axis=1).max()
        log_spread = np.log((radius + 2) / (spread + 2)) if len(seeds) > 1 else zero
        like = scene.kernel[:, seeds].mean(axis=1)
        seed_like_inside, seed_like_around = inside @ like / area, ring @ like / ring_area
    affinity_inside = affinity_around = zero
    if scene.affinity is not None:
        affinity_inside, affinity_around = inside @ scene.affinity / area, ring @ scene.affinity / ring_area
    box_iou = box_fill = zero
    if box is not None:
        common = np.maximum(0, np.minimum(high, box[2:]) - np.maximum(low, box[:2])).prod(axis=1)
        box_area = (box[2:] - box[:2]).prod()
        box_iou = common / ((high - low).prod(axis=1) + box_area - common)
        box_fill = area / box_area - 0.65
    return np.stack(
        [
            rim @ pixels.strength / length,
            rim @ (pixels.strength < 0.2) / length,
            rim @ gap / length / 20,
            inner @ pixels.strength / np.maximum(1, inner.sum(axis=1)),
            np.sqrt(np.minimum(1, 4 * np.pi * area / perimeter**2)),
            touch / perimeter,
            sides,
            log_share,
            log_share**2,
            separable / 2,
            seed_like_inside,
            seed_like_around,
            depth,
            off_centre,
            log_spread,
            overlap.mean(axis=1),
            affinity_inside,
            affinity_around,
            box_iou,
            box_fill,
            box_fill**2,
            _mirrored_compactness(area, 0.8 * length, touch, sides),
        ],
        axis=1,
    )


def _mirrored_compactness(area_px: Floats, length_px: Floats, touch_px: Floats, sides: Ints) -> Floats:
    """Return how round regions are, (k,) in [0, 1]: 1 for a disc, and for half a disc at the image's border.

    The border is no outline of what it cuts off. A region at one side, or in one corner, is judged with its mirror
    image beyond it if that is the rounder one.

    Args:
        area_px: (k,).
        length_px: (k,): of the outline within the image.
        touch_px: (k,): of the border that is in the region.
        sides: (k,): of the image that it touches.
    """
    as_seen = area_px / (length_px + touch_px) ** 2
    mirrored = area_px / (length_px**2 * 2.0**sides)
    best = np.where((sides == 1) | (sides == 2), np.maximum(as_seen, mirrored), as_seen)
    return np.asarray(np.sqrt(np.minimum(1, 4 * np.pi * best)), np.float64)


def _dilate(pixels: Superpixels, masks: Flags) -> Flags:
    grown = masks.copy()
    a, b = pixels.pairs.T
    row, contact = np.nonzero(masks[:, a] != masks[:, b])
    grown[row, a[contact]] = True
    grown[row, b[contact]] = True
    return grown
