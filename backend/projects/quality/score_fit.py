"""Fits the score of a project's predictions on its own annotated images, as soon as there are a few.

The profile's calibration is a fit on other people's images. What it expects too much or too little of a project's masks
shows on the annotated images, each predicted from the references of the others: `fit_score_offset` makes one number of
it, which every prediction of the project gets (`MatchOptions.score_offset`). Masks stay as they are.
"""

from collections.abc import Callable
from dataclasses import replace

from backend.core import cancellation
from backend.core.calibration_fit import fit_score_offset
from backend.core.cancellation import CancelledWorkError
from backend.core.types import Json
from backend.engine.softmatcher import Softmatcher
from backend.projects.model_scheduler import ModelScheduler
from backend.projects.quality.evaluation import EvaluatedProject
from backend.projects.quality.left_out import LeftOut

FEWEST_IMAGES = 5
"""Annotated images from which on scores are fitted."""
MOST_IMAGES = 20
"""Images that a fit predicts at most."""
_GROWTH = 1.5
"""A fit is made anew when the number of images has changed by this factor: each changes model_version."""


def is_fit_due(score_fit: Json | None, images: int, made_for: str) -> bool:
    """Return whether scores are to be fitted (again).

    Args:
        score_fit: the present fit; None if there is none.
        images: number of annotated images now.
        made_for: what a fit is valid for, see `scores_made_for`.
    """
    if score_fit is None:
        return images >= FEWEST_IMAGES
    has_changed = images >= _GROWTH * score_fit["images"] or images * _GROWTH <= score_fit["images"]
    return bool(has_changed or score_fit["made_for"] != made_for)


def fit_scores(
    engine: Softmatcher,
    scheduler: ModelScheduler,
    project: EvaluatedProject,
    should_stop: Callable[[], bool],
) -> tuple[float, int] | None:
    """Predict annotated images from the references of the others, and fit the offset of the score.

    Args:
        engine: that predicts.
        scheduler: of the models; every prediction takes a slot of its own.
        project: whose scores are fitted. Refiners take no part: they would have to be trained for each image.
        should_stop: asked often.

    Returns:
        The offset in log-odds, and the number of masks that it comes from; None if it was stopped.

    Raises:
        LabelStudioUnavailableError: Label Studio does not answer.
        ModelUnavailableError: no models.
    """
    left_out = LeftOut(
        engine, project.config, project.references, is_complete=project.is_complete, phrases=project.phrases,
        scales=project.scales,
    )  # fmt: skip
    options = replace(project.options, score_offset=0.0, minimum_score=0.0)
    found: list[tuple[float, float]] = []
    for image in project.images[:MOST_IMAGES]:
        if should_stop():
            return None
        loaded = project.source.load(image)
        if loaded is None:
            continue
        try:
            with cancellation.cancellable(should_stop), scheduler.slot(is_interactive=False):
                trials = left_out.predict(loaded.image, loaded.encoded, options)
        except CancelledWorkError:
            return None
        found += [(one.score, one.iou or 0.0) for one in trials if one.score is not None and one.is_present]
    return fit_score_offset([score for score, _ in found], [iou for _, iou in found]), len(found)
