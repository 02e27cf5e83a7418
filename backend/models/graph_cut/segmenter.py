"""The segmenter of profile `lite`: graph cuts on colour, without weights."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.types import Arrays, Image, Mask, ScoredMask
from backend.models.graph_cut.prior_cut import cut_from_prior
from backend.models.graph_cut.scribble_cut import cut_from_scribble
from backend.models.graph_cut.stroke_cut import cut_from_strokes
from backend.models.images import require_rgb
from backend.models.segmenters import MaskCandidate, Prompt

DISTINCT_SCORE, AGREED_SCORE, AGREED_SHARE = 0.9, 0.75, 0.93
"""Strokes take superpixels' mask from the first expected IoU on, and from the second where it holds this share of the
mask that the posterior gives: there it was the better one on 68 classes of photographs."""
_NOT_IN_THE_CUT = "no piece of the score map's cut lies under these points"


class LiteSegmenter:
    """Segments by graph cuts on colour, without weights. An embedding is the image at working size."""

    def __init__(self, *, working_px: int = 256) -> None:
        self._working_px = working_px
        self.signature = f"graphcut:{working_px}px"
        self.points_add_up = True
        self.reads_similarity = True

    def embed(self, image: Image) -> Arrays:
        """Return the image with its longer side at the working size.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        require_rgb(image)
        scale = self._working_px / max(image.shape[:2])
        width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        return {"image": cv2.resize(image, (width, height), interpolation=interpolation)}

    def working_hw(self, embedding: Mapping[str, NDArray[np.generic]]) -> tuple[int, int]:
        """Return the size of the image in the embedding."""
        height, width = embedding["image"].shape[:2]
        return int(height), int(width)

    def decode(self, embedding: Mapping[str, NDArray[np.generic]], prompts: Sequence[Prompt]) -> list[MaskCandidate]:
        """Return up to one candidate per prompt."""
        image = embedding["image"].astype(np.uint8, copy=False)
        candidates = []
        # Prompts of one label share its score map: one cut serves them all.
        cuts: dict[int, NDArray[np.int32]] = {}
        for index, prompt in enumerate(prompts):
            if prompt.prior is None:
                scored = _cut_scribble(image, prompt)
                if scored is not None:
                    candidates.append(MaskCandidate(scored.mask, scored.score, index))
                continue
            if id(prompt.prior) not in cuts:
                cuts[id(prompt.prior)] = _pieces(cut_from_prior(image, prompt.prior))
            mask = _pieces_under(cuts[id(prompt.prior)], prompt.scribble.positive_xy)
            if mask.any():
                candidates.append(MaskCandidate(mask, float(prompt.prior[mask].mean()), index))
            else:
                candidates.append(MaskCandidate(mask, 0.0, index, _NOT_IN_THE_CUT))
        return candidates


def _cut_scribble(image: Image, prompt: Prompt) -> ScoredMask | None:
    """Cut strokes by the posterior, but for an object so distinct that superpixels agree on its outline."""
    regions = cut_from_scribble(image, prompt.scribble, prompt.affinity)
    if prompt.posterior is None or len(prompt.scribble.boxes_xyxy):
        return regions
    strokes = cut_from_strokes(image, prompt.scribble, prompt.posterior)
    if regions is None or strokes is None:
        return strokes
    is_distinct = regions.score >= DISTINCT_SCORE
    is_agreed = regions.score >= AGREED_SCORE and regions.mask[strokes.mask].mean() >= AGREED_SHARE
    return regions if is_distinct or is_agreed else strokes


def _pieces(mask: Mask) -> NDArray[np.int32]:
    """Return the number of each pixel's connected component, 0 off the mask."""
    return np.asarray(cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1], np.int32)


def _pieces_under(pieces: NDArray[np.int32], points_xy: NDArray[np.float32]) -> Mask:
    height, width = pieces.shape
    x = np.clip(points_xy[:, 0].astype(int), 0, width - 1)
    y = np.clip(points_xy[:, 1].astype(int), 0, height - 1)
    hit = np.unique(pieces[y, x])
    found: Mask = np.isin(pieces, hit[hit > 0])
    return found
