"""The RQ worker: models loaded once a process, jobs run in it one after the other."""

import logging

from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from backend.errors import ConfigurationError, QueueUnavailableError
from backend.jobs import QUEUES, JobQueue, use_projects
from backend.projects import open_projects
from backend.settings import Settings

logger = logging.getLogger(__name__)


def run_worker(settings: Settings, *, is_burst: bool = False) -> None:
    """Serve the queues until SIGTERM or SIGINT (the running job is finished), or with `is_burst` until they are empty.

    On the start every known project is looked through: annotations made while no backend ran come in.

    Raises:
        ConfigurationError: no REDIS_URL.
        QueueUnavailableError: Redis does not answer.
    """
    if settings.redis_url is None:
        raise ConfigurationError("a worker needs REDIS_URL; `python -m backend up` starts a queue of its own")
    jobs = JobQueue(settings.redis_url)
    jobs.ping()
    projects = open_projects(settings)
    projects.models.start()
    for project in projects.store.projects():
        try:
            jobs.reconcile(project.key)
        except QueueUnavailableError:
            logger.warning("project=%s could not be queued for reconciliation", project.key)
    use_projects(projects)
    connection = Redis.from_url(settings.redis_url)
    queues = [Queue(name, connection=connection, serializer=JSONSerializer) for name in QUEUES]
    worker = SimpleWorker(queues, connection=connection, serializer=JSONSerializer)
    try:
        worker.work(burst=is_burst, logging_level="WARNING")
    finally:
        use_projects(None)
        projects.close()
