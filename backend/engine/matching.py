"""Matching: from references and an encoded target to a score map per label."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary, ref

import numpy as np
from numpy.typing import NDArray

from backend.core.arrays import (
    CPU,
    Array,
    Device,
    as_float32,
    is_out_of_memory,
    is_tensor,
    logit,
    stack,
    to_device,
    to_numpy,
)
from backend.core.feature_scale import FeatureScale
from backend.core.known_products import KnownProducts
from backend.core.matchers import MATCHERS, TENSOR_MATCHERS, make_matcher
from backend.core.matching import (
    ReferenceBank,
    ScoreMap,
    blended,
    match_posteriors,
    match_products,
    require_matchable,
    with_others_as_background,
)
from backend.core.memory_bank import is_mostly_fine, read_bank, with_classifier
from backend.core.object_similarity import ObjectFeatureSpace, intra_reference_similarity, object_similarity
from backend.core.patches import PatchesInMemory, PatchSource, PatchSummary
from backend.core.score_map import adaptive_threshold, map_peak
from backend.core.shared_matching import (
    LabelPatches,
    LabelSums,
    SharedPatches,
    can_share,
    share_patches,
    sum_labels,
)
from backend.core.types import EncodedImage, Reference
from backend.engine.options import MatchOptions
from backend.engine.plans import LabelMatch, LabelMatches, LabelReferences, LabelToFind
from backend.engine.score_source import EPSILON, fuse
from backend.errors import ConfigurationError

logger = logging.getLogger(__name__)


class Matching:
    """Matches references with targets.

    Args:
        signature: of the models in use; references of others are refused.
        scale: of the encoder's similarities.
        space: in which the encoder's features tell kinds of objects apart.
        device: where matchers run that are nothing but tensor products.
    """

    def __init__(self, signature: str, scale: FeatureScale, space: ObjectFeatureSpace, device: Device) -> None:
        self._signature = signature
        self._scale = scale
        self._space = ObjectFeatureSpace(space.channels, to_numpy(space.typical))
        self._space_on_device = ObjectFeatureSpace(space.channels, to_device(space.typical, device))
        self._device = device
        self.products = KnownProducts()
        """Of targets that are matched again."""
        self._intra_reference_similarities: WeakKeyDictionary[ReferenceBank, float] = WeakKeyDictionary()
        self._shared_patches: WeakKeyDictionary[ReferenceBank, tuple[tuple[ref[ReferenceBank], ...], SharedPatches]] = (
            WeakKeyDictionary()
        )

    def gather(self, references: Sequence[Reference], options: MatchOptions) -> ReferenceBank:
        """Return what matching needs of a label's references: made once for many targets, whatever their order.

        Raises:
            BadInputError: no references, features of other models, NaN in them, or nothing marked.
        """
        return self.gather_patches(PatchesInMemory(references), options)

    def gather_patches(self, source: PatchSource, options: MatchOptions) -> ReferenceBank:
        """Return what matching needs of a label's references, of whose patches only those drawn are read.

        Raises:
            BadInputError: as `gather`.
        """
        bank = self._read(source, source.summaries, options)
        # Measured with the posterior; transport and assignment would take minutes.
        fine = source.fine() if options.matcher == "posterior" and is_mostly_fine(source.summaries) else None
        if fine is not None:
            bank = replace(bank, fine=self._read(fine, source.summaries, options))
        try:
            return bank.to(self._device_of(options))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return bank

    def _read(self, source: PatchSource, images: Sequence[PatchSummary], options: MatchOptions) -> ReferenceBank:
        bank = read_bank(source, self._signature, most_patches=options.bank_patches)
        if options.matcher == "posterior" and options.classifier:
            bank = with_classifier(bank, images)
        return bank

    def match(
        self,
        encoded: EncodedImage,
        labels: Sequence[LabelToFind],
        options: MatchOptions,
        *,
        is_apart: bool = False,
        sums: LabelSums | None = None,
        is_matched_again: bool = False,
    ) -> LabelMatches:
        """Return each label's score map, all its sources joined.

        Args:
            encoded: the target.
            labels: those to find.
            options: of the matching.
            is_apart: whether each label is matched as if it were alone; otherwise it takes the others' objects as
                background.
            sums: of an earlier match of the same labels with the same target, if it had any.
            is_matched_again: the target will be matched with the label's next bank; what they have in common is kept.

        Raises:
            ConfigurationError: no such matcher.
            BadInputError: a temperature not above 0, features of other models, NaN in them.
        """
        if options.matcher not in MATCHERS:
            raise ConfigurationError(
                f"matcher must be one of {', '.join(MATCHERS)}, got {options.matcher}; change the setting"
            )
        device = self._device_of(options)
        try:
            return self._match_on(device, encoded, labels, options, is_apart, sums, is_matched_again)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("%s: not enough memory for matching, it runs on the CPU; free the device", device)
            return self._match_on(CPU, encoded, labels, options, is_apart, sums, is_matched_again=False)

    def log_odds(
        self,
        target: NDArray[np.float32],
        references: Sequence[Reference],
        others: Sequence[ReferenceBank],
        options: MatchOptions,
    ) -> NDArray[np.float32]:
        """Return what references say of patches, before anything else is asked.

        Args:
            target: (T, D) float32: the patches.
            references: of the label.
            others: of other labels, whose objects are its background.
            options: of the matching.

        Returns:
            (T,) float32.
        """
        device = self._device_of(options)
        banks = [self.gather(references, options), *others]
        score_map = self._score([bank.to(device) for bank in banks], to_device(target, device), options)[0]
        return to_numpy(logit(score_map.posterior, EPSILON))

    def _match_on(
        self,
        device: Device,
        encoded: EncodedImage,
        labels: Sequence[LabelToFind],
        options: MatchOptions,
        is_apart: bool,
        sums: LabelSums | None,
        is_matched_again: bool,
    ) -> LabelMatches:
        grid = encoded.features.shape[:2]
        target = as_float32(to_device(encoded.features.reshape(-1, encoded.features.shape[2]), device))
        banks = {
            index: self.bank(label.references, options).to(device)
            for index, label in enumerate(labels)
            if label.references is not None
        }
        bound = list(banks.values())
        sums = self._sums(bound, target, options) if sums is None else sums
        if sums is not None:
            made = sums.alone if is_apart else sums.beside
            scored = [blended(bank, made(number), target) for number, bank in enumerate(bound)]
        elif is_matched_again and len(bound) == 1 and options.matcher == "posterior" and not is_tensor(target):
            scored = [self._score_again(encoded, bound[0], target, options)]
        else:
            groups = [[bank] for bank in bound] if is_apart else [bound]
            scored = [one for group in groups for one in self._score(group, target, options)]
        from_references = dict(zip(banks, scored, strict=True))
        maps = []
        for index, label in enumerate(labels):
            own = [from_references[index]] if index in from_references else []
            further = [source.score(encoded) for source in label.sources]
            maps.append(fuse([*own, *(_on(device, one) for one in further)]))
        # Brought here together: on a GPU each number asked for by itself is a wait.
        posteriors, matchings = (
            list(to_numpy(stack(own)).reshape(len(maps), *grid))
            for own in ([one.posterior for one in maps], [one.matching for one in maps])
        )
        space = self._space if device.type == "cpu" else self._space_on_device
        similarities = {
            index: (
                object_similarity(bank.objects, target, _found_patches(posteriors[index]), space),
                self._intra_reference_similarity(bank, space),
            )
            for index, bank in banks.items()
        }
        found = [
            LabelMatch(posterior, matching, similarities.get(index))
            for index, (posterior, matching) in enumerate(zip(posteriors, matchings, strict=True))
        ]
        return LabelMatches(found, sums)

    def _sums(self, banks: Sequence[ReferenceBank], target: Array, options: MatchOptions) -> LabelSums | None:
        """Return the sums of several labels, of which each different patch is multiplied once; None if not so."""
        scale = self._scale_of(options)
        is_shared = len(banks) > 1 and options.matcher == "posterior" and not is_tensor(target)
        if not is_shared or not can_share(scale.temperature):
            return None
        for bank in banks:
            require_matchable(bank, target, scale.temperature)
        floor = scale.similarity_floor
        return sum_labels(self._shared(banks), target, temperature=scale.temperature, similarity_floor=floor)

    def _shared(self, banks: Sequence[ReferenceBank]) -> SharedPatches:
        # The same for all targets of these banks.
        known = self._shared_patches.get(banks[0])
        if known is None or [one() for one in known[0]] != list(banks):
            parts = [LabelPatches(bank.features, bank.foreground, bank.background) for bank in banks]
            known = self._shared_patches[banks[0]] = (tuple(map(ref, banks)), share_patches(parts))
        return known[1]

    def _scale_of(self, options: MatchOptions) -> FeatureScale:
        temperature = self._scale.temperature if options.temperature is None else options.temperature
        return FeatureScale(temperature, self._scale.similarity_floor)

    def _score(self, banks: Sequence[ReferenceBank], target: Array, options: MatchOptions) -> list[ScoreMap]:
        if not banks:
            return []
        scale = self._scale_of(options)
        if options.matcher == "posterior":
            # The labels share the sums over their objects, which are the others' background.
            return match_posteriors(
                banks, target, temperature=scale.temperature, similarity_floor=scale.similarity_floor
            )
        matcher = make_matcher(options.matcher, scale)
        return [matcher(bank, target) for bank in with_others_as_background(banks)]

    def _score_again(
        self, encoded: EncodedImage, bank: ReferenceBank, target: Array, options: MatchOptions
    ) -> ScoreMap:
        scale = self._scale_of(options)
        require_matchable(bank, target, scale.temperature)
        products = self.products.multiply(encoded, bank.features, target, scale.temperature)
        return match_products(
            bank, target, products, temperature=scale.temperature, similarity_floor=scale.similarity_floor
        )

    def bank(self, references: LabelReferences, options: MatchOptions) -> ReferenceBank:
        """Return what `gather` makes of references, or already made."""
        return references if isinstance(references, ReferenceBank) else self.gather(references, options)

    def _intra_reference_similarity(self, bank: ReferenceBank, space: ObjectFeatureSpace) -> float:
        # The same for all targets of a bank.
        known = self._intra_reference_similarities.get(bank)
        if known is None:
            known = self._intra_reference_similarities[bank] = intra_reference_similarity(bank.objects, space)
        return known

    def _device_of(self, options: MatchOptions) -> Device:
        return self._device if options.matcher in TENSOR_MATCHERS else CPU


def _on(device: Device, one: ScoreMap) -> ScoreMap:
    return ScoreMap(
        to_device(one.posterior, device).reshape(-1), to_device(one.matching, device).reshape(-1), one.error
    )


def _found_patches(posterior: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (T,) float32 weights: 1 above the adaptive threshold. The faint rest counts if nothing is above."""
    flat = posterior.reshape(-1)
    return (flat > adaptive_threshold(map_peak(flat))).astype(np.float32) + 1e-6 * flat
