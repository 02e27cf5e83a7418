"""The RQ worker: models loaded once a process, jobs one after the other, at a lower priority than the service."""

import logging
import os
import threading
from contextlib import suppress
from typing import Any

from prometheus_client import start_http_server
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from backend.errors import ConfigurationError, QueueUnavailableError
from backend.jobs import QUEUES, JobQueue, ask_to_stop, use_projects
from backend.projects import open_projects
from backend.settings import Settings

logger = logging.getLogger(__name__)

LEASE_S = 45
"""A worker that was not heard of for so long counts as gone, and its tasks go to others."""
_BEAT_S = 10.0
NICENESS = 5
"""The service answers people: on shared cores its calls get about three times a worker's time. Not more: labelers wait
for references too, and workers make these."""


class HeartbeatWorker(SimpleWorker):  # type: ignore[misc]
    """RQ's worker without a fork for each job, with the heartbeats that RQ sends from the forking parent.

    SimpleWorker itself sends none during a job: the job of a killed worker would look alive until its timeout.
    """

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Live for another `LEASE_S` seconds."""
        super().heartbeat(LEASE_S, pipeline)

    def get_heartbeat_ttl(self, job: Any, working_time: float = 0.0) -> int:
        """How long a job counts as running without a sign of life, s."""
        return LEASE_S

    def execute_job(self, job: Any, queue: Any) -> None:
        """Run a job, with heartbeats from a thread beside it."""
        execution = self.prepare_execution(job)
        self.heartbeat()
        is_over = threading.Event()

        def beat() -> None:
            while not is_over.wait(_BEAT_S):
                with suppress(RedisError):
                    self.maintain_heartbeats(job, execution)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            self.perform_job(job, queue, execution)
        finally:
            is_over.set()
            thread.join()
        self.set_state("idle")

    def handle_warm_shutdown_request(self) -> None:
        """SIGTERM or SIGINT: the running job gives back what it has not begun."""
        ask_to_stop()


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
    jobs = JobQueue(settings.redis_url)
    jobs.ping()
    with suppress(OSError):
        os.nice(NICENESS)
    projects = open_projects(settings)
    if settings.worker_metrics_port:
        try:
            start_http_server(settings.worker_metrics_port, settings.host, projects.metrics.registry)
        except OSError as error:  # another worker of this machine has it, say: the work is worth more than its figures
            logger.warning("no metrics: port %d of %s: %s", settings.worker_metrics_port, settings.host, error)
    projects.models.start()
    for project in projects.store.projects():
        try:
            jobs.reconcile(project.key)
        except QueueUnavailableError:
            logger.warning("project=%s could not be queued for reconciliation", project.key)
    use_projects(projects, jobs)
    connection = Redis.from_url(settings.redis_url)
    queues = [Queue(name, connection=connection, serializer=JSONSerializer) for name in QUEUES]
    worker = HeartbeatWorker(
        queues, connection=connection, serializer=JSONSerializer, worker_ttl=LEASE_S, maintenance_interval=LEASE_S
    )
    try:
        worker.work(burst=is_burst, logging_level="WARNING")
    finally:
        use_projects(None)
        projects.close()
