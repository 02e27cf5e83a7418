"""Jobs through a real queue: an embedded Valkey, a worker that takes what the service enqueued."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from backend import jobs
from backend.cli.processes import EmbeddedValkey, ProcessGroup
from backend.errors import ConfigurationError, QueueUnavailableError
from backend.jobs import QUEUES, JobQueue
from tests.fakes import Backend, draw, png

POINT = {
    "id": "a", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
    "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": ["Cat"]},
}  # fmt: skip


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with ProcessGroup(tmp_path / "logs") as processes:
        valkey = EmbeddedValkey(processes, tmp_path / "valkey")
        yield valkey.url
    valkey.close()


def _work(redis_url: str) -> None:
    connection = Redis.from_url(redis_url)
    queues = [Queue(name, connection=connection, serializer=JSONSerializer) for name in QUEUES]
    SimpleWorker(queues, connection=connection, serializer=JSONSerializer).work(burst=True, logging_level="ERROR")
    connection.close()


def test_annotation_goes_through_the_queue_into_the_store(backend: Backend, redis_url: str) -> None:
    backend.label_studio.add_task(1, png(draw(red=(10, 10, 30, 30))))
    backend.label_studio.annotate(10, 1, [POINT])
    key = backend.projects.note_project(backend.label_studio.project(1))
    queue = JobQueue(redis_url)
    queue.take_in_annotation(key, 10)
    assert queue.waiting() == {jobs.REFERENCES: 1, jobs.PREDICTIONS: 0}
    _work(redis_url)
    assert queue.waiting() == {jobs.REFERENCES: 0, jobs.PREDICTIONS: 0}
    assert backend.projects.count_references() == {"1": 1}


def test_many_tasks_are_cut_into_jobs(backend: Backend, redis_url: str) -> None:
    key = backend.projects.note_project(backend.label_studio.project(1))
    assert len(JobQueue(redis_url).predict_tasks(key, range(1, 121))) == 3
    _work(redis_url)


def test_job_without_a_worker_says_how_to_start_one() -> None:
    jobs.use_projects(None)
    with pytest.raises(ConfigurationError, match="backend work"):
        jobs.take_in_annotation("1.1", 1)


def test_queue_that_does_not_answer_is_a_clear_error() -> None:
    queue = JobQueue("redis://127.0.0.1:1/0")
    with pytest.raises(QueueUnavailableError, match="REDIS_URL"):
        queue.ping()
    with pytest.raises(QueueUnavailableError, match="REDIS_URL"):
        queue.reconcile("1.1")
    assert queue.waiting() == {}
