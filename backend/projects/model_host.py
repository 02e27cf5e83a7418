"""The models of one process: loaded once, in the background, and used one call at a time."""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

from backend.core.known_products import KEPT_S
from backend.engine.loading import load_softmatcher
from backend.engine.softmatcher import Softmatcher
from backend.engine.stages import OnStage
from backend.errors import ModelUnavailableError, SoftmatcherError
from backend.feature_cache import FeatureCache
from backend.metrics import Metrics
from backend.models.cpu_engine import CpuEngine
from backend.models.device.placement import choose_device, good_threads, set_threads
from backend.models.loading import ModelSource
from backend.models.openvino_runtime import has_openvino
from backend.models.text.loading import load_text_encoder
from backend.models.text.protocol import TextEncoder
from backend.projects.idle_memory import IdleMemory, trim_memory
from backend.projects.model_scheduler import ModelScheduler
from backend.settings import Settings

logger = logging.getLogger(__name__)

_LEFT_ALONE_S = 20.0
"""Seconds that an ending process waits for models that are being loaded; gunicorn kills it after 30 s."""


class Models:
    """Softmatcher and the feature cache that belongs to its signature; `start()` loads them in a thread.

    Requests that need no model (/health, /setup) never wait for more than they say.

    Args:
        settings: which models.
        metrics: of the process.
        load: loads them; for tests.
        calls_at_a_time: how many model calls share the processor's cores. One call on all cores is the quickest answer,
            several on some cores each are more answers a second.
        processes: number of processes like this one that share the cores.
        try_again_after_s: seconds after a failure from which on another call loads again.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        load: Callable[..., Softmatcher] | None = None,
        *,
        calls_at_a_time: int = 1,
        processes: int = 1,
        try_again_after_s: float = 10.0,
    ) -> None:
        self._settings = settings
        self._calls_at_a_time = calls_at_a_time
        self._processes = processes
        self._try_again_after_s = try_again_after_s
        self._load_softmatcher = load or partial(
            load_configured, settings, calls_at_a_time=calls_at_a_time, processes=processes
        )
        self._metrics = metrics
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._loaded: tuple[Softmatcher, FeatureCache] | None = None
        self._text_cache: FeatureCache | None = None
        self._failure: str | None = None
        self._failed_at = 0.0
        self._memory, self._products = IdleMemory(), IdleMemory(idle_s=KEPT_S, trim=self._forget_products)
        self.scheduler = ModelScheduler(metrics, at_a_time=calls_at_a_time, on_release=self._used)

    def _used(self) -> None:
        self._memory.used()
        self._products.used()

    def _forget_products(self) -> None:
        if self._loaded is not None:
            self._loaded[0].forget_products()
        trim_memory()

    def start(self) -> None:
        """Begin to load; a second call does nothing."""
        with self._lock:
            if self._thread is None:
                self._start_to_load()

    def _start_to_load(self) -> None:
        self._thread = threading.Thread(target=self._load, name="load-models", daemon=True)
        self._thread.start()
        # Python stops daemon threads by force once it ends, and inside of PyTorch that aborts the process.
        atexit.register(self._thread.join, _LEFT_ALONE_S)

    def _load(self) -> None:
        started = time.perf_counter()
        settings = self._settings
        try:
            softmatcher = self._load_softmatcher(settings.profile, on_stage=self._metrics.on_stage)
            sharing = self._calls_at_a_time * self._processes
            set_threads(settings.torch_threads or good_threads(softmatcher.device, sharing))
            cache = FeatureCache(settings.cache_dir, settings.cache_mb, softmatcher.signature)
            if softmatcher.text_space is not None:
                self._text_cache = FeatureCache(
                    settings.cache_dir, settings.cache_mb, softmatcher.signature, with_text=True
                )
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
        self._failed_at = time.monotonic()
        self._ready.set()

    @property
    def state(self) -> str:
        """Return `loading`, `ready` or `failed: why`. Asking after a failure starts another try."""
        if not self._ready.is_set():
            return "loading"
        known = "ready" if self._loaded else f"failed: {self._failure}"
        self._try_again()
        return known

    def get(self, wait_s: float) -> tuple[Softmatcher, FeatureCache]:
        """Return softmatcher and its feature cache.

        Raises:
            ModelUnavailableError: not loaded after `wait_s` seconds, or cannot be loaded.
        """
        self.start()
        self._try_again()
        if not self._ready.wait(wait_s):
            raise ModelUnavailableError("the models are still loading: try again in some seconds")
        if self._loaded is None:
            raise ModelUnavailableError(str(self._failure))
        return self._loaded

    def get_with_text(self, wait_s: float) -> tuple[Softmatcher, FeatureCache]:
        """Return the same as `get` with the cache of images that are encoded with text features, if there are any."""
        softmatcher, cache = self.get(wait_s)
        return softmatcher, self._text_cache or cache

    @property
    def text_space(self) -> str | None:
        """Return the space of the text features; None if there are none, or nothing is loaded yet."""
        return self._loaded[0].text_space if self._loaded else None

    def _try_again(self) -> None:
        """Load again after a failure: the weights may have been fetched meanwhile."""
        with self._lock:
            is_due = self._ready.is_set() and self._loaded is None
            if is_due and time.monotonic() - self._failed_at > self._try_again_after_s:
                self._ready.clear()
                self._start_to_load()

    def cache_counters(self) -> dict[str, float]:
        """Return hits, misses, evictions and bytes for /metrics; empty while loading."""
        return asdict(self._loaded[1].stats) if self._loaded else {}


def load_configured(
    settings: Settings,
    profile: str,
    on_stage: OnStage | None = None,
    *,
    calls_at_a_time: int = 1,
    processes: int = 1,
) -> Softmatcher:
    """Return the engine of a profile with the weights, device and encoder of the settings.

    Args:
        settings: of this process.
        profile: its name.
        on_stage: see `StageTimer`.
        calls_at_a_time: model calls that share the processor's cores.
        processes: that share them.

    Raises:
        ConfigurationError: no such profile, encoder, device or calibration.
        ModelUnavailableError: its weights are missing or wrong; says which command helps.
    """
    source = _source_of(settings)
    threads = settings.torch_threads or good_threads(source.device, calls_at_a_time * processes)
    engine = _engine_of(settings, threads=threads, calls_at_a_time=calls_at_a_time)
    return load_softmatcher(profile, on_stage, replace(source, engine=engine), calibration=settings.calibration)


def _engine_of(settings: Settings, *, threads: int, calls_at_a_time: int) -> CpuEngine:
    name = settings.cpu_engine
    if name == "openvino" and not has_openvino():
        logger.warning("OpenVINO is not installed, so PyTorch runs the models, more slowly; install openvino")
        name = "torch"
    return CpuEngine(name, settings.cpu_precision, threads=threads, calls_at_a_time=calls_at_a_time)


def load_configured_text_encoder(settings: Settings) -> TextEncoder:
    """Return the text encoder of the profile, with the weights of the settings; on the CPU.

    Raises:
        ConfigurationError: the profile has none, or its package is not installed.
        ModelUnavailableError: its weights or its tokenizer are missing or wrong; says which command helps.
    """
    return load_text_encoder(settings.profile, _source_of(settings))


def _source_of(settings: Settings) -> ModelSource:
    return ModelSource(
        settings.weights_folder,
        choose_device(settings.device),
        settings.encoder,
        settings.segmenter,
        positional_rank=settings.positional_rank,
        sam_path=settings.sam_path,
    )
