"""Training of a label's refiner from its references and their images."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from backend.core.masks import nearest_to_size
from backend.core.patches import PatchesInMemory
from backend.core.types import EncodedImage, Image, Mask, Reference
from backend.engine.options import MatchOptions
from backend.engine.pixel_refiner import FoundByOthers, MarkedImage, RefinerTrial, train_refiner
from backend.engine.softmatcher import Softmatcher


@dataclass(frozen=True, eq=False)
class ReferenceImage:
    """The image that a reference was made of.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        encoded: the same, encoded.
        mask: (H, W) bool: the object.
    """

    image: Image
    encoded: EncodedImage
    mask: Mask


def train_label_refiner(
    engine: Softmatcher,
    references: Sequence[Reference],
    load: Callable[[int], ReferenceImage],
    options: MatchOptions | None = None,
    *,
    slot: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> RefinerTrial | None:
    """Train a refiner for a label and judge it on its left-out references, see `train_refiner`.

    Args:
        engine: makes the masks that it is compared with.
        references: of the label, each of another image.
        load: returns the image of a reference by number; asked twice for each.
        options: of matching and mask generation.
        slot: entered while the models are in use, which is a small part of the time.

    Returns:
        None for too few references.

    Raises: as `train_refiner`, and as `Softmatcher.segment`.
    """
    chosen = replace(options or MatchOptions(), instances=False)
    source = PatchesInMemory(references)

    def left_out(number: int) -> FoundByOthers:
        own, reference = load(number), references[number]
        seen = _Witness()
        with slot():
            others = engine.gather_patches(source.without(number), chosen)
            found = engine.segment(own.encoded, {"": others}, chosen, refiners={"": seen}, pixels=own.image)
        mask = found[0].mask if found else np.zeros_like(own.mask)
        return FoundByOthers(_marked(reference, own), mask, seen.posterior)

    return train_refiner(len(references), lambda number: _marked(references[number], load(number)), left_out)


def _marked(reference: Reference, own: ReferenceImage) -> MarkedImage:
    return MarkedImage(own.image, own.mask, _known(reference, own))


class _Witness:
    """Keeps the posterior that a refiner gets."""

    def __init__(self) -> None:
        self.posterior: NDArray[np.float32] | None = None

    def refine(self, mask: Mask, posterior: NDArray[np.float32], image: Image) -> Mask:
        self.posterior = posterior
        return mask


def _known(reference: Reference, own: ReferenceImage) -> Mask:
    # The first view of a reference is its image as it is.
    grid_hw = (own.encoded.features.shape[0], own.encoded.features.shape[1])
    weights = reference.ignore_weight[: grid_hw[0] * grid_hw[1]]
    if len(weights) < grid_hw[0] * grid_hw[1]:
        return np.ones_like(own.mask)  # made by an encoder that keeps no grid
    return nearest_to_size(weights.reshape(grid_hw) > 0.5, own.encoded.size_hw) | own.mask
