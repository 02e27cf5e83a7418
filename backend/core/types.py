"""The values that pass between layers: plain frozen dataclasses over numpy arrays.

Frames: `(H, W)` is the image at its natural size; pixel (x, y) covers [x, x+1) x [y, y+1), x to the right, y down.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""
Mask = NDArray[np.bool_]
"""(H, W) bool."""
MatcherName = Literal["posterior", "softmatcher", "softmatcher-rff", "sinkhorn", "hungarian", "prototype"]
"""Values of the setting `matcher`; `matchers.MATCHERS` has what makes them."""
PromptingStrategy = Literal["prior", "paper"]
"""Values of the setting `recipe`, see `engine.prompting.plan_prompts`."""
OverlapName = Literal["exclusive", "allowed"]
"""Values of the setting `overlap`, see `engine.competition.compete`."""
SamPath = Literal["fast", "package"]
"""Values of the setting `sam_path`: `fast` runs SAM's networks with this project's mask decoder, attention and CUDA
graphs, `package` with the forward passes of segment-anything, mobile_sam and sam2 themselves."""
CpuEngineName = Literal["openvino", "torch"]
"""Values of the setting `cpu_engine`, what runs networks on a processor; see `models.cpu_engine`."""
CpuPrecision = Literal["fp32", "bf16"]
"""Values of the setting `cpu_precision`."""
Json = dict[str, Any]
"""A JSON object as it came from outside, or goes there."""
Arrays = dict[str, NDArray[np.generic]]
"""Named arrays, as safetensors stores them."""


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


def _no_boxes() -> NDArray[np.float32]:
    return np.zeros((0, 4), np.float32)


@dataclass(frozen=True, eq=False)
class Stroke:
    """The stroke of one region, cropped to its bounding box; `core.strokes` makes and reads it.

    Attributes:
        left: of the box, px.
        top: likewise.
        size_hw: of the box.
        area_px: pixels that are painted, at least one.
        bits: (ceil(h * w / 8),) uint8: the mask in the box, packed by rows.
    """

    left: int
    top: int
    size_hw: tuple[int, int]
    area_px: int
    bits: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Scribble:
    """Points, boxes and strokes that a user drew for one label on one image.

    Attributes:
        size_hw: natural size of the image.
        positive_xy: (N, 2) float32, px: points on the object.
        negative_xy: (M, 2) float32, px: points off the object.
        boxes_xyxy: (B, 4) float32, px: boxes around one object each.
        positive_strokes: (H, W) bool or None: pixels painted on the object.
        negative_strokes: (H, W) bool or None: pixels painted off the object.
        strokes_apart: the positive strokes region by region, which may overlap; () if that is not known. They say which
            strokes are marks of their own; segmenters take `positive_strokes`.
    """

    size_hw: tuple[int, int]
    positive_xy: NDArray[np.float32] = field(default_factory=_no_points)
    negative_xy: NDArray[np.float32] = field(default_factory=_no_points)
    boxes_xyxy: NDArray[np.float32] = field(default_factory=_no_boxes)
    positive_strokes: Mask | None = None
    negative_strokes: Mask | None = None
    strokes_apart: tuple[Stroke, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Return whether nothing positive was drawn: negatives alone mark no object."""
        has_strokes = self.positive_strokes is not None and bool(self.positive_strokes.any())
        return not (len(self.positive_xy) or len(self.boxes_xyxy) or has_strokes)

    @property
    def is_points(self) -> bool:
        """Return whether nothing but points on the object was drawn, two or more."""
        has_more = len(self.negative_xy) or len(self.boxes_xyxy)
        has_strokes = self.positive_strokes is not None or self.negative_strokes is not None
        return len(self.positive_xy) > 1 and not has_more and not has_strokes


@dataclass(frozen=True, eq=False)
class ScoredMask:
    """A mask and its expected IoU.

    Attributes:
        mask: (H, W) bool at the image's natural size.
        score: expected IoU in [0, 1].
    """

    mask: Mask
    score: float


@dataclass(frozen=True, eq=False)
class BoxedMask:
    """A mask cropped to a box that contains all its pixels: of a hundred objects, each costs its box, not the image.

    Attributes:
        size_hw: natural size of the image.
        top: of the box, px.
        left: likewise.
        crop: (h, w) bool: the mask in the box.
    """

    size_hw: tuple[int, int]
    top: int
    left: int
    crop: Mask

    @classmethod
    def of(cls, mask: Mask) -> "BoxedMask":
        """Return a mask, (H, W) bool, whose box is the whole image; nothing is copied."""
        height, width = mask.shape
        return cls((height, width), 0, 0, mask)

    def to_mask(self) -> Mask:
        """Return the whole mask, (H, W) bool; the crop itself if the box is the whole image."""
        height, width = self.crop.shape
        if (height, width) == self.size_hw:
            return self.crop
        mask = np.zeros(self.size_hw, np.bool_)
        mask[self.top : self.top + height, self.left : self.left + width] = self.crop
        return mask


@dataclass(frozen=True, eq=False)
class LabelMask:
    """One region of a segmentation: a label, its mask at natural size, its score (expected IoU in [0, 1])."""

    label: str
    boxed: BoxedMask
    score: float

    @property
    def mask(self) -> Mask:
        """Return the whole mask, (H, W) bool; see `BoxedMask.to_mask`."""
        return self.boxed.to_mask()


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """Feature map and image embedding of one image: stored by the feature cache, read by matching and segmenter.

    Attributes:
        size_hw: natural size of the image.
        features: (H_p, W_p, D) float16: the feature map, each patch of unit length.
        embedding: the segmenter's own arrays (SAM: its image embedding; lite: the image at working size).
        signature: of the models that made it.
        text_features: (H_p, W_p, E) float16: the same patches in the space of the text encoder, of unit length; None if
            they were not asked for.
        fine_features: (2 H_p, 2 W_p, D) float16, or nearly so: the feature map at twice the size, made when a target is
            matched with a label that needs it, and not stored; else None.
    """

    size_hw: tuple[int, int]
    features: NDArray[np.float16]
    embedding: Mapping[str, NDArray[np.generic]]
    signature: str
    text_features: NDArray[np.float16] | None = None
    fine_features: NDArray[np.float16] | None = None

    def to_arrays(self) -> Arrays:
        """Return the fields as named arrays, for safetensors."""
        arrays: Arrays = {"size_hw": np.array(self.size_hw, np.int64), "features": self.features}
        arrays.update({f"embedding.{name}": array for name, array in self.embedding.items()})
        if self.text_features is not None:
            arrays["text_features"] = self.text_features
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays, signature: str) -> "EncodedImage":
        """Make one of the arrays that `to_arrays` returns.

        Raises:
            KeyError: an array is missing.
        """
        height, width = (int(side) for side in arrays["size_hw"])
        embedding = {
            name.removeprefix("embedding."): array for name, array in arrays.items() if name.startswith("embedding.")
        }
        text_features = arrays.get("text_features")
        return cls(
            (height, width),
            arrays["features"].astype(np.float16, copy=False),
            embedding,
            signature,
            None if text_features is None else text_features.astype(np.float16, copy=False),
        )


@dataclass(frozen=True, eq=False)
class Reference:
    """The patches of one reference image, for one label.

    Attributes:
        features: (R, D) float16: patch features of unit length, of all views of the reference.
        foreground_coverage: (R,) float16 in [0, 1]: share of each patch that the label's mask covers.
        ignore_weight: (R,) float16 in [0, 1]: weight of each patch; 0 for an ambiguous one, which nobody marked but
            which looks like the object.
        signature: of the models that made the features.
        text_features: (N, E) float16: the first N patches, those of the image as it is, in the space of the text
            encoder; None if they were not asked for.
        fine: patches of the same reference at twice the size, if its object is thin; else None. Some of them: their
            ignore weights are those of the patches that they represent, and may be above 1.
    """

    features: NDArray[np.float16]
    foreground_coverage: NDArray[np.float16]
    ignore_weight: NDArray[np.float16]
    signature: str
    text_features: NDArray[np.float16] | None = None
    fine: "Reference | None" = None

    def to_arrays(self) -> Arrays:
        """Return the fields as named arrays, for safetensors."""
        arrays: Arrays = {"features": self.features, "inside": self.foreground_coverage, "known": self.ignore_weight}
        if self.text_features is not None:
            arrays["text_features"] = self.text_features
        if self.fine is not None:
            arrays.update({f"fine.{name}": array for name, array in self.fine.to_arrays().items()})
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays, signature: str) -> "Reference":
        """Make one of the arrays that `to_arrays` returns.

        Raises:
            KeyError: an array is missing.
        """
        features, coverage, weight = (
            arrays[name].astype(np.float16, copy=False) for name in ("features", "inside", "known")
        )
        text_features = arrays.get("text_features")
        fine = {name.removeprefix("fine."): array for name, array in arrays.items() if name.startswith("fine.")}
        return cls(
            features,
            coverage,
            weight,
            signature,
            None if text_features is None else text_features.astype(np.float16, copy=False),
            cls.from_arrays(fine, signature) if fine else None,
        )
