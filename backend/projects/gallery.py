"""The gallery of a project: pages of tasks with their newest masks, kept up to date for who looks at them."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image as PillowImage

from backend.core.types import Image
from backend.errors import ConfigurationError, LabelStudioError, ModelUnavailableError, SoftmatcherError
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImages, versions_from_json
from backend.projects.model_host import Models
from backend.projects.prediction.batch_pipeline import TaskPrediction
from backend.projects.prediction.bulk_writer import Batch, BulkPredictions
from backend.projects.prediction.reference_banks import PredictionContext, ReferenceBanks
from backend.projects.project_refresh import refresh_project
from backend.settings import CONCURRENT_BATCHES
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey, TileFilter, TilePrediction, UnwrittenPrediction

PHOTO_SIDE_PX = 480
"""Longer side of the photographs on tiles."""
_KEPT_PHOTOS = 400
_PHOTOS_AT_A_TIME = 2
_MODEL_WAIT_S = 0.5
_FEWEST_A_THREAD = 4
_WRITING_S = 120.0
"""Seconds after which another process writes predictions to Label Studio whose writer is not heard of any more."""
_WRITTEN_AT_A_TIME = 24
_MOST_WAITING = 10_000


@dataclass(frozen=True)
class Tile:
    """A task on the page.

    Attributes:
        task_id: of the task.
        prediction: its newest prediction; None if it has none that is known here.
        is_annotated: somebody annotated it.
        references: labels of the references that its annotations gave, each with whether one of them is enabled.
        missing: why it has no prediction, if more is known than that nobody looked at it yet.
    """

    task_id: int
    prediction: TilePrediction | None
    is_annotated: bool
    references: Mapping[str, bool] = field(default_factory=dict)
    missing: str | None = None


@dataclass(frozen=True)
class GalleryPage:
    """A page of the gallery.

    Attributes:
        tiles: in their order.
        following: names the last tile, for the page that follows; None if this is the last one.
        left: how many tasks follow; None if nobody counted.
        problem: why only a part could be listed; None otherwise.
    """

    tiles: tuple[Tile, ...]
    following: str | None
    left: int | None = None
    problem: str | None = None


class Gallery:
    """Pages of tiles, photographs for them, and their refresh after something changed."""

    def __init__(
        self,
        store: Store,
        models: Models,
        connections: Connections,
        images: TaskImages,
        banks: ReferenceBanks,
        bulk: BulkPredictions,
    ) -> None:
        self._store = store
        self._models = models
        self._connections = connections
        self._images = images
        self._banks = banks
        self._bulk = bulk
        self._photos: OrderedDict[tuple[str, int, str], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_PHOTOS_AT_A_TIME)

    def page(self, project: ProjectRecord, wanted: TileFilter) -> GalleryPage:
        """Return a page of tiles.

        All tasks in the order of their ids come from their source. Any filter or other order is over the tasks that
        have a prediction, in the store: it asks nobody.
        """
        if wanted.order == "id" and wanted.state is None and wanted.label is None:
            after = wanted.after[1] if wanted.after else 0
            try:
                client = self._connections.client(project.key)
                ids, total = client.page_of_tasks(project.project_id, after=after, count=wanted.count)
            except (LabelStudioError, ConfigurationError) as error:
                return self._known(project, wanted, str(error))
            left = max(0, total - len(ids))
            following = f"0:{ids[-1]}" if left and ids else None
            return GalleryPage(tuple(self.tiles(project, ids)), following, left)
        return self._known(project, wanted, None)

    def tiles(self, project: ProjectRecord, task_ids: Sequence[int]) -> list[Tile]:
        """Return the tiles of these tasks, in their order."""
        known = self._store.tiles.of_tasks(project.key, task_ids)
        annotated = self._store.tiles.annotated(project.key, task_ids)
        missing = self._why_missing(project) if len(known) < len(set(task_ids)) else None
        return [
            Tile(task_id, known.get(task_id), task_id in annotated, annotated.get(task_id, {}), missing)
            for task_id in task_ids
        ]

    def photo(self, project: ProjectRecord, task_id: int, image_tag: str) -> bytes:
        """Return a small JPEG of a task's image.

        Raises:
            NotFoundError, BadInputError, LabelStudioError: it cannot be had; the message says why.
        """
        key = (project.key, task_id, image_tag)
        with self._lock:
            if key in self._photos:
                self._photos.move_to_end(key)
                return self._photos[key]
        with self._slots:
            pixels = self._picture(project, task_id, image_tag)
        picture = PillowImage.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
        picture.thumbnail((PHOTO_SIDE_PX, PHOTO_SIDE_PX))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=82)
        with self._lock:
            self._photos[key] = buffer.getvalue()
            while len(self._photos) > _KEPT_PHOTOS:
                self._photos.popitem(last=False)
        return buffer.getvalue()

    def outdated(self, project: ProjectRecord, task_ids: Sequence[int]) -> list[int]:
        """Return those of the tasks whose tile is not of the project's references and options as they are now.

        If there is nothing to look for, these are the tasks that have a prediction. [] if nobody knows yet since
        models are being loaded.
        """
        config = config_of(project)
        try:
            version = self._banks.model_version(project.key, wait_s=_MODEL_WAIT_S)
            looks_for_something = config is not None and self._banks.may_find_something(project, config)
        except ModelUnavailableError:
            return []
        if not looks_for_something:
            predicted = self._store.tiles.of_tasks(project.key, task_ids)
            return [task_id for task_id in task_ids if task_id in predicted]
        known = self._store.tiles.versions(project.key, task_ids)
        return [task_id for task_id in task_ids if known.get(task_id) != version]

    def refresh(
        self, project_key: ProjectKey, task_ids: Sequence[int], *, should_stop: Callable[[], bool]
    ) -> dict[str, int]:
        """Predict the tasks of a page whose tiles are out of date, and keep the predictions for `write`.

        If there is nothing to look for, they have no current prediction: their tiles say so. What Label Studio has
        stays there until a new prediction replaces it.

        Args:
            project_key: of the tasks.
            task_ids: in the order in which they are wanted.
            should_stop: asked before each task; True leaves the rest.

        Returns:
            How many were `predicted`, and how many were `left`.

        Raises:
            LabelStudioUnavailableError: Label Studio does not answer.
            LabelStudioError, ConfigurationError, ModelUnavailableError: no task can be predicted.
        """
        context = self._context(project_key)
        known = self._store.tiles.versions(project_key, task_ids)
        due = [task_id for task_id in task_ids if known.get(task_id) != context.version]
        if not context.tags:
            if forgotten := list(self._store.tiles.of_tasks(project_key, task_ids)):
                self._store.tiles.forget(project_key, forgotten)
            return {"predicted": 0, "left": 0}

        def predict(some: Sequence[int]) -> int:
            return self._bulk.predict(context, some, should_stop=should_stop)

        threads = max(1, min(CONCURRENT_BATCHES, len(due) // _FEWEST_A_THREAD))
        with ThreadPoolExecutor(threads, thread_name_prefix="tiles") as pool:
            # Neighbours in different threads: the first tiles of the page come first.
            predicted = sum(pool.map(predict, [due[start::threads] for start in range(threads)]))
        return {"predicted": predicted, "left": len(due) - predicted}

    def write(self, project_key: ProjectKey, *, should_stop: Callable[[], bool]) -> dict[str, int]:
        """Write the predictions to Label Studio that tiles show already; older ones of their tasks are deleted.

        Those of former references are made anew, nobody having looked at their tiles since.

        Args:
            project_key: of the tasks.
            should_stop: asked between requests; True leaves the rest.

        Returns:
            How many were `written`, and how many are `left`: 0 if another process is writing them.

        Raises:
            LabelStudioUnavailableError: Label Studio does not answer; what was not written is kept.
            LabelStudioError, ConfigurationError, ModelUnavailableError: nothing can be written.
        """
        waiting = self._store.unwritten
        written = 0
        if not waiting.count(project_key):
            return {"written": 0, "left": 0}
        name = waiting.begin_writing(project_key, _WRITING_S)
        if name is None:
            return {"written": 0, "left": 0}
        try:
            context = self._context(project_key)
            while (some := waiting.oldest(project_key, _WRITTEN_AT_A_TIME)) and not should_stop():
                if not context.tags:
                    waiting.delete(project_key, some)
                    continue
                if not waiting.go_on_writing(project_key, name, _WRITING_S):
                    break
                done = self._write(context, some, name, should_stop)
                waiting.delete(project_key, done)
                written += len(done)
                if len(done) < len(some):
                    break
        finally:
            waiting.end_writing(project_key, name)
        return {"written": written, "left": waiting.count(project_key)}

    def _write(
        self,
        context: PredictionContext,
        some: Sequence[UnwrittenPrediction],
        name: str,
        should_stop: Callable[[], bool],
    ) -> list[UnwrittenPrediction]:
        """Write some predictions; return those that need no more writing."""
        key, waiting = context.project.key, self._store.unwritten
        current = {one.task_id: one for one in some if one.model_version == context.version}

        def still_wanted() -> set[int]:
            if should_stop() or not waiting.go_on_writing(key, name, _WRITING_S):
                return set()
            # What was predicted anew meanwhile waits by itself.
            newest = {one.task_id: one.counter for one in waiting.oldest(key, _MOST_WAITING)}
            return {one.task_id for one in some if newest.get(one.task_id, one.counter) == one.counter}

        images = {task_id: versions_from_json(one.images) for task_id, one in current.items()}
        predicted = {
            task_id: TaskPrediction(one.prediction, images[task_id], {}, absence=one.absence)
            for task_id, one in current.items()
        }
        outcomes = self._bulk.run(
            Batch(context, [one.task_id for one in some], made_of=images, predicted=predicted),
            should_stop=should_stop, still_wanted=still_wanted, may_leave_older=True,
        )  # fmt: skip
        finished = {outcome.task_id for outcome in outcomes}
        return [one for one in some if one.task_id in finished]

    def _context(self, project_key: ProjectKey) -> PredictionContext:
        project = self._store.project(project_key)
        if project is None or not project.label_config:
            project = refresh_project(self._store, self._connections, project_key)
        return self._banks.context(project, parse_label_config(project.label_config))

    def _picture(self, project: ProjectRecord, task_id: int, image_tag: str) -> Image:
        config = parse_label_config(project.label_config)
        tag = config.image(image_tag) if image_tag else config.images[0]
        task = self._connections.client(project.key).task(task_id, project.project_id)
        return self._images.picture(task, tag, self._connections.fetcher(project.key))

    def _why_missing(self, project: ProjectRecord) -> str | None:
        references = self._store.list_references(project.key)
        if references and all(one.is_disabled for one in references):
            return "no prediction: all references are disabled"
        return None

    def _known(self, project: ProjectRecord, wanted: TileFilter, problem: str | None) -> GalleryPage:
        found = self._store.tiles.page(project.key, wanted)
        ids = [one.task_id for _, one in found]
        annotated = self._store.tiles.annotated(project.key, ids)
        tiles = tuple(
            Tile(one.task_id, one, one.task_id in annotated, annotated.get(one.task_id, {})) for _, one in found
        )
        is_full = len(found) == wanted.count
        following = f"{found[-1][0]!r}:{found[-1][1].task_id}" if is_full else None
        return GalleryPage(tiles, following, problem=problem)


def config_of(project: ProjectRecord) -> LabelConfig | None:
    """Return a project's label config; None if it cannot be used."""
    try:
        return parse_label_config(project.label_config)
    except SoftmatcherError:
        return None


__all__ = ["Gallery", "GalleryPage", "Tile", "config_of"]
