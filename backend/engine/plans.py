"""Values that pass between the boxes of the engine: prepared images, labels to find, plans, candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from backend.core.arrays import Array
from backend.core.calibration import MaskFeatures
from backend.core.explanation import ClusterMask
from backend.core.matching import ReferenceBank
from backend.core.shared_matching import LabelSums
from backend.core.types import EncodedImage, Image, LabelMask, Mask, Reference
from backend.engine.options import MatchOptions
from backend.engine.prompting import PromptPlan
from backend.engine.refiner import Refiner
from backend.engine.score_source import ScoreSource
from backend.models.segmenters import DecodePlan, SegmenterInput

LabelReferences = Sequence[Reference] | ReferenceBank


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image on its way to the models.

    Attributes:
        size_hw: its natural size.
        for_encoder: what `BatchEncoder.prepare` made.
        for_segmenter: what `BatchSegmenter.prepare` made.
    """

    size_hw: tuple[int, int]
    for_encoder: Array
    for_segmenter: SegmenterInput


@dataclass(frozen=True, eq=False)
class LabelToFind:
    """A label with its references, further sources of its score map, or both.

    Attributes:
        name: the label.
        references: its references, or the bank that `gather` made of them; None if there are none.
        sources: further sources.
    """

    name: str
    references: LabelReferences | None
    sources: tuple[ScoreSource, ...] = ()


@dataclass(frozen=True, eq=False)
class LabelMatch:
    """A label's score map on a target's grid of patches.

    Attributes:
        posterior: (H_p, W_p) float32 in [0, 1].
        matching: (H_p, W_p) float32, sums to 1 or is 0: what points are sampled from.
        similarities: object similarity of what was found to the references, and intra-reference similarity; None for
            a label without references.
    """

    posterior: NDArray[np.float32]
    matching: NDArray[np.float32]
    similarities: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class LabelMatches:
    """The matches of all labels with a target.

    Attributes:
        labels: one for each label.
        sums: what they were made of, if the labels shared it: the same labels can be matched from it once more.
    """

    labels: list[LabelMatch]
    sums: LabelSums | None = None


@dataclass(frozen=True, eq=False)
class ImagePlan:
    """A target between matching and segmenter; one item per label in each list.

    Attributes:
        working_hw: size of the segmenter's working frame.
        posteriors: (h, w) float32 in [0, 1] in that frame.
        priors: (h, w) float32 in [0, 1]: the posteriors with the image's adaptive threshold at 0.5.
        similarities: see `LabelMatch`.
        prompts: what the segmenter is asked.
        calls: what the segmenter is to decode.
        sums: see `LabelMatches`.
        fine: of some of these labels, matched at twice the size; None if there is none.
        fine_labels: which.
    """

    working_hw: tuple[int, int]
    posteriors: list[NDArray[np.float32]]
    priors: list[NDArray[np.float32]]
    similarities: list[tuple[float, float] | None]
    prompts: list[PromptPlan]
    calls: list[DecodePlan]
    sums: LabelSums | None = None
    fine: "ImagePlan | None" = None
    fine_labels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class SegmentationPlan:
    """A matched target with its prompts: made by `Softmatcher.plan`, read by `segment_planned`.

    Attributes:
        encoded: the target.
        labels: those to find.
        options: of matching and mask generation.
        image: None if no label is to be found, or the image is too small to show anything.
        refiners: label to what refines its masks.
        pixels: (H, W, 3) uint8 RGB of the target; None without refiners.
    """

    encoded: EncodedImage
    labels: tuple[LabelToFind, ...]
    options: MatchOptions
    image: ImagePlan | None
    refiners: Mapping[str, Refiner] = field(default_factory=dict)
    pixels: Image | None = None


@dataclass(frozen=True, eq=False)
class LabelCandidate:
    """The mask of a label before labels compete, all in the segmenter's working frame of (h, w) px.

    Attributes:
        mask: (h, w) bool, may be empty.
        posterior: (h, w) float32 in [0, 1].
        presence: probability that the object is on the image; 0 for an empty mask.
        score: expected IoU of the mask; 0 for an empty one.
        features: measurements on the mask, which presence and score come from.
        clusters: the cluster masks that it was made of.
        usual_presence: presence probability at the usual size of the features, if `presence` has another size, too.
    """

    mask: Mask
    posterior: NDArray[np.float32]
    presence: float
    score: float
    features: MaskFeatures
    clusters: tuple[ClusterMask, ...]
    usual_presence: float | None = None

    @property
    def sureness(self) -> float:
        """Return the presence probability by which labels are compared: that of one size of features for all."""
        return self.presence if self.usual_presence is None else self.usual_presence

    def joined_with(self, other: "LabelCandidate") -> "LabelCandidate":
        """Return the better of this candidate and one of the same label at twice the size, by expected IoU.

        It is present as both say on average: the larger size is often better, but finds more that is not there.
        """
        better = max((self, other), key=lambda one: one.score)
        presence = (self.presence + other.presence) / 2
        return replace(better, presence=presence, usual_presence=self.presence)

    def is_there(self, options: MatchOptions, *, is_surest: bool = False) -> bool:
        """Return whether presence probability and expected IoU reach what the options ask for."""
        required = options.minimum_presence
        if is_surest:
            required = min(required, options.minimum_presence_surest)
        return self.presence >= required and self.score >= options.minimum_score and bool(self.mask.any())


@dataclass(frozen=True, eq=False)
class FoundMasks:
    """The masks of a target, and how sure it is that they are all.

    Attributes:
        masks: see `Softmatcher.segment`.
        absence: probability that none of the labels is on the image; 1 if none was to be found.
    """

    masks: list[LabelMask]
    absence: float


def labels_to_find(
    references: Mapping[str, LabelReferences], sources: Mapping[str, Sequence[ScoreSource]]
) -> tuple[LabelToFind, ...]:
    """Return the labels that have references or another source, in that order."""
    labels = []
    for name in dict.fromkeys([*references, *sources]):
        known, further = references.get(name), tuple(sources.get(name, ()))
        has_references = isinstance(known, ReferenceBank) or bool(known)
        if has_references or further:
            labels.append(LabelToFind(name, known if has_references else None, further))
    return tuple(labels)
