"""Selection of the masks of SAM that a score map supports."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.models.sam.options import SelectionOptions


@dataclass(frozen=True, eq=False)
class Selected:
    """The mask chosen for each prompt.

    Attributes:
        index: (N,) int64: which one; -1 where none fits.
        score: (N,) float32 in [0, 1]: SAM's predicted IoU, less what the score map does not support.
        criteria_met: (N,) int64: number of criteria, in the order of `rejection_reasons`, that the best mask meets.
    """

    index: Tensor
    score: Tensor
    criteria_met: Tensor


def rejection_reasons(options: SelectionOptions) -> tuple[str, ...]:
    """Return why none of a prompt's masks is kept, by the number of criteria that are met."""
    return (
        "SAM's masks are empty",
        f"SAM rates none of its masks high enough: predicted IoU below {options.minimum_iou:g}",
        f"SAM's masks lie where the score map is low: its mean inside is below {options.minimum_prior:g}",
        "SAM's masks end where the score map does not: it is not higher inside than around by "
        f"{options.minimum_contrast:g}",
    )


def select_by_prior(masks: Tensor, predicted_iou: Tensor, prior: Tensor, options: SelectionOptions) -> Selected:
    """Choose for each prompt the mask that fits its score map best, if any does. Runs where its tensors are.

    Of one prompt's masks, parts and wholes of one thing, the best is the one with the highest predicted IoU times soft
    IoU with the score map, `sum(q in m) / (|m| + sum(q outside m))`.

    Args:
        masks: (N, C, h, w) bool.
        predicted_iou: (N, C) float32.
        prior: (N, h, w) float32 in [0, 1]: each prompt's score map.
        options: thresholds.
    """
    inside = masks.float()
    area = inside.sum(dim=(2, 3))
    shared = (inside * prior[:, None]).sum(dim=(2, 3))
    mean_inside = shared / area.clamp_min(1.0)
    ring = _ring_around(inside, options)
    mean_around = (ring * prior[:, None]).sum(dim=(2, 3)) / ring.sum(dim=(2, 3)).clamp_min(1.0)
    criteria = (
        area > 0,
        predicted_iou >= options.minimum_iou,
        mean_inside >= options.minimum_prior,
        mean_inside - mean_around >= options.minimum_contrast,
    )
    criteria_met = torch.stack(criteria).long().cumprod(dim=0).sum(dim=0)
    is_fit = criteria_met == len(criteria)
    fit = predicted_iou * shared / (area + prior.sum(dim=(1, 2))[:, None] - shared).clamp_min(1e-6)
    index = fit.masked_fill(~is_fit, -torch.inf).argmax(dim=1)
    chosen = (torch.arange(len(index), device=index.device), index)
    score = predicted_iou[chosen].clamp(0.0, 1.0) * mean_inside[chosen]
    return Selected(torch.where(is_fit.any(dim=1), index, -1), score, criteria_met.amax(dim=1))


def _ring_around(inside: Tensor, options: SelectionOptions) -> Tensor:
    """Return (N, C, h, w) float32: 1 in a square ring around each mask, 0 elsewhere."""
    width_px = max(1, round(options.ring_percent / 100 * max(inside.shape[2:])))
    # Sums over a square, one axis after the other: as wide a maximum would cost its width at every pixel.
    near = inside
    for axis in (2, 3):
        padding = [0, 0, width_px + 1, width_px] if axis == 2 else [width_px + 1, width_px, 0, 0]
        sums = F.pad(near, padding).cumsum(dim=axis)
        count = inside.shape[axis]
        near = sums.narrow(axis, 2 * width_px + 1, count) - sums.narrow(axis, 0, count)
    return ((near > 0.5) & (inside < 0.5)).float()
