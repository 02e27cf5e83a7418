"""Superpixels of an image and what can be computed on their graph: merge levels, components, colours, diffusion.

n superpixels, m contacts between them, k masks at once: a mask is a row (n,) bool. Deterministic.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
FloatImage = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Superpixels:
    """Basins of the image gradient and where they touch.

    Attributes:
        labels: (h, w) int64 in [0, n).
        area_px: (n,).
        colour: (n, C): mean L, a, b, spread of L (0 to 100 each), then further channels on the same scale.
        centre_xy: (n, 2) px.
        extent_xyxy: (n, 4) px: the bounding boxes.
        rim_px: (n,): pixels on the border of the image.
        pairs: (m, 2) int64: the superpixels of each contact, the smaller first.
        contact_px: (m,): its length.
        strength: (m,) in [0, 1]: mean edge strength along it.
    """

    labels: Ints
    area_px: Floats
    colour: Floats
    centre_xy: Floats
    extent_xyxy: Floats
    rim_px: Floats
    pairs: Ints
    contact_px: Floats
    strength: Floats

    def share_of(self, values: NDArray[np.generic]) -> Floats:
        """Return the mean of a map (h, w) over each superpixel, (n,)."""
        return mean_by_label(self.labels.ravel(), values, self.area_px)


def mean_by_label(labels: Ints, values: NDArray[np.generic], area_px: Floats) -> Floats:
    """Return the mean of `values` over the pixels of each label, (n,); `labels` is flat."""
    means: Floats = np.bincount(labels, values.ravel().astype(np.float64), len(area_px)) / area_px
    return means


def edge_strength(channels: FloatImage, sigma_px: float = 1.0) -> FloatImage:
    """Return the gradient over all channels, (h, w) float32 in [0, 1): 0.63 at three times the image's mean."""
    smooth = cv2.GaussianBlur(channels, (0, 0), sigma_px)
    dx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, borderType=cv2.BORDER_REPLICATE)
    dy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, borderType=cv2.BORDER_REPLICATE)
    squared = dx * dx + dy * dy
    magnitude = np.sqrt(squared.sum(axis=2))
    # The floor keeps the noise of a blank image from looking like edges.
    return np.asarray(1 - np.exp(-magnitude / max(8.0, 3 * float(magnitude.mean()))), np.float32)


def find_superpixels(channels: FloatImage, edges: FloatImage, spacing_px: int) -> Superpixels:
    """Flood the edge map from its minima.

    Args:
        channels: (h, w, C) float32: L, a, b and further channels on the scale of L (0 to 100).
        edges: (h, w) float32, see `edge_strength`.
        spacing_px: odd; two minima are at least half of it apart.
    """
    height, width = edges.shape
    # The smoothed copy has no plateaus of equal values, which would be one marker a pixel or one for all.
    smooth = cv2.GaussianBlur(edges, (0, 0), 0.25 * spacing_px)
    lowest = cv2.erode(smooth, np.ones((spacing_px, spacing_px), np.uint8))
    _, markers = cv2.connectedComponents((lowest == smooth).astype(np.uint8))
    # Imported here: scikit-image takes half a second, which most commands need not wait.
    from skimage.segmentation import watershed

    labels = watershed(edges, markers).astype(np.int64) - 1
    flat = labels.ravel()
    area = np.bincount(flat).astype(np.float64)
    n = len(area)
    colour = [mean_by_label(flat, channels[..., index], area) for index in range(channels.shape[2])]
    light = channels[..., 0]
    spread = np.sqrt(np.maximum(0, mean_by_label(flat, light * light, area) - colour[0] ** 2))
    yy, xx = np.divmod(np.arange(flat.size), width)
    order = np.argsort(flat, kind="stable")
    starts = np.searchsorted(flat[order], np.arange(n))
    extent = [
        np.minimum.reduceat(xx[order], starts),
        np.minimum.reduceat(yy[order], starts),
        np.maximum.reduceat(xx[order], starts) + 1,
        np.maximum.reduceat(yy[order], starts) + 1,
    ]
    rim = np.zeros((height, width), np.float32)
    rim[[0, -1], :] = 1
    rim[:, [0, -1]] = 1
    pairs, contact, strength = _contacts(labels, edges, n)
    return Superpixels(
        labels,
        area,
        np.stack([*colour[:3], spread, *colour[3:]], axis=1),
        np.stack([mean_by_label(flat, xx, area), mean_by_label(flat, yy, area)], axis=1) + 0.5,
        np.stack(extent, axis=1).astype(np.float64),
        np.asarray(np.bincount(flat, rim.ravel().astype(np.float64), n), np.float64),
        pairs,
        contact,
        strength,
    )


def _contacts(labels: Ints, edges: FloatImage, n: int) -> tuple[Ints, Floats, Floats]:
    first = np.concatenate([labels[:, :-1].ravel(), labels[:-1].ravel()])
    second = np.concatenate([labels[:, 1:].ravel(), labels[1:].ravel()])
    differ = np.flatnonzero(first != second)
    across = np.concatenate(
        [np.maximum(edges[:, :-1], edges[:, 1:]).ravel(), np.maximum(edges[:-1], edges[1:]).ravel()]
    )[differ]
    a, b = first[differ], second[differ]
    return _sum_by_pair(np.minimum(a, b), np.maximum(a, b), np.ones(len(a)), across.astype(np.float64), n)


def _sum_by_pair(low: Ints, high: Ints, length: Floats, total: Floats, n: int) -> tuple[Ints, Floats, Floats]:
    """Return distinct pairs (m, 2), their summed length, and total / length."""
    keys, where = np.unique(low * n + high, return_inverse=True)
    lengths = np.bincount(where, length, len(keys))
    totals = np.bincount(where, total, len(keys))
    distinct: Ints = np.stack([keys // n, keys % n], axis=1)
    return distinct, np.asarray(lengths, np.float64), np.asarray(totals / np.maximum(lengths, 1e-9))


def merge_levels(pixels: Superpixels, *, area_power: float, edge_weight: float, colour_scale: float = 20.0) -> Ints:
    """Merge regions in rounds: all pairs that are each other's nearest neighbour join.

    Nearness is (mean edge strength along the contact + distance of mean colours) * area of the smaller ** area_power.

    Returns:
        (rounds, n) int64: the region of each superpixel after each round; the last row is one region (if connected).
    """
    region = np.arange(len(pixels.area_px))
    area, colour = pixels.area_px.copy(), pixels.colour.copy()
    pairs, length, strength = pixels.pairs, pixels.contact_px, pixels.strength
    levels = [region]
    while len(pairs):
        a, b = pairs[:, 0], pairs[:, 1]
        gap = np.sqrt(((colour[a] - colour[b]) ** 2).sum(axis=1)) / colour_scale
        cost = (edge_weight * strength + gap + 0.02) * np.minimum(area[a], area[b]) ** area_power
        n = len(area)
        # Ranks instead of costs: without ties every region has one nearest neighbour, and the lowest pair is mutual.
        rank = np.empty(len(cost), np.int64)
        rank[np.argsort(cost, kind="stable")] = np.arange(len(cost))
        nearest = np.full(n, len(cost))
        np.minimum.at(nearest, a, rank)
        np.minimum.at(nearest, b, rank)
        mutual = (nearest[a] == rank) & (nearest[b] == rank)
        new = np.arange(n)
        new[b[mutual]] = a[mutual]
        _, new = np.unique(new, return_inverse=True)
        merged_area = np.asarray(np.bincount(new, area), np.float64)
        colour = np.stack([np.bincount(new, column * area) for column in colour.T], axis=1) / merged_area[:, None]
        area = merged_area
        region = new[region]
        levels.append(region)
        low, high = np.minimum(new[a], new[b]), np.maximum(new[a], new[b])
        keep = low != high
        pairs, length, strength = _sum_by_pair(
            low[keep], high[keep], length[keep], (length * strength)[keep], len(area)
        )
    return np.stack(levels)


def components(pixels: Superpixels, masks: Flags) -> NDArray[np.int32]:
    """Return connected parts, (k, n) int32; masks share no id, and a superpixel off its mask is a part itself."""
    k, n = masks.shape
    row, contact = np.nonzero(masks[:, pixels.pairs[:, 0]] & masks[:, pixels.pairs[:, 1]])
    a, b = pixels.pairs[contact, 0] + row * n, pixels.pairs[contact, 1] + row * n
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    graph = sparse.coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(k * n, k * n))
    labels: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return labels.reshape(k, n)


def keep_seeded_parts(pixels: Superpixels, masks: Flags, seeds: Ints, sure_out: Flags) -> Flags:
    """Return masks (k, n) with only their parts that hold a seed (all, if there are no seeds) and without their holes.

    A hole with a superpixel of `sure_out` (n,) in it stays.
    """
    kept = masks
    if len(seeds):
        labels = components(pixels, masks)
        seeded = np.zeros(labels.size + 1, bool)
        seeded[labels[:, seeds][masks[:, seeds]]] = True
        kept = masks & seeded[labels]
    labels = components(pixels, ~kept)
    is_open = np.zeros(labels.size + 1, bool)
    is_open[labels[~kept & ((pixels.rim_px > 0) | sure_out)[None]]] = True
    filled: Flags = kept | ~is_open[labels]
    return filled


def colour_kernel(pixels: Superpixels, width: float = 8.0) -> Floats:
    """Return the Gaussian kernel between the superpixels' colours, (n, n)."""
    points = (pixels.colour / width).astype(np.float32)
    squared = (points**2).sum(axis=1)
    distance = np.maximum(0, squared[:, None] + squared[None] - 2 * points @ points.T)
    return np.asarray(np.exp(-0.5 * distance), np.float64)


def diffuse(
    pixels: Superpixels, target: Floats, confidence: Floats, *, sharpness: float = 8.0, rounds: int = 25
) -> Floats:
    """Solve a random walker with priors, (L + diag(confidence)) p = confidence * target, by Jacobi iteration.

    Args:
        pixels: the graph.
        target: (n, k) in [0, 1]: what each superpixel's own colours say.
        confidence: (n, k) > 0: its weight against the contacts, whose weight is length * exp(-sharpness * strength).
        sharpness: see `confidence`.
        rounds: of the iteration.

    Returns:
        p: (n, k) in [0, 1].

    Source: Grady, "Multilabel random walker image segmentation using prior models", CVPR 2005.
    """
    n = len(target)
    weight = pixels.contact_px * np.exp(-sharpness * pixels.strength)
    a, b = pixels.pairs[:, 0], pixels.pairs[:, 1]
    symmetric = np.concatenate([weight, weight]), (np.concatenate([a, b]), np.concatenate([b, a]))
    from scipy import sparse

    graph = sparse.csr_matrix(symmetric, shape=(n, n))
    degree = np.asarray(graph.sum(axis=1)).reshape(n, 1)
    p = target
    for _ in range(rounds):
        p = (graph @ p + confidence * target) / (degree + confidence)
    return np.asarray(p)
