"""The RQ worker: models loaded once a process, jobs one after the other, at a lower priority than the service."""

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker, worker_registration
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from backend.core.cancellation import WorkTimeoutError
from backend.errors import ConfigurationError, QueueUnavailableError
from backend.jobs.leases import BEAT_S, LEASE_S, score_by_own_clock
from backend.jobs.queue import QUEUES
from backend.jobs.redis_queue import RedisQueue
from backend.jobs.shared_state import DIFFERENCES_FIELD, SharedState
from backend.jobs.tasks import (
    ask_to_stop,
    is_stopping,
    leave_for_maintenance,
    share_counters,
    use_projects,
    wait_to_stop,
)
from backend.jobs.worker_identity import own_name
from backend.models.device.placement import choose_device
from backend.projects.composition import open_projects
from backend.settings import CONCURRENT_BATCHES, Settings, differing, with_shared

logger = logging.getLogger(__name__)

AGAIN_AFTER_S = 5.0
START_AGAIN = "start this worker again, with the service's settings or without any of its own"
NICENESS = 5
"""The service answers people: on shared cores its calls get about three times a worker's time. Not more: labelers wait
for references too, and workers make these."""


class JobTimeoutError(JobTimeoutException, WorkTimeoutError):  # type: ignore[misc]
    """RQ's timeout of a job, as the layers below know it, which import no RQ."""


class _Alarm(UnixSignalDeathPenalty):  # type: ignore[misc]
    def __init__(self, timeout: float | None, exception: type[Exception] = JobTimeoutError, **kwargs: Any) -> None:
        is_of_job = issubclass(exception, JobTimeoutException)
        super().__init__(timeout, JobTimeoutError if is_of_job else exception, **kwargs)


class HeartbeatWorker(SimpleWorker):  # type: ignore[misc]
    """RQ's worker without a fork for each job, with the heartbeats that RQ sends from the forking parent.

    SimpleWorker itself sends none during a job: the job of a killed worker would look alive until its timeout.
    """

    death_penalty_class = _Alarm
    settings: Settings | None = None
    """Settings that this worker works with; None: they are not compared with the service's."""
    differences: tuple[str, ...] = ()
    """Settings that are others in the service."""

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Live for another `LEASE_S` seconds; register again, since the queue may have lost its data."""
        super().heartbeat(LEASE_S, pipeline)
        if self.birth_date is None:
            return
        connection = self.connection if pipeline is None else pipeline
        worker_registration.register(self, connection)
        told = {**self.serialize(), "state": self.get_state(), DIFFERENCES_FIELD: json.dumps(self.differences)}
        connection.hset(self.key, mapping=told)

    def register_job_again(self, job: Any, execution: Any) -> None:
        """List a running job as running, also if the queue lost its data meanwhile: others would take its tasks."""
        with self.connection.pipeline() as pipeline:
            execution.save(LEASE_S, pipeline=pipeline)
            job.started_job_registry.add_execution(execution, pipeline=pipeline, ttl=LEASE_S)
            pipeline.execute()

    def compare_settings(self, received: Mapping[str, Any]) -> None:
        """Warn of settings that are others in the service, once for each change: it may have been started anew."""
        if self.settings is None or not received:
            return  # a queue that lost its data is told again within seconds
        found = differing(self.settings, received)
        if found != self.differences:
            self.differences = found
            if found:
                logger.warning("%s: predictions depend on who makes them; %s", "; ".join(found), START_AGAIN)
            else:
                logger.info("settings are the service's again")

    def get_heartbeat_ttl(self, job: Any, working_time: float = 0.0) -> int:
        """Return for how many seconds a job counts as running without a heartbeat."""
        return LEASE_S

    def clean_registries(self) -> None:
        """Queue the jobs of workers that are gone again, and no others, however far apart the machines' clocks are."""
        for queue in self.queues:
            score_by_own_clock(queue)
        super().clean_registries()

    def execute_job(self, job: Any, queue: Any) -> None:
        """Run a job, with heartbeats from a thread beside it."""
        with suppress(QueueUnavailableError):
            self.compare_settings(SharedState(self.connection).published_settings())
        try:
            execution = self.prepare_execution(job)
            self.heartbeat()
        except RedisError:
            # It is in no list any more. What propagations lack is seen in the store, all else by looking through.
            leave_for_maintenance(str(job.args[0]))
            raise
        is_over = threading.Event()

        def beat() -> None:
            while not is_over.wait(BEAT_S):
                with suppress(RedisError, QueueUnavailableError):
                    self.register_job_again(job, execution)
                    self.maintain_heartbeats(job, execution)
                    share_counters()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            self.perform_job(job, queue, execution)
        finally:
            is_over.set()
            thread.join()
            with suppress(RedisError):
                # The last heartbeat may have come after the job's end.
                self.connection.delete(execution.key)
                job.started_job_registry.remove_execution(execution)
            with suppress(QueueUnavailableError):
                share_counters()
        self.set_state("idle")

    def handle_warm_shutdown_request(self) -> None:
        """SIGTERM or SIGINT: the running job gives back what it has not begun."""
        ask_to_stop()


def _as_the_service(settings: Settings, received: Mapping[str, Any]) -> Settings:
    """Masks must not depend on who predicts."""
    if not received:
        logger.info("no service has published its settings yet: this worker uses its own environment")
    return with_shared(settings, received)


def work_once(
    queues: Sequence[Queue], connection: Redis, settings: Settings, received: Mapping[str, Any], *, is_burst: bool
) -> None:
    """Serve the queues until this process is to end, or the queue fails."""
    worker = HeartbeatWorker(
        queues,
        name=own_name(),
        connection=connection,
        serializer=JSONSerializer,
        worker_ttl=LEASE_S,
        maintenance_interval=LEASE_S,
    )
    worker.settings = settings
    worker.compare_settings(received)
    try:
        # What is left of a former try, which could not sign off: RQ takes it for another worker.
        connection.delete(worker.key)
        worker.work(burst=is_burst, logging_level="WARNING")
    except RedisError as error:
        if is_burst:
            raise
        logger.error("queue: %s", error)


def run_worker(settings: Settings, *, is_burst: bool = False) -> None:
    """Serve the queues until SIGTERM or SIGINT, or with `is_burst` until they are empty.

    A propagation that runs then gives back the tasks that it has not begun. On the start every known project is looked
    through: annotations made while no backend ran come in.

    Raises:
        ConfigurationError: no REDIS_URL.
        QueueUnavailableError: Redis does not answer.
    """
    if settings.redis_url is None:
        raise ConfigurationError("a worker needs REDIS_URL; `python -m backend up` starts a queue of its own")
    redis_url = settings.redis_url
    jobs = RedisQueue(redis_url)
    jobs.ping()
    received = jobs.shared_state.published_settings()
    settings = _as_the_service(settings, received)
    with suppress(OSError):
        os.nice(NICENESS)
    # On a processor two images at a time on half of the cores each are a third more than one on all of them, and two
    # processes that each want all cores get in each other's way. A GPU's memory is for one.
    is_on_cpu = choose_device(settings.device).type == "cpu"
    calls_at_a_time = CONCURRENT_BATCHES if is_on_cpu else 1
    projects = open_projects(settings, calls_at_a_time=calls_at_a_time, processes=settings.local_workers)
    projects.models.start()
    for project in projects.store.projects():
        try:
            jobs.reconcile(project.key)
        except QueueUnavailableError:
            logger.warning("project=%s could not be queued for reconciliation", project.key)
    use_projects(projects, jobs)
    connection = Redis.from_url(redis_url)
    queues = [Queue(name, connection=connection, serializer=JSONSerializer) for name in QUEUES]
    try:
        # A signal between two tries raises StopRequested, too.
        with suppress(StopRequested):
            work_once(queues, connection, settings, received, is_burst=is_burst)
            # RQ ends its loop at any error that it does not expect: a queue at its memory limit, say.
            while not (is_burst or is_stopping()):
                logger.error("the queue failed (its log line is above): this worker goes on in %.0f s", AGAIN_AFTER_S)
                if not wait_to_stop(AGAIN_AFTER_S):
                    work_once(queues, connection, settings, received, is_burst=is_burst)
    finally:
        use_projects(None)
        projects.close()
