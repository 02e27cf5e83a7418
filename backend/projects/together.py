"""Many tasks on a device that encodes several images at a time: while it does, others are read and finished."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch

from backend.core.types import EncodedImage
from backend.errors import SoftmatcherError
from backend.labelstudio.images import ImageFetcher
from backend.labelstudio.label_config import ImageTag
from backend.pipeline import Spread
from backend.projects.images import ReadImage, TaskImages
from backend.projects.models import Models

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Predicted = tuple[Json, Callable[[], Json | None]]
Finish = Callable[[Sequence[Mapping[str, EncodedImage]], Spread], list[Json | None]]

_READERS = 8
"""Downloads and image decoders: an H100 encodes some 60 images a second, and one image takes a reader some 30 ms."""
_FINISHERS = 4
"""For what is done image by image after the models; more only get into each other's way in Python."""
_BATCHES_AHEAD = 2


class Together:
    """Predicts tasks in steps: one batch is encoded while the batch before it is matched, segmented and packed.

    A step is one turn on the models; what a person waits for comes in between two of them.
    """

    def __init__(self, models: Models, images: TaskImages) -> None:
        self._models = models
        self._images = images

    def run(
        self,
        tasks: Sequence[Json],
        tags: Sequence[ImageTag],
        fetcher: ImageFetcher,
        finish: Finish,
        should_stop: Callable[[], bool],
    ) -> Iterator[Predicted]:
        """Predict tasks, in their order.

        Args:
            tasks: as Label Studio gives them.
            tags: whose images are needed of each.
            fetcher: of the project.
            finish: makes the predictions of several tasks from their encoded images, by tag name; runs in a thread,
                within a turn, and gets what spreads its work over more of them.
            should_stop: asked before each batch; True leaves the rest.

        Yields:
            A task and what gives its prediction, or raises what was wrong with it.

        Raises:
            ModelUnavailableError: no models, or too many calls wait for them.
            InterruptedWorkError: whoever wanted this went away.
        """
        size = self._images.good_batch
        batches = iter([tasks[start : start + size] for start in range(0, len(tasks), size)])
        readers = ThreadPoolExecutor(_READERS, "read", _alone)
        finishers = ThreadPoolExecutor(_FINISHERS, "finish", _alone)
        last = ThreadPoolExecutor(1, "finish-batch", _alone)
        reading: deque[list[tuple[Json, dict[str, Future[ReadImage]]]]] = deque()
        encoded: list[_Task] = []
        try:
            while True:
                while len(reading) < _BATCHES_AHEAD and (batch := next(batches, None)) is not None:
                    reading.append(
                        [
                            (task, {tag.name: readers.submit(self._images.read, task, tag, fetcher) for tag in tags})
                            for task in batch
                        ]
                    )
                following = [] if not reading or should_stop() else reading.popleft()
                if not following and not encoded:
                    return
                read = [_Task.of(task, files) for task, files in following]
                with self._models.gate.turn():
                    finishing = last.submit(_finish, encoded, finish, finishers.map)
                    try:
                        self._encode(read)
                    finally:
                        wait([finishing])
                finishing.result()
                yield from ((one.task, one.answer) for one in encoded)
                encoded = read
        finally:
            # A download that hangs must not hold up a worker that is asked to end.
            for pool in (readers, last, finishers):
                pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, batch: "Sequence[_Task]") -> None:
        images = [image for one in batch for image in one.images.values()]
        try:
            self._images.encode_read(images)
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
        self.prediction: Json | None = None
        self.failure: Exception | None = None

    @classmethod
    def of(cls, task: Json, files: Mapping[str, Future[ReadImage]]) -> "_Task":
        """The task when its files are read."""
        made = cls(task)
        try:
            made.images = {name: future.result() for name, future in files.items()}
        except Exception as error:
            made.failure = error
        return made

    def answer(self) -> Json | None:
        """Its prediction; raises what was wrong."""
        if self.failure is not None:
            raise self.failure
        return self.prediction


def _finish(tasks: Sequence[_Task], finish: Finish, spread: Spread) -> None:
    """Predict what is encoded; where that fails for all together, each by itself, so that one spoils nothing."""
    good = [one for one in tasks if one.failure is None]
    images = list(spread(lambda one: {name: image.keep() for name, image in one.images.items()}, good))
    try:
        predictions = finish(images, spread) if good else []
    except Exception:
        for one, own in zip(good, images, strict=True):
            try:
                (one.prediction,) = finish([own], map)
            except Exception as error:
                one.failure = error
    else:
        for one, prediction in zip(good, predictions, strict=True):
            one.prediction = prediction


def _alone() -> None:
    """One thread for each thread: their kernels on the CPU are small, and wait for one another otherwise."""
    torch.set_num_threads(1)
