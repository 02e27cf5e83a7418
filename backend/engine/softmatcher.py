"""The engine: from an image and its mask to a reference, from references and another image to a segmentation.

No I/O, no state: several threads may share one `Softmatcher`. Each box of the paper's figure has a file of its own:
`reference_segmentation`, `matching`, `mask_generation`; this one joins them.

Source: Frick et al., "Probabilistic feature matching for fast scalable visual prompting", IJCAI 2024.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from backend.core.calibration import Calibration
from backend.core.explanation import Explanation
from backend.core.marked_objects import MarkedObject
from backend.core.matching import ReferenceBank
from backend.core.patches import PatchSource
from backend.core.references import MaskUncertainty
from backend.core.text_scores import LabelPhrases, TextScale
from backend.core.types import EncodedImage, Image, LabelMask, Mask, Reference, ScoredMask, Scribble
from backend.engine.encoder_scale import scale_of
from backend.engine.encoding import ImageEncoding
from backend.engine.fine_features import FineFeatures
from backend.engine.mask_generation import MaskGeneration
from backend.engine.matching import Matching
from backend.engine.options import MatchOptions
from backend.engine.phrase_source import fit_phrases
from backend.engine.plans import (
    FoundMasks,
    LabelCandidate,
    LabelReferences,
    LabelToFind,
    PreparedImage,
    SegmentationPlan,
    labels_to_find,
)
from backend.engine.reference_segmentation import ReferenceSegmentation
from backend.engine.refiner import Refiner
from backend.engine.score_source import ScoreSource
from backend.engine.segmentation import Segmentation
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
        decode_side_px: int = 0,
    ) -> None:
        batches, masks = batch_encoder(encoder), batch_segmenter(segmenter)
        stage = StageTimer(on_stage)
        self._options = options
        self._batch_size = batches.batch_size
        self.calibration = calibration
        self.decode_side_px = decode_side_px
        self.device = batches.device
        """Where encoder and matching run."""
        self.signature = f"{encoder.signature}+{segmenter.signature}"
        scale = scale_of(encoder)
        self.scale = scale.features
        self._encoding = ImageEncoding(batches, masks, self.signature, stage)
        self._fine = FineFeatures(encoder, stage)
        self._references = ReferenceSegmentation(batches, masks, self.signature, self.scale, self._fine, stage)
        self._matching = Matching(self.signature, self.scale, scale.space, self.device)
        self._segmentation = Segmentation(self._matching, MaskGeneration(masks, calibration, stage), stage)

    @property
    def text_space(self) -> str | None:
        """Return the text encoder whose space the encoder's text features are in; None if it has none."""
        return self._encoding.text_space

    def encode(self, image: Image, *, size_hw: tuple[int, int] | None = None, with_text: bool = False) -> EncodedImage:
        """Return all that later steps need of an image, (H, W, 3) uint8 RGB.

        Args:
            image: the image, of at least `decode_side_px` ** 2 pixels if it is reduced.
            size_hw: its natural size, if it is reduced.
            with_text: with text features, for labels with phrases; without a `text_space` there are none.

        Raises:
            BadInputError: not such an image.
        """
        return self._encoding.encode(image, size_hw=size_hw, with_text=with_text)

    def encode_many(self, images: Sequence[Image]) -> list[EncodedImage]:
        """Encode several images, which share forward passes if that is quicker (`preferred_batch_size`).

        Raises:
            BadInputError: one of them is no such image as `encode` takes.
        """
        return self.encode_prepared([self.prepare(image) for image in images])

    def prepare(self, image: Image, size_hw: tuple[int, int] | None = None) -> PreparedImage:
        """Return what `encode_prepared` needs of an image. Needs no device: for threads that run ahead of it.

        Args:
            image: the image, see `encode`.
            size_hw: its natural size, if it is reduced.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        return self._encoding.prepare(image, size_hw)

    def encode_prepared(self, prepared: Sequence[PreparedImage], *, with_text: bool = False) -> list[EncodedImage]:
        """Encode what `prepare` made; `with_text` as in `encode`."""
        return self._encoding.encode_prepared(prepared, with_text=with_text)

    @property
    def preferred_batch_size(self) -> int:
        """Return number of images that are worth giving `encode_many` at a time; 1 on a CPU."""
        return self._batch_size

    def mask_from_scribble(
        self, encoded: EncodedImage, scribble: Scribble, *, line_pixels: Image | None = None
    ) -> ScoredMask | None:
        """Return all that a scribble marks as one mask with the mean score of its objects, see `objects_from_scribble`.

        None without anything positive, or if no mask was found.
        """
        found = [one.found for one in self.objects_from_scribble(encoded, scribble, line_pixels=line_pixels)]
        if len(found) < 2:
            return found[0] if found else None
        mask = np.logical_or.reduce([one.mask for one in found])
        return ScoredMask(mask, sum(one.score for one in found) / len(found))

    def objects_from_scribble(
        self, encoded: EncodedImage, scribble: Scribble, *, line_pixels: Image | None = None
    ) -> list[MarkedObject]:
        """Return the objects that a scribble marks, their masks at natural size.

        [] without anything positive, or if no mask was found.

        Args:
            encoded: the image.
            scribble: what was drawn on it.
            line_pixels: (H, W, 3) uint8 RGB of the image if the label shows thin lines: points alone are then joined
                along the line that they are on, see `ridge_path`.

        Raises:
            BadInputError: image and scribble differ in size, or the image was encoded by other models.
            CancelledWorkError: see `cancellation.check`; asked before each cut.
        """
        self._require_own(encoded)
        return self._references.objects_from_scribble(encoded, scribble, line_pixels)

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
        described = self._references.describe(
            image, encoded, mask, background=background, is_complete=is_complete, uncertainty=uncertainty
        )
        if encoded.text_features is None:
            return described
        text_features = encoded.text_features.reshape(-1, encoded.text_features.shape[2])
        return replace(described, text_features=text_features)

    def add_fine_features(self, encoded: EncodedImage, pixels: Image) -> EncodedImage:
        """Return a target with what `plan` makes of its pixels for thin things, once for many matches.

        Args:
            encoded: the target, for references that it `needs_fine` features for.
            pixels: (H, W, 3) uint8 RGB of it.
        """
        return replace(encoded, fine_features=self._fine.of(encoded, pixels))

    def describe_absence(self, encoded: EncodedImage) -> Reference:
        """Return the patches of an image that does not show a label: all of them are its background.

        Raises:
            BadInputError: the image was encoded by other models.
        """
        self._require_own(encoded)
        features = np.ascontiguousarray(encoded.features.reshape(-1, encoded.features.shape[-1]))
        coverage, weight = np.zeros(len(features), np.float16), np.ones(len(features), np.float16)
        return Reference(features, coverage, weight, self.signature)

    def gather(self, references: Sequence[Reference], options: MatchOptions | None = None) -> ReferenceBank:
        """Return what matching needs of a label's references, see `Matching.gather`."""
        return self._matching.gather(references, options or self._options)

    def fit_phrases(
        self,
        label: str,
        phrases: LabelPhrases,
        references: Sequence[Sequence[Reference]],
        banks: Mapping[str, ReferenceBank],
        options: MatchOptions | None = None,
    ) -> TextScale:
        """Return how far a label's phrases are to be believed, by its own reference images: see `fit_phrases`."""
        return fit_phrases(self._matching, label, phrases, references, banks, options or self._options)

    def gather_patches(self, source: PatchSource, options: MatchOptions | None = None) -> ReferenceBank:
        """Return the same of references that are read patch by patch, see `Matching.gather_patches`."""
        return self._matching.gather_patches(source, options or self._options)

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
            pixels: (H, W, 3) uint8 RGB of the target; needed by refiners, and by labels whose references show thin
                things (`needs_fine`): without pixels these are matched as all others are.

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
        is_matched_again: bool = False,
    ) -> SegmentationPlan:
        """Match a target and make its prompts: the first part of `segment`, with its arguments and errors.

        With `is_matched_again` the products with the references' patches are kept: some 8 MB of a target, which make
        its next match quicker. `forget_products` frees them.
        """
        self._require_own(encoded)
        chosen = options or self._options
        if refiners and (pixels is None or pixels.shape[:2] != encoded.size_hw):
            got = "none" if pixels is None else pixels.shape
            raise BadInputError(f"refiners need the target's pixels, {encoded.size_hw} (height, width), got {got}")
        labels = labels_to_find(references, sources or {})
        if min(encoded.size_hw) < MINIMUM_SIDE_PX:
            labels = ()
        encoded = self._fine.added_to(encoded, references, pixels) if labels else encoded
        image = self._segmentation.plan(encoded, labels, chosen, is_matched_again=is_matched_again) if labels else None
        return SegmentationPlan(encoded, labels, chosen, image, refiners or {}, pixels)

    def forget_products(self) -> None:
        """Forget what `plan` kept of targets that are matched again."""
        self._matching.products.forget()

    def segment_planned(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], list[LabelMask]]]:
        """Segment several planned targets, whose decoder passes are shared: the second part of `segment`.

        Returns:
            For each target a function that does the rest, in any thread, and returns what `segment` does.
        """
        return [partial(_masks_of, finish) for finish in self.find_planned(plans)]

    def find_planned(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], FoundMasks]]:
        """Segment planned targets as `segment_planned` does, and say how sure it is that objects are absent."""
        return self._segmentation.finish(plans)

    def explain(
        self,
        encoded: EncodedImage,
        references: Mapping[str, LabelReferences],
        options: MatchOptions | None = None,
        *,
        sources: Mapping[str, Sequence[ScoreSource]] | None = None,
        refiners: Mapping[str, Refiner] | None = None,
        pixels: Image | None = None,
    ) -> Explanation:
        """Return what `segment` goes through with these arguments, and why each cluster and label is kept or rejected.

        Raises: as `segment`.
        """
        plan = self.plan(encoded, references, options, sources=sources, refiners=refiners, pixels=pixels)
        if plan.image is None:
            return Explanation(plan.options.matcher, plan.options.strategy, ())
        return self._segmentation.explain(plan)

    def label_candidates(
        self,
        encoded: EncodedImage,
        references: Sequence[LabelReferences],
        options: MatchOptions,
        *,
        pixels: Image | None = None,
    ) -> list[LabelCandidate]:
        """Return the best mask of each label, however bad, in the segmenter's working frame; they may overlap.

        Args:
            encoded: the target.
            references: of each label, at least one.
            options: of matching and mask generation.
            pixels: as for `segment`.

        Raises: as `segment`.
        """
        labels = [LabelToFind(str(number), known) for number, known in enumerate(references)]
        encoded = self._fine.added_to(encoded, {one.name: one.references or () for one in labels}, pixels)
        return self._segmentation.label_candidates(encoded, labels, options)

    def _require_own(self, encoded: EncodedImage) -> None:
        if encoded.signature != self.signature:
            raise BadInputError(
                f"image must be encoded by the models {self.signature}, got {encoded.signature}; encode it again"
            )


def _masks_of(finish: Callable[[], FoundMasks]) -> list[LabelMask]:
    return finish().masks
