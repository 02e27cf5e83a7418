"""Encodes the images of the next tasks while somebody looks at one: opening those then takes no encoder."""

import atexit
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from backend.core import cancellation
from backend.core.cancellation import CancelledWorkError
from backend.errors import BadInputError, LabelStudioError, ModelUnavailableError, NotFoundError, SoftmatcherError
from backend.labelstudio.label_config import LabelConfig
from backend.metrics import Metrics
from backend.projects.connections import Connections
from backend.projects.images import TaskImages
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)

_MOST_WAITING = 16
_TRIES = 100
_PAUSE_S = 0.1


class Prefetch:
    """Looks ahead in one thread of lowest priority: it gives its slot of the models up within one layer's time.

    Its queue is bounded, and the newest opened task goes first: what was opened before is looked at by then.
    """

    def __init__(
        self,
        connections: Connections,
        images: TaskImages,
        metrics: Metrics,
        *,
        count: int,
        is_held_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start nothing yet.

        Args:
            connections: to Label Studio.
            images: encodes them.
            metrics: counts them.
            count: tasks to look ahead; 0 does nothing.
            is_held_up: true while anyone wants the models: nothing is begun then.
        """
        self._connections = connections
        self._images = images
        self._metrics = metrics
        self._count = count
        self._is_held_up = is_held_up
        self._opened: queue.LifoQueue[tuple[str, int, LabelConfig, bool] | None] = queue.LifoQueue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_closed = threading.Event()

    def note_opened(
        self, project_key: ProjectKey, task_id: object, config: LabelConfig, *, with_text: bool = False
    ) -> None:
        """Note that somebody opened this task. Returns at once, whatever happens."""
        if self._count == 0 or not isinstance(task_id, int) or self._is_closed.is_set():
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
                self._thread.start()
                # Python stops daemon threads by force once it ends, and inside of PyTorch that aborts the process.
                atexit.register(self.close)
        with suppress(queue.Full):
            self._opened.put_nowait((project_key, task_id, config, with_text))

    def close(self) -> None:
        """End the thread; what it has in hand is interrupted."""
        self._is_closed.set()
        with suppress(queue.Full):
            self._opened.put_nowait(None)
        thread = self._thread
        if thread is not None:
            thread.join(10)

    def _run(self) -> None:
        while not self._is_closed.is_set():
            opened = self._opened.get()
            if opened is None:
                return
            try:
                with cancellation.cancellable(self._is_closed.is_set):
                    self._look_ahead(*opened)
            except CancelledWorkError:
                continue
            except SoftmatcherError as error:
                self._metrics.prefetched.labels("failed").inc()
                logger.info("project=%s task=%d: looking ahead ended: %s", opened[0], opened[1], error)
            except Exception:
                self._metrics.prefetched.labels("failed").inc()
                logger.exception("project=%s task=%d: looking ahead", opened[0], opened[1])

    def _look_ahead(self, project_key: ProjectKey, task_id: int, config: LabelConfig, with_text: bool) -> None:
        project_id = int(project_key.split(".")[0])
        fetcher = self._connections.fetcher(project_key)
        for task in self._connections.client(project_key).tasks_after(project_id, task_id, self._count):
            for tag in config.images:
                for _ in range(_TRIES):
                    if not self._opened.empty():
                        return  # a newer task was opened: its followers matter more
                    if not self._is_held_up():
                        try:
                            outcome = self._images.look_ahead(task, tag, fetcher, with_text=with_text)
                        except CancelledWorkError:
                            self._metrics.prefetched.labels("interrupted").inc()
                        except ModelUnavailableError:
                            return
                        except (BadInputError, NotFoundError, LabelStudioError) as error:
                            # The next image, and the next task, may well be there.
                            self._metrics.prefetched.labels("failed").inc()
                            logger.info("project=%s task=%s: looking ahead: %s", project_key, task.get("id"), error)
                            break
                        else:
                            self._metrics.prefetched.labels(outcome).inc()
                            break
                    if self._is_closed.wait(_PAUSE_S):
                        return


__all__ = ["Prefetch"]
