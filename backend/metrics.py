"""The Prometheus figures of one process, on a registry of its own.

Workers have no address that Prometheus could ask: they add what they count to the queue; the service shows the sums.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 100.0)
_OF_WORKERS = {
    "tasks": ("outcome", "Tasks predicted by workers: found, empty or failed."),
    "failed_tasks": ("reason", "Tasks of propagations that failed, by the kind of reason."),
    "annotations": ("outcome", "Annotations ingested by workers: reference, none, removed or failed."),
}
_STAGES = "stage_seconds"


@dataclass(frozen=True)
class PropagationCounters:
    """Counters of the unfinished propagations, read from the store.

    Attributes:
        running: state (`planning`, `running`, `finishing` or `paused`) -> how many.
        tasks: state of a task -> how many of all of them together.
        tasks_per_s: finished within the last minute.
    """

    running: Mapping[str, int]
    tasks: Mapping[str, int]
    tasks_per_s: float


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
        self.scheduler_seconds = Histogram(
            "softmatcher_model_wait_seconds", "Time that a call waited for a slot of the models.", ["kind"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.scheduler_waiting = Gauge(
            "softmatcher_model_waiting", "Calls that wait for a slot of the models.", registry=self.registry
        )
        self.predictions_running = Gauge(
            "softmatcher_predictions_running", "Requests for predictions in progress.", registry=self.registry
        )
        self.prefetched = Counter(
            "softmatcher_prefetched",
            "Images encoded ahead: encoded, known (in the cache already), interrupted (cancelled) or failed.",
            ["outcome"], registry=self.registry,
        )  # fmt: skip
        self.tasks = Counter(
            "softmatcher_tasks", "Tasks predicted: found, empty, failed or deferred to the workers.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.failures = Counter(
            "softmatcher_failed_tasks", "Tasks of propagations that failed, by the kind of reason.", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self.annotations = Counter(
            "softmatcher_annotations", "Annotations ingested: reference, none, removed or failed.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.model_ready = Gauge("softmatcher_model_ready", "1 once the models are loaded.", registry=self.registry)
        ProcessCollector(registry=self.registry)
        self._readings = _Readings()
        self.registry.register(self._readings)

    def on_stage(self, stage: str, seconds: float) -> None:
        """Count the time of a stage of the engine."""
        self.stage_seconds.labels(stage).observe(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as one stage."""
        started = time.perf_counter()
        yield
        self.on_stage(name, time.perf_counter() - started)

    def totals(self) -> dict[str, float]:
        """Return the counters of this process that workers share: `<figure>/<value of its label>` -> sum."""
        totals: dict[str, float] = {}
        for counter, name in (
            (self.tasks, "tasks"),
            (self.failures, "failed_tasks"),
            (self.annotations, "annotations"),
        ):
            for metric in counter.collect():
                for sample in metric.samples:
                    if sample.name.endswith("_total"):
                        totals[f"{name}/{next(iter(sample.labels.values()))}"] = sample.value
        for metric in self.stage_seconds.collect():
            for sample in metric.samples:
                if sample.name.endswith(("_sum", "_count")):
                    totals[f"{_STAGES}_{sample.name.rpartition('_')[2]}/{sample.labels['stage']}"] = sample.value
        return totals

    def read_from(
        self,
        *,
        references: Callable[[], dict[str, int]],
        cache: Callable[[], dict[str, float]],
        queue: Callable[[], dict[str, int]],
        workers: Callable[[], int | None],
        shared: Callable[[], dict[str, float]],
        propagations: Callable[[], PropagationCounters],
    ) -> None:
        """Name the owners of the figures that are read on demand.

        Args:
            references: how many, per project.
            cache: the feature cache's figures.
            queue: waiting jobs, per queue.
            workers: how many serve the queues; None if the queue cannot tell.
            shared: sums of what all workers counted, as `totals` names them.
            propagations: those that have something to do.
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
            yield _gauges("softmatcher_queue_jobs", "Jobs waiting.", "queue", queue())
            if (count_of_workers := workers()) is not None:
                yield GaugeMetricFamily("softmatcher_workers", "Workers that serve the queues.", value=count_of_workers)
            yield from _read_propagations(propagations())
            yield from _read_shared(shared())

        self._readings.read = read

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _read_propagations(figures: PropagationCounters) -> Iterator[Metric]:
    yield _gauges("softmatcher_propagations", "Propagations that are not finished.", "state", figures.running)
    yield _gauges("softmatcher_propagation_tasks", "Their tasks.", "state", figures.tasks)
    yield GaugeMetricFamily(
        "softmatcher_propagation_tasks_per_second", "Tasks of propagations finished per second, over the last minute.",
        value=figures.tasks_per_s,
    )  # fmt: skip


def _read_shared(sums: Mapping[str, float]) -> Iterator[Metric]:
    by_figure: dict[str, dict[str, float]] = {}
    for key, value in sums.items():
        figure, _, label = key.partition("/")
        by_figure.setdefault(figure, {})[label] = value
    for figure, (label_name, text) in _OF_WORKERS.items():
        counter = CounterMetricFamily(f"softmatcher_worker_{figure}", text, labels=[label_name])
        for label, value in by_figure.get(figure, {}).items():
            counter.add_metric([label], value)
        yield counter
    stages = SummaryMetricFamily(f"softmatcher_worker_{_STAGES}", "Time of one stage in workers.", labels=["stage"])
    for stage, count in by_figure.get(f"{_STAGES}_count", {}).items():
        stages.add_metric([stage], int(count), by_figure.get(f"{_STAGES}_sum", {}).get(stage, 0.0))
    yield stages
