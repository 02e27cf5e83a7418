"""Decides how certain the mask of an annotation is: what its labeler saw is certain, the rest is not.

A labeler saw complete masks (accepted suggestions, shapes, brushes for masks) and strokes that fill an object. What
becomes of other scribbles was shown to nobody, so their masks carry a `MaskUncertainty`.
"""

from dataclasses import replace

import numpy as np

from backend.core.marked_objects import MarkedObject
from backend.core.masks import iou
from backend.core.references import MaskUncertainty
from backend.core.types import EncodedImage, Image, Mask, Scribble
from backend.engine.softmatcher import Softmatcher
from backend.labelstudio.label_prompts import LabelPrompts

_PAINTED_IOU = 0.8
"""IoU of strokes with the segmenter's mask from which on they count as painted as a mask, not as a scribble."""
_SURER = 0.06
"""Unless the segmenter expects a better IoU than that by this much: it is surer of the object than the strokes agree,
so these leave out a rim. On 68 classes and 26 coins the mean difference was 0.02 for strokes up to the border, and 0.08
or more for strokes without a rim of a twentieth of the object's thickness (docs/experiments.md)."""


def reference_mask(
    softmatcher: Softmatcher, encoded: EncodedImage, prompts: LabelPrompts, *, line_pixels: Image | None = None
) -> tuple[Mask | None, MaskUncertainty | None]:
    """Make the mask of a reference: the complete masks and what the scribbles give, object by object.

    Args:
        softmatcher: the engine.
        encoded: the image.
        prompts: of one label on it.
        line_pixels: see `Softmatcher.objects_from_scribble`.

    Returns:
        The mask, (H, W) bool, None if neither shows an object; and its uncertainty, None if all of it was seen.
    """
    complete = list(prompts.complete_masks)
    scribble = prompts.scribble
    if complete:
        scribble = _without_points_in(scribble, np.logical_or.reduce(complete))
    found = [] if scribble.is_empty else softmatcher.objects_from_scribble(encoded, scribble, line_pixels=line_pixels)
    unseen: list[MarkedObject] = []
    for one in found:
        strokes = _painted_whole(one)
        if strokes is None:
            unseen.append(one)
        else:
            complete.append(strokes)
    seen = np.logical_or.reduce(complete) if complete else None
    uncertainty = softmatcher.uncertainty(encoded, unseen, complete=seen) if unseen else None
    masks = complete + [one.found.mask for one in unseen]
    return (np.logical_or.reduce(masks) if masks else None), uncertainty


def _painted_whole(one: MarkedObject) -> Mask | None:
    """Return an object's strokes if they are its whole mask already: then nothing of it is a guess."""
    strokes = one.scribble.positive_strokes
    if strokes is None or not strokes.any():
        return None
    agreement = iou(strokes, one.found.mask)
    is_whole = agreement >= _PAINTED_IOU and one.found.score <= agreement + _SURER
    return strokes if is_whole else None


def _without_points_in(scribble: Scribble, mask: Mask) -> Scribble:
    """Leave out points on an object whose mask is complete: they say nothing new."""
    height, width = mask.shape
    columns, rows = (scribble.positive_xy[:, axis].astype(int) for axis in (0, 1))
    is_new = ~mask[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return replace(scribble, positive_xy=scribble.positive_xy[is_new])
