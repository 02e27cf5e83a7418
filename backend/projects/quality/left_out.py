"""Predictions of annotated images from the references of other images, all labels looked for at once.

With phrases and refiners as the project's own predictions have them: phrases are believed as far as the other images
say, refiners were trained without the image.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.core.masks import iou
from backend.core.matching import ReferenceBank
from backend.core.text_scores import LabelPhrases, TextScale
from backend.core.types import EncodedImage, Image, Mask, Reference
from backend.engine.options import MatchOptions
from backend.engine.phrase_source import PhraseSource
from backend.engine.refiner import Refiner
from backend.engine.softmatcher import Softmatcher
from backend.labelstudio.label_config import LabelConfig
from backend.projects.quality.annotated_images import AnnotatedImage

_KEPT_BANKS = 16


@dataclass(frozen=True, eq=False)
class OwnReference:
    """A reference as evaluations need it.

    Attributes:
        label: of it.
        image_tag: of the image it was made of.
        image_sha256: likewise.
        reference: its features.
        is_absence: it has no mask, and says that the label is absent.
    """

    label: str
    image_tag: str
    image_sha256: str
    reference: Reference
    is_absence: bool = False


@dataclass(frozen=True, eq=False)
class Trial:
    """One label on one annotated image, predicted from other images.

    Attributes:
        task_id, image_tag, image_sha256: of the image.
        label: that was looked for.
        is_present: whether it is there; None if nobody knows: it is not marked, and annotators need not mark all.
        iou: of what was found with what is marked; None unless it is there.
        score: of what was found; None if nothing was.
        references: number of images whose references of the label were used.
        found: (H, W) bool: what was found, all of it.
        marked: (H, W) bool: what is marked.
    """

    task_id: int
    image_tag: str
    image_sha256: str
    label: str
    is_present: bool | None
    iou: float | None
    score: float | None
    references: int
    found: Mask
    marked: Mask

    @property
    def value(self) -> float | None:
        """Return the IoU; of an absent label 1 if it was not found, else 0; None if nobody knows."""
        if self.is_present is None:
            return None
        return self.iou if self.is_present else float(self.score is None)


class LeftOut:
    """Predicts annotated images from references of other images.

    Args:
        engine: that predicts.
        config: the project's label config.
        references: all of the project, made by this engine.
        is_complete: whether annotators mark every object, so that a label without a mask is absent.
        phrases: label -> its phrases.
        scales: label -> how far its phrases are believed without any reference.
    """

    def __init__(
        self,
        engine: Softmatcher,
        config: LabelConfig,
        references: Sequence[OwnReference],
        *,
        is_complete: bool,
        phrases: Mapping[str, LabelPhrases] | None = None,
        scales: Mapping[str, TextScale | None] | None = None,
    ) -> None:
        self._phrases = phrases or {}
        self._scales = scales or {}
        self._fitted: dict[tuple[object, ...], TextScale] = {}
        self._engine = engine
        self._config = config
        self._references = references
        self._is_complete = is_complete
        self._banks: OrderedDict[tuple[object, ...], ReferenceBank] = OrderedDict()

    def others_of(self, image: AnnotatedImage, label: str, left_out: Collection[str] = ()) -> list[str]:
        """Return the sha256s of the images that a label of this image can be predicted from, in order."""
        gone = {image.image_sha256, *left_out}
        return sorted(
            {
                one.image_sha256
                for one in self._references
                if one.label == label
                and not one.is_absence
                and one.image_sha256 not in gone
                and image.image_tag in self._config.served_by(one.image_tag, one.label)
            }
        )

    def predict(
        self,
        image: AnnotatedImage,
        encoded: EncodedImage,
        options: MatchOptions,
        *,
        left_out: Collection[str] = (),
        most_images: int | None = None,
        refiners: Mapping[str, Refiner] | None = None,
        pixels: Image | None = None,
    ) -> list[Trial]:
        """Look for all labels on an image, without references of the image itself.

        Args:
            image: the target.
            encoded: of it.
            options: of the matching.
            left_out: sha256s of further images whose references are not used.
            most_images: use the references of up to this many images of each label, drawn the same way each time, so
                that a larger number adds to a smaller one; None for all.
            refiners: label -> what refines its masks.
            pixels: of the image, (H, W, 3) uint8; needed by refiners.

        Returns:
            One trial for each label that another image has references of, or that has phrases.
        """
        banks: dict[str, ReferenceBank] = {}
        counts: dict[str, int] = {}
        used_of: dict[str, frozenset[str]] = {}
        for label in sorted({one.label for one in self._references}):
            used = self.others_of(image, label, left_out)
            if most_images is not None:
                random.Random(f"{image.image_sha256} {label}").shuffle(used)
                used = used[:most_images]
            if used:
                gone = {image.image_sha256, *left_out}
                absent = {one.image_sha256 for one in self._references if one.is_absence and one.label == label} - gone
                banks[label] = self._bank(label, image.image_tag, frozenset({*used, *absent}), options)
                counts[label] = len(used)
                used_of[label] = frozenset(used)
        sources = self._sources(image.image_tag, used_of, banks, options)
        counts |= {label: 0 for label in sources if label not in banks}
        more: dict[str, Any] = {"sources": {label: [one] for label, one in sources.items()}} if sources else {}
        refining = {label: one for label, one in (refiners or {}).items() if label in banks}
        if refining:
            more |= {"refiners": refining, "pixels": pixels}
        found = self._engine.segment(encoded, banks, options, **more)
        nothing = np.zeros(encoded.size_hw, bool)
        trials = []
        for label, count in counts.items():
            own = [one for one in found if one.label == label]
            mask = np.logical_or.reduce([one.mask for one in own]) if own else nothing
            score = float(np.mean([one.score for one in own])) if own else None
            trials.append(self._trial(image, label, mask, score, count))
        return trials

    def _sources(
        self,
        image_tag: str,
        used_of: Mapping[str, frozenset[str]],
        banks: Mapping[str, ReferenceBank],
        options: MatchOptions,
    ) -> dict[str, PhraseSource]:
        """Return label -> its phrases, as far as these references, or without any the project's images, say."""
        sources = {}
        on_image = {label for brush in self._config.brushes if brush.to_name == image_tag for label in brush.labels}
        for label, phrases in self._phrases.items():
            if label not in on_image:
                continue
            if label in banks:
                scale: TextScale | None = self._fit(label, image_tag, used_of, phrases, banks, options)
            else:
                scale = self._scales.get(label)
                scale = scale if scale is not None and scale.is_gated else None
            if scale is not None and scale.weight > 0:
                sources[label] = PhraseSource(phrases, scale)
        return sources

    def _fit(
        self,
        label: str,
        image_tag: str,
        used_of: Mapping[str, frozenset[str]],
        phrases: LabelPhrases,
        banks: Mapping[str, ReferenceBank],
        options: MatchOptions,
    ) -> TextScale:
        key = (label, image_tag, tuple(sorted(used_of.items(), key=lambda one: one[0])), options.digest())
        if key not in self._fitted:
            images: dict[str, list[Reference]] = {}
            for one in self._references:
                served = image_tag in self._config.served_by(one.image_tag, one.label)
                if one.label == label and one.image_sha256 in used_of[label] and served:
                    images.setdefault(one.image_sha256, []).append(one.reference)
            self._fitted[key] = self._engine.fit_phrases(label, phrases, list(images.values()), banks, options)
        return self._fitted[key]

    def _trial(self, image: AnnotatedImage, label: str, found: Mask, score: float | None, count: int) -> Trial:
        marked = image.masks.get(label)
        named = (image.task_id, image.image_tag, image.image_sha256, label)
        if marked is None:
            is_present = image.shows(label, is_complete=self._is_complete)
            return Trial(*named, is_present, None, score, count, found, np.zeros_like(found))
        counted = found if self._is_complete else touching(found, marked)
        return Trial(*named, True, iou_at_size(counted, marked), score, count, found, marked)

    def _bank(self, label: str, image_tag: str, used: frozenset[str], options: MatchOptions) -> ReferenceBank:
        key = (label, image_tag, used, options.bank_patches)
        if key not in self._banks:
            chosen = [
                one.reference
                for one in self._references
                if one.label == label
                and one.image_sha256 in used
                and image_tag in self._config.served_by(one.image_tag, one.label)
            ]
            self._banks[key] = self._engine.gather(chosen, options)
            while len(self._banks) > _KEPT_BANKS:
                self._banks.popitem(last=False)
        return self._banks[key]


def mean_value(trials: Sequence[Trial], value: Callable[[Trial], float | None]) -> float | None:
    """Return the mean over labels of the mean over trials; None without any value."""
    means = label_means(trials, value)
    return float(np.mean(list(means.values()))) if means else None


def label_means(trials: Sequence[Trial], value: Callable[[Trial], float | None]) -> Mapping[str, float]:
    """Return label -> mean over its trials that have a value."""
    by_label: dict[str, list[float]] = {}
    for trial in trials:
        known = value(trial)
        if known is not None:
            by_label.setdefault(trial.label, []).append(known)
    return {label: float(np.mean(values)) for label, values in by_label.items()}


def touching(mask: Mask, other: Mask) -> Mask:
    """Return the connected parts of a mask that meet another one."""
    if mask.shape != other.shape:
        return mask
    from scipy import ndimage  # half a second, which most commands need not wait

    parts, _ = ndimage.label(mask)
    met = np.unique(parts[other & mask])
    return np.asarray(np.isin(parts, met) & mask)


def iou_at_size(found: Mask, true: Mask) -> float:
    """Return their IoU; 0 if the image was replaced by one of another size."""
    return iou(found, true) if found.shape == true.shape else 0.0
