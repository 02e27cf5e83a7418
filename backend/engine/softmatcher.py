"""The engine: from an image and its mask to a reference, from references and another image to a segmentation.

No I/O, no state: several threads may share one `Softmatcher`. Each box of the paper's figure has a file of its own:
`reference_segmentation`, `matching`, `mask_generation`; this one joins them.

Source: Frick et al., "Probabilistic feature matching for fast scalable visual prompting", IJCAI 2024.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from backend.core.calibration import Calibration
from backend.core.explanation import Explanation, LabelExplanation
from backend.core.grid import map_to_size
from backend.core.instances import split_instances
from backend.core.marked_objects import MarkedObject
from backend.core.masks import mask_to_size, nearest_to_size
from backend.core.matchers import FeatureScale
from backend.core.matching import ReferenceBank
from backend.core.references import MaskUncertainty
from backend.core.types import EncodedImage, Image, LabelMask, Mask, Reference, ScoredMask, Scribble
from backend.engine.competition import Claim, compete
from backend.engine.mask_generation import MaskGeneration
from backend.engine.matching import Matching
from backend.engine.options import MatchOptions
from backend.engine.plans import (
    ImagePlan,
    LabelReferences,
    LabelToFind,
    PreparedImage,
    Proposal,
    SegmentationPlan,
)
from backend.engine.reference_segmentation import ReferenceSegmentation
from backend.engine.refiner import Refiner
from backend.engine.score_source import ScoreSource
from backend.engine.stages import OnStage, StageTimer
from backend.errors import BadInputError
from backend.models.encoders.protocol import Encoder
from backend.models.one_by_one import batch_encoder, batch_segmenter
from backend.models.segmenters import Segmenter

MINIMUM_SIDE_PX = 4
"""An image smaller than this, in height or width, shows no object: resized it is one colour, alike to anything."""


class Softmatcher:
    """Encoder, matching and segmenter joined.

    Args:
        encoder: makes feature maps.
        segmenter: makes masks of prompts.
        calibration: makes presence probability and expected IoU of what can be measured on a mask.
        options: used if a call brings none.
        on_stage: called with a stage's name and its seconds, see `StageTimer`.
    """

    def __init__(
        self,
        encoder: Encoder,
        segmenter: Segmenter,
        calibration: Calibration,
        options: MatchOptions = MatchOptions(),  # noqa: B008 (frozen)
        on_stage: OnStage | None = None,
    ) -> None:
        self._encoder = batch_encoder(encoder)
        self._segmenter = batch_segmenter(segmenter)
        self._options = options
        self._stage = StageTimer(on_stage)
        self.calibration = calibration
        self.device = self._encoder.device
        """Where encoder and matching run."""
        self.signature = f"{encoder.signature}+{segmenter.signature}"
        self.scale = FeatureScale(encoder.temperature, encoder.similarity_floor)
        self._references = ReferenceSegmentation(self._encoder, self._segmenter, self.signature, self._stage)
        self._matching = Matching(self.signature, self.scale, encoder.object_feature_space, self.device)
        self._masks = MaskGeneration(self._segmenter, calibration, self._stage)

    # Encoding

    def encode(self, image: Image) -> EncodedImage:
        """Return all that later steps need of an image, (H, W, 3) uint8 RGB.

        Raises:
            BadInputError: not such an image.
        """
        with self._stage("encode"):
            features = self._encoder.encode(image)
        with self._stage("embed"):
            embedding = self._segmenter.embed(image)
        return EncodedImage(
            (image.shape[0], image.shape[1]), features.numpy().astype(np.float16), embedding, self.signature
        )

    def encode_many(self, images: Sequence[Image]) -> list[EncodedImage]:
        """Encode several images, which share forward passes if that is quicker (`preferred_batch_size`).

        Raises:
            BadInputError: one of them is no such image as `encode` takes.
        """
        return self.encode_prepared([self.prepare(image) for image in images])

    def prepare(self, image: Image) -> PreparedImage:
        """Return what `encode_prepared` needs of an image. Needs no device: for threads that run ahead of it.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        with self._stage("prepare"):
            return PreparedImage(
                (image.shape[0], image.shape[1]), self._encoder.prepare(image), self._segmenter.prepare(image)
            )

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> list[EncodedImage]:
        """Encode what `prepare` made."""
        with self._stage("encode", images=len(prepared)):
            # Both are on their way before one is waited for: the device has always something to do.
            encoding = self._encoder.encode_async([one.for_encoder for one in prepared], dtype=torch.float16)
            embedding = self._segmenter.embed_async([one.for_segmenter for one in prepared])
            features = encoding()
        with self._stage("embed", images=len(prepared)):
            embeddings = embedding()
        return [
            EncodedImage(image.size_hw, one.numpy(), embedded, self.signature)
            for image, one, embedded in zip(prepared, features, embeddings, strict=True)
        ]

    @property
    def preferred_batch_size(self) -> int:
        """Number of images that are worth giving `encode_many` at a time; 1 on a CPU."""
        return self._encoder.batch_size

    # References

    def mask_from_scribble(self, encoded: EncodedImage, scribble: Scribble) -> ScoredMask | None:
        """Return all that a scribble marks as one mask with the mean score of its objects, see `objects_from_scribble`.

        None without anything positive, or if no mask was found.
        """
        found = [one.found for one in self.objects_from_scribble(encoded, scribble)]
        if len(found) < 2:
            return found[0] if found else None
        mask = np.logical_or.reduce([one.mask for one in found])
        return ScoredMask(mask, sum(one.score for one in found) / len(found))

    def objects_from_scribble(self, encoded: EncodedImage, scribble: Scribble) -> list[MarkedObject]:
        """Return the objects that a scribble marks, their masks at natural size.

        [] without anything positive, or if no mask was found.

        Raises:
            BadInputError: image and scribble differ in size, or the image was encoded by other models.
            CancelledWorkError: see `cancellation.check`; asked before each cut.
        """
        self._require_own(encoded)
        return self._references.objects_from_scribble(encoded, scribble)

    def uncertainty(
        self, encoded: EncodedImage, objects: Sequence[MarkedObject], *, complete: Mask | None = None
    ) -> MaskUncertainty | None:
        """Return what `objects_from_scribble` left open, for `describe`, if nobody has seen the masks; None if nothing.

        Args:
            encoded: the image.
            objects: at least one.
            complete: (H, W) bool or None: more of the same label, which somebody has seen.
        """
        return self._references.uncertainty(encoded, objects, complete=complete)

    def describe(
        self,
        image: Image,
        encoded: EncodedImage,
        mask: Mask,
        *,
        background: Mask | None = None,
        is_complete: bool = False,
        uncertainty: MaskUncertainty | None = None,
    ) -> Reference:
        """Return the patches of a reference image as one label sees them.

        Args:
            image: (H, W, 3) uint8 RGB.
            encoded: of the same image.
            mask: (H, W) bool: the object.
            background: (H, W) bool or None: pixels that the user said are not the object.
            is_complete: every object of the label on this image is in `mask`, so everything else is background;
                otherwise patches that look like the object are ambiguous, and ignored.
            uncertainty: of a mask that nobody has seen; nor does anybody know then that it is complete.

        Raises:
            BadInputError: shapes that don't agree, an empty mask, an image encoded by other models.
        """
        self._require_own(encoded)
        return self._references.describe(
            image, encoded, mask, background=background, is_complete=is_complete, uncertainty=uncertainty
        )

    def gather(self, references: Sequence[Reference], options: MatchOptions | None = None) -> ReferenceBank:
        """Return what matching needs of a label's references, see `Matching.gather`."""
        return self._matching.gather(references, options or self._options)

    # Segmentation

    def segment(
        self,
        encoded: EncodedImage,
        references: Mapping[str, LabelReferences],
        options: MatchOptions | None = None,
        *,
        sources: Mapping[str, Sequence[ScoreSource]] | None = None,
        refiners: Mapping[str, Refiner] | None = None,
        pixels: Image | None = None,
    ) -> list[LabelMask]:
        """Find what the references mark.

        Args:
            encoded: the target.
            references: label to references, or to what `gather` made of them; a label without any is left out, unless
                it has another source.
            options: in place of the engine's own.
            sources: label to further sources of its score map.
            refiners: label to what refines its masks.
            pixels: (H, W, 3) uint8 RGB of the target; needed by refiners.

        Returns:
            Up to one mask per label (with `instances` one per object), in the order of `references`, none of them
            overlapping unless the options allow it; [] if nothing is found, and for images of fewer than four pixels
            in height or width.

        Raises:
            BadInputError: features of other models, NaN in them, a temperature that is not above 0, refiners without
                pixels of the target's size.
        """
        plan = self.plan(encoded, references, options, sources=sources, refiners=refiners, pixels=pixels)
        return self.segment_planned([plan])[0]()

    def plan(
        self,
        encoded: EncodedImage,
        references: Mapping[str, LabelReferences],
        options: MatchOptions | None = None,
        *,
        sources: Mapping[str, Sequence[ScoreSource]] | None = None,
        refiners: Mapping[str, Refiner] | None = None,
        pixels: Image | None = None,
    ) -> SegmentationPlan:
        """Match a target and make its prompts: the first part of `segment`, with its arguments and errors."""
        self._require_own(encoded)
        chosen = options or self._options
        if refiners and (pixels is None or pixels.shape[:2] != encoded.size_hw):
            got = "none" if pixels is None else pixels.shape
            raise BadInputError(f"refiners need the target's pixels, {encoded.size_hw} (height, width), got {got}")
        labels = _labels_to_find(references, sources or {})
        if min(encoded.size_hw) < MINIMUM_SIDE_PX:
            labels = ()
        image = self._plan(encoded, labels, chosen) if labels else None
        return SegmentationPlan(encoded, labels, chosen, image, refiners or {}, pixels)

    def segment_planned(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], list[LabelMask]]]:
        """Segment several planned targets, whose decoder passes are shared: the second part of `segment`.

        Returns:
            For each target a function that does the rest, in any thread, and returns what `segment` does.
        """
        return [
            list if plan.image is None else partial(self._finish, plan, proposals)
            for plan, proposals in zip(plans, self._propose_planned(plans), strict=True)
        ]

    def explain(
        self,
        encoded: EncodedImage,
        references: Mapping[str, LabelReferences],
        options: MatchOptions | None = None,
    ) -> Explanation:
        """Return what `segment` goes through with these arguments, and why each cluster and label is kept or dropped.

        Raises: as `segment`.
        """
        plan = self.plan(encoded, references, options)
        if plan.image is None:
            return Explanation(plan.options.matcher, plan.options.strategy, ())
        (propose,) = self._propose_planned([plan])
        proposals = propose()
        claims = compete(proposals, plan.options)
        return Explanation(
            plan.options.matcher,
            plan.options.strategy,
            tuple(
                _explain_label(label.name, proposal, claim, plan.options)
                for label, proposal, claim in zip(plan.labels, proposals, claims, strict=True)
            ),
        )

    def propose(
        self, encoded: EncodedImage, references: Sequence[LabelReferences], options: MatchOptions
    ) -> list[Proposal]:
        """Return the best mask of each label, however bad, in the segmenter's working frame; they may overlap.

        Args:
            encoded: the target.
            references: of each label, at least one.
            options: of matching and mask generation.

        Raises: as `segment`.
        """
        labels = [LabelToFind(str(number), known) for number, known in enumerate(references)]
        (decoded,) = self._masks.decode([self._plan(encoded, labels, options)])
        return self._masks.propose(decoded, options)

    def _propose_planned(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], list[Proposal]]]:
        # Of several labels in two passes: which are on the image is judged while each has all others' objects as
        # background. Then those that are there are matched again as if there were no others: an absent label changes
        # nothing of a present one's mask.
        decoded = iter(self._masks.decode([plan.image for plan in plans if plan.image is not None]))
        made: list[Callable[[], list[Proposal]]] = []
        again: list[tuple[int, list[Proposal], list[int], ImagePlan]] = []
        for number, plan in enumerate(plans):
            if plan.image is None:
                made.append(list)
            elif len(plan.labels) == 1:
                made.append(partial(self._masks.propose, next(decoded), plan.options))
            else:
                first = self._masks.propose(next(decoded), plan.options)
                made.append(partial(list, first))
                present = [index for index, one in enumerate(first) if one.is_there(plan.options)]
                if 0 < len(present) < len(plan.labels):
                    labels = [plan.labels[index] for index in present]
                    again.append((number, first, present, self._plan(plan.encoded, labels, plan.options)))
        second = self._masks.decode([image for *_, image in again]) if again else []
        for (number, first, present, _), one in zip(again, second, strict=True):
            propose = partial(self._masks.propose, one, plans[number].options)
            made[number] = partial(_with_new_masks, first, present, propose)
        return made

    def _plan(self, encoded: EncodedImage, labels: Sequence[LabelToFind], options: MatchOptions) -> ImagePlan:
        with self._stage("match"):
            matches = self._matching.match(encoded, labels, options)
        return self._masks.plan(encoded, matches, options)

    def _finish(self, plan: SegmentationPlan, propose: Callable[[], list[Proposal]]) -> list[LabelMask]:
        found: list[LabelMask] = []
        size_hw, options = plan.encoded.size_hw, plan.options
        proposals = propose()
        claims = compete(proposals, options)
        with self._stage("upsample"):
            for label, proposal, claim in zip(plan.labels, proposals, claims, strict=True):
                if not claim.is_kept:
                    continue
                natural = mask_to_size(claim.mask, size_hw)
                refiner = plan.refiners.get(label.name)
                if refiner is not None and plan.pixels is not None and natural.any():
                    natural = refiner.refine(natural, _to_size(proposal.posterior, size_hw), plan.pixels)
                if options.overlap == "exclusive":
                    # Masks that touch in the working frame may share the pixels that its border became.
                    for other in found:
                        natural &= ~other.mask
                if options.instances:
                    owner = nearest_to_size(split_instances(claim.mask), size_hw)
                    objects = [natural & (owner == index) for index in range(int(owner.max()) + 1)]
                else:
                    objects = [natural]
                found += [LabelMask(label.name, one, claim.score) for one in objects if one.any()]
        return found

    def _require_own(self, encoded: EncodedImage) -> None:
        if encoded.signature != self.signature:
            raise BadInputError(
                f"image must be encoded by the models {self.signature}, got {encoded.signature}; encode it again"
            )


def _labels_to_find(
    references: Mapping[str, LabelReferences], sources: Mapping[str, Sequence[ScoreSource]]
) -> tuple[LabelToFind, ...]:
    labels = []
    for name in dict.fromkeys([*references, *sources]):
        known, further = references.get(name), tuple(sources.get(name, ()))
        has_references = isinstance(known, ReferenceBank) or bool(known)
        if has_references or further:
            labels.append(LabelToFind(name, known if has_references else None, further))
    return tuple(labels)


def _with_new_masks(
    first: Sequence[Proposal], present: Sequence[int], propose: Callable[[], list[Proposal]]
) -> list[Proposal]:
    better = dict(zip(present, propose(), strict=True))
    # A label that was there stays there: only its mask is made anew.
    return [
        replace(better[index], presence=one.presence if better[index].mask.any() else 0.0) if index in better else one
        for index, one in enumerate(first)
    ]


def _explain_label(label: str, proposal: Proposal, claim: Claim, options: MatchOptions) -> LabelExplanation:
    chance = f"The object is there with a probability of {claim.presence:.2f}"
    if claim.is_kept:
        reason = f"{chance}; {options.minimum_presence} is required."
    elif proposal.mask.any() and claim.presence < options.minimum_presence:
        reason = f"{chance}, less than the required {options.minimum_presence}."
    elif proposal.mask.any() and claim.score < options.minimum_score:
        reason = f"The expected IoU is {claim.score:.2f}, less than the required {options.minimum_score}."
    elif proposal.mask.any():
        reason = "Its pixels went to a label that is likelier there."
    elif any(cluster.is_kept for cluster in proposal.clusters):
        reason = "All its components were too small."
    else:
        reason = "No cluster mask is left: the object seems absent."
    return LabelExplanation(
        label, proposal.posterior, proposal.clusters, claim.mask, claim.score, claim.is_kept, reason
    )


def _to_size(posterior: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    return map_to_size(torch.from_numpy(posterior), size_hw).numpy()
