"""Predicts many tasks on a device that encodes several images at a time, while others are read and finished."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from backend.core.types import EncodedImage, Json
from backend.errors import BadInputError, LabelStudioError, NotFoundError, SoftmatcherError
from backend.labelstudio.label_config import ImageTag
from backend.projects.images import ImageVersion, ReadImage, TaskImages
from backend.projects.model_host import Models
from backend.projects.prediction.read_ahead import begin_ahead
from backend.projects.task_source import ImageFiles
from backend.projects.tiles import DrawnMasks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TaskPrediction:
    """The prediction of a task. Each of its images stands alone: one that cannot be had leaves the others their masks.

    Attributes:
        prediction: None if nothing was found.
        images: image tag -> which content the prediction was made of.
        failures: image tag -> what was wrong with an image that could not be used.
        drawn: the masks as outlines; none for a task that is open in the editor.
        absence: probability that no label is on its images.
    """

    prediction: Json | None
    images: Mapping[str, ImageVersion]
    failures: Mapping[str, SoftmatcherError]
    drawn: DrawnMasks = field(default_factory=DrawnMasks)
    absence: float = 1.0

    @property
    def problem(self) -> str | None:
        """Return what is missing and why, for people; None if nothing is."""
        named = [f"without image {tag!r}: {error}" for tag, error in self.failures.items()]
        return "; ".join(named) or None


@dataclass(frozen=True, eq=False)
class TaskMasks:
    """The masks that were found on a task.

    Attributes:
        prediction: None if there are none.
        drawn: the same as outlines.
        absence: probability that no label is on the task's images.
    """

    prediction: Json | None
    drawn: DrawnMasks
    absence: float = 1.0


Predicted = tuple[Json, Callable[[], TaskPrediction]]
"""A task, and what gives its prediction or raises what was wrong; if no image can be had, what is wrong with the first.
"""

_READERS = 8
"""Downloads and image decoders: an H100 encodes some 60 images a second, and one image takes a reader some 30 ms."""
_FINISHERS = 4
"""Threads for work on single images before and after the decoder; more only get into each other's way in Python."""
_BATCHES_AHEAD = 2
BATCHES_BEHIND = 3
"""Encoded, and not yet packed: beyond these the encoders wait."""


@dataclass(frozen=True)
class BatchStages:
    """The stages of a batch after encoding, which need no slot of the models.

    Attributes:
        plan: matches one task's, by tag name; those that can be had.
        segment: the decoder's part of several tasks' plans; gives what makes the prediction of each.
    """

    plan: Callable[[Mapping[str, EncodedImage]], Any]
    segment: Callable[[Sequence[Any]], list[Callable[[], TaskMasks]]]


class BatchPipeline:
    """Predicts tasks in stages: one batch is encoded while those before it are matched, segmented and packed.

    Encoding a batch takes one slot of the models: what a person waits for comes in between two of them. All else waits
    for no slot and holds none, since it takes the device for milliseconds at a time.
    """

    def __init__(self, models: Models, images: TaskImages) -> None:
        self._models = models
        self._images = images

    def run(
        self,
        tasks: Sequence[Json],
        tags: Sequence[ImageTag],
        fetcher: ImageFiles,
        stages: BatchStages,
        should_stop: Callable[[], bool],
        *,
        with_text: bool = False,
        trusts_known: bool = False,
    ) -> Iterator[Predicted]:
        """Predict tasks, in their order.

        Args:
            tasks: as Label Studio gives them.
            tags: whose images are needed of each.
            fetcher: of the project.
            stages: what is done with their images.
            should_stop: asked before each batch; True leaves the rest.
            with_text: encode images with text features.
            trusts_known: don't ask whether images are still the same, see `TaskImages.download`.

        Yields:
            A task and what gives its prediction, or raises what was wrong with it.

        Raises:
            ModelUnavailableError: no models, or too many calls wait for them.
            CancelledWorkError: the client that wanted this went away.
        """
        size = self._images.preferred_batch_size
        batches = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        readers = ThreadPoolExecutor(_READERS, "read", _alone)
        planners = ThreadPoolExecutor(_FINISHERS, "plan", _alone)
        segmenting = ThreadPoolExecutor(1, "segment", _alone)
        finishers = ThreadPoolExecutor(_FINISHERS, "finish", _alone)
        under_way: deque[tuple[list[_Task], Future[list[Future[None]]]]] = deque()

        read_image = partial(self._images.read, with_text=with_text, trusts_known=trusts_known)

        def begin(batch: Sequence[Json]) -> list[tuple[Json, dict[str, Future[ReadImage]]]]:
            return [
                (task, {tag.name: readers.submit(read_image, task, tag, fetcher) for tag in tags}) for task in batch
            ]

        try:
            for reading in begin_ahead(batches, begin, count=_BATCHES_AHEAD, should_stop=should_stop):
                read = [_Task.of(task, files) for task, files in reading]
                with self._models.scheduler.slot():
                    self._encode(read, with_text=with_text)
                for one in read:
                    one.planned = None if one.failure else planners.submit(stages.plan, one.encoded)
                under_way.append((read, segmenting.submit(_segment, read, stages.segment, finishers)))
                while under_way and (len(under_way) > BATCHES_BEHIND or _is_over(under_way[0][1])):
                    yield from _answers(*under_way.popleft())
            while under_way:
                yield from _answers(*under_way.popleft())
        finally:
            # A download that hangs must not hold up a worker that is asked to end.
            for pool in (readers, planners, segmenting, finishers):
                pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, batch: "Sequence[_Task]", *, with_text: bool) -> None:
        images = [image for one in batch for image in one.images.values()]
        try:
            self._images.encode_read(images, with_text=with_text)
        except SoftmatcherError:
            raise
        except Exception as error:
            logger.exception("a batch of %d images", len(images))
            for one in batch:
                one.failure = one.failure or error


class _Task:
    """A task on its way: its images, then its prediction, or what was wrong."""

    def __init__(self, task: Json) -> None:
        self.task = task
        self.images: dict[str, ReadImage] = {}
        self.failures: dict[str, SoftmatcherError] = {}
        self.versions: dict[str, ImageVersion] = {}
        self.planned: Future[Any] | None = None
        self.predict: Callable[[], TaskMasks] | None = None
        self.found = TaskMasks(None, DrawnMasks())
        self.failure: Exception | None = None

    @classmethod
    def of(cls, task: Json, files: Mapping[str, Future[ReadImage]]) -> "_Task":
        """Make the task when its files are read."""
        made = cls(task)
        for name, future in files.items():
            try:
                made.images[name] = future.result()
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                made.failures[name] = error
            except Exception as error:
                made.failure = error
        made.versions = {name: image.version for name, image in made.images.items()}
        if made.failures and not made.images:
            made.failure = made.failure or next(iter(made.failures.values()))
        return made

    @property
    def encoded(self) -> dict[str, EncodedImage]:
        """Return its features, by tag name."""
        return {name: image.features for name, image in self.images.items()}

    def finish(self) -> None:
        """Make its prediction of what the models said, and see that the cache has its features."""
        try:
            if self.predict is not None:
                for image in self.images.values():
                    image.keep()
                self.found = self.predict()
        except Exception as error:
            self.failure = error
        # What waits to be asked for its answer shall not hold images meanwhile.
        self.images, self.planned, self.predict = {}, None, None

    def answer(self) -> TaskPrediction:
        """Return its prediction, or raise what was wrong."""
        if self.failure is not None:
            raise self.failure
        return TaskPrediction(self.found.prediction, self.versions, self.failures, self.found.drawn, self.found.absence)


def _segment(
    tasks: Sequence[_Task],
    segment: Callable[[Sequence[Any]], list[Callable[[], TaskMasks]]],
    finishers: ThreadPoolExecutor,
) -> list[Future[None]]:
    """Do the decoder's part of what is planned, and start the rest; return what waits for that.

    If the decoder fails for all together, each is tried by itself, so that one spoils nothing.
    """
    good: list[tuple[_Task, Any]] = []
    for one in tasks:
        try:
            if one.planned is not None:
                good.append((one, one.planned.result()))
        except Exception as error:
            one.failure = error
    try:
        predict = segment([plan for _, plan in good]) if good else []
    except Exception:
        for one, plan in good:
            try:
                (one.predict,) = segment([plan])
            except Exception as error:
                one.failure = error
    else:
        for (one, _), own in zip(good, predict, strict=True):
            one.predict = own
    return [finishers.submit(one.finish) for one in tasks]


def _is_over(segmented: Future[list[Future[None]]]) -> bool:
    return segmented.done() and all(one.done() for one in segmented.result())


def _answers(tasks: Sequence[_Task], segmented: Future[list[Future[None]]]) -> Iterator[Predicted]:
    for one, finished in zip(tasks, segmented.result(), strict=True):
        finished.result()
        yield one.task, one.answer


def _alone() -> None:
    """Limit PyTorch to one thread per thread: kernels on the CPU are small, and wait for one another otherwise."""
    import torch

    torch.set_num_threads(1)
