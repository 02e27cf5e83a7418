"""Cut the object under a scribble out of an image by classical means: what the `lite` profile has instead of SAM.

Everything happens on a graph of superpixels (`_Regions`): basins of the image gradient, joined where they touch. A scribble
says too little to know how large the object is, so several kinds of hypotheses are made - regions of a merge tree that
hold the scribble, closed contours found by dynamic programming around it, diffusions of a colour model - and the one that
agrees best with all the others, weighted by the quality of their contours, is the answer; that agreement is its score.

Deterministic, and no state is kept: threads may share it.
"""

import heapq
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve
from skimage.segmentation import watershed

from backend.core.types import Image, Mask, ScoredMask, Scribble

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Regions:
    """Superpixels and where they touch; n superpixels, m contacts.

    Attributes:
        labels: (h, w) int64 in [0, n).
        area_px: (n,).
        colour: (n, 4): mean L, a, b and spread of L, in units of a just visible difference.
        centre_xy: (n, 2) px.
        rim_px: (n,): pixels on the border of the image.
        pairs: (m, 2) int64: the superpixels of each contact.
        contact_px: (m,): its length.
        strength: (m,) in [0, 1]: mean edge strength along it.
        affinity: (n,) in [0, 1] or None: mean of the map that came with the image.
    """

    labels: Ints
    area_px: Floats
    colour: Floats
    centre_xy: Floats
    rim_px: Floats
    pairs: Ints
    contact_px: Floats
    strength: Floats
    affinity: Floats | None


def edge_strength(lab: NDArray[np.float32], sigma_px: float = 1.0) -> NDArray[np.float32]:
    """Gradient magnitude over all Lab channels, (h, w) float32 in [0, 1): 0.5 is three times the image's mean."""
    smooth = cv2.GaussianBlur(lab, (0, 0), sigma_px)
    dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    magnitude = np.sqrt((dx**2 + dy**2).sum(axis=2))
    # The floor keeps noise on a blank image from looking like edges.
    return np.asarray(1 - np.exp(-magnitude / max(8.0, 3 * float(magnitude.mean()))), np.float32)


def _find_regions(lab: NDArray[np.float32], edges: NDArray[np.float32], affinity: NDArray[np.float32] | None) -> _Regions:
    height, width = edges.shape
    eroded = cv2.erode(edges, np.ones((5, 5), np.uint8))
    _, markers = cv2.connectedComponents((eroded == edges).astype(np.uint8))
    labels = watershed(edges, markers).astype(np.int64) - 1
    flat = labels.ravel()
    n = int(labels.max()) + 1
    area = np.bincount(flat, minlength=n).astype(float)

    def mean(values: NDArray[np.float32]) -> Floats:
        return np.bincount(flat, values.ravel().astype(float), n) / area

    colour = [mean(lab[..., channel]) for channel in range(3)]
    spread = np.sqrt(np.maximum(0, mean(lab[..., 0] ** 2) - colour[0] ** 2))
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    rim = np.zeros((height, width), np.float32)
    rim[[0, -1], :] = 1
    rim[:, [0, -1]] = 1
    first = np.concatenate([labels[:, :-1].ravel(), labels[:-1].ravel()])
    second = np.concatenate([labels[:, 1:].ravel(), labels[1:].ravel()])
    across = np.concatenate([np.maximum(edges[:, :-1], edges[:, 1:]).ravel(), np.maximum(edges[:-1], edges[1:]).ravel()])
    differ = first != second
    key = np.minimum(first, second)[differ] * n + np.maximum(first, second)[differ]
    keys, where = np.unique(key, return_inverse=True)
    contact = np.bincount(where).astype(float) if len(keys) else np.zeros(0)
    strength = np.bincount(where, across[differ].astype(float)) / contact if len(keys) else np.zeros(0)
    return _Regions(
        labels,
        area,
        np.stack([*colour, spread], axis=1),
        np.stack([mean(xx), mean(yy)], axis=1),
        np.bincount(flat, rim.ravel().astype(float), n),
        np.stack([keys // n, keys % n], axis=1),
        contact,
        strength,
        None if affinity is None else mean(affinity),
    )


def _merge_tree(regions: _Regions, area_power: float, edge_weight: float) -> tuple[list[int], list[float]]:
    """Join the two most similar neighbours until one is left; (parents, costs), node ids from n upwards in order of joining."""
    n = len(regions.area_px)
    area = list(regions.area_px)
    colour = [list(row) for row in regions.colour]
    near: list[dict[int, tuple[float, float]]] = [{} for _ in range(n)]
    for (a, b), length, strength in zip(regions.pairs.tolist(), regions.contact_px.tolist(), regions.strength.tolist(), strict=True):
        near[a][b] = near[b][a] = (length, length * strength)
    parents = list(range(n))
    costs = [0.0] * n
    alive = [True] * n

    def cost(a: int, b: int) -> float:
        length, total = near[a][b]
        ca, cb = colour[a], colour[b]
        gap = ((ca[0] - cb[0]) ** 2 + (ca[1] - cb[1]) ** 2 + (ca[2] - cb[2]) ** 2) ** 0.5 / 20
        return (edge_weight * total / length + gap + 0.02) * min(area[a], area[b]) ** area_power

    heap = [(cost(a, b), a, b) for a, b in regions.pairs.tolist()]
    heapq.heapify(heap)
    while heap:
        value, a, b = heapq.heappop(heap)
        if not (alive[a] and alive[b]):
            continue
        new = len(parents)
        alive[a] = alive[b] = False
        alive.append(True)
        parents.append(new)
        parents[a] = parents[b] = new
        costs.append(max(value, costs[a], costs[b]))
        total_area = area[a] + area[b]
        colour.append([(x * area[a] + y * area[b]) / total_area for x, y in zip(colour[a], colour[b], strict=True)])
        area.append(total_area)
        joined = near[a] if len(near[a]) >= len(near[b]) else near[b]
        other = near[b] if joined is near[a] else near[a]
        joined.pop(a, None)
        joined.pop(b, None)
        for c, (length, strength) in other.items():
            if c not in (a, b):
                old = joined.get(c, (0.0, 0.0))
                joined[c] = (old[0] + length, old[1] + strength)
        near.append(joined)
        for c, contact in joined.items():
            near[c].pop(a, None)
            near[c].pop(b, None)
            near[c][new] = contact
            heapq.heappush(heap, (cost(c, new), c, new))
    return parents, costs


def _tree_hypotheses(parents: list[int], n: int, seeds: Ints) -> Flags:
    """For each height of the tree at which a seed's region grows: the union of the seeds' regions, (k, n) bool."""
    chains = []
    for seed in seeds.tolist():
        chain = [seed]
        while parents[chain[-1]] != chain[-1]:
            chain.append(parents[chain[-1]])
        chains.append(chain)
    heights = sorted({node for chain in chains for node in chain if node >= n})
    parent = np.array(parents)
    found = []
    for height in heights:
        tops = {max(node for node in chain if node <= height) if chain[0] <= height else chain[0] for chain in chains}
        found.append(frozenset(tops))
    distinct = list(dict.fromkeys(found))
    total = len(parent)
    held = np.zeros((len(distinct), total), bool)
    for row, tops in enumerate(distinct):
        held[row, list(tops)] = True
    for node in range(total - 1, -1, -1):
        if parent[node] != node:
            held[:, node] |= held[:, parent[node]]
    return held[:, :n]


def _contours(edges: NDArray[np.float32], centres_xy: Floats, radii_px: Floats, angles: int = 48, steps: int = 24) -> list[NDArray[np.int32]]:
    """The closed contour around each centre that follows the strongest edges, for each range of radii [r, 3 r].

    Dynamic programming over angles in polar coordinates; neighbouring rays may differ by one step of the radius.
    Returns polygons (angles, 2) int32, px, by centres and radii.
    """
    theta = np.arange(angles) * 2 * np.pi / angles
    growth = 3.0 ** (np.arange(steps) / (steps - 1))
    radii = (radii_px[:, None] * growth[None])  # (s, steps)
    # (c, s, angles, steps)
    x = centres_xy[:, 0, None, None, None] + np.cos(theta)[None, None, :, None] * radii[None, :, None, :]
    y = centres_xy[:, 1, None, None, None] + np.sin(theta)[None, None, :, None] * radii[None, :, None, :]
    shape = (len(centres_xy), len(radii_px), angles, steps)
    flat_x, flat_y = x.reshape(-1, steps).astype(np.float32), y.reshape(-1, steps).astype(np.float32)
    reward = cv2.remap(edges, flat_x, flat_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    reward = reward.reshape(shape).reshape(-1, angles, steps).astype(float)
    count = len(reward)

    def best_path(start: NDArray[np.int64] | None) -> Ints:
        score = reward[:, 0].copy()
        if start is not None:
            score[np.arange(steps)[None] != start[:, None]] = -np.inf
        back = np.zeros((angles, count, steps), np.int64)
        for angle in range(1, angles):
            padded = np.pad(score, ((0, 0), (1, 1)), constant_values=-np.inf)
            options = np.stack([padded[:, :-2] - 0.05, padded[:, 1:-1], padded[:, 2:] - 0.05])
            choice = options.argmax(axis=0)
            back[angle] = choice - 1
            score = np.take_along_axis(options, choice[None], axis=0)[0] + reward[:, angle]
        if start is not None:
            score[np.abs(np.arange(steps)[None] - start[:, None]) > 1] = -np.inf
        path = np.zeros((count, angles), np.int64)
        path[:, -1] = score.argmax(axis=1)
        rows = np.arange(count)
        for angle in range(angles - 1, 0, -1):
            path[:, angle - 1] = path[:, angle] + back[angle][rows, path[:, angle]]
        return path

    # The free path is right far from its ends: its middle tells where a closed path may start.
    middle = angles // 2
    free = best_path(None)
    reward = np.roll(reward, -middle, axis=1)
    path = np.roll(best_path(free[:, middle]), middle, axis=1)
    px = np.take_along_axis(x.reshape(count, angles, steps), path[..., None], axis=2)[..., 0]
    py = np.take_along_axis(y.reshape(count, angles, steps), path[..., None], axis=2)[..., 0]
    return list(np.round(np.stack([px, py], axis=2)).astype(np.int32))


def _fill(polygon: NDArray[np.int32], regions: _Regions) -> Flags:
    """The superpixels that lie mostly inside the polygon."""
    inside = np.zeros(regions.labels.shape, np.uint8)
    cv2.fillPoly(inside, [polygon], (1,))
    share = np.bincount(regions.labels.ravel(), inside.ravel().astype(float), len(regions.area_px)) / regions.area_px
    return share > 0.5


def _diffuse(regions: _Regions, target: Floats, trust: Floats, sharpness: float = 8.0) -> Floats:
    """Random walker with priors: (L + diag(trust)) p = trust * target over the superpixels; p (n,) in [0, 1].

    Source: Grady, "Multilabel random walker image segmentation using prior models", CVPR 2005.
    """
    n = len(target)
    weight = regions.contact_px * np.exp(-sharpness * regions.strength)
    a, b = regions.pairs[:, 0], regions.pairs[:, 1]
    degree = np.bincount(a, weight, n) + np.bincount(b, weight, n)
    matrix = sparse.csc_matrix(
        (
            np.concatenate([-weight, -weight, degree + trust + 1e-9]),
            (np.concatenate([a, b, np.arange(n)]), np.concatenate([b, a, np.arange(n)])),
        ),
        shape=(n, n),
    )
    return np.asarray(spsolve(matrix, trust * target)).reshape(n)


def _colour_posterior(kernel: Floats, foreground: Floats, background: Floats) -> Floats:
    """Share of the foreground in the two kernel density estimates, (n,) in [0, 1]."""
    inside = kernel @ foreground / max(1e-9, foreground.sum())
    outside = kernel @ background / max(1e-9, background.sum())
    return (inside + 1e-6) / (inside + outside + 2e-6)


def _grow(regions: _Regions, kernel: Floats, start: Floats, sure_in: Flags, sure_out: Flags, reach: Floats, rounds: int = 3) -> Flags:
    """GrabCut's loop on superpixels: colour models from the current mask, then a diffusion; `reach` (n,) is the prior."""
    p = start
    for _ in range(rounds):
        posterior = _colour_posterior(kernel, p * regions.area_px, (1 - p) * regions.area_px * (reach > 0.02))
        logit = np.log(posterior / (1 - posterior)) + np.log((reach + 1e-3) / (1 - reach + 1e-3))
        if regions.affinity is not None:
            logit = logit + 4 * (regions.affinity - 0.5)
        target = 1 / (1 + np.exp(-logit))
        trust = 0.5 * np.sqrt(regions.area_px)
        target = np.where(sure_in, 1.0, np.where(sure_out, 0.0, target))
        trust = np.where(sure_in | sure_out, 1e4, trust)
        p = np.clip(_diffuse(regions, target, trust), 0, 1)
    return p > 0.5


def _connected_to(regions: _Regions, chosen: Flags, seeds: Ints | None, sure_out: Flags) -> Flags:
    """Only the parts that hold a seed (all parts without seeds), their holes filled unless something negative lies there."""
    n = len(chosen)

    def parts(of: Flags) -> NDArray[np.int32]:
        keep = of[regions.pairs[:, 0]] & of[regions.pairs[:, 1]]
        pairs = regions.pairs[keep]
        graph = sparse.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
        labels: NDArray[np.int32] = connected_components(graph, directed=False)[1]
        return labels

    kept = chosen
    if seeds is not None and len(seeds):
        labels = parts(chosen)
        kept = chosen & np.isin(labels, labels[seeds])
    outside = parts(~kept)
    open_ = np.unique(outside[(~kept) & ((regions.rim_px > 0) | sure_out)])
    return kept | (~kept & ~np.isin(outside, open_))


def _qualities(regions: _Regions, found: Flags, seeds: Ints, boxes_xyxy: Floats) -> Floats:
    """How much each hypothesis looks like one object, (k,), higher is better."""
    area = found @ regions.area_px
    total = regions.area_px.sum()
    inside_a, inside_b = found[:, regions.pairs[:, 0]], found[:, regions.pairs[:, 1]]
    rim = (inside_a != inside_b).astype(float)
    inner = (inside_a & inside_b).astype(float)
    length = rim @ regions.contact_px
    contrast = (rim @ (regions.contact_px * regions.strength)) / np.maximum(1, length)
    texture = (inner @ (regions.contact_px * regions.strength)) / np.maximum(1, inner @ regions.contact_px)
    touch = found @ regions.rim_px
    perimeter = length * 0.8 + touch
    compactness = 4 * np.pi * area / np.maximum(1, perimeter**2)
    share = area / total
    quality = 4 * contrast - 1.0 * texture + 1.0 * np.sqrt(np.minimum(1, compactness))
    quality -= 1.5 * touch / np.maximum(1, perimeter)
    quality -= 0.08 * (np.log(share + 1e-4) - np.log(0.1)) ** 2
    quality -= 4.0 * np.maximum(0, share - 0.6)
    if regions.affinity is not None:
        weight = regions.area_px * regions.affinity
        mean_in = found @ weight / np.maximum(1, area)
        mean_out = (weight.sum() - found @ weight) / np.maximum(1, total - area)
        quality += 3.0 * (mean_in - mean_out)
    return np.asarray(quality)


def cut_from_scribble(image: Image, scribble: Scribble, affinity: NDArray[np.float32] | None = None) -> ScoredMask | None:
    """The mask of what a scribble marks.

    Args:
        image: (h, w, 3) uint8 RGB at working size; meant for a longest side of 128 to 400 px.
        scribble: in the frame of `image`. Points outside the image are moved to its nearest pixel.
        affinity: (h, w) float32 in [0, 1] or None: how much each pixel looks like what was marked. Soft evidence.

    Returns:
        Mask (h, w) and expected IoU; None if nothing positive was drawn or no plausible object is there.

    Raises:
        ValueError: shapes or types do not fit.
    """
    height, width = image.shape[:2]
    if scribble.is_empty:
        return None
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    edges = edge_strength(lab)
    regions = _find_regions(lab, edges, affinity)
    n = len(regions.area_px)
    if n < 2:
        return None

    def at(points_xy: NDArray[np.float32]) -> Ints:
        x = np.clip(np.floor(points_xy[:, 0]), 0, width - 1).astype(int)
        y = np.clip(np.floor(points_xy[:, 1]), 0, height - 1).astype(int)
        return regions.labels[y, x]

    seeds = at(scribble.positive_xy)
    if scribble.positive_strokes is not None:
        share = np.bincount(regions.labels.ravel(), scribble.positive_strokes.ravel().astype(float), n)
        seeds = np.concatenate([seeds, np.flatnonzero((share > 0.1 * regions.area_px) | (share >= 4))])
    seeds = np.unique(seeds)
    sure_in = np.zeros(n, bool)
    sure_in[seeds] = True
    sure_out = np.zeros(n, bool)
    sure_out[at(scribble.negative_xy)] = True
    if scribble.negative_strokes is not None:
        sure_out[np.unique(regions.labels[scribble.negative_strokes])] = True
    sure_out &= ~sure_in
    scale = np.array([8.0, 8.0, 8.0, 8.0])
    points = regions.colour / scale
    squared = (points**2).sum(1)
    kernel = np.exp(-0.5 * np.maximum(0, squared[:, None] + squared[None] - 2 * points @ points.T))

    boxes = np.asarray(scribble.boxes_xyxy, float)
    chosen = np.zeros(n, bool)
    scores = []
    if len(boxes):
        for box in boxes:
            x0, y0, x1, y1 = box
            inside = np.zeros((height, width), np.float32)
            inside[max(0, int(round(y0))):int(round(y1)), max(0, int(round(x0))):int(round(x1))] = 1
            share = np.bincount(regions.labels.ravel(), inside.ravel().astype(float), n) / regions.area_px
            size = max(1.0, x1 - x0), max(1.0, y1 - y0)
            middle = (regions.centre_xy - [(x0 + x1) / 2, (y0 + y1) / 2]) / size * 2
            reach = np.where(share > 0.5, 0.75 * np.exp(-0.35 * (middle**2).sum(1) ** 2) , 0.0)
            found = _grow(regions, kernel, (share > 0.5) * 0.9, sure_in & (share > 0), sure_out | (share < 0.3), reach)
            found = _connected_to(regions, found, None, sure_out)
            chosen |= found
            scores.append(0.75)
    if len(seeds) and not (len(boxes) and not chosen[seeds].all() is False):
        hypotheses = [np.zeros((0, n), bool)]
        for power, weight in ((0.25, 1.0), (0.5, 2.0)):
            parents, _ = _merge_tree(regions, power, weight)
            hypotheses.append(_tree_hypotheses(parents, n, seeds))
        middle_xy = regions.centre_xy[seeds].mean(0, keepdims=True) if len(seeds) > 1 else scribble.positive_xy[:1].astype(float)
        radii = max(height, width) * np.array([0.015, 0.025, 0.04, 0.065, 0.1, 0.16])
        polygons = _contours(edges, middle_xy, radii)
        again = []
        for polygon, radius in zip(polygons, radii, strict=True):
            moved = polygon.mean(0, keepdims=True)
            size = np.linalg.norm(polygon - moved, axis=1).mean()
            again += _contours(edges, moved, np.array([size / 1.7]))
        hypotheses.append(np.array([_fill(polygon, regions) for polygon in polygons + again]))
        distance = np.linalg.norm(regions.centre_xy[:, None] - regions.centre_xy[None, seeds], axis=2).min(1)
        for radius in max(height, width) * np.array([0.05, 0.1, 0.2, 0.4]):
            reach = 0.7 * np.exp(-0.5 * (distance / radius) ** 2)
            start = np.exp(-0.5 * (distance / (0.5 * radius)) ** 2)
            hypotheses.append(_grow(regions, kernel, start, sure_in, sure_out, reach)[None])
        found = np.concatenate(hypotheses) & ~sure_out | sure_in
        found = np.array([_connected_to(regions, row, seeds, sure_out) for row in found])
        found = np.unique(found, axis=0)
        area = found @ regions.area_px
        found = found[(area < 0.95 * height * width)]
        if len(found):
            quality = _qualities(regions, found, seeds, boxes)
            area = found @ regions.area_px
            common = (found * regions.area_px) @ found.T.astype(float)
            overlap = common / (area[:, None] + area[None] - common)
            weight = np.exp(4 * (quality - quality.max()))
            weight /= weight.sum()
            expected = overlap @ weight
            best = int(expected.argmax())
            chosen |= found[best]
            scores.append(float(expected[best]))
    if not chosen.any() or not scores:
        return None
    mask: Mask = chosen[regions.labels]
    return ScoredMask(mask, float(np.clip(np.mean(scores), 0, 1)))
