"""Reference images: coverage and ignore weight of their patches, and the views that they are encoded in."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from backend.core.arrays import TINY
from backend.core.types import Image, Mask

ZOOM = 1.5
"""Side of the zoomed view over the longer side of the object's box."""
MINIMUM_ZOOM_PX = 32
BACKGROUND_QUANTILE = 0.5


@dataclass(frozen=True, eq=False)
class MaskUncertainty:
    """The uncertainty of a scribble's mask, which nobody has confirmed.

    Attributes:
        confidence: in [0, 1]: how much the mask counts; `soft_mask` has the rest. (H, W) float32 if some of the objects
            are less certain than others.
        soft_mask: (H, W) float32 in [0, 1]: how likely each pixel shows what was marked, whatever the mask says.
        score: mean expected IoU of the masks, in [0, 1].
        is_by_points: whether points alone marked what is uncertain: they say little of what is not the object, so an
            ambiguous patch stays ignored, whatever the soft mask says.
    """

    confidence: float | NDArray[np.float32]
    soft_mask: NDArray[np.float32]
    score: float = 0.0
    is_by_points: bool = False

    def at_least(self, confidence: float) -> "MaskUncertainty | None":
        """Return the same with no confidence below this one; None if nothing is uncertain then."""
        if confidence >= 1:
            return None
        if isinstance(self.confidence, float):
            return replace(self, confidence=max(self.confidence, confidence))
        return replace(self, confidence=np.maximum(self.confidence, np.float32(confidence)))

    def seen_in(self, window: tuple[slice, slice]) -> "MaskUncertainty":
        """Return the uncertainty of a view of the image."""
        confidence = (
            self.confidence if isinstance(self.confidence, float) else np.ascontiguousarray(self.confidence[window])
        )
        return replace(self, confidence=confidence, soft_mask=np.ascontiguousarray(self.soft_mask[window]))


@dataclass(frozen=True, eq=False)
class ReferenceView:
    """One view of a reference image, with its mask.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        mask: (h, w) bool.
        background: (h, w) bool, marked as not the object, or None.
        uncertainty: of the mask, or None.
    """

    image: Image
    mask: Mask
    background: Mask | None
    uncertainty: MaskUncertainty | None


def reference_views(
    image: Image, mask: Mask, background: Mask | None, uncertainty: MaskUncertainty | None = None
) -> Iterator[ReferenceView]:
    """Yield three views of a reference image: as it is, mirrored, and zoomed to the object.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.
        background: (H, W) bool, marked as not the object, or None.
        uncertainty: of the mask, or None.
    """
    whole = slice(None)
    for window in ((whole, whole), (whole, slice(None, None, -1)), _zoom_window(mask)):
        yield ReferenceView(
            np.ascontiguousarray(image[window]),
            np.ascontiguousarray(mask[window]),
            None if background is None else np.ascontiguousarray(background[window]),
            None if uncertainty is None else uncertainty.seen_in(window),
        )


def blend_uncertainty(
    foreground_coverage: NDArray[np.float32],
    ignore_weight: NDArray[np.float32],
    soft_mask: NDArray[np.float32],
    confidence: float | NDArray[np.float32],
    *,
    keeps_ambiguous: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Blend what a mask and what its soft mask state about patches, by the mask's confidence.

    Args:
        foreground_coverage: (R,) float32 in [0, 1], by the mask.
        ignore_weight: (R,) float32 in [0, 1], by the mask.
        soft_mask: (R,) float32 in [0, 1], of `MaskUncertainty`.
        confidence: in [0, 1]; (R,) float32, or one for all patches.
        keeps_ambiguous: the soft mask's background counts only as far as the patch is not ambiguous.

    Returns:
        Foreground coverage c and ignore weight w, (R,) float32 in [0, 1]; their foreground c * w and background
        (1 - c) * w are the means of both opinions.
    """
    foreground = confidence * foreground_coverage * ignore_weight + (1 - confidence) * soft_mask
    weight = confidence * ignore_weight + (1 - confidence)
    if keeps_ambiguous:
        background = (confidence * (1 - foreground_coverage) + (1 - confidence) * (1 - soft_mask)) * ignore_weight
        weight = foreground + background
    return foreground / np.maximum(weight, TINY), weight


def _zoom_window(mask: Mask) -> tuple[slice, slice]:
    y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    bottom, right = int(y[-1]) + 1, int(x[-1]) + 1
    side = max(max(bottom - int(y[0]), right - int(x[0])) * ZOOM, MINIMUM_ZOOM_PX)
    centre_y, centre_x = (int(y[0]) + bottom) / 2, (int(x[0]) + right) / 2
    rows = slice(max(0, int(centre_y - side / 2)), int(np.ceil(centre_y + side / 2)))
    columns = slice(max(0, int(centre_x - side / 2)), int(np.ceil(centre_x + side / 2)))
    return rows, columns


def ambiguous_patch_weights(
    features: NDArray[np.float32],
    foreground_coverage: NDArray[np.float32],
    background_coverage: NDArray[np.float32] | None,
    *,
    temperature: float,
) -> NDArray[np.float32]:
    """Return the ignore weight of each patch of a view, if the mask need not show all objects of the label.

    A patch off the mask may belong to another, unmarked object of the label. Which ones look so is asked of the view
    itself: the half of these patches that is least similar to the mask's mean feature is taken as background, and a
    patch is ambiguous if between mask and this background its posterior (`matching.match_posterior`, without its own
    vote) is above 0.5, unless the user marked it as background.

    Args:
        features: (R, D) float32, of unit length.
        foreground_coverage: (R,) float32 in [0, 1].
        background_coverage: (R,) float32 in [0, 1] or None: what the user marked as not the object.
        temperature: of these features.

    Returns:
        (R,) float32 in [0, 1]; 1 for every patch that the mask touches, whose rest is the object's own border.
    """
    off_mask = foreground_coverage <= 0.0
    if not off_mask.any():
        return np.ones_like(foreground_coverage)
    mean = (foreground_coverage @ features) / foreground_coverage.sum()
    similarity = features @ mean
    background = off_mask & (similarity <= np.quantile(similarity[off_mask], BACKGROUND_QUANTILE))
    weights = np.exp((features @ features.T - 1.0) / temperature)
    np.fill_diagonal(weights, 0.0)
    foreground_sum = (foreground_coverage @ weights) / np.sqrt(foreground_coverage.sum())
    background_sum = (background.astype(np.float32) @ weights) / np.sqrt(np.float32(background.sum()))
    is_ambiguous = off_mask & ~background & (foreground_sum > background_sum)
    weight = np.where(is_ambiguous, np.float32(0), np.float32(1))
    return weight if background_coverage is None else np.maximum(weight, background_coverage)
