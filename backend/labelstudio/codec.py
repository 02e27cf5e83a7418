"""Label Studio's regions (the dicts of a `result`) to arrays and back.

One bad region never spoils the others: it becomes a message in `RegionsRead.problems`.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import uuid4

import cv2
import numpy as np

from backend.core.strokes import StrokesApart
from backend.core.types import BoxedMask, Mask, Stroke
from backend.errors import BadInputError
from backend.labelstudio.budget import ReadingBudget
from backend.labelstudio.label_config import BrushControl, LabelConfig
from backend.labelstudio.rle import decode_mask, encode_mask, rle_pixels
from backend.labelstudio.shapes import read_bitmask, read_ellipse, read_polygon, read_rectangle
from backend.labelstudio.strokes import draw_touches

logger = logging.getLogger(__name__)

RegionKind = Literal["keypoint", "rectangle", "brush", "shape"]

_KINDS: dict[str, RegionKind] = {"keypointlabels": "keypoint", "rectanglelabels": "rectangle", "brushlabels": "brush"}
_SHAPES: dict[str, Callable[[Mapping[str, Any], tuple[int, int], ReadingBudget], Mask]] = {
    "rectanglelabels": read_rectangle, "polygonlabels": read_polygon, "ellipselabels": read_ellipse,
    "bitmasklabels": read_bitmask,
}  # fmt: skip
_OWN_ID = re.compile(r"softmatcher-[0-9a-f]{32}")
_MAX_CLAIMED_PIXELS = 1 << 28
"""Pixels that a region may claim for its image: bounds the memory that a few bytes of RLE can ask for."""

_MOST_PERCENT = 1e9
_SURPRISES = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError, cv2.error,
)  # fmt: skip
"""Errors that an unforeseen region may raise: they are that region's problem, never its neighbours'."""

WHOLE_IMAGE_TYPES = frozenset(
    {"textarea", "choices", "number", "rating", "datetime", "taxonomy", "pairwise", "relation"}
)
"""Types of results that classify an image; Label Studio sends them as a context when text is submitted."""
PREDICTED_ORIGINS = ("prediction", "prediction-changed")


@dataclass(frozen=True, eq=False)
class Region:
    """One region of one label on one image. Of `point_xy`, `box_xyxy` and `mask` only that of its kind is there.

    Attributes:
        id: Label Studio's region id.
        label: as results carry it (an alias, if the label has one).
        from_name: the control tag it was made with.
        to_name: the image it is on.
        size_hw: natural size of that image: the frame of the geometry.
        origin: "manual", "prediction" or "prediction-changed" (or what else the sender wrote); "manual" if missing.
        is_positive: False for a key point "not this"; True if the region does not say.
        score: of the prediction it came from.
        point_xy: px.
        box_xyxy: px, within the image; of a rotated rectangle the box around its corners.
        mask: (H, W) bool.
        strokes_apart: what each of the regions painted that are joined in this one; () if it is one, or they are many.
    """

    id: str
    kind: RegionKind
    label: str
    from_name: str
    to_name: str
    size_hw: tuple[int, int]
    origin: str = "manual"
    is_positive: bool = True
    score: float | None = None
    point_xy: tuple[float, float] | None = None
    box_xyxy: tuple[float, float, float, float] | None = None
    mask: Mask | None = None
    strokes_apart: tuple[Stroke, ...] = ()


@dataclass(frozen=True, eq=False)
class RegionsRead:
    """The regions that were read of a result.

    Attributes:
        regions: those that could be read, in the order of the result.
        problems: a message for each one that could not.
        passed_over: the kinds of regions that were passed over, each named once.
    """

    regions: tuple[Region, ...]
    problems: tuple[str, ...]
    passed_over: tuple[str, ...] = ()


def new_region_id() -> str:
    """Return a unique id for a region of ours, which `is_own_region_id` recognises when an accepted one comes back."""
    return f"softmatcher-{uuid4().hex}"


def is_own_region_id(region_id: str) -> bool:
    """Return whether `new_region_id` made it."""
    return _OWN_ID.fullmatch(region_id) is not None


def mask_to_region(
    mask: Mask | BoxedMask, *, brush: BrushControl, label: str, score: float, region_id: str | None = None
) -> dict[str, Any]:
    """Return a brush region for a prediction or an interactive answer.

    Args:
        mask: (H, W) bool at the image's natural size, or its box: the editor shows nothing at any other size.
        brush: the control that the region belongs to; has `label`.
        label: of the region.
        score: in [0, 1].
        region_id: a new id of ours if None.

    Returns:
        A JSON-able region. Its origin is "prediction": Label Studio copies that into annotations made of predictions.

    Raises:
        ValueError: not a bool mask, or the brush does not have that label.
    """
    if label not in brush.labels:
        raise ValueError(f"label must be one of {brush.labels} of brush {brush.name!r}, got {label!r}")
    height, width = mask.size_hw if isinstance(mask, BoxedMask) else mask.shape
    return {
        "id": region_id or new_region_id(),
        "type": "brushlabels",
        "from_name": brush.name,
        "to_name": brush.to_name,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "origin": "prediction",
        "score": float(score),
        "value": {
            "format": "rle",
            "rle": encode_mask(mask),
            "brushlabels": [brush.result_names.get(label, label)],
        },
    }


def is_mark(raw: Mapping[str, Any]) -> bool:
    """Return whether a result is, or claims to be, a region: text and choices of a whole image are not."""
    kind = raw.get("type")
    return not isinstance(kind, str) or kind.lower() not in WHOLE_IMAGE_TYPES


def read_regions(
    result: Sequence[Mapping[str, Any]],
    config: LabelConfig,
    sizes_hw: Mapping[str, tuple[int, int]] | None = None,
    *,
    budget: ReadingBudget | None = None,
    joins_masks: bool = False,
) -> RegionsRead:
    """Read all key points, brush masks and shapes of a result (of an annotation, draft, prediction or context).

    Shapes are polygons, ellipses, bitmasks and rectangles of controls that are not smart: masks as they are, of labels
    that a brush of the image has. Other regions (of labels without a brush, videos, ...) are passed over; choices, text
    and relations are no regions. A region with several labels gives one Region per label. `image_rotation` only
    turns the view in the editor.

    Args:
        result: Label Studio's region dicts.
        config: of the project, as it is now: regions of controls or labels that it does not have are problems.
        sizes_hw: natural sizes of the images by `to_name`. They win over the sizes that regions carry: percent geometry
            is taken of the real size, a mask of another size but the same aspect is resized. Without one, the first
            valid size among the image's regions counts as the real one.
        budget: of the annotation; a new one if None. What is beyond it is left out, as a problem.
        joins_masks: join the masks of brush regions that mean the same (label, control, image, sign, and whether they
            were predicted) while they are decoded: a thousand masks take the memory of one. The region of the first
            stands for all of them, and has their strokes apart (`StrokesApart`).
    """
    sizes = dict(sizes_hw or {})
    budget = budget or ReadingBudget()
    regions: list[Region] = []
    joined: dict[tuple[object, ...], _Joined] = {}
    problems: list[str] = []
    passed_over: dict[str, None] = {}
    for number, raw in enumerate(result):
        region_id = str(raw.get("id", f"number {number + 1}")) if isinstance(raw, Mapping) else f"number {number + 1}"
        try:
            budget.spend(regions=1)
            read = _read_region(raw, region_id, config, sizes, budget)
            if not read and is_mark(raw):
                passed_over[f"{str(raw.get('type'))[:40]} of {str(raw.get('from_name'))[:40]}"] = None
        except BadInputError as error:
            problems.append(f"region {region_id}: {error}")
            continue
        except _SURPRISES as error:
            logger.warning("region %s cannot be read", region_id, exc_info=True)
            problems.append(f"region {region_id}: cannot be read, {type(error).__name__}: {error}; draw it again")
            continue
        if joins_masks:
            _join(regions, joined, read)
        else:
            regions.extend(read)
    for one in joined.values():
        regions[one.at] = replace(regions[one.at], mask=one.mask, strokes_apart=one.apart.strokes)
    return RegionsRead(tuple(regions), tuple(problems), tuple(passed_over))


@dataclass(eq=False)
class _Joined:
    """Regions that mean the same, on their way to one: where it stands, what they cover, and what each painted."""

    at: int
    mask: Mask
    apart: StrokesApart


def _join(regions: list[Region], joined: dict[tuple[object, ...], _Joined], read: Sequence[Region]) -> None:
    """Append regions; of those with a mask only the first of its kind, whose mask is replaced in the end."""
    for region in read:
        if region.mask is None:
            regions.append(region)
            continue
        is_ours = region.origin in PREDICTED_ORIGINS, is_own_region_id(region.id)
        key = (region.label, region.from_name, region.to_name, region.is_positive, *is_ours)
        first = joined.get(key)
        if first is None:
            # Regions of several labels share one mask: each label goes on with its own.
            mask = region.mask if len(read) == 1 else region.mask.copy()
            first = joined[key] = _Joined(len(regions), mask, StrokesApart())
            # The region lets go of the mask, which others are painted into: no array of a region ever changes.
            regions.append(replace(region, mask=None))
        else:
            first.mask |= region.mask
        first.apart.add(region.mask)


def _read_region(
    raw: Mapping[str, Any],
    region_id: str,
    config: LabelConfig,
    sizes: dict[str, tuple[int, int]],
    budget: ReadingBudget,
) -> list[Region]:
    if not isinstance(raw, Mapping):
        raise BadInputError(f"must be a JSON object, got {type(raw).__name__}")
    value, to_name, from_name = raw.get("value"), str(raw.get("to_name")), str(raw.get("from_name"))
    type_name = str(raw.get("type")).lower()
    kind = _KINDS.get(type_name)
    shape = config.shape(from_name, to_name)
    if shape is not None and type_name in _SHAPES:
        kind = "shape"
    if kind is None:
        return []
    if not isinstance(value, Mapping):
        raise BadInputError(f"must have a value that is a JSON object, got {type(value).__name__}")
    if raw.get("item_index"):
        raise BadInputError(f"is on page {raw['item_index']}: images of several pages are not supported")
    config.image(to_name)
    labels = _read_labels(value, type_name, from_name, config)
    if shape is not None:
        labels = [label for label in labels if label in shape.labels]
        if not labels:
            return []
    claimed_hw = _claimed_size(raw)
    size_hw = sizes.get(to_name) or claimed_hw
    if size_hw is None:
        raise BadInputError(
            "must have original_width and original_height over 0 while the image's own size is not known, got "
            f"{raw.get('original_width')!r} x {raw.get('original_height')!r}"
        )
    if kind == "brush":
        read = _read_mask(value, size_hw, claimed_hw or size_hw, budget)
    elif kind == "shape":
        drawn = _SHAPES[type_name](value, size_hw, budget)
        if not drawn.any():
            raise BadInputError("shape must have an area on the image, got one without a pixel: draw it again")
        read = {"mask": drawn}
    else:
        budget.spend(prompts=1)
        read = _GEOMETRIES[kind](value, size_hw)
    sizes.setdefault(to_name, size_hw)
    return [
        Region(
            id=region_id,
            kind=kind,
            label=label,
            from_name=from_name,
            to_name=to_name,
            size_hw=size_hw,
            origin=str(raw.get("origin") or "manual"),
            is_positive=raw.get("is_positive") is not False,
            score=_read_score(raw.get("score")),
            **read,
        )
        for label in labels
    ]


def _read_labels(value: Mapping[str, Any], type_name: str, from_name: str, config: LabelConfig) -> list[str]:
    written = value.get(type_name) or value.get("labels")
    if not isinstance(written, list) or not written:
        raise BadInputError(f"must have its label in value.{type_name}, got {written!r}: give the region a label")
    known = config.label_names.get(from_name)
    if known is None:
        raise BadInputError(
            f"from_name must be a control tag of the label config, one of {sorted(config.label_names)}, got "
            f"{from_name!r}: the config has changed since, mark the region again"
        )
    unknown = [label for label in written if not isinstance(label, str) or label not in known]
    if unknown:
        raise BadInputError(
            f"label must be one of {sorted(set(known.values()))} of control {from_name!r}, got {unknown[0]!r}: add it "
            "to the label config or change the region's label"
        )
    return list(dict.fromkeys(known[label] for label in written))


def _claimed_size(raw: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = raw.get("original_height"), raw.get("original_width")
    if not isinstance(height, int | float) or not isinstance(width, int | float):
        return None
    if not (min(height, width) >= 1 and height * width <= _MAX_CLAIMED_PIXELS):
        return None
    return int(height), int(width)


def _numbers(value: Mapping[str, Any], *names: str) -> list[float]:
    numbers = [value.get(name) for name in names]
    if not all(isinstance(number, int | float) and abs(number) < _MOST_PERCENT for number in numbers):
        raise BadInputError(f"must have numbers (percent of the image) in value {names}, got {numbers}")
    return [float(number) for number in numbers if number is not None]


def _read_point(value: Mapping[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    x, y = _numbers(value, "x", "y")
    if not (0 <= x <= 100 and 0 <= y <= 100):
        raise BadInputError(f"key point must be on the image, 0..100 percent, got ({x:g}, {y:g})")
    height, width = size_hw
    return {"point_xy": (min(x / 100 * width, width - 1e-3), min(y / 100 * height, height - 1e-3))}


def _read_box(value: Mapping[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    x, y, box_width, box_height = _numbers(value, "x", "y", "width", "height")
    turn = math.radians(_numbers(value, "rotation")[0]) if value.get("rotation") is not None else 0.0
    height, width = size_hw
    along = np.array([box_width / 100 * width * math.cos(turn), box_width / 100 * width * math.sin(turn)])
    across = np.array([-box_height / 100 * height * math.sin(turn), box_height / 100 * height * math.cos(turn)])
    # The editor turns a rectangle clockwise about its first corner (x, y), in pixels, not in percent.
    corners = np.array([x / 100 * width, y / 100 * height]) + np.array([along * 0, along, across, along + across])
    left, top = np.clip(corners.min(axis=0), 0, (width, height))
    right, bottom = np.clip(corners.max(axis=0), 0, (width, height))
    if right - left <= 0 or bottom - top <= 0:
        raise BadInputError(
            f"rectangle must have an area on the image, got x={x:g} y={y:g} {box_width:g} x {box_height:g} %"
        )
    return {"box_xyxy": (float(left), float(top), float(right), float(bottom))}


def _read_score(score: object) -> float | None:
    return float(score) if isinstance(score, int | float) and abs(score) < _MOST_PERCENT else None


def _read_mask(
    value: Mapping[str, Any], size_hw: tuple[int, int], claimed_hw: tuple[int, int], budget: ReadingBudget
) -> dict[str, Any]:
    rle, touches = value.get("rle"), value.get("touches")
    if not rle and not touches:
        raise BadInputError(
            "brush must have value.rle or value.touches, got neither: submit the annotation, or draw the region again"
        )
    budget.spend(rle_bytes=len(rle) if isinstance(rle, list | tuple) else 0)
    mask = _decode_at_size(rle, size_hw, claimed_hw) if rle else np.zeros(size_hw, np.bool_)
    return {"mask": draw_touches(mask, touches, budget) if touches else mask}


def _decode_at_size(rle: Sequence[int], size_hw: tuple[int, int], claimed_hw: tuple[int, int]) -> Mask:
    is_as_claimed = rle_pixels(rle) == claimed_hw[0] * claimed_hw[1]
    if claimed_hw == size_hw or (not is_as_claimed and rle_pixels(rle) == size_hw[0] * size_hw[1]):
        return decode_mask(rle, size_hw)  # a wrong original size does no harm where the mask itself fits
    if abs(claimed_hw[0] * size_hw[1] - claimed_hw[1] * size_hw[0]) > max(*claimed_hw, *size_hw):
        raise BadInputError(
            f"brush mask must be of the image's own size {size_hw[1]} x {size_hw[0]} px, got original size "
            f"{claimed_hw[1]} x {claimed_hw[0]}, another shape: the image was changed since, draw the region again"
        )
    resized: Mask = cv2.resize(
        decode_mask(rle, claimed_hw).view(np.uint8), size_hw[::-1], interpolation=cv2.INTER_NEAREST
    ).view(np.bool_)
    return resized


_GEOMETRIES = {"keypoint": _read_point, "rectangle": _read_box}
