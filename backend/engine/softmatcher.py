"""The engine: from an image and its mask to a reference, from references and another image to a segmentation.

No I/O, no state: several threads may share one `Softmatcher`.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.core import cancellation
from backend.core.calibration import MaskFeatures, expected_iou, mask_features, presence
from backend.core.cut_memory import CutMemory
from backend.core.explanation import ClusterMask, Explanation, LabelExplanation
from backend.core.grid import map_to_size, mask_coverage, patch_means
from backend.core.instances import split_instances
from backend.core.marked_objects import MarkedObject, find_marked_objects
from backend.core.masks import clean_mask, mask_to_size, resolve_overlaps
from backend.core.matchers import MATCHERS, TENSOR_MATCHERS
from backend.core.matching import (
    Matcher,
    ReferenceBank,
    match_posterior,
    match_posteriors,
    with_others_as_background,
)
from backend.core.memory_bank import build_bank
from backend.core.object_similarity import ObjectFeatureSpace, intra_reference_similarity, object_similarity
from backend.core.references import MaskUncertainty, ambiguous_patch_weights, blend_uncertainty, reference_views
from backend.core.score_map import adaptive_threshold, map_peak, recentre_log_odds
from backend.core.self_similarity import scribble_affinity, scribble_uncertainty, stroke_posterior
from backend.core.types import (
    EncodedImage,
    Image,
    LabelMask,
    Mask,
    MatcherName,
    OverlapName,
    PromptingStrategy,
    Reference,
    ScoredMask,
    Scribble,
)
from backend.engine.proposals import PromptPlan, plan_prompts, select_masks
from backend.errors import BadInputError, ConfigurationError
from backend.models.device.on_device import Constants
from backend.models.encoders.protocol import BatchEncoder, Encoder
from backend.models.loading import ModelSource, load_profile
from backend.models.segmenters import BatchSegmenter, MaskCandidate, Prompt, Segmenter, SegmenterInput

logger = logging.getLogger(__name__)

OnStage = Callable[[str, float], None]
LabelReferences = Sequence[Reference] | ReferenceBank
_SAME_REGION = 0.5
"""Masks of two labels whose IoU is at least this are one region: it goes to one of them as a whole."""
_LEAST_LEFT = 0.3
"""A label that loses more than the rest of its mask to others is not there."""
MINIMUM_SIDE_PX = 4
"""An image smaller than this, in height or width, shows no object: resized it is one colour, alike to anything."""


@dataclass(frozen=True)
class MatchOptions:
    """How references are matched and masks are made of it. Every field fits into JSON.

    Attributes:
        matcher: a key of `MATCHERS`: `posterior`, the paper's `softmatcher`, ...
        strategy: how masks are made of the score map: `prior`, or the `paper`'s own.
        temperature: softmax scale, above 0; None takes the encoder's own.
        points: sampled from the matching probability, per label; None takes the recipe's own number.
        clusters: of these points, each a prompt of its own.
        seed: of the sampling.
        bank_patches: bound of the patches that a label's references are matched with, see `build_bank`.
        small_component_percent: pieces and holes smaller than this part of the image are cleaned away.
        instances: one mask for each object of a label, not one for all of them.
        minimum_presence: nothing is returned where the object is believed to be there with a smaller chance than this.
        minimum_score: nor where the expected IoU is below this.
        overlap: `exclusive`: a pixel has one label at most; `allowed`: labels may lie on one another.
    """

    matcher: MatcherName = "posterior"
    strategy: PromptingStrategy = "prior"
    temperature: float | None = None
    points: int | None = None
    clusters: int = 8
    seed: int = 0
    bank_patches: int = 2560
    small_component_percent: float = 0.02
    instances: bool = False
    minimum_presence: float = 0.5
    minimum_score: float = 0.0
    overlap: OverlapName = "exclusive"

    def digest(self) -> str:
        """Twelve hex digits that change with any option: part of model_version."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Proposal:
    """A label's mask before it is judged, all in the segmenter's working frame of (h, w) px.

    Attributes:
        mask: (h, w) bool, may be empty.
        posterior: (h, w) float32 in [0, 1].
        prior: (h, w) float32 in [0, 1]: the posterior with this image's threshold at 0.5.
        object_similarity: how alike in kind what was found is to the references' objects, a cosine.
        intra_reference_similarity: how alike these are among themselves.
        parts: what the mask was made of.
    """

    mask: Mask
    posterior: NDArray[np.float32]
    prior: NDArray[np.float32]
    object_similarity: float
    intra_reference_similarity: float
    parts: tuple[ClusterMask, ...]
    chance: float | None = None
    """Chance that the object is there, where it was judged beside other labels; None: as its evidence says."""

    def weigh(self) -> MaskFeatures:
        """What speaks for the mask."""
        return mask_features(
            self.mask,
            self.posterior,
            self.prior,
            object_similarity=self.object_similarity,
            intra_reference_similarity=self.intra_reference_similarity,
        )


@dataclass(frozen=True, eq=False)
class _ImagePlan:
    """A target between matching and segmenter; one item a label in each list."""

    working_hw: tuple[int, int]
    pictures: list[NDArray[np.float32]]
    priors: list[NDArray[np.float32]]
    kinds: list[tuple[float, float]]
    parts: list[PromptPlan]
    asked: list[Any]
    """Each label's call of the segmenter: what `BatchSegmenter.plan` made, or arguments of `decode`."""


_Decoded = tuple[_ImagePlan, list[list[MaskCandidate]]]


@dataclass(frozen=True, eq=False)
class SegmentationPlan:
    """A target that is matched, and what to ask the segmenter about it: made by `plan`, for `segment_planned`.

    Attributes:
        encoded: the target.
        labels: those looked for.
        references: of each of them.
        options: of matching and masks.
        image: None where nothing is looked for, or the image is too small to show anything.
    """

    encoded: EncodedImage
    labels: tuple[str, ...]
    references: tuple[LabelReferences, ...]
    options: MatchOptions
    image: _ImagePlan | None


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image on its way to the models.

    Attributes:
        size_hw: its natural size.
        inputs: of encoder and segmenter; None if they take no more than one image at a time.
        image: (H, W, 3) uint8 RGB; None if the inputs are there.
    """

    size_hw: tuple[int, int]
    inputs: tuple[Tensor, SegmenterInput] | None
    image: Image | None


class Softmatcher:
    """Encoder, matching and segmenter joined.

    Args:
        encoder: makes feature maps.
        segmenter: makes masks of prompts.
        options: used where a call brings none.
        on_stage: called with a stage's name and its seconds, once for each image that goes through it; images that
            share a pass share its time evenly. From whichever thread ran it.
    """

    def __init__(
        self,
        encoder: Encoder,
        segmenter: Segmenter,
        options: MatchOptions = MatchOptions(),
        on_stage: OnStage | None = None,
    ) -> None:
        self._encoder = encoder
        self._segmenter = segmenter
        self._options = options
        self._on_stage = on_stage
        self.device = encoder.device if isinstance(encoder, BatchEncoder) else torch.device("cpu")
        """Where encoder and matching run."""
        self.signature = f"{encoder.signature}+{segmenter.signature}"
        self.temperature = encoder.temperature
        self.similarity_floor = encoder.similarity_floor
        self._object_channels = encoder.object_feature_space.channels
        self._typical = Constants(encoder.object_feature_space.typical)
        self._cuts = CutMemory()
        self._intra_reference_similarities: WeakKeyDictionary[ReferenceBank, float] = WeakKeyDictionary()

    def encode(self, image: Image) -> EncodedImage:
        """All that later steps need of an image, (H, W, 3) uint8 RGB.

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
        """`encode` for several images, which share forward passes where that is quicker (`preferred_batch_size`).

        Raises:
            BadInputError: one of them is no such image.
        """
        return self.encode_prepared([self.prepare(image) for image in images])

    def prepare(self, image: Image) -> PreparedImage:
        """What `encode_prepared` needs of an image. Needs no device: for threads that run ahead of it.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        encoder, segmenter = self._encoder, self._segmenter
        if isinstance(encoder, BatchEncoder) and isinstance(segmenter, BatchSegmenter):
            with self._stage("prepare"):
                inputs = encoder.prepare(image), segmenter.prepare(image)
            return PreparedImage((image.shape[0], image.shape[1]), inputs, None)
        return PreparedImage((image.shape[0], image.shape[1]), None, image)

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> list[EncodedImage]:
        """`encode_many` of what `prepare` made."""
        encoder, segmenter = self._encoder, self._segmenter
        inputs = [one.inputs for one in prepared if one.inputs is not None]
        if not (isinstance(encoder, BatchEncoder) and isinstance(segmenter, BatchSegmenter)):
            return [self.encode(one.image) for one in prepared if one.image is not None]
        with self._stage("encode", images=len(inputs)):
            # Both are on their way before one is waited for: the device has always something to do.
            encoding = encoder.encode_async([one for one, _ in inputs], dtype=torch.float16)
            embedding = segmenter.embed_async([one for _, one in inputs])
            features = encoding()
        with self._stage("embed", images=len(inputs)):
            embeddings = embedding()
        return [
            EncodedImage(image.size_hw, one.numpy(), embedded, self.signature)
            for image, one, embedded in zip(prepared, features, embeddings, strict=True)
        ]

    @property
    def preferred_batch_size(self) -> int:
        """Images that are worth giving `encode_many` at a time; 1 on a CPU."""
        return self._encoder.batch_size if isinstance(self._encoder, BatchEncoder) else 1

    def mask_from_scribble(self, encoded: EncodedImage, scribble: Scribble) -> ScoredMask | None:
        """All that a scribble means as one mask, see `objects_from_scribble`, with the mean score of its objects; None
        without anything positive, or where no mask was found.
        """
        found = [one.found for one in self.objects_from_scribble(encoded, scribble)]
        if len(found) < 2:
            return found[0] if found else None
        mask = np.logical_or.reduce([one.mask for one in found])
        return ScoredMask(mask, sum(one.score for one in found) / len(found))

    def objects_from_scribble(self, encoded: EncodedImage, scribble: Scribble) -> list[MarkedObject]:
        """The objects that a scribble marks, their masks at natural size; [] without anything positive, or where no
        mask was found.

        Raises:
            BadInputError: image and scribble differ in size, or the image was encoded by other models.
            CancelledWorkError: see `cancellation.check`; asked before each cut.
        """
        self._require_own(encoded)
        if scribble.size_hw != encoded.size_hw:
            raise BadInputError(
                f"scribble must be drawn on {encoded.size_hw} (height, width), got {scribble.size_hw}; "
                "check the original sizes"
            )
        if scribble.is_empty:
            return []
        cut = partial(self._cut_or_recall, encoded)
        return find_marked_objects(cut, scribble, points_add_up=self._segmenter.points_add_up)

    def _cut_or_recall(self, encoded: EncodedImage, scribble: Scribble) -> ScoredMask | None:
        return self._cuts.get_or_cut(encoded, scribble, partial(self._cut, encoded, scribble))

    def _cut(self, encoded: EncodedImage, scribble: Scribble) -> ScoredMask | None:
        cancellation.check()
        working_hw = self._segmenter.working_hw(encoded.embedding)
        resized = scale_scribble(scribble, working_hw)
        with self._stage("affinity"):
            scale = self._encoder.temperature
            affinity = scribble_affinity(encoded.features, resized, temperature=scale)
            posterior = stroke_posterior(encoded.features, resized, temperature=scale)
            prompt = Prompt(resized, affinity=affinity, posterior=posterior)
        with self._stage("decode"):
            candidates = self._segmenter.decode(encoded.embedding, [prompt])
        if not candidates:
            return None
        best = max(candidates, key=lambda candidate: candidate.score)
        with self._stage("upsample"):
            mask = mask_to_size(best.mask, encoded.size_hw)
        return ScoredMask(mask, best.score) if mask.any() else None

    def uncertainty(
        self, encoded: EncodedImage, objects: Sequence[MarkedObject], *, finished: Mask | None = None
    ) -> MaskUncertainty | None:
        """What `objects_from_scribble` left open: for `describe`, if nobody has seen the masks; None if nothing.

        Args:
            encoded: the image.
            objects: at least one.
            finished: (H, W) bool or None: more of the same label, which somebody has seen.
        """
        with self._stage("describe"):
            return scribble_uncertainty(encoded.features, objects, finished, temperature=self._encoder.temperature)

    def describe(
        self,
        image: Image,
        encoded: EncodedImage,
        mask: Mask,
        *,
        outside: Mask | None = None,
        is_complete: bool = False,
        uncertainty: MaskUncertainty | None = None,
    ) -> Reference:
        """The patches of a reference image as one label sees them.

        Args:
            image: (H, W, 3) uint8 RGB.
            encoded: of the same image.
            mask: (H, W) bool: the object.
            outside: (H, W) bool or None: pixels that the user said are not the object.
            is_complete: every object of the label on this image is in `mask`, so everything else is background;
                otherwise patches that look like the object count as unknown.
            uncertainty: of a mask that nobody has seen; nor does anybody know then that it is complete.

        Raises:
            BadInputError: shapes that don't agree, an empty mask.
        """
        self._require_own(encoded)
        for name, array in (("mask", mask), ("outside", outside)):
            if array is not None and (array.shape != image.shape[:2] or array.dtype != bool):
                raise BadInputError(
                    f"{name} must be {image.shape[:2]} bool as its image, got {array.shape} {array.dtype}; "
                    "check the original sizes"
                )
        if encoded.size_hw != image.shape[:2]:
            raise BadInputError(f"encoded image must be {image.shape[:2]}, got {encoded.size_hw}; encode this image")
        if not mask.any():
            raise BadInputError("reference mask must mark the object, got an empty mask; draw it")
        features, inside, known = [], [], []
        if uncertainty is not None and outside is not None:
            uncertainty = replace(uncertainty, soft_mask=np.where(outside, np.float32(0), uncertainty.soft_mask))
        with self._stage("describe"):
            for index, view in enumerate(reference_views(image, mask, outside, uncertainty)):
                view_features = (
                    torch.from_numpy(encoded.features.astype(np.float32))
                    if index == 0
                    else self._encoder.encode(view.image)
                )
                grid_hw = (view_features.shape[0], view_features.shape[1])
                patches = view_features.flatten(0, 1)
                coverage = mask_coverage(view.mask, grid_hw).flatten()
                certain = torch.ones_like(coverage)
                if not is_complete or uncertainty is not None:
                    told = mask_coverage(view.outside, grid_hw).flatten() if view.outside is not None else None
                    certain = ambiguous_patch_weights(patches, coverage, told, temperature=self._encoder.temperature)
                if view.uncertainty is not None:
                    soft_mask = patch_means(torch.from_numpy(view.uncertainty.soft_mask), grid_hw).flatten()
                    coverage, certain = blend_uncertainty(
                        coverage, certain, soft_mask, _patch_confidence(view.uncertainty, grid_hw)
                    )
                features.append(patches)
                inside.append(coverage)
                known.append(certain)
        return Reference(
            torch.cat(features).numpy().astype(np.float16),
            torch.cat(inside).numpy().astype(np.float16),
            torch.cat(known).numpy().astype(np.float16),
            self.signature,
        )

    def gather(self, references: Sequence[Reference], options: MatchOptions | None = None) -> ReferenceBank:
        """What matching needs of a label's references: made once for many targets, whatever their order.

        Raises:
            BadInputError: no references, features of other models, NaN in them, or nothing marked.
        """
        chosen = options or self._options
        bank = build_bank(references, self.signature, most_patches=chosen.bank_patches)
        try:
            return bank.to(self._matching_device(chosen))
        except torch.OutOfMemoryError:
            return bank

    def segment(
        self,
        encoded: EncodedImage,
        references: Mapping[str, LabelReferences],
        options: MatchOptions | None = None,
    ) -> list[LabelMask]:
        """Find what the references mark.

        Args:
            encoded: the target.
            references: label to references, or to what `gather` made of them; a label without any is left out.
            options: in place of the engine's own.

        Returns:
            At most one mask a label (with `instances` one an object), in the order of `references`, none of them
            overlapping unless the options allow it; [] where nothing is found, and for images of fewer than four pixels
            in height or width.

        Raises:
            BadInputError: features of other models, NaN in them, a temperature that is not above 0.
        """
        return self.segment_planned([self.plan(encoded, references, options)])[0]()

    def plan(
        self,
        encoded: EncodedImage,
        references: Mapping[str, LabelReferences],
        options: MatchOptions | None = None,
    ) -> SegmentationPlan:
        """The first part of `segment`, with its arguments and errors: a target is matched, its prompts are made."""
        self._require_own(encoded)
        chosen = options or self._options
        labels = tuple(label for label, known in references.items() if isinstance(known, ReferenceBank) or known)
        if not labels or min(encoded.size_hw) < MINIMUM_SIDE_PX:
            return SegmentationPlan(encoded, (), (), chosen, None)
        known = tuple(references[label] for label in labels)
        return SegmentationPlan(encoded, labels, known, chosen, self._plan(encoded, known, chosen))

    def segment_planned(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], list[LabelMask]]]:
        """The second part of `segment`, of several targets, whose decoder passes are shared.

        Returns:
            For each target what does the rest of it, in any thread, and gives what `segment` does.
        """
        return [
            list if plan.image is None else partial(self._masks, plan, proposals)
            for plan, proposals in zip(plans, self._propose_planned(plans), strict=True)
        ]

    def _propose_planned(self, plans: Sequence[SegmentationPlan]) -> list[Callable[[], list[Proposal]]]:
        """Make the proposals of several targets; of several labels in two passes.

        Which labels are on the image is judged while each knows all others' objects as background. Then those that are
        there are matched again as if there were no others: an absent label changes nothing of a present one's mask.
        """
        decoded = iter(self._decode([plan.image for plan in plans if plan.image is not None]))
        made: list[Callable[[], list[Proposal]]] = []
        again: list[tuple[int, list[Proposal], list[int], _ImagePlan]] = []
        for number, plan in enumerate(plans):
            if plan.image is None:
                made.append(list)
            elif len(plan.labels) == 1:
                made.append(partial(self._join, *next(decoded), plan.options))
            else:
                first = self._join(*next(decoded), plan.options)
                made.append(partial(list, first))
                present = [index for index, one in enumerate(first) if _is_there(one, plan.options)]
                if 0 < len(present) < len(plan.labels):
                    known = [plan.references[index] for index in present]
                    again.append((number, first, present, self._plan(plan.encoded, known, plan.options)))
        second = self._decode([image for *_, image in again]) if again else []
        for (number, first, present, _), one in zip(again, second, strict=True):
            made[number] = partial(self._replaced, first, present, one, plans[number].options)
        return made

    def _replaced(
        self, first: Sequence[Proposal], present: Sequence[int], second: _Decoded, options: MatchOptions
    ) -> list[Proposal]:
        better = dict(zip(present, self._join(*second, options), strict=True))
        # A label that was there stays there: only its mask is made anew.
        return [
            replace(better[index], chance=presence(one.weigh())) if index in better else one
            for index, one in enumerate(first)
        ]

    def _masks(self, plan: SegmentationPlan, propose: Callable[[], list[Proposal]]) -> list[LabelMask]:
        found: list[LabelMask] = []
        encoded, labels, options = plan.encoded, plan.labels, plan.options
        claims = compete(propose(), options)
        with self._stage("upsample"):
            for label, claim in zip(labels, claims, strict=True):
                if not claim.is_kept:
                    continue
                natural = mask_to_size(claim.mask, encoded.size_hw)
                if options.overlap == "exclusive":
                    # Masks that touch in the working frame may share the pixels that its border became.
                    for other in found:
                        natural &= ~other.mask
                if options.instances:
                    owner = _nearest_to_size(split_instances(claim.mask), encoded.size_hw)
                    objects = [natural & (owner == index) for index in range(int(owner.max()) + 1)]
                else:
                    objects = [natural]
                found += [LabelMask(label, one, claim.score) for one in objects if one.any()]
        return found

    def explain(
        self,
        encoded: EncodedImage,
        references: Mapping[str, LabelReferences],
        options: MatchOptions | None = None,
    ) -> Explanation:
        """What `segment` goes through with the same arguments, and why each proposal and label is kept or dropped.

        Raises: as `segment`.
        """
        self._require_own(encoded)
        chosen = options or self._options
        labels = [label for label, known in references.items() if isinstance(known, ReferenceBank) or known]
        if not labels or min(encoded.size_hw) < MINIMUM_SIDE_PX:
            return Explanation(chosen.matcher, chosen.strategy, ())
        (propose,) = self._propose_planned([self.plan(encoded, {label: references[label] for label in labels}, chosen)])
        proposals = propose()
        return Explanation(
            chosen.matcher,
            chosen.strategy,
            tuple(
                _explain_label(label, proposal, claim, chosen)
                for label, proposal, claim in zip(labels, proposals, compete(proposals, chosen), strict=True)
            ),
        )

    def propose(
        self, encoded: EncodedImage, references: Sequence[LabelReferences], options: MatchOptions
    ) -> list[Proposal]:
        """The best mask of each label in the segmenter's working frame, however bad; they may overlap (`compete`).

        Args:
            encoded: the target.
            references: for each label its references, at least one.
            options: of matching and masks.

        Raises: as `segment`.
        """
        (decoded,) = self._decode([self._plan(encoded, references, options)])
        return self._join(*decoded, options)

    def _decode(self, plans: Sequence[_ImagePlan]) -> list[_Decoded]:
        asked = [one for plan in plans for one in plan.asked]
        with self._stage("decode", images=len(plans)):
            if isinstance(self._segmenter, BatchSegmenter):
                candidates = iter(self._segmenter.decode_planned(asked))
            else:
                candidates = iter([self._segmenter.decode(*one) for one in asked])
        return [(plan, [next(candidates) for _ in plan.asked]) for plan in plans]

    def _plan(self, encoded: EncodedImage, references: Sequence[LabelReferences], options: MatchOptions) -> _ImagePlan:
        with self._stage("match"):
            posteriors, matchings, kinds = self._match(encoded, references, options)
        with self._stage("prompt"):
            working_hw = self._segmenter.working_hw(encoded.embedding)
            pictures = [map_to_size(posterior, working_hw) for posterior in posteriors]
            priors = [recentre_log_odds(picture, map_peak(picture)).numpy() for picture in pictures]
            parts = [
                plan_prompts(
                    prior, matching,
                    strategy=options.strategy, points=options.points, cluster_count=options.clusters, seed=options.seed,
                )
                for prior, matching in zip(priors, matchings, strict=True)
            ]  # fmt: skip
            asked: list[Any] = [(encoded.embedding, part.prompts) for part in parts]
            if isinstance(self._segmenter, BatchSegmenter):
                asked = [self._segmenter.plan(*one) for one in asked]
        return _ImagePlan(working_hw, [picture.numpy() for picture in pictures], priors, kinds, parts, asked)

    def _join(
        self, plan: _ImagePlan, candidates: Sequence[Sequence[MaskCandidate]], options: MatchOptions
    ) -> list[Proposal]:
        with self._stage("clean-up"):
            parts = [
                select_masks(own, found, plan.working_hw) for own, found in zip(plan.parts, candidates, strict=True)
            ]
            masks = [_join_cluster_masks(label_parts, plan.working_hw, options) for label_parts in parts]
        return [
            Proposal(mask, picture, prior, *kind, label_parts)
            for mask, picture, prior, kind, label_parts in zip(
                masks, plan.pictures, plan.priors, plan.kinds, parts, strict=True
            )
        ]

    def _match(
        self, encoded: EncodedImage, references: Sequence[LabelReferences], options: MatchOptions
    ) -> tuple[list[Tensor], list[Tensor], list[tuple[float, float]]]:
        matcher = MATCHERS.get(options.matcher)
        if matcher is None:
            raise ConfigurationError(
                f"matcher must be one of {', '.join(MATCHERS)}, got {options.matcher}; change the setting"
            )
        device = self._matching_device(options)
        try:
            return self._match_on(device, matcher, encoded, references, options)
        except torch.OutOfMemoryError:
            logger.warning("%s: not enough memory for matching, it runs on the CPU; free the device", device)
            return self._match_on(torch.device("cpu"), matcher, encoded, references, options)

    def _match_on(
        self,
        device: torch.device,
        matcher: Matcher,
        encoded: EncodedImage,
        references: Sequence[LabelReferences],
        options: MatchOptions,
    ) -> tuple[list[Tensor], list[Tensor], list[tuple[float, float]]]:
        grid = encoded.features.shape[:2]
        temperature = self.temperature if options.temperature is None else options.temperature
        with torch.inference_mode():
            target = torch.from_numpy(np.array(encoded.features)).to(device).float().flatten(0, 1)
            banks = [
                (known if isinstance(known, ReferenceBank) else self.gather(known, options)).to(device)
                for known in references
            ]
            scales = {"temperature": temperature, "similarity_floor": self.similarity_floor}
            if matcher is match_posterior:
                maps = match_posteriors(banks, target, **scales)
            else:
                maps = [matcher(bank, target, **scales) for bank in with_others_as_background(banks)]
            # Brought here together: on a GPU each number asked for by itself is a wait.
            posteriors, matchings = (
                list(torch.stack(own).cpu().reshape(len(maps), *grid))
                for own in ([one.posterior for one in maps], [one.matching for one in maps])
            )
            frame = ObjectFeatureSpace(self._object_channels, *self._typical.on(device))
            kinds = [
                (
                    object_similarity(bank.objects, target, _likely_patches(posterior), frame),
                    self._intra_reference_similarity(bank, frame),
                )
                for bank, posterior in zip(banks, posteriors, strict=True)
            ]
        return posteriors, matchings, kinds

    def _intra_reference_similarity(self, bank: ReferenceBank, frame: ObjectFeatureSpace) -> float:
        """Of a bank: the same for all targets."""
        known = self._intra_reference_similarities.get(bank)
        if known is None:
            known = self._intra_reference_similarities[bank] = intra_reference_similarity(bank.objects, frame)
        return known

    def _matching_device(self, options: MatchOptions) -> torch.device:
        """Where the models are, for matchers that are nothing but tensor products."""
        return self.device if options.matcher in TENSOR_MATCHERS else torch.device("cpu")

    def _require_own(self, encoded: EncodedImage) -> None:
        if encoded.signature != self.signature:
            raise BadInputError(
                f"image must be encoded by the models {self.signature}, got {encoded.signature}; encode it again"
            )

    @contextmanager
    def _stage(self, name: str, *, images: int = 1) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._on_stage is not None and images:
            share_s = (time.perf_counter() - start) / images
            for _ in range(images):
                self._on_stage(name, share_s)


def _patch_confidence(uncertainty: MaskUncertainty, grid_hw: tuple[int, int]) -> float | Tensor:
    if isinstance(uncertainty.confidence, float):
        return uncertainty.confidence
    return patch_means(torch.from_numpy(uncertainty.confidence), grid_hw).flatten()


def scale_scribble(scribble: Scribble, size_hw: tuple[int, int]) -> Scribble:
    """The same scribble on the image at another size; a stroke never gets thinner than a pixel."""
    height, width = size_hw
    factor = np.array([width / scribble.size_hw[1], height / scribble.size_hw[0]], np.float32)
    return Scribble(
        size_hw,
        positive_xy=scribble.positive_xy * factor,
        negative_xy=scribble.negative_xy * factor,
        boxes_xyxy=scribble.boxes_xyxy * np.tile(factor, 2),
        positive_strokes=_scale_strokes(scribble.positive_strokes, size_hw),
        negative_strokes=_scale_strokes(scribble.negative_strokes, size_hw),
    )


def _scale_strokes(strokes: Mask | None, size_hw: tuple[int, int]) -> Mask | None:
    if strokes is None:
        return None
    scaled = np.zeros(size_hw, bool)
    y, x = np.nonzero(strokes)
    scaled[y * size_hw[0] // strokes.shape[0], x * size_hw[1] // strokes.shape[1]] = True
    if size_hw[0] > strokes.shape[0]:
        scaled |= mask_to_size(strokes, size_hw)
    return scaled


def _likely_patches(posterior: Tensor) -> Tensor:
    """(T,) float32: 1 above the image's own threshold. The faint rest counts where nothing is above."""
    return (posterior > adaptive_threshold(map_peak(posterior))).float().flatten() + 1e-6 * posterior.flatten()


def _join_cluster_masks(parts: Sequence[ClusterMask], working_hw: tuple[int, int], options: MatchOptions) -> Mask:
    union = np.zeros(working_hw, bool)
    for part in parts:
        if part.is_kept:
            union |= part.mask
    small_component_px = max(1.0, options.small_component_percent / 100 * union.size)
    return clean_mask(union, small_component_px=small_component_px, hole_px=small_component_px)


@dataclass(frozen=True, eq=False)
class Claim:
    """What a label may keep of its proposal beside the other labels.

    Attributes:
        mask: (h, w) bool.
        presence: chance that the object is there, judged before the labels compete.
        score: expected IoU of the proposal.
        is_kept: whether the mask is returned.
    """

    mask: Mask
    presence: float
    score: float
    is_kept: bool


def compete(proposals: Sequence[Proposal], options: MatchOptions) -> list[Claim]:
    """Decide which labels are there, and then who gets the pixels that several of these claim.

    A label that is not there takes nothing from one that is. Where two masks are mostly the same region, the label with
    the larger chance gets all that they share; elsewhere each pixel goes to the label with the higher posterior.
    """
    features = [proposal.weigh() for proposal in proposals]
    chances = [
        presence(one) if proposal.chance is None or not proposal.mask.any() else proposal.chance
        for proposal, one in zip(proposals, features, strict=True)
    ]
    scores = [expected_iou(one) for one in features]
    is_there = [
        chance >= options.minimum_presence and score >= options.minimum_score and bool(proposal.mask.any())
        for proposal, chance, score in zip(proposals, chances, scores, strict=True)
    ]
    masks = [proposal.mask for proposal in proposals]
    while options.overlap == "exclusive":
        present = [index for index, there in enumerate(is_there) if there]
        own = _without_shared_regions([masks[index] for index in present], [chances[index] for index in present])
        left = dict(zip(present, own, strict=True))
        # What is left of a region that went to another label is no object of its own, and the others get it back.
        gone = [index for index in present if left[index].sum() < _LEAST_LEFT * masks[index].sum()]
        if not gone:
            resolved = resolve_overlaps(own, [proposals[index].posterior for index in present])
            left = dict(zip(present, resolved, strict=True))
            gone = [index for index in present if left[index].sum() < _LEAST_LEFT * masks[index].sum()]
        if not gone:
            masks = [left.get(index, mask) for index, mask in enumerate(masks)]
            break
        is_there[min(gone, key=lambda index: chances[index])] = False
    return [Claim(*one) for one in zip(masks, chances, scores, is_there, strict=True)]


def _without_shared_regions(masks: Sequence[Mask], chances: Sequence[float]) -> list[Mask]:
    """Return the masks, each without what it shares with a likelier one of mostly the same region.

    Decided from the likeliest on: who lost a region takes none from others.
    """
    left = [mask.copy() for mask in masks]
    winners: list[int] = []
    for one in sorted(range(len(masks)), key=lambda index: -chances[index]):
        for other in winners:
            shared = int(np.count_nonzero(masks[one] & masks[other]))
            if shared >= _SAME_REGION * int(np.count_nonzero(masks[one] | masks[other])):
                left[one] &= ~masks[other]
                break
        else:
            winners.append(one)
    return left


def _is_there(proposal: Proposal, options: MatchOptions) -> bool:
    evidence = proposal.weigh()
    return presence(evidence) >= options.minimum_presence and expected_iou(evidence) >= options.minimum_score


def _explain_label(label: str, proposal: Proposal, claim: Claim, options: MatchOptions) -> LabelExplanation:
    chance = f"The object is there with a chance of {claim.presence:.2f}"
    if claim.is_kept:
        reason = f"{chance}, {options.minimum_presence} is asked for."
    elif proposal.mask.any() and claim.presence < options.minimum_presence:
        reason = f"{chance}, less than the {options.minimum_presence} that is asked for."
    elif proposal.mask.any() and claim.score < options.minimum_score:
        reason = f"The expected IoU is {claim.score:.2f}, less than the {options.minimum_score} that is asked for."
    elif proposal.mask.any():
        reason = "Its pixels went to a label that is likelier there."
    elif any(part.is_kept for part in proposal.parts):
        reason = "All its pixels were specks."
    else:
        reason = "No proposal is left: the object seems absent."
    return LabelExplanation(label, proposal.posterior, proposal.parts, claim.mask, claim.score, claim.is_kept, reason)


def _nearest_to_size(owner: NDArray[np.int32], size_hw: tuple[int, int]) -> NDArray[np.int32]:
    rows = (np.arange(size_hw[0]) * owner.shape[0]) // size_hw[0]
    columns = (np.arange(size_hw[1]) * owner.shape[1]) // size_hw[1]
    resized: NDArray[np.int32] = owner[rows[:, None], columns]
    return resized


def load_softmatcher(
    profile: str,
    on_stage: OnStage | None = None,
    source: ModelSource = ModelSource(),  # noqa: B008 (frozen)
) -> Softmatcher:
    """The engine of a profile, its weights read from disk.

    Raises:
        ConfigurationError: no such profile, encoder or device.
        ModelUnavailableError: its weights are missing or wrong; says which command helps.
    """
    encoder, segmenter = load_profile(profile, source)
    return Softmatcher(encoder, segmenter, on_stage=on_stage)
