"""What a reference image says about its patches: inside, outside, unknown; and the views it is seen in."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.core.types import Image, Mask

ZOOM = 1.5
"""Side of the zoomed view over the longer side of the object's box."""
MINIMUM_ZOOM_PX = 32
BACKGROUND_QUANTILE = 0.5


@dataclass(frozen=True, eq=False)
class MaskUncertainty:
    """What the mask of a scribble leaves open, as nobody looked at it and said that it is right.

    Attributes:
        confidence: in [0, 1]: how much the mask counts; `soft_mask` has the rest. (H, W) float32 if some of the objects
            are less certain than others.
        soft_mask: (H, W) float32 in [0, 1]: how likely each pixel shows what was marked, whatever the mask says.
    """

    confidence: float | NDArray[np.float32]
    soft_mask: NDArray[np.float32]

    def seen_in(self, window: tuple[slice, slice]) -> "MaskUncertainty":
        """Return the doubt of a view of the image."""
        confidence = (
            self.confidence if isinstance(self.confidence, float) else np.ascontiguousarray(self.confidence[window])
        )
        return MaskUncertainty(confidence, np.ascontiguousarray(self.soft_mask[window]))


@dataclass(frozen=True, eq=False)
class ReferenceView:
    """A reference image seen once: (h, w, 3) uint8 image, (h, w) bool mask, (h, w) bool outside or None, its doubt."""

    image: Image
    mask: Mask
    outside: Mask | None
    uncertainty: MaskUncertainty | None


def reference_views(
    image: Image, mask: Mask, outside: Mask | None, uncertainty: MaskUncertainty | None = None
) -> Iterator[ReferenceView]:
    """The image as it is, mirrored, and zoomed to the object.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.
        outside: (H, W) bool or None.
        uncertainty: of the mask, or None.
    """
    whole = slice(None)
    for window in ((whole, whole), (whole, slice(None, None, -1)), _zoom_window(mask)):
        yield ReferenceView(
            np.ascontiguousarray(image[window]),
            np.ascontiguousarray(mask[window]),
            None if outside is None else np.ascontiguousarray(outside[window]),
            None if uncertainty is None else uncertainty.seen_in(window),
        )


def blend_uncertainty(
    inside: Tensor, known: Tensor, soft_mask: Tensor, confidence: float | Tensor
) -> tuple[Tensor, Tensor]:
    """What is known of patches by a mask that counts for `confidence` only, the rest being as likely says.

    Args:
        inside, known: (R,) float32 in [0, 1], as the mask has it.
        soft_mask: (R,) float32 in [0, 1], of `MaskUncertainty`.
        confidence: in [0, 1]; (R,) float32, or one for all patches.

    Returns:
        inside and known, (R,) float32 in [0, 1]; their foreground `inside * known` and background
        `(1 - inside) * known` are the means of both opinions.
    """
    foreground = confidence * inside * known + (1 - confidence) * soft_mask
    known = confidence * known + (1 - confidence)
    return foreground / known.clamp_min(torch.finfo(torch.float32).tiny), known


def _zoom_window(mask: Mask) -> tuple[slice, slice]:
    y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    bottom, right = int(y[-1]) + 1, int(x[-1]) + 1
    side = max(max(bottom - int(y[0]), right - int(x[0])) * ZOOM, MINIMUM_ZOOM_PX)
    centre_y, centre_x = (int(y[0]) + bottom) / 2, (int(x[0]) + right) / 2
    rows = slice(max(0, int(centre_y - side / 2)), int(np.ceil(centre_y + side / 2)))
    columns = slice(max(0, int(centre_x - side / 2)), int(np.ceil(centre_x + side / 2)))
    return rows, columns


def ambiguous_patch_weights(features: Tensor, inside: Tensor, outside: Tensor | None, *, temperature: float) -> Tensor:
    """How much is known of each patch of a view when nobody said that the mask is all there is.

    A patch outside the mask may belong to another, unmarked object of the label. Which ones look so is asked of the
    view itself: the half of the outside patches that is least similar to the mask's mean feature is taken for
    background, and a patch is unknown if between mask and this background its posterior (`matching.match_posterior`,
    without its own vote) is above 0.5, unless the user said that it is outside.

    Args:
        features: (R, D) float32, of unit length.
        inside: (R,) float32 in [0, 1].
        outside: (R,) float32 in [0, 1] or None: what the user said is not the object.
        temperature: of these features.

    Returns:
        (R,) float32 in [0, 1]; 1 for every patch that the mask touches, whose rest is the object's own border.
    """
    # A patch that the mask touches is no stranger.
    strangers = inside <= 0.0
    if not bool(strangers.any()):
        return torch.ones_like(inside)
    mean = (inside @ features) / inside.sum()
    similarity = features @ mean
    background = strangers & (similarity <= torch.quantile(similarity[strangers], BACKGROUND_QUANTILE))
    weights = ((features @ features.T - 1.0) / temperature).exp_().fill_diagonal_(0.0)
    foreground_sum = (inside @ weights) / inside.sum().sqrt()
    background_sum = (background.float() @ weights) / background.float().sum().sqrt()
    is_look_alike = strangers & ~background & (foreground_sum > background_sum)
    known = torch.where(is_look_alike, 0.0, 1.0)
    return known if outside is None else torch.maximum(known, outside)
