"""Pictures of how the masks of a task came about."""

from collections.abc import Mapping
from dataclasses import replace

from backend.core.explanation import Explanation
from backend.core.text_scores import TextScale
from backend.drawing.explanation import draw_explanations
from backend.errors import BadInputError, LabelStudioError, NotFoundError, SoftmatcherError
from backend.labelstudio.label_config import parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImages
from backend.projects.model_host import Models
from backend.projects.prediction.reference_banks import ReferenceBanks
from backend.projects.text_references import TextReferences
from backend.store import Store

_MODEL_WAIT_S = 60.0


class Explanations:
    """Draws why the masks of a task are as they are."""

    def __init__(
        self,
        store: Store,
        models: Models,
        connections: Connections,
        images: TaskImages,
        banks: ReferenceBanks,
        texts: TextReferences,
    ) -> None:
        self._texts = texts
        self._store = store
        self._models = models
        self._connections = connections
        self._images = images
        self._banks = banks

    def explain(self, project_id: int, task_id: int) -> bytes:
        """Draw why the masks of a task are as they are: score maps, points, cluster masks kept and rejected.

        Raises:
            NotFoundError: project, task or image are not there (any more).
            BadInputError: the label config or the image cannot be used.
            LabelStudioUnavailableError: Label Studio does not answer.
            ModelUnavailableError: the models cannot be loaded in time.
        """
        project = self._store.project_by_id(project_id)
        if project is None or not project.label_config:
            raise NotFoundError(f"project {project_id} is not known: connect it to this backend in Label Studio")
        config = parse_label_config(project.label_config)
        softmatcher, _ = self._models.get(_MODEL_WAIT_S)
        task = self._connections.client(project.key).task(task_id, project_id)
        context = self._banks.context(project, config)
        tags = [tag for tag in config.images if tag.name in context.tags] or list(config.images[:1])
        pictures = []
        failures: list[SoftmatcherError] = []
        for tag in tags:
            try:
                image = self._images.load(
                    task,
                    tag,
                    self._connections.fetcher(project.key),
                    is_interactive=False,
                    with_pixels=True,
                    with_text=project.with_text,
                )
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                failures.append(error)  # the other images are shown without it
                continue
            with self._models.scheduler.slot(is_interactive=False):
                explanation = _with_weights(
                    softmatcher.explain(
                        image.encoded,
                        context.banks.get(tag.name, {}),
                        context.options,
                        **context.further_on(tag.name, image.pixels),
                    ),
                    self._texts.weights(project, config),
                )
            assert image.pixels is not None  # asked for
            caption = f"project {project_id}, task {task_id}, {tag.name}: {context.version}"
            pictures.append((image.pixels, explanation, caption))
        if failures and not pictures:
            raise failures[0]
        return draw_explanations(pictures, config.labels)


def _with_weights(explanation: Explanation, scales: Mapping[str, TextScale | None]) -> Explanation:
    """Return the explanation with how far each label's phrases are believed."""
    labels = [
        replace(one, reason=f"{one.reason} {_weight_said(scales[one.label])}") if one.label in scales else one
        for one in explanation.labels
    ]
    return replace(explanation, labels=tuple(labels))


def _weight_said(scale: TextScale | None) -> str:
    if scale is None:
        return "Its phrases stand out on no image."
    return f"Its phrases count with w = {scale.weight:.2f}."
