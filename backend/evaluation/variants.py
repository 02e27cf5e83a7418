"""Several ways to match and to make masks, on the same images in one run that can be taken up again."""

import hashlib
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend.core.masks import iou
from backend.core.references import MaskUncertainty
from backend.core.types import EncodedImage, Mask, Reference, Scribble
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.pixel_refiner import LEAST_REFERENCES, PixelRefiner
from backend.engine.refiner_training import ReferenceImage, train_label_refiner
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError
from backend.evaluation.class_images import ClassImages
from backend.evaluation.datasets import (
    ImageClass,
    draw_absent_target,
    draw_episode,
    find_classes,
    read_image,
    read_mask,
)
from backend.evaluation.results import EvaluationResult, OnProgress, TargetScore
from backend.evaluation.simulated_annotations import (
    MOST_CORRECTIONS,
    corrected,
    is_all_marked,
    largest_object,
    simulated_points,
    simulated_strokes,
)

SIMULATED_ANNOTATIONS = ("points", "strokes", "points_corrected", "strokes_corrected", "one_object")
"""Kinds of marks instead of the whole mask; corrected: by a user who sees the mask found, up to three times."""


@dataclass(frozen=True)
class VariantsResult:
    """Figures of one run.

    Attributes:
        variants: name to its figures.
        simulated_annotations: what was marked to the mIoU of the first variant; empty if only masks were.
        resumed: classes that an earlier, interrupted run had finished.
    """

    variants: Mapping[str, EvaluationResult]
    simulated_annotations: Mapping[str, float]
    resumed: int

    def joined_with(self, other: "VariantsResult") -> "VariantsResult":
        """Join both runs side by side; what was marked is of this one."""
        return VariantsResult(
            {**self.variants, **other.variants}, self.simulated_annotations, self.resumed + other.resumed
        )

    def to_json(self) -> dict[str, object]:
        """Return the figures of the first variant, and of all side by side."""
        first = next(iter(self.variants.values())).to_json()
        brief = {
            name: {key: value for key, value in result.to_json().items() if key != "scores"}
            for name, result in self.variants.items()
        }
        found = {**first, "variants": brief}
        if self.simulated_annotations:
            mious = self.simulated_annotations
            found["markings"] = dict(mious)
            for key, kinds in (
                ("scribble_loss", ("points", "strokes")),
                ("scribble_corrected_loss", ("points_corrected", "strokes_corrected")),
                ("one_object_loss", ("one_object",)),
            ):
                found[key] = mious["mask"] - statistics.fmean(mious[kind] for kind in kinds)
        return found


def evaluate_variants(
    directory: Path,
    variants: Mapping[str, MatchOptions],
    *,
    profile: str = "lite",
    shots: int = 1,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    is_complete: bool = True,
    with_simulated_annotations: bool = False,
    with_refiner: bool = True,
    journal: Path | None = None,
    on_progress: OnProgress | None = None,
    load: Callable[[str, Callable[[str, float], None]], Softmatcher] = load_softmatcher,
) -> VariantsResult:
    """Run all variants over all classes of a directory; every image is encoded once for all of them.

    Args:
        directory: `<set>/<class>/<n>.jpg` with `<n>.png`.
        variants: name to options, at least one.
        profile: which models.
        shots: references per class.
        seeds: each draws other references.
        limit: up to this many targets per class and seed.
        is_complete: the masks of the data set are all there is of the class on their images.
        with_simulated_annotations: also match from simulated points, strokes and one object of several, with the first
            variant.
        with_refiner: train a refiner for each class and seed, where there are references enough.
        journal: a file that gets a line for each finished class; classes that it has for the same run are not run
            again. It is removed at the end.
        on_progress: called before each class and at the end.
        load: makes the engine (tests bring their own).

    Raises:
        BadInputError: no data set there, no variants, no seeds, shots or limit below 1.
    """
    if not variants or not seeds:
        raise BadInputError(
            f"expected at least one variant and seed, got {list(variants)} and {list(seeds)}; name some"
        )
    start = time.perf_counter()
    classes = find_classes(directory)
    stages = _Stages()
    engine = load(profile, stages.record)
    settings = {
        "profile": profile,
        "shots": shots,
        "seeds": list(seeds),
        "limit": limit,
        "is_complete": is_complete,
        "signature": engine.signature,
        "markings": with_simulated_annotations,
        "refiner": with_refiner,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    run = _Run(
        engine, variants, tuple(seeds), shots, limit, is_complete, with_simulated_annotations, with_refiner, classes,
        stages,
    )  # fmt: skip
    finished = _Journal(journal, {**settings, "options": {name: asdict(one) for name, one in variants.items()}})
    for index, one in enumerate(classes):
        if on_progress is not None:
            on_progress(one.name, index, len(classes))
        if one.name not in finished.lines:
            finished.add(one.name, run.figures_of(one))
    if on_progress is not None:
        on_progress("done", len(classes), len(classes))
    lines = [finished.lines[one.name] for one in classes]
    seconds = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results = {
        name: EvaluationResult(
            {
                one.name: [TargetScore(**score) for score in line["scores"][name]]
                for one, line in zip(classes, lines, strict=True)
            },
            [answer for line in lines for answer in line["absent"][name]],
            {one.name: statistics.fmean(line["refined"][name]) for one, line in zip(classes, lines, strict=True)},
            _stage_medians(lines, name),
            {**settings, "options": asdict(options)},
            seconds,
            peak_mb,
        )
        for name, options in variants.items()
    }
    markings: dict[str, float] = {}
    if with_simulated_annotations:
        markings["mask"] = next(iter(results.values())).miou()
        for kind in SIMULATED_ANNOTATIONS:
            markings[kind] = statistics.fmean(statistics.fmean(line["markings"][kind]) for line in lines)
    finished.remove()
    return VariantsResult(results, markings, finished.resumed)


class _Stages:
    """Stage timings by variant; those outside of any variant belong to all of them."""

    def __init__(self) -> None:
        self._variant = ""
        self._milliseconds: dict[str, dict[str, list[float]]] = {}
        self._is_paused = False

    def record(self, stage: str, seconds: float) -> None:
        if self._is_paused:
            return
        self._milliseconds.setdefault(self._variant, {}).setdefault(stage, []).append(round(1000 * seconds, 3))

    @contextmanager
    def of(self, variant: str) -> Iterator[None]:
        self._variant = variant
        yield
        self._variant = ""

    @contextmanager
    def timed_alone(self, stage: str) -> Iterator[None]:
        """Record a block as one stage, and none of the stages that it goes through."""
        start, self._is_paused = time.perf_counter(), True
        yield
        self._is_paused = False
        self.record(stage, time.perf_counter() - start)

    def take(self) -> dict[str, dict[str, list[float]]]:
        taken, self._milliseconds = self._milliseconds, {}
        return taken


@dataclass(frozen=True)
class _Run:
    engine: Softmatcher
    variants: Mapping[str, MatchOptions]
    seeds: tuple[int, ...]
    shots: int
    limit: int | None
    is_complete: bool
    with_simulated_annotations: bool
    with_refiner: bool
    classes: Sequence[ImageClass]
    stages: _Stages

    def figures_of(self, one: ImageClass) -> dict[str, Any]:
        images = ClassImages(self.engine, is_complete=self.is_complete)
        described: dict[tuple[Path, str], Reference | None] = {}
        scores: dict[str, list[dict[str, object]]] = {name: [] for name in self.variants}
        absent: dict[str, list[bool]] = {name: [] for name in self.variants}
        refined: dict[str, list[bool]] = {name: [] for name in self.variants}
        markings: dict[str, list[float]] = {kind: [] for kind in SIMULATED_ANNOTATIONS}

        def references(paths: Sequence[Path], kind: str) -> list[Reference]:
            for path in paths:
                if (path, kind) not in described:
                    described[path, kind] = self._describe(path, images, kind)
            return [found for path in paths if (found := described[path, kind]) is not None]

        for seed in self.seeds:
            episode = draw_episode(one, shots=self.shots, seed=seed, limit=self.limit)
            stranger = draw_absent_target(one, self.classes, seed=seed)
            masks = references(episode.references, "mask")
            for name, options in self.variants.items():
                bank = {one.class_name: self.engine.gather(masks, options)} if masks else {}
                with self.stages.of(name):
                    refiner = self._refiner(
                        [path for path in episode.references if described[path, "mask"]], masks, images, options
                    )
                refiners = {one.class_name: refiner} if refiner is not None else {}
                refined[name].append(refiner is not None)
                for path in episode.targets:
                    target, truth = images.target(path, bank), read_mask(path)
                    pixels = read_image(path) if refiners else None
                    with self.stages.of(name):
                        found = self.engine.segment(target, bank, options, refiners=refiners, pixels=pixels)
                    union = _union([region.mask for region in found], truth)
                    score = float(np.mean([region.score for region in found])) if found else None
                    scores[name].append(asdict(TargetScore(seed, f"{one.name}/{path.name}", iou(union, truth), score)))
                if stranger is not None:
                    target, pixels = images.target(stranger, bank), read_image(stranger) if refiners else None
                    with self.stages.of(name):
                        found = self.engine.segment(target, bank, options, refiners=refiners, pixels=pixels)
                    absent[name].append(bool(found))
            for kind in SIMULATED_ANNOTATIONS if self.with_simulated_annotations else ():
                marked = references(episode.references, kind)
                name, options = next(iter(self.variants.items()))
                bank = {one.class_name: self.engine.gather(marked, options)} if marked else {}
                for path in episode.targets:
                    target, truth = images.target(path, bank), read_mask(path)
                    with self.stages.of(name):
                        found = self.engine.segment(target, bank, options)
                    markings[kind].append(iou(_union([region.mask for region in found], truth), truth))
        return {
            "scores": scores,
            "absent": absent,
            "refined": refined,
            "markings": markings,
            "stages": self.stages.take(),
        }

    def _refiner(
        self,
        paths: Sequence[Path],
        references: Sequence[Reference],
        images: ClassImages,
        options: MatchOptions,
    ) -> PixelRefiner | None:
        """Return the refiner that these references switch on, if any; its stages are not an image's."""
        if not self.with_refiner or len(references) < LEAST_REFERENCES:
            return None

        def load(number: int) -> ReferenceImage:
            path = paths[number]
            return ReferenceImage(read_image(path), images.encoded(path), read_mask(path))

        with self.stages.timed_alone("train refiner"):
            trial = train_label_refiner(self.engine, references, load, options)
        return trial.refiner if trial is not None else None

    def _describe(self, path: Path, images: ClassImages, kind: str) -> Reference | None:
        """Return the reference that a simulated annotation makes; None if the scribble finds no mask."""
        image, mask, target = read_image(path), read_mask(path), images.encoded(path)
        if not mask.any():
            return None
        if kind == "mask":
            return images.reference(path)
        is_complete = self.is_complete
        uncertainty: MaskUncertainty | None = None
        if kind == "one_object":
            mask, is_complete = largest_object(mask), False
        else:
            is_complete = is_complete and is_all_marked(mask)
            scribble = (simulated_points if kind.startswith("points") else simulated_strokes)(mask, seed=0)
            if kind.endswith("corrected"):
                seen = self._corrected(target, mask, scribble)
                if seen is None:
                    return None
                mask = seen
            else:
                objects = self.engine.objects_from_scribble(target, scribble)
                if not objects:
                    return None
                mask = np.logical_or.reduce([one.found.mask for one in objects])
                uncertainty = self.engine.uncertainty(target, objects)
        return self.engine.describe(image, target, mask, is_complete=is_complete, uncertainty=uncertainty)

    def _corrected(self, target: EncodedImage, mask: Mask, scribble: Scribble | None) -> Mask | None:
        """Return the mask of a simulated scribble and of what a user adds who sees it, until it is submitted."""
        best: Mask | None = None
        for _ in range(1 + MOST_CORRECTIONS):
            if scribble is None:
                break
            found = self.engine.mask_from_scribble(target, scribble)
            seen = np.zeros_like(mask) if found is None else found.mask
            # A mark that makes it worse is taken back.
            if best is None or iou(seen, mask) > iou(best, mask):
                best = seen
            scribble = corrected(scribble, seen, mask)
        return best if best is not None and best.any() else None


def _union(masks: Sequence[Mask], like: Mask) -> Mask:
    union = np.zeros_like(like)
    for mask in masks:
        union |= mask
    return union


def _stage_medians(lines: Sequence[Mapping[str, Any]], variant: str) -> dict[str, float]:
    timings: dict[str, list[float]] = {}
    for line in lines:
        for owner in ("", variant):
            for stage, values in line["stages"].get(owner, {}).items():
                timings.setdefault(stage, []).extend(values)
    return {stage: statistics.median(values) for stage, values in timings.items()}


class _Journal:
    """A line for each finished class, under the digest of the run that it belongs to."""

    def __init__(self, path: Path | None, settings: Mapping[str, object]) -> None:
        self._path = path
        self._run = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.lines: dict[str, Any] = {}
        if path is not None and path.is_file():
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # cut off when the run was
                if line.get("run") == self._run:
                    self.lines[line["class"]] = line["figures"]
        self.resumed = len(self.lines)

    def add(self, name: str, figures: dict[str, Any]) -> None:
        self.lines[name] = figures
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                # A line that was cut off must not swallow this one.
                file.write("\n" + json.dumps({"run": self._run, "class": name, "figures": figures}))

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
