"""One run over a project's annotated images: every way to match is tried on an image while its features are there."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from backend.core import cancellation
from backend.core.cancellation import CancelledWorkError
from backend.core.text_scores import LabelPhrases, TextScale
from backend.core.types import EncodedImage, Json, Mask, Reference
from backend.engine.options import MatchOptions
from backend.engine.refiner import Refiner
from backend.engine.refiner_training import ReferenceImage
from backend.engine.softmatcher import Softmatcher
from backend.labelstudio.label_config import LabelConfig
from backend.projects.model_scheduler import ModelScheduler
from backend.projects.quality.annotated_images import AnnotatedImage
from backend.projects.quality.comparison import Variant, compare, variants_of
from backend.projects.quality.figures import label_figures, score_figures, worst_cases
from backend.projects.quality.folds import deal_folds
from backend.projects.quality.image_source import AnnotatedImageSource, LoadedImage
from backend.projects.quality.left_out import LeftOut, OwnReference, Trial, label_means, mean_value
from backend.projects.quality.left_out_refiners import LeftOutRefiners, LoadImage

GROWTH = (1, 2, 3, 5, 8)
"""Numbers of reference images for which the growth of quality is measured."""
MOST_GROWTH_IMAGES = 12
"""Images that the growth is measured on: each is predicted once for each number."""
OUT_OF_TIME = "the time for it was over"
INTERRUPTED = "an annotation waited for the worker"

OnStep = Callable[[str, int, int], None]
"""Called with what is being measured, images done, and images in all."""
LoadProfile = Callable[[str], Softmatcher]
"""Loads the models of another profile."""


@dataclass(frozen=True)
class EvaluationPlan:
    """The choice of measurements, and their bounds.

    Attributes:
        most_images: up to this many annotated images are predicted, spread over the labels.
        folds: also by so many folds; None: leave-one-out alone.
        compare: what is compared, of `COMPARABLE`.
        profiles: names of the profiles to compare, the present one among them, if `compare` has `profiles`.
        budget_s: seconds after which what is left is left out; None: no limit.
        should_stop: asked before each image; True leaves the rest out.
        on_step: told about the progress.
    """

    most_images: int = 40
    folds: int | None = None
    compare: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    budget_s: float | None = None
    should_stop: Callable[[], bool] = field(default=lambda: False)
    on_step: OnStep = field(default=lambda what, done, total: None)


@dataclass(frozen=True, eq=False)
class EvaluatedProject:
    """A project as an evaluation needs it.

    Attributes:
        config: its label config.
        options: how its references are matched.
        is_complete: whether annotators mark every object.
        references: all of them.
        images: that are annotated, in the order in which they are tried.
        source: of the images' features.
        phrases: label -> its phrases, as vectors of the present models.
        scales: label -> how far its phrases are believed without any reference.
        refined: labels whose refiner is in use.
    """

    config: LabelConfig
    options: MatchOptions
    is_complete: bool
    references: Sequence[OwnReference]
    images: Sequence[AnnotatedImage]
    source: AnnotatedImageSource
    phrases: Mapping[str, LabelPhrases] = field(default_factory=dict)
    scales: Mapping[str, TextScale | None] = field(default_factory=dict)
    refined: Collection[str] = ()


class Evaluation:
    """Trials of one project: `run`, then `figures`.

    Args:
        engine: the present models.
        scheduler: of the models; every prediction takes a slot of its own, so labelers never wait for long.
        project: what is evaluated.
        plan: what is measured.
    """

    def __init__(
        self, engine: Softmatcher, scheduler: ModelScheduler, project: EvaluatedProject, plan: EvaluationPlan
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._project = project
        self._plan = plan
        self._variants = variants_of(plan.compare, project.options)
        self._deadline = None if plan.budget_s is None else time.monotonic() + plan.budget_s
        self.trials: list[Trial] = []
        self._in_folds: list[Trial] = []
        self._growth: dict[int, list[Trial]] = defaultdict(list)
        self._of_variants: dict[Variant, list[Trial]] = {variant: [] for variant in self._variants}
        self._of_profiles: dict[Variant, list[Trial]] = {}
        self.tried = 0
        self.stopped: str | None = None

    def run(self) -> None:
        """Predict the images one after the other.

        Raises:
            LabelStudioUnavailableError: Label Studio does not answer.
            ModelUnavailableError: no models.
        """
        project, plan = self._project, self._plan
        targets = project.images[: plan.most_images]
        left_out = LeftOut(
            self._engine, project.config, project.references, is_complete=project.is_complete,
            phrases=project.phrases, scales=project.scales,
        )  # fmt: skip
        refiners = self._refiners(self._engine, project.images, project.references, project.source.marked)
        fold_of = _fold_of(project.images, plan.folds)
        for index, image in enumerate(targets):
            plan.on_step("images", index, len(targets))
            if self._must_stop():
                return
            loaded = project.source.load(image, with_pixels=not refiners.is_empty)
            if loaded is None:
                continue
            fold = fold_of.get(image.image_sha256, ())
            try:
                self._try(left_out, refiners, loaded, fold, with_growth=index < MOST_GROWTH_IMAGES)
            except CancelledWorkError:
                return
            self.tried += 1
        plan.on_step("images", len(targets), len(targets))

    def run_profile(self, name: str, engine: Softmatcher) -> None:
        """Describe the annotated images with the models of a profile, and predict each from the others."""
        project, plan = self._project, self._plan
        targets = project.images[: plan.most_images]
        encoded: list[tuple[AnnotatedImage, EncodedImage]] = []
        references: list[OwnReference] = []
        phrases = project.phrases if engine.text_space == self._engine.text_space else {}
        for index, image in enumerate(targets):
            plan.on_step(f"profile {name}", index, len(targets))
            if self._must_stop():
                return
            pixels = project.source.pixels(image)
            if pixels is None:
                continue
            features = engine.encode(pixels, with_text=True) if phrases else engine.encode(pixels)
            encoded.append((image, features))
            for label, mask in image.masks.items():
                described = engine.describe(
                    pixels, features, mask, background=_others(image.masks, label), is_complete=project.is_complete
                )
                references.append(OwnReference(label, image.image_tag, image.image_sha256, described))
        left_out = LeftOut(
            engine, project.config, references, is_complete=project.is_complete, phrases=phrases, scales=project.scales
        )
        known = {image.image_sha256: features for image, features in encoded}
        is_fine = any(one.reference.fine is not None for one in references)

        def load(image: AnnotatedImage, label: str) -> ReferenceImage | None:
            pixels = project.source.pixels(image)
            return None if pixels is None else ReferenceImage(pixels, known[image.image_sha256], image.masks[label])

        refiners = self._refiners(engine, [image for image, _ in encoded], references, load)
        trials: list[Trial] = []
        try:
            for image, features in encoded:
                refining = self._trained(refiners, image, project.options)
                pixels = project.source.pixels(image) if refining or is_fine else None
                usable = {} if pixels is None else refining
                target = engine.add_fine_features(features, pixels) if is_fine and pixels is not None else features
                trials += left_out.predict(image, target, project.options, refiners=usable, pixels=pixels)
        except CancelledWorkError:
            return
        self._of_profiles[Variant("profiles", name, project.options, None)] = trials

    def figures(self, *, profile: str) -> Json:
        """Return what was measured, see `Quality.estimate`.

        Args:
            profile: name of the present one.
        """
        project = self._project
        images: dict[str, int] = defaultdict(int)
        for image in project.images:
            for label in image.masks:
                images[label] += 1
        references: dict[str, int] = defaultdict(int)
        for one in project.references:
            references[one.label] += not one.is_absence
        labels = label_figures(images, references, self.trials, self._growth_figures())
        means = [one["iou"] for one in labels.values() if one["iou"] is not None]
        return {
            "labels": labels,
            "iou": round(float(np.mean(means)), 3) if means else None,
            "images": len(project.images),
            "tried": self.tried,
            "is_complete": project.is_complete,
            "stopped": self.stopped,
            "score": score_figures(self.trials),
            "worst": worst_cases(self.trials),
            "folds": self._fold_figures(),
            "comparison": self._comparison(profile),
            "phrases": sorted(project.phrases),
            "refined": sorted(project.refined),
        }

    def _try(
        self,
        left_out: LeftOut,
        refiners: LeftOutRefiners,
        loaded: LoadedImage,
        fold: Sequence[str],
        *,
        with_growth: bool,
    ) -> None:
        options, image = self._project.options, loaded.image

        def predict(
            options: MatchOptions, gone: Sequence[str] = (), most: int | None = None, *, is_refined: bool = True
        ) -> list[Trial]:
            refining = self._trained(refiners, image, options, gone) if is_refined else {}
            with self._scheduler.slot(is_interactive=False):
                return left_out.predict(
                    image, loaded.encoded, options, left_out=gone, most_images=most, refiners=refining,
                    pixels=loaded.pixels,
                )  # fmt: skip

        own = predict(options)
        # How quality grows is shown without refiners: each number of images would need some of its own.
        plain = own if refiners.is_empty or not with_growth else predict(options, is_refined=False)
        self.trials += own
        if self._plan.folds:
            self._in_folds += predict(options, gone=fold)
        most = max((one.references for one in own if one.is_present), default=0)
        for count in GROWTH if with_growth else ():
            if count <= most:
                found = plain if count == most else predict(options, most=count, is_refined=False)
                self._growth[count] += [one for one in found if one.references == count]
        for variant, trials in self._of_variants.items():
            trials += own if variant.options == options else predict(variant.options)

    def _refiners(
        self,
        engine: Softmatcher,
        images: Sequence[AnnotatedImage],
        references: Sequence[OwnReference],
        load: LoadImage,
    ) -> LeftOutRefiners:
        by_image: dict[str, dict[str, Reference]] = {}
        for one in references:
            if not one.is_absence:
                by_image.setdefault(one.label, {}).setdefault(one.image_sha256, one.reference)
        return LeftOutRefiners(engine, self._project.refined, images, by_image, load, self._scheduler.slot)

    def _trained(
        self, refiners: LeftOutRefiners, image: AnnotatedImage, options: MatchOptions, gone: Sequence[str] = ()
    ) -> dict[str, Refiner]:
        """Return the refiners of an image; training one takes seconds, and ends as the evaluation does.

        Raises:
            CancelledWorkError: it is to end.
        """
        if refiners.is_empty:
            return {}
        with cancellation.cancellable(self._must_stop):
            return refiners.of(image, options, gone)

    def _must_stop(self) -> bool:
        if self.stopped is None and self._deadline is not None and time.monotonic() > self._deadline:
            self.stopped = OUT_OF_TIME
        if self.stopped is None and self._plan.should_stop():
            self.stopped = INTERRUPTED
        return self.stopped is not None

    def _growth_figures(self) -> dict[str, Json]:
        figures: dict[str, Json] = defaultdict(dict)
        for count, trials in sorted(self._growth.items()):
            for label, miou in label_means(trials, lambda one: one.iou).items():
                figures[label][str(count)] = round(miou, 3)
        return figures

    def _fold_figures(self) -> Json | None:
        if not self._plan.folds:
            return None
        means = label_means(self._in_folds, lambda one: one.iou)
        mean = mean_value(self._in_folds, lambda one: one.iou)
        return {
            "count": self._plan.folds,
            "iou": None if mean is None else round(mean, 3),
            "labels": {label: round(value, 3) for label, value in means.items()},
        }

    def _comparison(self, profile: str) -> Json | None:
        if not self._plan.compare:
            return None
        project, options = self._project, self._project.options
        current = {"matchers": options.matcher, "min_score": f"{options.minimum_score:g}", "profiles": profile}
        found = compare(self.trials, self._of_variants, current=current)
        own = next((trials for variant, trials in self._of_profiles.items() if variant.name == profile), None)
        if own is not None:
            profiles = compare(own, self._of_profiles, current=current)
            found["variants"] += profiles["variants"]
            found["recommended"] |= profiles["recommended"]
            if project.phrases and len(self._of_profiles) > 1:
                found["notes"].append("profiles: phrases are those of the present profile; others are without")
        return found


def _fold_of(images: Sequence[AnnotatedImage], count: int | None) -> dict[str, list[str]]:
    """Return the sha256 of each image -> those of its fold."""
    folds = deal_folds(images, count) if count else []
    contents = [[image.image_sha256 for image in fold] for fold in folds]
    return {sha256: fold for fold in contents for sha256 in fold}


def _others(masks: Mapping[str, Mask], label: str) -> Mask | None:
    others = [mask for name, mask in masks.items() if name != label]
    return np.asarray(np.logical_or.reduce(others) & ~masks[label]) if others else None
