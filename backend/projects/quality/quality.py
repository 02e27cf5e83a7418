"""Measures quality on the images that a project's users annotated: each is predicted from the others."""

from collections.abc import Callable, Sequence

from backend.core.calibration_fit import Row
from backend.core.masks import mask_to_size
from backend.core.types import Json, Reference
from backend.engine.softmatcher import Softmatcher
from backend.errors import ConflictError
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImages
from backend.projects.model_host import Models
from backend.projects.options import is_complete, match_options, scores_made_for
from backend.projects.prediction.reference_banks import OWN_VERSIONS, ReferenceBanks
from backend.projects.prediction.refiners import LabelRefiners
from backend.projects.quality.annotated_images import AnnotatedImage, annotated_images, images_without_objects
from backend.projects.quality.evaluation import EvaluatedProject, Evaluation, EvaluationPlan, LoadProfile
from backend.projects.quality.image_source import AnnotatedImageSource
from backend.projects.quality.left_out import OwnReference, iou_at_size, touching
from backend.projects.quality.score_fit import FEWEST_IMAGES, fit_scores, is_fit_due
from backend.projects.text_references import TextReferences
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

_MODEL_WAIT_S = 120.0


class Quality:
    """Evaluations of projects on their own annotations. Nothing of a project changes but the newest figures."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        models: Models,
        connections: Connections,
        images: TaskImages,
        banks: ReferenceBanks,
        texts: TextReferences,
        refiners: LabelRefiners,
    ) -> None:
        self._texts = texts
        self._refiners = refiners
        self._settings = settings
        self._store = store
        self._models = models
        self._connections = connections
        self._images = images
        self._banks = banks

    def estimate(
        self, project_key: ProjectKey, plan: EvaluationPlan | None = None, *, load_profile: LoadProfile | None = None
    ) -> Json:
        """Predict each annotated image from the references of the others, all labels at once; store the figures.

        Unless annotators are said to mark every object, only what touches a marked one counts: the rest of the image
        may hold others like it that nobody marked. An image whose annotation is empty has no label. Phrases and
        refiners take part as in predictions, each fitted without the image: see `LeftOut`, `LeftOutRefiners`.

        Args:
            project_key: of the project.
            plan: what is measured; None for the default.
            load_profile: loads the models of the plan's profiles.

        Returns:
            `labels`: label -> {`references`, `images`, `tried`, `iou` (mean, None if there was none to try), `word`,
            `false_finds`, `growth`}, `iou`: the mean over the labels, `score`: its calibration, `worst`: cases with
            masks, `folds`, `comparison`, `images`, `tried`, `stopped`: why not all was measured, or None.

        Raises:
            ModelUnavailableError: no models.
            LabelStudioUnavailableError: Label Studio does not answer.
            BadInputError: something that cannot be compared.
        """
        chosen = plan or EvaluationPlan()
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        record = self._store.project(project_key)
        if record is None or not record.label_config:
            return {"labels": {}, "iou": None}
        evaluated = self._evaluated(record, parse_label_config(record.label_config), softmatcher)
        run = Evaluation(softmatcher, self._models.scheduler, evaluated, chosen)
        run.run()
        for name in chosen.profiles if load_profile is not None else ():
            assert load_profile is not None
            run.run_profile(name, softmatcher if name == self._settings.profile else load_profile(name))
        figures = run.figures(profile=self._settings.profile)
        self._store.quality.save(project_key, self._banks.model_version(project_key, wait_s=_MODEL_WAIT_S), figures)
        return figures

    def apply_recommended(self, project: ProjectRecord) -> Json:
        """Set what the newest comparison recommends, as extra params of the project's ML backend in Label Studio.

        Returns:
            The extra params that were set.

        Raises:
            ConflictError: nothing is recommended, or which ML backend is this one cannot be told.
            LabelStudioError: Label Studio cannot be used, or refuses.
        """
        newest = self._store.quality.newest(project.key)
        wanted = ((newest[2].get("comparison") or {}).get("settings") or {}) if newest else {}
        if not wanted:
            raise ConflictError("nothing is recommended: compare first, on more annotated images")
        client = self._connections.client(project.key)
        own = [
            one
            for one in client.ml_backends(project.project_id)
            if str(one.get("model_version") or "").startswith(OWN_VERSIONS)
        ]
        if len(own) != 1:
            raise ConflictError(
                f"expected one ML backend of the project to be this one, got {len(own)}: set {wanted} as its extra "
                "params in Settings > Model"
            )
        kept = (project.settings or {}).get("extra_params") or {}
        client.set_extra_params(own[0], {**kept, **wanted})
        return dict(wanted)

    def is_score_due(self, project_key: ProjectKey) -> bool:
        """Return whether the project has annotated images enough, or other ones, to fit its scores on.

        Raises:
            ModelUnavailableError: no models.
        """
        project = self._store.project(project_key)
        if project is None or not project.label_config:
            return False
        signature = self._models.get(_MODEL_WAIT_S)[0].signature
        images = self._store.count_annotated_images(project_key, signature)
        return is_fit_due(project.score_fit, images, scores_made_for(self._settings, project))

    def fit_score(self, project_key: ProjectKey, should_stop: Callable[[], bool]) -> Json | None:
        """Fit the project's scores on its annotated images if that is due, and keep the fit.

        With fewer than `FEWEST_IMAGES` left the calibration of the profile counts again.

        Returns:
            The fit: `offset` in log-odds, None if fewer than `FEWEST_IMAGES` masks were found; `masks` and `images` it
            comes from, `made_for`. None if none was made.

        Raises:
            ModelUnavailableError: no models.
            LabelStudioUnavailableError: Label Studio does not answer.
        """
        project = self._store.project(project_key)
        if project is None or not self.is_score_due(project_key):
            return None
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        images = self._store.count_annotated_images(project_key, softmatcher.signature)
        if images < FEWEST_IMAGES:
            self._store.set_score_fit(project_key, None)
            return None
        evaluated = self._evaluated(project, parse_label_config(project.label_config), softmatcher)
        fitted = fit_scores(softmatcher, self._models.scheduler, evaluated, should_stop)
        if fitted is None:
            return None
        made_for = scores_made_for(self._settings, project)
        offset, masks = fitted
        # So few masks say nothing; the fit is noted all the same, or it would be tried after every annotation.
        said = round(offset, 2) if masks >= FEWEST_IMAGES else None
        fit: Json = {"offset": said, "masks": masks, "images": images, "made_for": made_for}
        self._store.set_score_fit(project_key, fit)
        return fit

    def calibration_rows(self, project_key: ProjectKey) -> list[Row]:
        """Return what a calibration is fitted on: each annotated image predicted from the references of the others.

        A label that has no mark on an image counts as absent only if annotators mark every object
        (`complete_annotations`), or if the annotation is empty: else nobody knows.

        Raises:
            ModelUnavailableError: no models.
            LabelStudioUnavailableError: Label Studio does not answer.
        """
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        record = self._store.project(project_key)
        if record is None or not record.label_config:
            return []
        evaluated = self._evaluated(record, parse_label_config(record.label_config), softmatcher)
        rows: list[Row] = []
        for image in evaluated.images:
            loaded = evaluated.source.load(image)
            if loaded is None:
                continue
            target, encoded = loaded.image, loaded.encoded
            banks = _banks_without(evaluated, target)
            tried = [label for label in banks if target.shows(label, is_complete=evaluated.is_complete) is not None]
            with self._models.scheduler.slot(is_interactive=False):
                found = softmatcher.label_candidates(encoded, [banks[label] for label in tried], evaluated.options)
            for label, candidate in zip(tried, found, strict=True):
                marked = target.masks.get(label)
                mask = mask_to_size(candidate.mask, encoded.size_hw)
                if marked is not None and not evaluated.is_complete:
                    mask = touching(mask, marked)
                reached = iou_at_size(mask, marked) if marked is not None else 0.0
                rows.append(Row(target.image_sha256, marked is not None, reached, candidate.features))
        return rows

    def _evaluated(self, project: ProjectRecord, config: LabelConfig, softmatcher: Softmatcher) -> EvaluatedProject:
        stored = self._store.references(project.key, labels=config.labels, signature=softmatcher.signature)
        references = [
            OwnReference(one.label, one.image_tag, one.image_sha256, one.reference, is_absence=not one.mask.any())
            for one in stored
            if one.reference is not None
        ]
        client = self._connections.client(project.key)
        images = annotated_images(stored)
        if references:
            images += images_without_objects(self._store, client, project, [tag.name for tag in config.images])
        phrases = self._texts.of_labels(project, config)
        scales = self._texts.scales(project.key, self._texts.digest(project, config)) if phrases else {}
        return EvaluatedProject(
            config,
            match_options(self._settings, project),
            is_complete(self._settings, project),
            references,
            images,
            AnnotatedImageSource(
                self._connections, self._images, project, config,
                fine_by=softmatcher if any(one.reference.fine is not None for one in references) else None,
            ),
            phrases,
            scales,
            [one.label for one in self._refiners.current(project, config.labels, softmatcher.signature)],
        )  # fmt: skip


def _banks_without(evaluated: EvaluatedProject, target: AnnotatedImage) -> dict[str, Sequence[Reference]]:
    """Return label -> references of other images; a label without any is left out."""
    banks: dict[str, list[Reference]] = {}
    found: set[str] = set()
    for one in evaluated.references:
        served = evaluated.config.served_by(one.image_tag, one.label)
        if one.image_sha256 != target.image_sha256 and target.image_tag in served:
            banks.setdefault(one.label, []).append(one.reference)
            found |= set() if one.is_absence else {one.label}
    return {label: banks[label] for label in sorted(found)}
