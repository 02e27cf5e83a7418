"""Puts the use cases of Label Studio projects together: `open_projects`."""

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from backend.errors import BadInputError, NotFoundError
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.text_area import read_text_prompts
from backend.metrics import Metrics
from backend.projects.connections import Connections, LabelStudioConnections
from backend.projects.gallery import Gallery
from backend.projects.images import TaskImages
from backend.projects.model_host import Models, load_configured_text_encoder
from backend.projects.next_tasks import NextTasks
from backend.projects.options import background_labels_of, read_extra_params, received_on_setup
from backend.projects.page_actions import PageActions
from backend.projects.prediction.bulk_writer import BulkPredictions
from backend.projects.prediction.explain import Explanations
from backend.projects.prediction.interactive import InteractivePredictions
from backend.projects.prediction.phrase_finder import PhraseFinder
from backend.projects.prediction.phrase_scales import PhraseScales
from backend.projects.prediction.predictor import Predictions
from backend.projects.prediction.prefetch import Prefetch
from backend.projects.prediction.preview import Previews
from backend.projects.prediction.reference_banks import ReferenceBanks
from backend.projects.prediction.refiners import LabelRefiners
from backend.projects.project_key import key_of_project
from backend.projects.project_refresh import refresh_project
from backend.projects.propagation.planning import PropagationPlans
from backend.projects.propagation.propagations import Propagations
from backend.projects.propagation.work import PropagationWork
from backend.projects.quality.quality import Quality
from backend.projects.references.line_labels import LineLabels
from backend.projects.references.references import References
from backend.projects.stored_projects import StoredProjects, open_store
from backend.projects.task_order import TaskOrder
from backend.projects.text_references import LoadTextEncoder, TextReferences
from backend.projects.thumbnails import Thumbnails
from backend.projects.tiles import Tiles
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)

_SIGNATURE_WAIT_S = 2.0
"""/setup has 3 s: a service that just started answers that it is still loading before Label Studio gives up."""


class Projects(StoredProjects):
    """All projects of one backend. Threads share it; what lasts is in the store.

    Attributes:
        references: ingests annotations.
        texts: phrases of labels.
        prefetch: encodes images that may be opened soon.
        phrase_scales: what phrases score on images of their project.
        refiners: trains what refines masks of thin and textured things.
        banks: keeps the references of the last few projects in memory; gives model_versions.
        predictions: predicts tasks from references.
        interactive: predicts the open task from its scribbles.
        explanations: draws why masks are as they are.
        propagations: predicts whole projects through the workers.
        quality: estimates how good predictions are.
        thumbnails: draws small pictures for the project's page.
        gallery: the tasks of a project with their newest masks.
        previews: scribbles on the project's page that are not kept yet.
        page_actions: what people decide on the project's page.
        task_order: the order in which Label Studio serves tasks.
        next_tasks: which tasks are worth labeling, and which predictions a look.
        models: loaded in the background.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        models: Models,
        connections: Connections,
        load_text_encoder: LoadTextEncoder | None = None,
    ) -> None:
        super().__init__(settings, store, connections)
        self.metrics = metrics
        self.models = models
        images = TaskImages(models, metrics, max_pixels=int(settings.max_image_mpx * 1e6))
        load = load_text_encoder or partial(load_configured_text_encoder, settings)
        self.texts = TextReferences(settings, store, models, load)
        lines = LineLabels(store)
        self.references = References(settings, store, metrics, models, connections, images, self.texts, lines)
        self.prefetch = Prefetch(
            connections, images, metrics, count=settings.prefetch_tasks, is_held_up=lambda: models.scheduler.is_wanted
        )
        self.refiners = LabelRefiners(settings, store, models, connections, images)
        self.banks = ReferenceBanks(settings, store, models, self.texts, self.refiners)
        self.phrase_scales = PhraseScales(store, connections, images, self.banks, self.texts)
        self.predictions = Predictions(settings, store, metrics, models, connections, images, self.banks, self.prefetch)
        finder = PhraseFinder(models, images, self.banks, self.phrase_scales)
        self.interactive = InteractivePredictions(
            settings, store, metrics, models, connections, images, self.banks, self.texts, finder, lines
        )
        self.explanations = Explanations(store, models, connections, images, self.banks, self.texts)
        tiles = Tiles(store)
        bulk = BulkPredictions(metrics, connections, images, self.predictions, tiles)
        self.gallery = Gallery(store, models, connections, images, self.banks, bulk)
        self.previews = Previews(store, models, connections, images, self.banks, self.texts, finder)
        self.page_actions = PageActions(store, connections)
        self.propagation_plans = PropagationPlans(store, connections, self.references, self.banks, self.phrase_scales)
        self.task_order = TaskOrder(store, models, connections, images)
        self.next_tasks = NextTasks(store, models)
        self.propagation_work = PropagationWork(store, metrics, connections, self.banks, bulk, self.task_order)
        self.propagations = Propagations(settings, store, connections, self.banks, self.propagation_plans)
        self.quality = Quality(settings, store, models, connections, images, self.banks, self.texts, self.refiners)
        self.thumbnails = Thumbnails(store, connections, images)
        self._connected: dict[str, str] = {}
        self._lock = threading.Lock()

    def setup(
        self,
        project_key: ProjectKey,
        *,
        label_config: str,
        extra_params: object,
        hostname: object,
        access_token: str | None,
        backend_url: str,
    ) -> str:
        """Remember a project that connects, or that Label Studio asks about, and return its model_version.

        Raises:
            BadInputError: label config or extra params cannot be used; the message says what to change.
            ModelUnavailableError: the models are not loaded yet, or cannot be.
        """
        config = parse_label_config(label_config)
        problems = read_text_prompts(config, background_labels_of(config, self.settings))[1]
        if problems:
            raise BadInputError("; ".join(problems))
        received = received_on_setup(read_extra_params(extra_params), hostname)
        known = self.store.project(project_key)
        is_known = known is not None and (known.label_config, known.settings) == (label_config, received)
        if not is_known or (access_token and known and known.setup_token != access_token):
            self.store.save_project(
                project_key,
                label_config=label_config,
                settings=received,
                setup_token=access_token,
                needs_reconcile=True if known is None or known.label_config != label_config else None,
            )
        self.texts.note_config(project_key, label_config)
        with self._lock:
            self._connected[project_key] = backend_url
        return self.banks.model_version(project_key, wait_s=_SIGNATURE_WAIT_S)

    def versions(self) -> list[str]:
        """Return the current model_version of every project, without repetition."""
        return sorted({self.banks.model_version(project.key, wait_s=0.5) for project in self.store.projects()})

    def hinted_project(self, project: object) -> tuple[str, bool]:
        """Read what a webhook says of a project: its key, and whether it differs from what is known.

        Nothing is remembered: anybody who can send a webhook can name any project. Label Studio is asked, in a job.

        Raises:
            BadInputError: no project with an id and a time of creation.
        """
        if not isinstance(project, Mapping):
            raise BadInputError(f'expected "project": an object, got {type(project).__name__}')
        project_key = key_of_project(project)
        known = self.store.project(project_key)
        if known is None:
            return project_key, True
        return project_key, (project.get("label_config"), project.get("title")) != (known.label_config, known.title)

    def refresh(self, project_key: ProjectKey) -> ProjectRecord:
        """Ask Label Studio for a project, and remember what it says: see `refresh_project`."""
        return refresh_project(self.store, self.connections, project_key)

    def forget_gone(self, project_key: ProjectKey) -> bool:
        """Delete the data of a project that has been gone for `gone_project_days`, if Label Studio says so again.

        Nothing is deleted if several projects are known and all are gone: then the address more likely leads to
        another Label Studio.

        Returns:
            Whether it was deleted.

        Raises:
            LabelStudioUnavailableError, LabelStudioError, ConfigurationError: Label Studio cannot be asked.
        """
        try:
            self.refresh(project_key)
        except NotFoundError:
            project = self.store.project(project_key)
        else:
            return False
        if project is None or project.gone_since is None:
            return False
        all_projects = self.store.projects()
        is_old = self.store.now() - project.gone_since >= 86400 * self.settings.gone_project_days
        are_all_gone = len(all_projects) > 1 and all(each.gone_since is not None for each in all_projects)
        if not is_old or are_all_gone:
            return False
        logger.warning(
            "project=%s is deleted: gone from Label Studio for %d days", project_key, self.settings.gone_project_days
        )
        self.store.drop_project(project_key)
        return True

    def note_project(self, project: object) -> str:
        """Remember a project as Label Studio shows it; returns its key.

        Raises:
            BadInputError: no project with an id and a time of creation.
        """
        if not isinstance(project, Mapping):
            raise BadInputError(f'expected "project": an object, got {type(project).__name__}')
        project_key = key_of_project(project)
        label_config, title = project.get("label_config"), project.get("title")
        known = self.store.project(project_key)
        label_config = label_config if isinstance(label_config, str) else None
        title = title if isinstance(title, str) else None
        if known is None or (label_config, title) != (known.label_config, known.title):
            # With another label config an annotation may mean more, or less, than it did.
            is_other = known is None or (label_config or known.label_config) != known.label_config
            self.store.save_project(
                project_key, title=title, label_config=label_config, needs_reconcile=is_other or None
            )
        return project_key

    def project_key(self, project: object, tasks: Sequence[Mapping[str, Any]]) -> str:
        """Return the key of the project a /predict is about.

        Raises:
            BadInputError: neither the request nor its tasks name a project that is known.
        """
        if isinstance(project, str) and re.fullmatch(r"\d+\.\d+", project):
            return project
        named = project if project is not None else (tasks[0].get("project") if tasks else None)
        if isinstance(named, int | str) and re.fullmatch("[0-9]{1,18}", str(named)):
            known = self.store.project_by_id(int(named))
            if known is not None:
                return known.key
        raise BadInputError(
            f'expected "project": "<id>.<unix time of creation>" or the id of a connected project, got {project!r}'
        )

    def count_references(self) -> dict[str, int]:
        """Return references by project id, for /metrics."""
        return {key.split(".")[0]: count for key, count in self.store.count_references().items()}

    def client_for(self, project_key: ProjectKey) -> LabelStudioClient:
        """Return the API client for what only Label Studio has of a project.

        Raises:
            ConfigurationError: there is no token, or no Label Studio.
        """
        return self.connections.label_studio(project_key)

    def connected_urls(self) -> list[tuple[str, str]]:
        """Return the projects that called /setup since the start, with the address at which they reach this backend."""
        with self._lock:
            return list(self._connected.items())

    def close(self) -> None:
        """Close connections, and end the prefetch."""
        self.prefetch.close()
        super().close()


def open_projects(settings: Settings, *, calls_at_a_time: int = 1, processes: int = 1) -> Projects:
    """Open the store (make its tables) and wire everything; models load later.

    Args:
        settings: of this process.
        calls_at_a_time: model calls that share the processor's cores.
        processes: that share them.

    Raises:
        ConfigurationError, StoreUnavailableError: the store cannot be opened.
    """
    store = open_store(settings)
    metrics = Metrics()
    models = Models(settings, metrics, calls_at_a_time=calls_at_a_time, processes=processes)
    return Projects(settings, store, metrics, models, LabelStudioConnections(settings, store))


__all__ = ["ProjectRecord", "Projects", "key_of_project", "open_projects"]
