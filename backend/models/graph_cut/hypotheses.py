"""Regions of an image that a scribble may mean: more of them than are right, at every scale."""

import cv2
import numpy as np

from backend.core.types import Scribble
from backend.models.graph_cut.objectness import Scene
from backend.models.graph_cut.superpixels import Flags, FloatImage, Floats, Ints, Superpixels, components, diffuse


def seed_hypotheses(scene: Scene, seeds: Ints, scribble: Scribble) -> Flags:
    """Return regions that hold the seeds, (k, n): from merge levels, contours around them, and their colours."""
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
    found: Flags = np.concatenate([from_levels, from_contours, from_colours])
    return found


def share_in_box(scene: Scene, box: Floats) -> Floats:
    """Return the share of each superpixel that lies in a box, (n,) in [0, 1]; the box is (4,) xyxy px."""
    inside = np.zeros(scene.pixels.labels.shape, np.float32)
    x0, y0, x1, y1 = np.maximum(0, np.round(box)).astype(int)
    inside[y0:y1, x0:x1] = 1
    return scene.pixels.share_of(inside)


def box_hypotheses(scene: Scene, box: Floats, seeds: Ints) -> Flags:
    """Return regions that fill a box, (k, n): from merge levels, contours in it, and its colours."""
    pixels = scene.pixels
    share = share_in_box(scene, box)
    out = scene.sure_out | (share < 0.4)
    levels: list[Flags] = [np.zeros((0, len(share)), bool)]
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
    for row, part in zip(found, components(pixels, found), strict=True):
        if row.any():
            _, ids = np.unique(part[row], return_inverse=True)
            area = np.bincount(ids, pixels.area_px[row])
            row[row] = area[ids] > 0.15 * area.max()
    return found


def _grow(
    scene: Scene, start: Floats, prior: Floats, backdrop: Floats, seeds: Ints, sure_out: Flags, rounds: int = 3
) -> Flags:
    """Run GrabCut's loop on superpixels: colour models from the current masks, then a diffusion.

    Args:
        scene: the image.
        start: (n, k) in [0, 1]: k first masks.
        prior: (n, k) in [0, 1]: of being inside, whatever the colour.
        backdrop: (n, k): how much a superpixel counts in the background's colours.
        seeds: superpixels that are inside.
        sure_out: (n,) bool: those that are not.
        rounds: of the loop.

    Returns:
        (2 k, n) bool: with the wide kernel, then with a kernel of half its width.
    """
    kernels = (scene.kernel, np.square(np.square(scene.kernel)))
    return np.concatenate([_grow_by(scene, k, start, prior, backdrop, seeds, sure_out, rounds) for k in kernels])


def _grow_by(
    scene: Scene,
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
    """Return around each centre the closed contour that follows the strongest edges between r and 3 r.

    Dynamic programming over angles in polar coordinates; neighbouring rays differ by at most one step of the radius.

    Args:
        edges: (h, w) float32, see `edge_strength`.
        centres_xy: (c, 2) px.
        radii_px: (c, 2) px: r along x and along y.
        angles: rays of a contour.
        steps: of a ray.

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
    """Return the superpixels that lie mostly inside each polygon, (k, n)."""
    rows = []
    for polygon in polygons:
        inside = np.zeros(pixels.labels.shape, np.uint8)
        cv2.fillPoly(inside, [np.round(polygon).astype(np.int32)], (1,))
        rows.append(pixels.share_of(inside) > 0.5)
    return np.array(rows)
