"""Reference segmentation: from a scribble to the masks of what it marks, from a mask to a reference."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from backend.core import cancellation
from backend.core.arrays import to_numpy
from backend.core.cut_memory import CutMemory
from backend.core.feature_scale import FeatureScale
from backend.core.grid import mask_coverage, patch_means
from backend.core.marked_objects import MarkedObject, find_marked_objects
from backend.core.masks import mask_to_size
from backend.core.memory_bank import thinned
from backend.core.references import (
    MaskUncertainty,
    ReferenceView,
    ambiguous_patch_weights,
    blend_uncertainty,
    reference_views,
)
from backend.core.ridge_path import ridge_path
from backend.core.scribbles import scale_scribble
from backend.core.self_matching import self_matching
from backend.core.self_similarity import scribble_affinity, scribble_uncertainty, stroke_posterior
from backend.core.types import EncodedImage, Image, Mask, Reference, ScoredMask, Scribble
from backend.engine.fine_features import FineFeatures
from backend.engine.stages import StageTimer
from backend.errors import BadInputError
from backend.models.encoders.protocol import Encoder, SideBySide
from backend.models.segmenters import Prompt, Segmenter

MOST_FINE_PATCHES = 2560
"""Patches at twice the size that are kept of a reference: as many as a bank of it alone has by default."""
LEAST_SCORE = 0.5
"""Expected IoU of a scribble's mask from which on self-matching counts: a wrong mask may match itself well."""
SELF_MATCHING = (0.6, 0.8)
"""A mask that nobody has seen is trusted in full from the second on, and not for its self-matching up to the first.
Measured on 68 classes and 26 coins: docs/experiments.md."""


class ReferenceSegmentation:
    """Cuts what scribbles mark, and describes masks as references.

    Args:
        encoder: makes the feature maps of a reference's further views.
        segmenter: makes masks of scribbles.
        signature: of both, kept in each reference.
        scale: of the encoder's similarities.
        fine: makes feature maps at twice the size, for thin objects.
        stage: times what is done.
    """

    def __init__(
        self,
        encoder: Encoder,
        segmenter: Segmenter,
        signature: str,
        scale: FeatureScale,
        fine: FineFeatures,
        stage: StageTimer,
    ) -> None:
        self._encoder = encoder
        self._fine = fine
        self._segmenter = segmenter
        self._signature = signature
        self._scale = scale
        self._stage = stage
        self._cuts = CutMemory()
        self._mirrored: tuple[ref[EncodedImage], NDArray[np.float32]] | None = None

    def objects_from_scribble(
        self, encoded: EncodedImage, scribble: Scribble, line_pixels: Image | None
    ) -> list[MarkedObject]:
        """Cut the objects that a scribble marks, see `Softmatcher.objects_from_scribble`."""
        if scribble.size_hw != encoded.size_hw:
            raise BadInputError(
                f"scribble must be drawn on {encoded.size_hw} (height, width), got {scribble.size_hw}; "
                "check the original sizes"
            )
        if scribble.is_empty:
            return []
        if line_pixels is not None and scribble.is_points:
            line = ridge_path(line_pixels, scribble.positive_xy)
            if line is not None:
                return [MarkedObject(scribble, line)]
        cut = partial(self._cut_or_recall, encoded)
        return find_marked_objects(cut, scribble, points_add_up=self._segmenter.points_add_up)

    def uncertainty(
        self, encoded: EncodedImage, objects: Sequence[MarkedObject], *, complete: Mask | None
    ) -> MaskUncertainty | None:
        """Return the uncertainty of scribbled objects, see `Softmatcher.uncertainty`."""
        with self._stage("uncertainty"):
            return scribble_uncertainty(encoded.features, objects, complete, temperature=self._scale.temperature)

    def describe(
        self,
        image: Image,
        encoded: EncodedImage,
        mask: Mask,
        *,
        background: Mask | None,
        is_complete: bool,
        uncertainty: MaskUncertainty | None,
    ) -> Reference:
        """Make a reference of a mask, see `Softmatcher.describe`."""
        for name, array in (("mask", mask), ("background", background)):
            if array is not None and (array.shape != image.shape[:2] or array.dtype != bool):
                raise BadInputError(
                    f"{name} must be {image.shape[:2]} bool as its image, got {array.shape} {array.dtype}; "
                    "check the original sizes"
                )
        if encoded.size_hw != image.shape[:2]:
            raise BadInputError(f"encoded image must be {image.shape[:2]}, got {encoded.size_hw}; encode this image")
        if not mask.any():
            raise BadInputError("reference mask must mark the object, got an empty mask; draw it")
        if uncertainty is not None and background is not None:
            uncertainty = replace(uncertainty, soft_mask=np.where(background, np.float32(0), uncertainty.soft_mask))
        with self._stage("describe"):
            maps, masks = [encoded.features.astype(np.float32)], [mask]
            mirrored, zoomed = islice(reference_views(image, mask, background), 1, None)
            maps += self._encode_views(encoded, mirrored.image, zoomed.image)
            masks += [mirrored.mask, zoomed.mask]
            uncertainty = self._with_self_matching(masks, maps, uncertainty)
            views = list(reference_views(image, mask, background, uncertainty))
            described = self._of_views(views, maps, is_complete and uncertainty is None)
        if not self._fine.suits(encoded, mask):
            return described
        with self._stage("describe fine"):
            fine = self._of_views(views, self._fine.of_views(encoded, views), is_complete and uncertainty is None)
            return replace(described, fine=thinned(fine, MOST_FINE_PATCHES))

    def _of_views(
        self, views: Sequence[ReferenceView], maps: Sequence[NDArray[np.float32]], is_complete: bool
    ) -> Reference:
        """Make a reference of its views' feature maps."""
        temperature = self._scale.temperature
        features, coverages, weights = [], [], []
        for view, view_features in zip(views, maps, strict=True):
            grid_hw = (view_features.shape[0], view_features.shape[1])
            patches = view_features.reshape(-1, view_features.shape[2])
            coverage: NDArray[np.float32] = mask_coverage(view.mask, grid_hw).flatten()
            weight: NDArray[np.float32] = np.ones_like(coverage)
            if not is_complete:
                marked = mask_coverage(view.background, grid_hw).flatten() if view.background is not None else None
                weight = ambiguous_patch_weights(patches, coverage, marked, temperature=temperature)
            if view.uncertainty is not None:
                soft_mask = patch_means(view.uncertainty.soft_mask, grid_hw).flatten()
                confidence = _patch_confidence(view.uncertainty, grid_hw)
                coverage, weight = blend_uncertainty(
                    coverage, weight, soft_mask, confidence, keeps_ambiguous=view.uncertainty.is_by_points
                )
            features.append(patches)
            coverages.append(coverage)
            weights.append(weight)
        return Reference(
            np.concatenate(features).astype(np.float16),
            np.concatenate(coverages).astype(np.float16),
            np.concatenate(weights).astype(np.float16),
            self._signature,
        )

    def _encode_views(self, encoded: EncodedImage, mirrored: Image, zoomed: Image) -> list[NDArray[np.float32]]:
        if not isinstance(self._encoder, SideBySide) or self._encoder.calls_at_a_time < 2:
            return [self._encode_mirrored(encoded, mirrored), to_numpy(self._encoder.encode(zoomed))]
        with ThreadPoolExecutor(1, thread_name_prefix="view") as pool:
            beside = pool.submit(self._encode_mirrored, encoded, mirrored)
            other = to_numpy(self._encoder.encode(zoomed))
            return [beside.result(), other]

    def _encode_mirrored(self, encoded: EncodedImage, mirrored: Image) -> NDArray[np.float32]:
        # The same for all labels of an image, which are described one after the other.
        known = self._mirrored
        if known is None or known[0]() is not encoded:
            known = self._mirrored = (ref(encoded), to_numpy(self._encoder.encode(mirrored)))
        return known[1]

    def _with_self_matching(
        self, masks: Sequence[Mask], maps: Sequence[NDArray[np.float32]], uncertainty: MaskUncertainty | None
    ) -> MaskUncertainty | None:
        """Raise the confidence in a mask that the image's other views find again; see `SELF_MATCHING`."""
        if uncertainty is None or uncertainty.score < LEAST_SCORE:
            return uncertainty
        others = [
            (
                features.reshape(-1, features.shape[2]),
                mask_coverage(mask, (features.shape[0], features.shape[1])).flatten(),
            )
            for mask, features in zip(masks[1:], maps[1:], strict=True)
        ]
        found = self_matching(
            maps[0],
            others,
            masks[0],
            temperature=self._scale.temperature,
            similarity_floor=self._scale.similarity_floor,
        )
        low, high = SELF_MATCHING
        return uncertainty.at_least(min(max((found - low) / (high - low), 0.0), 1.0))

    def _cut_or_recall(self, encoded: EncodedImage, scribble: Scribble) -> ScoredMask | None:
        return self._cuts.get_or_cut(encoded, scribble, partial(self._cut, encoded, scribble))

    def _cut(self, encoded: EncodedImage, scribble: Scribble) -> ScoredMask | None:
        cancellation.check()
        prompt = self._prompt(encoded, scale_scribble(scribble, self._segmenter.working_hw(encoded.embedding)))
        with self._stage("decode"):
            candidates = self._segmenter.decode(encoded.embedding, [prompt])
        if not candidates:
            return None
        best = max(candidates, key=lambda candidate: candidate.score)
        with self._stage("upsample"):
            mask = mask_to_size(best.mask, encoded.size_hw)
        return ScoredMask(mask, best.score) if mask.any() else None

    def _prompt(self, encoded: EncodedImage, scribble: Scribble) -> Prompt:
        if not self._segmenter.reads_similarity:
            return Prompt(scribble)
        temperature = self._scale.temperature
        with self._stage("affinity"):
            affinity = scribble_affinity(encoded.features, scribble, temperature=temperature)
            posterior = stroke_posterior(encoded.features, scribble, temperature=temperature)
        return Prompt(scribble, affinity=affinity, posterior=posterior)


def _patch_confidence(uncertainty: MaskUncertainty, grid_hw: tuple[int, int]) -> float | NDArray[np.float32]:
    if isinstance(uncertainty.confidence, float):
        return uncertainty.confidence
    return patch_means(uncertainty.confidence, grid_hw).flatten()
