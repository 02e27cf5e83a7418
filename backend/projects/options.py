"""Reads what is set for one project: the ML backend's extra params in Label Studio."""

import hashlib
import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.core.calibration import Calibration
from backend.core.types import Json, MatcherName, OverlapName, PromptingStrategy
from backend.engine.options import MatchOptions
from backend.errors import BadInputError
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.models.calibrations import read_calibration
from backend.models.profiles import find_profile
from backend.settings import Settings
from backend.store import ProjectRecord

READING_VERSION = 3
"""Version of the code that makes references of annotations. Raise it with every change after which the same annotation
gives another reference: all annotations are then ingested again."""


class ProjectOptions(BaseModel):
    """Extra params of the ML backend; what is missing comes from the service's settings. Other names mean nothing."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    matcher: MatcherName | None = None
    recipe: PromptingStrategy | None = None
    instances: bool | None = None
    complete_annotations: bool | None = None
    overlap: OverlapName | None = None
    min_score: float | None = Field(default=None, ge=0, le=1)


def read_extra_params(extra_params: Any) -> ProjectOptions:
    """Read extra params as Label Studio stores them: an object, a text that holds one, or nothing.

    Raises:
        BadInputError: not JSON, or a value that means nothing; says what there is.
    """
    if extra_params in (None, "", {}):
        return ProjectOptions()
    names = ", ".join(ProjectOptions.model_fields)
    try:
        value = json.loads(extra_params) if isinstance(extra_params, str) else extra_params
    except ValueError:
        raise BadInputError(
            f"extra params: expected a JSON object with any of {names}, got text that is no JSON"
        ) from None
    try:
        return ProjectOptions.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise BadInputError(
            f"extra params: {where}: {problem['msg']}; expected a JSON object with any of {names}"
        ) from None


def received_on_setup(options: ProjectOptions, hostname: object) -> dict[str, Any]:
    """Return what a project's record keeps of a /setup: its options, and Label Studio's address for itself."""
    kept: dict[str, Any] = {"extra_params": options.model_dump(exclude_none=True)}
    return {**kept, "hostname": hostname} if isinstance(hostname, str) and hostname else kept


def known_hostnames(project: ProjectRecord | None) -> frozenset[str]:
    """Return `host:port` under which Label Studio knows itself: synchronised storages write it into addresses."""
    hostname = (project.settings or {}).get("hostname") if project else None
    host = urlsplit(hostname).netloc.rpartition("@")[2] if isinstance(hostname, str) else ""
    return frozenset({host}) if host else frozenset()


def _own_options(project: ProjectRecord) -> ProjectOptions:
    return read_extra_params((project.settings or {}).get("extra_params"))


def match_options(settings: Settings, project: ProjectRecord) -> MatchOptions:
    """Return how this project's references are matched, and its scores are fitted."""
    options, fit = _options_without_fit(settings, project), score_fit_in_use(settings, project)
    return options if fit is None else replace(options, score_offset=float(fit["offset"]))


def score_fit_in_use(settings: Settings, project: ProjectRecord) -> Json | None:
    """Return the fit of the project's scores on its own images; None if there is none for the present models."""
    fit = project.score_fit
    is_valid = fit is not None and fit["offset"] is not None and fit["made_for"] == scores_made_for(settings, project)
    return fit if is_valid else None


def scores_made_for(settings: Settings, project: ProjectRecord) -> str:
    """Return what a fit of the project's scores is valid for: models, their calibration, and how they match."""
    options = _options_without_fit(settings, project)
    names = (settings.profile, settings.encoder, settings.calibration, options.matcher, options.strategy)
    return " ".join(str(name) for name in names)


def _options_without_fit(settings: Settings, project: ProjectRecord) -> MatchOptions:
    own = _own_options(project)
    return MatchOptions(
        matcher=own.matcher or settings.matcher,
        strategy=own.recipe or settings.recipe,
        instances=settings.instances if own.instances is None else own.instances,
        overlap=own.overlap or settings.overlap,
        minimum_score=settings.min_score if own.min_score is None else own.min_score,
    )


def calibration_in_use(settings: Settings) -> Calibration:
    """Return the calibration that presence and scores follow.

    Raises:
        ConfigurationError: no such profile, or no such file.
    """
    return read_calibration(find_profile(settings.profile).calibration, settings.calibration)


def is_complete(settings: Settings, project: ProjectRecord) -> bool:
    """Return whether annotators of this project mark every object of an image."""
    own = _own_options(project).complete_annotations
    return settings.complete_annotations if own is None else own


def background_labels_of(config: LabelConfig, settings: Settings) -> frozenset[str]:
    """Return the labels of a config, of any of its controls, that mean «not the object»."""
    return config.labels_named(settings.background_labels)


def reading_digest(settings: Settings, project: ProjectRecord) -> str:
    """Return a sha256 of all that decides what an annotation means, but for the annotation, its images and the models.

    Raises:
        BadInputError: the label config cannot be used.
    """
    config = parse_label_config(project.label_config)
    reading = {
        "version": READING_VERSION,
        "config": config.digest(),
        "complete_annotations": is_complete(settings, project),
        "background_labels": sorted(background_labels_of(config, settings)),
        "mask_tags": sorted(settings.mask_tags & {brush.name for brush in config.brushes}),
    }
    if project.with_text:
        reading["with_text"] = True
    return hashlib.sha256(json.dumps(reading, sort_keys=True).encode()).hexdigest()
