"""Refiners for evaluations: an image's masks are refined by one that was trained without it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager

from backend.core.types import Reference
from backend.engine.options import MatchOptions
from backend.engine.pixel_refiner import LEAST_REFERENCES
from backend.engine.refiner import Refiner
from backend.engine.refiner_training import ReferenceImage, train_label_refiner
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError
from backend.projects.quality.annotated_images import AnnotatedImage
from backend.projects.quality.folds import deal_folds

FOLDS = 4
"""Parts of a label's images; one refiner is trained without each. One for each image would take `FOLDS` times as long
as the images are more."""

LoadImage = Callable[[AnnotatedImage, str], ReferenceImage | None]
"""Loads an annotated image with the mask of a label; None if it cannot be had."""


class LeftOutRefiners:
    """Trains refiners of labels without some of their images, by the rule that the project's own are trained by.

    Args:
        engine: of the models.
        labels: those whose refiner is in use in the project. For others none is trained: their references refused one.
        images: all annotated ones.
        references: label -> sha256 of an image -> a reference that was made of it.
        load: of images.
        slot: entered while the models are in use.
    """

    def __init__(
        self,
        engine: Softmatcher,
        labels: Collection[str],
        images: Sequence[AnnotatedImage],
        references: Mapping[str, Mapping[str, Reference]],
        load: LoadImage,
        slot: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._engine = engine
        self._references = references
        self._load = load
        self._slot = slot
        self._shown: dict[str, dict[str, AnnotatedImage]] = {}
        self._fold_of: dict[str, dict[str, frozenset[str]]] = {}
        self._trained: dict[tuple[str, frozenset[str], str], Refiner | None] = {}
        for label in labels:
            known = references.get(label, {})
            mine = [one for one in images if label in one.masks and one.image_sha256 in known]
            self._shown[label] = {one.image_sha256: one for one in mine}
            folds = [frozenset(one.image_sha256 for one in fold) for fold in deal_folds(mine, FOLDS)]
            self._fold_of[label] = {sha256: fold for fold in folds for sha256 in fold}

    @property
    def is_empty(self) -> bool:
        """Return whether there is no label to train any for."""
        return not self._shown

    def of(self, image: AnnotatedImage, options: MatchOptions, left_out: Collection[str] = ()) -> dict[str, Refiner]:
        """Return label -> a refiner that saw neither the image nor those that are left out; trains what is missing.

        The caller holds no slot of the models.

        Raises:
            CancelledWorkError: see `cancellation.check`.
            LabelStudioUnavailableError: Label Studio does not answer.
        """
        found = {}
        for label in self._shown:
            folds = self._fold_of[label]
            gone = (
                frozenset(left_out) & folds.keys() or folds.get(image.image_sha256) or next(iter(folds.values()), None)
            )
            refiner = None if gone is None else self._without(label, frozenset(gone), options)
            if refiner is not None:
                found[label] = refiner
        return found

    def _without(self, label: str, gone: frozenset[str], options: MatchOptions) -> Refiner | None:
        # A least score changes what is found in few images, and no refiner by much.
        key = (label, gone, options.matcher)
        if key not in self._trained:
            self._trained[key] = self._train(label, gone, options)
        return self._trained[key]

    def _train(self, label: str, gone: frozenset[str], options: MatchOptions) -> Refiner | None:
        shown = [one for sha256, one in self._shown[label].items() if sha256 not in gone]
        usable = [one for one in shown if self._load(one, label) is not None]
        if len(usable) < LEAST_REFERENCES:
            return None

        def load(number: int) -> ReferenceImage:
            loaded = self._load(usable[number], label)
            if loaded is None:
                raise BadInputError(f"the image of task {usable[number].task_id} cannot be had any more")
            return loaded

        references = [self._references[label][one.image_sha256] for one in usable]
        try:
            trial = train_label_refiner(self._engine, references, load, options, slot=self._slot)
        except BadInputError:
            return None  # as the project's own: its references have no pixels of the object, or of the rest
        return trial.refiner if trial is not None else None
