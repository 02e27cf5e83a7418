"""Cut the object under a scribble out of an image by classical means: what the `lite` profile has instead of SAM.

Everything happens on a graph of superpixels. A scribble says too little to know how large the object is, so several
kinds of hypotheses are made - regions of merge hierarchies that hold the scribble, closed contours found by dynamic
programming around it, colour models that are diffused from it - and the one that agrees best with all the others,
weighted by how much each looks like one object, is the answer. That agreement is also its score.

Deterministic, and no state is kept: threads may share it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Image, Mask, ScoredMask, Scribble
from backend.errors import BadInputError
from backend.models.superpixels import (
    FloatImage,
    Flags,
    Floats,
    Ints,
    Superpixels,
    colour_kernel,
    components,
    diffuse,
    edge_strength,
    find_superpixels,
    keep_seeded_parts,
    merge_levels,
)

HIERARCHIES = ((0.25, 1.0), (0.5, 2.0))
"""(area_power, edge_weight) of each merge hierarchy: the first joins by likeness, the second rather by size."""


@dataclass(frozen=True, eq=False)
class _Scene:
    """An image made ready: superpixels, edges (h, w), colour kernel (n, n), merge levels, affinity (n,), what is sure to be out (n,)."""

    pixels: Superpixels
    edges: FloatImage
    kernel: Floats
    levels: Ints
    affinity: Floats | None
    sure_out: Flags
    side_px: int


def cut_from_scribble(image: Image, scribble: Scribble, affinity: NDArray[np.float32] | None = None) -> ScoredMask | None:
    """The mask of what a scribble marks.

    Args:
        image: (h, w, 3) uint8 RGB at working size; meant for a longest side of 128 to 400 px.
        scribble: in the frame of `image`. A point outside the image is moved to its nearest pixel.
        affinity: (h, w) float32 in [0, 1] or None: how much each pixel looks like what was marked. Soft evidence.

    Returns:
        Mask (h, w) and expected IoU; None if nothing positive was drawn or no plausible object is there.

    Raises:
        BadInputError: shapes or types do not fit.
    """
    _require_fit(image, scribble, affinity)
    if scribble.is_empty:
        return None
    scene = _prepare(image, scribble, affinity)
    if scene is None:
        return None
    seeds = _seeds(scene, scribble)
    chosen = np.zeros(len(scene.pixels.area_px), bool)
    scores = []
    for box in np.asarray(scribble.boxes_xyxy, np.float64):
        inside = seeds[_share_in_box(scene, box)[seeds] > 0]
        found = _choose(scene, _box_hypotheses(scene, box, inside), inside, box)
        if found is not None:
            chosen |= found[0]
            scores.append(found[1])
    outside_boxes = seeds[~chosen[seeds]]
    if len(outside_boxes):
        found = _choose(scene, _seed_hypotheses(scene, outside_boxes, scribble), outside_boxes, None)
        if found is not None:
            chosen |= found[0]
            scores.append(found[1])
    if not chosen.any():
        return None
    mask = _keep_marks(chosen[scene.pixels.labels], scene.pixels.labels, scribble)
    return ScoredMask(mask, float(np.clip(np.mean(scores), 0, 1))) if mask.any() else None


def _require_fit(image: Image, scribble: Scribble, affinity: NDArray[np.float32] | None) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise BadInputError(f"image must be (h, w, 3) uint8, got {image.shape} {image.dtype}; decode it as RGB")
    if scribble.size_hw != image.shape[:2]:
        raise BadInputError(f"scribble must be in the frame {image.shape[:2]}, got {scribble.size_hw}; scale it first")
    if affinity is not None and affinity.shape != image.shape[:2]:
        raise BadInputError(f"affinity must be {image.shape[:2]}, got {affinity.shape}; resize it to the image")


def _keep_marks(mask: Mask, labels: Ints, scribble: Scribble) -> Mask:
    """What the user marked holds to the pixel: a superpixel that was marked both ways is split between its marks."""
    marks = {True: np.zeros(mask.shape, bool), False: np.zeros(mask.shape, bool)}
    height, width = mask.shape
    for sign, points, strokes in (
        (True, scribble.positive_xy, scribble.positive_strokes),
        (False, scribble.negative_xy, scribble.negative_strokes),
    ):
        if strokes is not None:
            marks[sign] |= strokes
        x = np.clip(np.floor(points[:, 0]), 0, width - 1).astype(np.int64)
        y = np.clip(np.floor(points[:, 1]), 0, height - 1).astype(np.int64)
        marks[sign][y, x] = True
    kept = mask | marks[True]
    torn = np.unique(labels[marks[False] & kept])
    if len(torn):
        if marks[True].any():
            to_in, to_out = (
                cv2.distanceTransform((~marks[sign]).astype(np.uint8), cv2.DIST_L2, 5) for sign in (True, False)
            )
            kept = kept & ~(np.isin(labels, torn) & (to_out < to_in))
        kept = kept & ~marks[False]
    return kept


def _prepare(image: Image, scribble: Scribble, affinity: NDArray[np.float32] | None) -> _Scene | None:
    channels = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    edges = edge_strength(channels)
    if affinity is not None:
        channels = np.dstack([channels, 30 * affinity.astype(np.float32)])
    side_px = max(image.shape[:2])
    pixels = find_superpixels(channels, edges, 2 * round(side_px / 140) + 1)
    if len(pixels.area_px) < 2:
        return None
    sure_out = np.zeros(len(pixels.area_px), bool)
    sure_out[_at(pixels, scribble.negative_xy)] = True
    if scribble.negative_strokes is not None:
        sure_out[np.unique(pixels.labels[scribble.negative_strokes])] = True
    levels = np.concatenate([merge_levels(pixels, area_power=p, edge_weight=w) for p, w in HIERARCHIES])
    deep = None if affinity is None else pixels.share_of(affinity)
    return _Scene(pixels, edges, colour_kernel(pixels), levels, deep, sure_out, side_px)


def _at(pixels: Superpixels, points_xy: NDArray[np.float32]) -> Ints:
    height, width = pixels.labels.shape
    x = np.clip(np.floor(points_xy[:, 0]), 0, width - 1).astype(np.int64)
    y = np.clip(np.floor(points_xy[:, 1]), 0, height - 1).astype(np.int64)
    at: Ints = pixels.labels[y, x]
    return at


def _seeds(scene: _Scene, scribble: Scribble) -> Ints:
    """The superpixels that the positive points and strokes lie on."""
    seeds = _at(scene.pixels, scribble.positive_xy)
    if scribble.positive_strokes is not None and scribble.positive_strokes.any():
        share = scene.pixels.share_of(scribble.positive_strokes)
        threshold = min(0.1, float(share.max()))
        seeds = np.concatenate([seeds, np.flatnonzero(share >= threshold)])
    return np.unique(seeds)


def _seed_hypotheses(scene: _Scene, seeds: Ints, scribble: Scribble) -> Flags:
    pixels = scene.pixels
    levels = scene.levels
    from_levels = np.array([np.isin(level, level[seeds]) for level in levels])
    seed_xy = pixels.centre_xy[seeds]
    middle_xy = seed_xy.mean(axis=0) if len(seeds) > 1 else seed_xy[0]
    if len(scribble.positive_xy) == 1 and len(seeds) == 1:
        middle_xy = scribble.positive_xy[0].astype(np.float64)
    radii = scene.side_px * np.array([0.015, 0.025, 0.04, 0.065, 0.1, 0.16, 0.22])
    spread = np.linalg.norm(seed_xy - middle_xy, axis=1).max()
    radii = np.maximum(radii, 0.6 * spread)
    centres = np.repeat(middle_xy[None], len(radii), axis=0)
    first = _contours(scene.edges, centres, np.stack([radii, radii], axis=1))
    moved = first.mean(axis=1)
    sizes = np.linalg.norm(first - moved[:, None], axis=2).mean(axis=1) / 1.7
    second = _contours(scene.edges, moved, np.stack([sizes, sizes], axis=1))
    from_contours = _fill(pixels, np.concatenate([first, second]))
    distance = np.linalg.norm(pixels.centre_xy[:, None] - seed_xy[None], axis=2).min(axis=1)
    reach_px = scene.side_px * np.array([0.05, 0.1, 0.2, 0.4]) + 0.15 * spread
    prior = 0.7 * np.exp(-0.5 * (distance[:, None] / reach_px) ** 2)
    start = np.exp(-0.5 * (distance[:, None] / (0.5 * reach_px)) ** 2)
    from_colours = _grow(scene, start, prior, np.ones_like(prior), seeds, scene.sure_out)
    return np.concatenate([from_levels, from_contours, from_colours])


def _share_in_box(scene: _Scene, box: Floats) -> Floats:
    inside = np.zeros(scene.pixels.labels.shape, np.float32)
    x0, y0, x1, y1 = np.maximum(0, np.round(box)).astype(int)
    inside[y0:y1, x0:x1] = 1
    return scene.pixels.share_of(inside)


def _box_hypotheses(scene: _Scene, box: Floats, seeds: Ints) -> Flags:
    pixels = scene.pixels
    share = _share_in_box(scene, box)
    out = scene.sure_out | (share < 0.4)
    levels = [np.zeros((0, len(share)), bool)]
    for level in scene.levels:
        area = np.bincount(level, pixels.area_px)
        inside = np.bincount(level, pixels.area_px * share) / area
        levels.append((inside > np.array([[0.8], [0.93]]))[:, level])
    middle_xy = (box[:2] + box[2:]) / 2
    half_xy = np.maximum(1, (box[2:] - box[:2]) / 2)
    scales = np.array([0.37, 0.45])
    polygons = _contours(scene.edges, np.repeat(middle_xy[None], 2, axis=0), scales[:, None] * half_xy)
    offset = np.abs(pixels.centre_xy - middle_xy) / half_xy
    round_prior = 0.8 * np.exp(-0.4 * (offset**2).sum(axis=1) ** 2)
    flat_prior = np.full(len(share), 0.55)
    prior = np.where(out[:, None], 0, np.stack([round_prior, flat_prior, round_prior], axis=1))
    start = np.where(out[:, None], 0, np.stack([round_prior, np.ones(len(share)), (offset.max(axis=1) < 0.6)], axis=1))
    # What surrounds the box tells more of its background than the rest of the image, but may be the object's twin.
    near = np.where(offset.max(axis=1) < 1.7, 1.0, 0.02)[:, None]
    grown = [_grow(scene, start, prior, where * np.ones_like(prior), seeds, out) for where in (1.0, near)]
    found: Flags = np.concatenate([*levels, _fill(pixels, polygons), *grown]) & ~out
    labels = components(pixels, found)
    for row, of in zip(found, labels, strict=True):
        area = np.bincount(of[row] - of[row].min(), pixels.area_px[row]) if row.any() else np.zeros(1)
        row[row] = area[of[row] - of[row].min()] > 0.15 * area.max() if row.any() else False
    return found


def _grow(
    scene: _Scene, start: Floats, prior: Floats, backdrop: Floats, seeds: Ints, sure_out: Flags, rounds: int = 3
) -> Flags:
    """GrabCut's loop on superpixels: colour models from the current masks, then a diffusion.

    Args:
        start: (n, k) in [0, 1]: k first masks.
        prior: (n, k) in [0, 1]: of being inside, whatever the colour.
        backdrop: (n, k): how much a superpixel counts in the background's colours.

    Returns:
        (2 k, n) bool: with the wide kernel, then with a kernel of half its width.
    """
    kernels = (scene.kernel, np.square(np.square(scene.kernel)))
    return np.concatenate([_grow_by(scene, k, start, prior, backdrop, seeds, sure_out, rounds) for k in kernels])


def _grow_by(
    scene: _Scene,
    kernel: Floats,
    start: Floats,
    prior: Floats,
    backdrop: Floats,
    seeds: Ints,
    sure_out: Flags,
    rounds: int,
) -> Flags:
    pixels = scene.pixels
    area = pixels.area_px[:, None]
    sure_in = np.zeros(len(area), bool)
    sure_in[seeds] = True
    fixed = (sure_in | sure_out)[:, None]
    trust = np.where(fixed, 1e4, 0.5 * np.sqrt(area)) * np.ones_like(start)
    lean = np.log((prior + 1e-3) / (1 - prior + 1e-3))
    if scene.affinity is not None:
        lean = lean + 4 * (scene.affinity[:, None] - 0.5)
    p = start
    for _ in range(rounds):
        inside, outside = p * area, (1 - p) * area * backdrop
        inside = kernel @ inside / np.maximum(1e-9, inside.sum(axis=0)) + 1e-6
        outside = kernel @ outside / np.maximum(1e-9, outside.sum(axis=0)) + 1e-6
        target = 1 / (1 + outside / inside * np.exp(-lean))
        target = np.where(fixed, sure_in[:, None], target)
        p = diffuse(pixels, target, trust)
    return (p > 0.5).T


def _contours(edges: FloatImage, centres_xy: Floats, radii_px: Floats, angles: int = 48, steps: int = 24) -> Floats:
    """Around each centre the closed contour that follows the strongest edges between r and 3 r.

    Dynamic programming over angles in polar coordinates; neighbouring rays differ by at most one step of the radius.

    Args:
        centres_xy: (c, 2) px.
        radii_px: (c, 2) px: r along x and along y.

    Returns:
        Polygons (c, angles, 2), px.
    """
    theta = np.arange(angles) * 2 * np.pi / angles
    rays = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    growth = 3.0 ** (np.arange(steps) / (steps - 1))
    grid = centres_xy[:, None, None] + (radii_px[:, None] * rays[None])[:, :, None] * growth[:, None]
    flat = grid.reshape(-1, steps, 2).astype(np.float32) - np.float32(0.5)
    reward = cv2.remap(edges, flat[..., 0], flat[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    reward = reward.reshape(len(centres_xy), angles, steps).astype(np.float64)
    # A path that is free at its ends is right at its middle: the closed path is then made to start there.
    middle = angles // 2
    free = _best_paths(reward, None)
    paths = np.roll(_best_paths(np.roll(reward, -middle, axis=1), free[:, middle]), middle, axis=1)
    return np.take_along_axis(grid, paths[..., None, None], axis=2)[:, :, 0]


def _best_paths(reward: Floats, start: Ints | None, bend: float = 0.05) -> Ints:
    count, angles, steps = reward.shape
    step = np.arange(steps)
    score = reward[:, 0].copy()
    if start is not None:
        score[step != start[:, None]] = -1e9
    back = np.zeros((angles, count, steps), np.int64)
    padded = np.full((count, steps + 2), -1e9)
    for angle in range(1, angles):
        padded[:, 1:-1] = score
        options = np.stack([padded[:, :-2] - bend, padded[:, 1:-1], padded[:, 2:] - bend])
        back[angle] = options.argmax(axis=0) - 1
        score = options.max(axis=0) + reward[:, angle]
    if start is not None:
        score[np.abs(step - start[:, None]) > 1] = -1e9
    path = np.zeros((count, angles), np.int64)
    path[:, -1] = score.argmax(axis=1)
    rows = np.arange(count)
    for angle in range(angles - 1, 0, -1):
        path[:, angle - 1] = path[:, angle] + back[angle][rows, path[:, angle]]
    return path


def _fill(pixels: Superpixels, polygons: Floats) -> Flags:
    """The superpixels that lie mostly inside each polygon, (k, n)."""
    rows = []
    for polygon in polygons:
        inside = np.zeros(pixels.labels.shape, np.uint8)
        cv2.fillPoly(inside, [np.round(polygon).astype(np.int32)], (1,))
        rows.append(pixels.share_of(inside) > 0.5)
    return np.array(rows)


def _choose(scene: _Scene, hypotheses: Flags, seeds: Ints, box: Floats | None) -> tuple[Flags, float] | None:
    """The hypothesis with the highest expected IoU with the others, and that IoU."""
    found = tidy(scene, hypotheses, seeds)
    if not len(found):
        return None
    area = found @ scene.pixels.area_px
    common = (found * scene.pixels.area_px) @ found.T.astype(np.float64)
    overlap = common / (area[:, None] + area[None] - common)
    weights = BOX_WEIGHTS if box is not None else POINT_WEIGHTS if len(seeds) == 1 else STROKE_WEIGHTS
    quality = features(scene, found, overlap, seeds, box) @ weights
    weight = np.exp(quality - quality.max())
    expected = overlap @ (weight / weight.sum())
    best = int(expected.argmax())
    return found[best], float(expected[best])


def tidy(scene: _Scene, hypotheses: Flags, seeds: Ints) -> Flags:
    """Distinct hypotheses with every seed in, everything negative out, no stray parts, less than nearly all of the image."""
    found = hypotheses & ~scene.sure_out
    found[:, seeds] = True
    found = keep_seeded_parts(scene.pixels, found, seeds, scene.sure_out)
    area = found @ scene.pixels.area_px
    found = found[(area > 0) & (area < 0.95 * scene.pixels.area_px.sum())]
    return np.unique(found, axis=0)


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
)
POINT_WEIGHTS = np.array([6.0, -2, 0.5, 3, 2.5, -3, -0.4, 0, -0.4, 14, -1, -3, 1.5, 0, 0, 0, 4.5, -5, 0, 0, 0])
STROKE_WEIGHTS = np.array([6.0, -2, 0.4, 2, 9, -3, -0.2, -0.2, -0.2, 13, 5, -4, 1, 0, 0, 1.5, 3.5, -2.5, 0, 0, 0])
BOX_WEIGHTS = np.array([7.0, 0, 0.8, 2, 4, 0, 0, 0, -0.2, 15, 0, 0, 0, 0, 0, 0, 0, 0, 6.5, 0.5, -4])


def features(scene: _Scene, found: Flags, overlap: Floats, seeds: Ints, box: Floats | None) -> Floats:
    """What tells an object from an arbitrary region, (k, len(FEATURES))."""
    pixels = scene.pixels
    zero = np.zeros(len(found))
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
        ],
        axis=1,
    )


def _dilate(pixels: Superpixels, masks: Flags) -> Flags:
    grown = masks.copy()
    a, b = pixels.pairs.T
    row, contact = np.nonzero(masks[:, a] != masks[:, b])
    grown[row, a[contact]] = True
    grown[row, b[contact]] = True
    return grown
