"""Groups the regions of one annotation, draft or context by label: complete masks and scribbles."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from backend.core.strokes import StrokesApart
from backend.core.types import Mask, Scribble, Stroke
from backend.labelstudio.codec import PREDICTED_ORIGINS, Region, is_own_region_id


@dataclass(frozen=True, eq=False)
class LabelPrompts:
    """The regions of one label on one image.

    Attributes:
        label: as results carry it.
        to_name: the image.
        size_hw: natural size of that image.
        complete_masks: masks that need no segmenter, each (H, W) bool.
        scribble: all other regions; its negatives are this label's own and whatever is marked with a background label.
        background: (H, W) bool: pixels that are not of this label: brush strokes and boxes, negative or of a background
            label. None if there are none. The same as the scribble's negative strokes; complete masks need it too.
        region_ids: of the positive regions, in the order of the result.
    """

    label: str
    to_name: str
    size_hw: tuple[int, int]
    complete_masks: tuple[Mask, ...]
    scribble: Scribble
    background: Mask | None
    region_ids: tuple[str, ...]


def is_complete_mask(region: Region, mask_tags: Collection[str] = ()) -> bool:
    """Return whether a region is a mask as it is and needs no segmenter.

    That is a shape, or a brush region that was predicted, accepted from us, or made with a control for masks.

    Args:
        region: of any kind.
        mask_tags: names of control tags with which labelers draw whole masks.
    """
    return region.is_positive and (
        region.kind == "shape"
        or (
            region.kind == "brush"
            and (region.origin in PREDICTED_ORIGINS or region.from_name in mask_tags or is_own_region_id(region.id))
        )
    )


def regions_to_scribble(
    regions: Iterable[Region], size_hw: tuple[int, int], *, background: Iterable[Region] = ()
) -> Scribble:
    """Join the regions of one label on one image to a scribble.

    Negative boxes count as negative strokes that fill the box.

    Args:
        regions: of one label; all of size `size_hw`.
        size_hw: natural size of the image.
        background: regions of other labels that say "not this": the positive ones of them count as negatives.

    Returns:
        An empty scribble if there are no regions.

    Raises:
        ValueError: a region of another size.
    """
    marks = [(region, region.is_positive) for region in regions] + [
        (region, False) for region in background if region.is_positive
    ]
    for region, _ in marks:
        if region.size_hw != size_hw:
            raise ValueError(
                f"regions must be of an image of (H, W) = {size_hw}, got region {region.id} of {region.size_hw}"
            )
    points = {
        sign: [region.point_xy for region, positive in marks if positive is sign and region.point_xy is not None]
        for sign in (True, False)
    }
    boxes = [region.box_xyxy for region, positive in marks if positive and region.box_xyxy is not None]
    painted = [region for region, positive in marks if positive and region.mask is not None]
    return Scribble(
        size_hw=size_hw,
        positive_xy=np.array(points[True], np.float32).reshape(-1, 2),
        negative_xy=np.array(points[False], np.float32).reshape(-1, 2),
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        positive_strokes=_union(size_hw, painted),
        negative_strokes=_union(size_hw, [region for region, positive in marks if not positive]),
        strokes_apart=_apart(painted),
    )


def group_annotation(
    regions: Sequence[Region], background_labels: Collection[str] = (), mask_tags: Collection[str] = ()
) -> tuple[LabelPrompts, ...]:
    """Group the regions of an annotation by image and label.

    A brush region is a complete mask if it was predicted (origin "prediction", "prediction-changed"), if its id is ours
    (an accepted suggestion: the editor may call its origin "manual"), or if its control is one of `mask_tags`; else it
    is a scribble, as key points and rectangles always are. What is marked with a background label is a negative of all
    other labels of that image and gives no entry of its own.

    Args:
        regions: as `read_regions` returns them.
        background_labels: labels that mean "nothing of interest".
        mask_tags: names of control tags with which labelers draw whole masks.

    Returns:
        One entry for each image and label with a positive region, in the order of first appearance.
    """
    grouped: dict[tuple[str, str], list[Region]] = {}
    for region in regions:
        if region.label not in background_labels:
            grouped.setdefault((region.to_name, region.label), []).append(region)
    marks = []
    for (to_name, label), own in grouped.items():
        background = [region for region in regions if region.to_name == to_name and region.label in background_labels]
        positive = [region for region in own if region.is_positive]
        if not positive:
            continue
        complete = [region for region in own if is_complete_mask(region, mask_tags)]
        size_hw = positive[0].size_hw
        scribble = regions_to_scribble(
            [region for region in own if region not in complete], size_hw, background=background
        )
        masks = tuple(region.mask for region in complete if region.mask is not None)
        ids = tuple(region.id for region in positive)
        marks.append(LabelPrompts(label, to_name, size_hw, masks, scribble, scribble.negative_strokes, ids))
    return tuple(marks)


def _apart(painted: Sequence[Region]) -> tuple[Stroke, ...]:
    """Return what each region painted by itself; joined regions that have it not apart count as one."""
    apart = StrokesApart()
    for region in painted:
        assert region.mask is not None  # of brushes only
        if region.strokes_apart:
            apart.extend(region.strokes_apart)
        else:
            apart.add(region.mask)
    return apart.strokes


def _union(size_hw: tuple[int, int], regions: Sequence[Region]) -> Mask | None:
    """Return what the brushes and boxes of the regions cover; None if they have neither."""
    covered: Mask | None = None
    for region in regions:
        if region.mask is None and region.box_xyxy is None:
            continue
        if covered is None:
            covered = np.zeros(size_hw, np.bool_)
        if region.mask is not None:
            covered |= region.mask
        if region.box_xyxy is not None:
            left, top, right, bottom = (round(side) for side in region.box_xyxy)
            covered[top:bottom, left:right] = True
    return covered
