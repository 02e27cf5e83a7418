"""The RQ worker: models loaded once a process, jobs one after the other, at a lower priority than the service."""

import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from backend.errors import ConfigurationError, QueueUnavailableError
from backend.jobs import (
    BEAT_S,
    LEASE_S,
    QUEUES,
    JobQueue,
    ask_to_stop,
    claim_key,
    score_by_own_clock,
    share_figures,
    use_projects,
)
from backend.models.accelerator import choose_device
from backend.projects import open_projects
from backend.settings import LANES, SHARED, Settings, environment_name, shared_settings, with_shared
from backend.worker_names import own_name

logger = logging.getLogger(__name__)

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

    def clean_registries(self) -> None:
        """Queue the jobs of workers that are gone again, and no others, however far apart the machines' clocks are."""
        for queue in self.queues:
            score_by_own_clock(queue)
        super().clean_registries()

    def execute_job(self, job: Any, queue: Any) -> None:
        """Run a job, with heartbeats from a thread beside it."""
        execution = self.prepare_execution(job)
        self.heartbeat()
        is_over = threading.Event()
        claim = claim_key(self.name, job.id)

        def say_alive() -> None:
            with suppress(RedisError):
                self.connection.set(claim, 1, ex=LEASE_S)

        def beat() -> None:
            while not is_over.wait(BEAT_S):
                say_alive()
                with suppress(RedisError, QueueUnavailableError):
                    self.maintain_heartbeats(job, execution)
                    share_figures()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        say_alive()
        thread.start()
        try:
            self.perform_job(job, queue, execution)
        finally:
            is_over.set()
            thread.join()
            with suppress(RedisError):
                self.connection.delete(claim)
            with suppress(QueueUnavailableError):
                share_figures()
        self.set_state("idle")

    def handle_warm_shutdown_request(self) -> None:
        """SIGTERM or SIGINT: the running job gives back what it has not begun."""
        ask_to_stop()


def _as_the_service(settings: Settings, told: Mapping[str, Any]) -> Settings:
    """Masks must not depend on who predicts."""
    if not told:
        logger.warning("no service has told its settings yet: this worker goes by its own environment")
    agreed = with_shared(settings, told)
    own = shared_settings(agreed)
    for name in SHARED:
        if name in told and name != "label_studio_url" and told[name] != own[name]:
            logger.warning(
                "%s is %r here and %r in the service: predictions will depend on who makes them",
                environment_name(name), own[name], told[name],
            )  # fmt: skip
    return agreed


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
    jobs = JobQueue(redis_url)
    jobs.ping()
    settings = _as_the_service(settings, jobs.told_settings())
    with suppress(OSError):
        os.nice(NICENESS)
    # On a processor two images at a time on half of the cores each are a third more than one on all of them, and two
    # processes that each want all cores get in each other's way. A GPU's memory is for one.
    is_on_cpu = choose_device(settings.device).type == "cpu"
    calls_at_a_time = LANES if is_on_cpu else 1
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
    worker = HeartbeatWorker(
        queues,
        name=own_name(),
        connection=connection,
        serializer=JSONSerializer,
        worker_ttl=LEASE_S,
        maintenance_interval=LEASE_S,
    )
    try:
        worker.work(burst=is_burst, logging_level="WARNING")
    finally:
        use_projects(None)
        projects.close()
