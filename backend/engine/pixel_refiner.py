"""The refiner of thin and textured things: a classifier of pixels, switched on by the references themselves.

It is trained on all references of a label, and taken only if, with each reference left out in turn, it beats the masks
that the posterior alone gives: on average, and not on a few of them alone. From one or two references that cannot be
judged: there is none.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core import cancellation
from backend.core.masks import iou, nearest_to_size
from backend.core.pixel_classifier import PixelClassifier, PixelSample, sample_pixels, train_pixel_classifier
from backend.core.pixel_filters import FILTER_COUNT, tiled_responses
from backend.core.types import Arrays, Image, Mask

REFINER_VERSION = 1
"""Changes with anything that changes a refiner's masks: part of its digest."""
LEAST_REFERENCES = 3
MOST_REFERENCES = 8
"""References that a classifier is trained on; with more, the first by digest. Bounds time and memory of training."""
LEAST_GAIN = 0.05
"""Mean IoU by which a refiner must beat the posterior on left-out references; most of them must not lose by it."""
MOST_PX = 4_000_000
"""Larger images are classified at this size: bounds the time per image."""
_BLEND = 0.5
"""Share of the classifier's log-odds; the rest is the posterior's."""
_THRESHOLDS = np.linspace(-4.0, 4.0, 33, dtype=np.float32)
_TRUST_IN_THRESHOLD = 0.5
"""Share of the way from 0 to the threshold that is best on the left-out references: a few references overstate it."""
_EPSILON = 1e-4
_LEAST_COMPONENT = 0.25
"""Components shorter than this share of the references' shorter ones (their 10 % quantile) are dropped."""


@dataclass(frozen=True, eq=False)
class MarkedImage:
    """A reference with its pixels.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool: the object.
        known: (H, W) bool: pixels of which it is known whether they show the object.
    """

    image: Image
    mask: Mask
    known: Mask


@dataclass(frozen=True, eq=False)
class FoundByOthers:
    """A left-out reference, and what the other references find on it.

    Attributes:
        marked: the reference.
        mask: (H, W) bool: the mask that the other references' posterior gives.
        posterior: (H, W) float32 in [0, 1]: that posterior; None if the object was not found, so that there is nothing
            to refine.
    """

    marked: MarkedImage
    mask: Mask
    posterior: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class PixelRefiner:
    """Refines masks by a classifier of pixels, blended with the posterior.

        logit = share * classifier(pixel) + (1 - share) * logit(posterior)

    Attributes:
        classifier: of one label.
        threshold: log-odds above which a pixel is the object.
        least_length_px: components whose bounding box has a shorter diagonal are dropped.
    """

    classifier: PixelClassifier
    threshold: float
    least_length_px: float

    def refine(self, mask: Mask, posterior: NDArray[np.float32], image: Image) -> Mask:
        """Return the mask in place of `mask`, see `Refiner`; the segmenter's mask itself is not looked at."""
        found = blend(_classify(self.classifier, image), posterior) > self.threshold
        return _without_short_components(found, self.least_length_px)

    def to_arrays(self) -> Arrays:
        """Return the fields as named arrays, for safetensors."""
        numbers = np.array([REFINER_VERSION, self.threshold, self.least_length_px], np.float64)
        return {"numbers": numbers, **self.classifier.to_arrays()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "PixelRefiner":
        """Make one of the arrays that `to_arrays` returns.

        Raises:
            KeyError: an array is missing.
            ValueError: of another version, or shapes that don't fit each other.
        """
        version, threshold, least_length_px = (float(one) for one in arrays["numbers"])
        classifier = PixelClassifier.from_arrays({name: one for name, one in arrays.items() if name != "numbers"})
        if version != REFINER_VERSION or len(classifier.mean) != FILTER_COUNT:
            raise ValueError(f"refiner must be of version {REFINER_VERSION}, got {version:g}")
        return cls(classifier, threshold, least_length_px)

    def digest(self) -> str:
        """Return twelve hex digits that change with its masks."""
        arrays = sorted(self.to_arrays().items())
        content = b"".join(name.encode() + np.ascontiguousarray(one).tobytes() for name, one in arrays)
        return hashlib.sha256(content).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class RefinerTrial:
    """The outcome of training a refiner.

    Attributes:
        refiner: None if it is not taken.
        refined_iou: mean IoU on the left-out references with it.
        posterior_iou: mean IoU of the masks without it.
    """

    refiner: PixelRefiner | None
    refined_iou: float
    posterior_iou: float


def train_refiner(
    count: int, marked: Callable[[int], MarkedImage], left_out: Callable[[int], FoundByOthers]
) -> RefinerTrial | None:
    """Train a refiner on the references of a label, and judge it with each of them left out in turn.

    Args:
        count: number of references.
        marked: returns one of them by number; each is asked for once, so that only one image is in memory at a time.
        left_out: returns the same with what the others find on it; likewise.

    Returns:
        None for fewer than `LEAST_REFERENCES`; of more than `MOST_REFERENCES` the first ones.

    Raises:
        CancelledWorkError: see `cancellation.check`; asked often.
        BadInputError: references without pixels of the object, or of the rest.
    """
    if count < LEAST_REFERENCES:
        return None
    numbers = range(min(count, MOST_REFERENCES))
    samples: list[PixelSample] = []
    lengths_px: list[float] = []
    for number in numbers:
        cancellation.check()
        one = marked(number)
        samples.append(_sampled(one, number))
        lengths_px += list(_components(one.mask)[1][1:])
    least_length_px = _LEAST_COMPONENT * float(np.quantile(lengths_px, 0.1)) if lengths_px else 0.0
    refined: list[NDArray[np.float64]] = []
    before: list[float] = []
    for number in numbers:
        cancellation.check()
        found = left_out(number)
        one = found.marked
        before.append(_known_iou(found.mask, one))
        if found.posterior is None:
            refined.append(np.full(len(_THRESHOLDS), before[-1]))
            continue
        others = train_pixel_classifier([samples[other] for other in numbers if other != number])
        log_odds = blend(_classify(others, one.image), found.posterior)
        refined.append(np.array([_iou_above(threshold, log_odds, one, least_length_px) for threshold in _THRESHOLDS]))
    by_threshold = np.mean(refined, axis=0)
    threshold = _TRUST_IN_THRESHOLD * float(_THRESHOLDS[by_threshold.argmax()])
    refined_iou = float(np.interp(threshold, _THRESHOLDS, by_threshold))
    posterior_iou = float(np.mean(before))
    gains = [float(np.interp(threshold, _THRESHOLDS, found)) - was for found, was in zip(refined, before, strict=True)]
    # A mean may come from one reference that the posterior lost, while most others get worse.
    if refined_iou < posterior_iou + LEAST_GAIN or np.median(gains) < 0:
        return RefinerTrial(None, refined_iou, posterior_iou)
    refiner = PixelRefiner(train_pixel_classifier(samples), threshold, least_length_px)
    return RefinerTrial(refiner, refined_iou, posterior_iou)


def blend(log_odds: NDArray[np.float32], posterior: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the blended log-odds of classifier and posterior, (H, W) float32 each."""
    sure = np.clip(posterior, _EPSILON, 1 - _EPSILON)
    blended: NDArray[np.float32] = np.float32(_BLEND) * log_odds + np.float32(1 - _BLEND) * np.log(sure / (1 - sure))
    return blended


def _classify(classifier: PixelClassifier, image: Image) -> NDArray[np.float32]:
    """Return (H, W) float32 log-odds of an image of any size."""
    bounded = _bounded(image)
    found = np.empty(bounded.shape[:2], np.float32)
    for tile, responses in tiled_responses(bounded):
        cancellation.check()
        found[tile] = classifier.log_odds(responses)
    return found if bounded is image else cv2.resize(found, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _sampled(one: MarkedImage, seed: int) -> PixelSample:
    image = _bounded(one.image)
    size_hw = (image.shape[0], image.shape[1])
    return sample_pixels(image, nearest_to_size(one.mask, size_hw), nearest_to_size(one.known, size_hw), seed=seed)


def _bounded(image: Image) -> Image:
    height, width = image.shape[:2]
    if height * width <= MOST_PX:
        return image
    scale = (MOST_PX / (height * width)) ** 0.5
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _components(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the component of each pixel, 0 for none, and the diagonal of each component's box in px, 0 for none."""
    _, owner, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    lengths_px = np.hypot(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT]).astype(np.float64)
    lengths_px[0] = 0.0
    return owner, lengths_px


def _without_short_components(mask: Mask, least_px: float) -> Mask:
    owner, lengths_px = _components(mask)
    is_kept = lengths_px >= least_px
    is_kept[0] = False
    return np.asarray(is_kept[owner])


def _iou_above(threshold: float, log_odds: NDArray[np.float32], one: MarkedImage, least_length_px: float) -> float:
    cancellation.check()
    return _known_iou(_without_short_components(log_odds > threshold, least_length_px), one)


def _known_iou(found: Mask, one: MarkedImage) -> float:
    return iou(found & one.known, one.mask & one.known)
