"""Images of a class of a data set, each encoded and described once however often it is drawn."""

from collections.abc import Mapping
from pathlib import Path

from backend.core.matching import ReferenceBank
from backend.core.types import EncodedImage, Reference
from backend.engine.fine_features import needs_fine
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.datasets import read_image, read_mask


class ClassImages:
    """The encoded images and described references of one class, each made once."""

    def __init__(self, engine: Softmatcher, *, is_complete: bool) -> None:
        self._engine = engine
        self._is_complete = is_complete
        self._encoded: dict[Path, EncodedImage] = {}
        self._references: dict[Path, Reference] = {}

    def encoded(self, path: Path) -> EncodedImage:
        """Return an image of the class, encoded."""
        if path not in self._encoded:
            self._encoded[path] = self._engine.encode(read_image(path))
        return self._encoded[path]

    def target(self, path: Path, references: Mapping[str, ReferenceBank]) -> EncodedImage:
        """Return an image of the class, encoded, as matching these references needs it."""
        encoded = self.encoded(path)
        if encoded.fine_features is None and needs_fine(references):
            encoded = self._encoded[path] = self._engine.add_fine_features(encoded, read_image(path))
        return encoded

    def reference(self, path: Path) -> Reference:
        """Return the reference made of an image and its mask."""
        if path not in self._references:
            image, mask = read_image(path), read_mask(path)
            encoded = self.encoded(path)
            described = self._engine.describe(image, encoded, mask, is_complete=self._is_complete)
            self._references[path] = described
            if described.fine is not None and encoded.fine_features is None:
                # Just made, and wanted again where this reference is left out.
                self._encoded[path] = self._engine.add_fine_features(encoded, image)
        return self._references[path]
