"""The Prometheus figures of one process, on a registry of its own."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 100.0)


class _Readings(Collector):
    """Figures that are read when Prometheus asks, from whoever owns them."""

    def __init__(self) -> None:
        self.read: Callable[[], Iterable[Metric]] = list

    def collect(self) -> Iterator[Metric]:
        yield from self.read()

    def describe(self) -> Iterable[Metric]:
        return []


class Metrics:
    """Counters and histograms of the service or a worker; `render()` gives the text that /metrics answers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "softmatcher_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "softmatcher_request_seconds",
            "Time to answer a request.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "softmatcher_stage_seconds", "Time of one stage of a prediction.", ["stage"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.gate_seconds = Histogram(
            "softmatcher_model_wait_seconds", "Time a call waited for its turn on the models.", ["kind"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.gate_waiting = Gauge(
            "softmatcher_model_waiting", "Calls that wait for their turn on the models.", registry=self.registry
        )
        self.predictions_running = Gauge(
            "softmatcher_predictions_running", "Requests for predictions under way.", registry=self.registry
        )
        self.prefetched = Counter(
            "softmatcher_prefetched", "Images looked at ahead: encoded, known, interrupted or failed.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.tasks = Counter(
            "softmatcher_tasks", "Tasks predicted: found, empty, failed or handed to the queue.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.annotations = Counter(
            "softmatcher_annotations", "Annotations taken in: reference, none, removed or failed.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.model_ready = Gauge("softmatcher_model_ready", "1 once the models are loaded.", registry=self.registry)
        ProcessCollector(registry=self.registry)
        self._readings = _Readings()
        self.registry.register(self._readings)

    def on_stage(self, stage: str, seconds: float) -> None:
        """The pipeline's observer."""
        self.stage_seconds.labels(stage).observe(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as one stage."""
        started = time.perf_counter()
        yield
        self.on_stage(name, time.perf_counter() - started)

    def read_from(
        self,
        *,
        references: Callable[[], dict[str, int]],
        cache: Callable[[], dict[str, float]],
        queue: Callable[[], dict[str, int]],
        propagating: Callable[[], dict[str, int]] = dict,
        workers: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Name the owners of the figures that are read on demand: per project, per cache figure, per queue.

        Args:
            references: how many are stored, by project id.
            cache: hits, misses, evictions, bytes; what is missing is not told.
            queue: jobs waiting, by queue.
            propagating: tasks of running propagations that are not finished, by project id.
            workers: how many serve the queues; None if that is not known.
        """

        def read() -> Iterator[Metric]:
            by_project = GaugeMetricFamily("softmatcher_references", "References stored.", labels=["project"])
            for project, count in references().items():
                by_project.add_metric([project], count)
            yield by_project
            figures = cache()
            for name in ("hits", "misses", "evictions"):
                if name in figures:
                    yield CounterMetricFamily(
                        f"softmatcher_cache_{name}", f"Feature cache {name}.", value=figures[name]
                    )
            if "bytes" in figures:
                yield GaugeMetricFamily(
                    "softmatcher_cache_bytes", "Feature cache on disk, bytes.", value=figures["bytes"]
                )
            depth = GaugeMetricFamily("softmatcher_queue_jobs", "Jobs waiting.", labels=["queue"])
            for name, count in queue().items():
                depth.add_metric([name], count)
            yield depth
            unfinished = GaugeMetricFamily(
                "softmatcher_propagating_tasks",
                "Tasks that running propagations have not finished.",
                labels=["project"],
            )
            for project, count in propagating().items():
                unfinished.add_metric([project], count)
            yield unfinished
            alive = workers()
            if alive is not None:
                yield GaugeMetricFamily("softmatcher_workers", "Workers that serve the queues.", value=alive)

        self._readings.read = read

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)
