"""Scale and typical features of an encoder that were not measured: by photographs that scikit-image brings along."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from backend.core.feature_scale import FeatureScale, measure_scale
from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.types import Image
from backend.models.encoders.protocol import Encoder

_KEPT = 8


@dataclass(frozen=True, eq=False)
class EncoderScale:
    """The scale of an encoder's features, and what is typical of them.

    Attributes:
        features: the scale of their similarities.
        space: in which they tell kinds of objects apart.
    """

    features: FeatureScale
    space: ObjectFeatureSpace


_known: OrderedDict[str, EncoderScale] = OrderedDict()
_lock = threading.Lock()


def scale_of(encoder: Encoder) -> EncoderScale:
    """Return an encoder's own scale, or the one that photographs show if it names none.

    Temperature and floor are medians over the photographs, see `measure_scale`. For `lite` they give 0.050 and 0.31,
    where data sets with masks gave 0.05 and 0.3. What is typical is the mean of all patches. The photographs are
    encoded once for each signature: some seconds for the largest encoders on a processor.
    """
    if encoder.temperature is not None and encoder.similarity_floor is not None:
        return EncoderScale(FeatureScale(encoder.temperature, encoder.similarity_floor), encoder.object_feature_space)
    with _lock:
        if encoder.signature not in _known:
            _known[encoder.signature] = _measure(encoder)
            while len(_known) > _KEPT:
                _known.popitem(last=False)
        return _known[encoder.signature]


def _measure(encoder: Encoder) -> EncoderScale:
    features = [np.asarray(encoder.encode(photograph), np.float32) for photograph in photographs()]
    patches = [one.reshape(-1, one.shape[-1]) for one in features]
    scales = [measure_scale(one) for one in patches]
    temperature, floor = encoder.temperature, encoder.similarity_floor
    if temperature is None:
        temperature = float(np.median([one.temperature for one in scales]))
    if floor is None:
        floor = float(np.median([one.similarity_floor for one in scales]))
    space = encoder.object_feature_space
    if not np.any(space.typical):
        typical = np.mean([one.mean(axis=0) for one in patches], axis=0)
        space = ObjectFeatureSpace(space.channels, typical[space.channels])
    return EncoderScale(FeatureScale(temperature, floor), space)


def photographs() -> list[Image]:
    """Return a person, a cat, a cup, a rocket, a garage and a tissue: (H, W, 3) uint8 RGB each."""
    from skimage import data  # `lite` does without

    names = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry")
    pictures = [*(getattr(data, name)() for name in names), data.stereo_motorcycle()[0]]
    return [np.ascontiguousarray(one[..., :3]) for one in pictures]
