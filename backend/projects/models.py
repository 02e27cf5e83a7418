"""The models of one process: loaded once, in the background, and used one call at a time."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from backend.errors import ModelUnavailableError, SoftmatcherError
from backend.feature_cache import FeatureCache
from backend.metrics import Metrics
from backend.pipeline import Softmatcher, load_softmatcher
from backend.settings import Settings

logger = logging.getLogger(__name__)


class ModelGate:
    """One model call at a time; an interactive call goes before every batch call that waits."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._condition = threading.Condition()
        self._is_busy = False
        self._interactive_waiting = 0

    @contextmanager
    def turn(self, *, is_interactive: bool) -> Iterator[None]:
        """Hold the models for one call (tenths of a second), not for a whole request."""
        started = time.perf_counter()
        with self._condition:
            self._interactive_waiting += is_interactive
            try:
                self._condition.wait_for(
                    lambda: not self._is_busy and (is_interactive or self._interactive_waiting == 0)
                )
                self._is_busy = True
            finally:
                self._interactive_waiting -= is_interactive
        self._metrics.gate_seconds.labels("interactive" if is_interactive else "batch").observe(
            time.perf_counter() - started
        )
        try:
            yield
        finally:
            with self._condition:
                self._is_busy = False
                self._condition.notify_all()


class Models:
    """Softmatcher and the feature cache that belongs to its signature; `start()` loads them in a thread.

    Requests that need no model (/health, /setup) never wait for more than they say.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, load: Callable[..., Softmatcher] = load_softmatcher
    ) -> None:
        self._settings = settings
        self._load_softmatcher = load
        self._metrics = metrics
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._loaded: tuple[Softmatcher, FeatureCache] | None = None
        self._failure: str | None = None
        self.gate = ModelGate(metrics)

    def start(self) -> None:
        """Begin to load; a second call does nothing."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._load, name="load-models", daemon=True)
                self._thread.start()

    def _load(self) -> None:
        started = time.perf_counter()
        settings = self._settings
        try:
            softmatcher = self._load_softmatcher(settings.profile, on_stage=self._metrics.on_stage)
            if settings.torch_threads:
                import torch  # here, since only now the models have it loaded anyway

                torch.set_num_threads(settings.torch_threads)
            cache = FeatureCache(settings.cache_dir, settings.cache_mb, softmatcher.signature)
        except SoftmatcherError as error:
            self._failure = str(error)
            logger.error("models of profile %s: %s", settings.profile, error)
        except Exception as error:
            self._failure = f"profile {settings.profile} cannot be loaded ({type(error).__name__}); the log has details"
            logger.exception("models of profile %s", settings.profile)
        else:
            self._loaded = (softmatcher, cache)
            self._metrics.model_ready.set(1)
            logger.info(
                "models ready profile=%s signature=%s ms=%.0f",
                settings.profile, softmatcher.signature, 1000 * (time.perf_counter() - started),
            )  # fmt: skip
        self._ready.set()

    @property
    def state(self) -> str:
        """`loading`, `ready` or `failed: why`."""
        if not self._ready.is_set():
            return "loading"
        return "ready" if self._loaded else f"failed: {self._failure}"

    def get(self, wait_s: float) -> tuple[Softmatcher, FeatureCache]:
        """Softmatcher and its feature cache.

        Raises:
            ModelUnavailableError: not loaded after `wait_s` seconds, or cannot be loaded.
        """
        self.start()
        if not self._ready.wait(wait_s):
            raise ModelUnavailableError("the models are still loading: try again in some seconds")
        if self._loaded is None:
            raise ModelUnavailableError(str(self._failure))
        return self._loaded

    def cache_figures(self) -> dict[str, float]:
        """For /metrics: hits, misses, evictions, bytes; empty while loading."""
        return asdict(self._loaded[1].stats) if self._loaded else {}
