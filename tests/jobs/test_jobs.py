"""Jobs through a real queue: an embedded Valkey, a worker that takes what the service enqueued."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError
from rq import Queue, SimpleWorker
from rq import executions as rq_executions
from rq import registry as rq_registry
from rq.serializers import JSONSerializer

from backend import jobs
from backend.cli.doctor.doctor import check_queue
from backend.cli.health import HealthError, check_service, check_worker
from backend.cli.process.embedded_valkey import EmbeddedValkey
from backend.cli.process.supervisor import ProcessGroup
from backend.errors import ConfigurationError, QueueUnavailableError
from backend.jobs import tasks
from backend.jobs import worker as worker_module
from backend.jobs.leases import LEASE_S
from backend.jobs.queue import PLANS, PROPAGATIONS, QUEUES, REFERENCES, TILES, WRITES
from backend.jobs.redis_queue import RedisQueue
from backend.jobs.worker import HeartbeatWorker
from backend.jobs.worker_identity import own_name
from backend.projects.propagation.work import BATCH_SEPARATOR, Worked
from backend.settings import load_settings, shared_settings
from backend.store.records import PropagationFilter
from testing.fakes import Backend, draw, png
from tests.labelstudio.web import Answer, serve

pytestmark = pytest.mark.slow

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
    queue = RedisQueue(redis_url)
    queue.ingest_annotation(key, 10)
    assert queue.waiting() == {REFERENCES: 1, TILES: 0, WRITES: 0, PLANS: 0, PROPAGATIONS: 0}
    _work(redis_url)
    assert queue.waiting() == {REFERENCES: 0, TILES: 0, WRITES: 0, PLANS: 0, PROPAGATIONS: 0}
    assert backend.projects.count_references() == {"1": 1}


def test_the_queue_holds_each_annotation_once_however_often_it_is_announced(backend: Backend, redis_url: str) -> None:
    backend.label_studio.add_task(1, png(draw(red=(10, 10, 30, 30))))
    key = backend.projects.note_project(backend.label_studio.project(1))
    queue = RedisQueue(redis_url)
    tasks.use_projects(backend.projects, queue)
    first = queue.ingest_annotation(key, 10)
    assert {queue.ingest_annotation(key, 10) for _ in range(20)} == {first}
    assert queue.ingest_annotation(key, 11) != first
    assert queue.reconcile(key) == queue.reconcile(key)
    assert queue.waiting()[REFERENCES] == 3
    backend.label_studio.annotate(10, 1, [POINT])
    _work(redis_url)
    assert backend.projects.count_references() == {"1": 1}, "the job saw the annotation as it was when the job ran"
    assert queue.ingest_annotation(key, 10) != first, "none waits any more"
    queue.connection.delete(Queue(REFERENCES, connection=queue.connection).key)
    queue.ingest_annotation(key, 10)
    assert queue.waiting()[REFERENCES] == 1, "a job that got lost is no reason to wait for it"


def test_health_of_a_worker_is_told_by_its_heartbeats(redis_url: str) -> None:
    settings = load_settings(redis_url=redis_url)
    with pytest.raises(HealthError, match="no worker of"):
        check_worker(settings)
    connection = RedisQueue(redis_url).connection
    worker = HeartbeatWorker([Queue(QUEUES[0], connection=connection)], connection=connection)
    worker.register_birth()
    worker.heartbeat()
    assert check_worker(settings).startswith("worker ")
    connection.hset(worker.key, "last_heartbeat", "2026-01-01T00:00:00.000000Z")
    with pytest.raises(HealthError, match="was last heard of"):
        check_worker(settings)
    with pytest.raises(QueueUnavailableError):
        check_worker(load_settings(redis_url="redis://127.0.0.1:1/0"))
    with pytest.raises(ConfigurationError, match="REDIS_URL"):
        check_worker(load_settings())


def test_health_of_a_service_that_is_not_there_or_another_program(redis_url: str) -> None:
    with pytest.raises(HealthError, match="nobody answers"):
        check_service(load_settings(port=1))
    with serve() as other:
        other.always("/health", Answer(b'{"status": "UP"}'))
        with pytest.raises(HealthError, match="must answer 200 as Softmatcher"):
            check_service(load_settings(port=other.port))
        other.always("/health", Answer(b"<html>"))
        with pytest.raises(HealthError, match="must answer 200 as Softmatcher"):
            check_service(load_settings(port=other.port))
        state = {"model_class": "Softmatcher", "version": "1", "model": "failed: no weights"}
        other.always("/health", Answer(json.dumps(state).encode()))
        with pytest.raises(HealthError, match="no weights"):
            check_service(load_settings(port=other.port, basic_auth_user="ls", basic_auth_pass="ß"))
        assert other.requests[-1].headers["authorization"] == "Basic bHM63w=="


@pytest.fixture
def propagation(backend: Backend, redis_url: str) -> tuple[RedisQueue, str, int]:
    """A queue, and a propagation of ten tasks that nobody has planned yet."""
    for number in range(1, 11):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30 + number, 30))))
    backend.label_studio.annotate(10, 1, [POINT])
    key = backend.projects.note_project(backend.label_studio.project(1))
    queue = RedisQueue(redis_url)
    tasks.use_projects(backend.projects, queue)
    return queue, key, backend.projects.propagations.start(key, PropagationFilter(), "test", supersede=False).id


def test_propagation_goes_through_the_queue(
    backend: Backend, redis_url: str, propagation: tuple[RedisQueue, str, int]
) -> None:
    queue, key, identifier = propagation
    assert queue.ensure_planned(key, identifier)
    assert not queue.ensure_planned(key, identifier), "the job waits already"
    _work(redis_url)
    assert backend.projects.store.propagations.get(identifier).state == "done"
    assert sorted(item["task"] for item in backend.label_studio.imported) == list(range(1, 11))


def test_the_queue_names_the_propagations_that_wait(propagation: tuple[RedisQueue, str, int]) -> None:
    queue, key, identifier = propagation
    queue.propagate("2.5", identifier + 1)
    queue.plan_propagation("3.5", identifier + 2)
    queue.train_refiners(key)
    assert set(queue.waiting_propagations()) >= {identifier + 1, identifier + 2}
    assert RedisQueue("redis://127.0.0.1:1/0").waiting_propagations() == []


def test_no_more_jobs_than_workers_and_tasks_ask_for(propagation: tuple[RedisQueue, str, int]) -> None:
    queue, key, identifier = propagation
    assert queue.ensure_propagation_jobs(key, identifier, 5000) == 1, "no worker is there yet: one job waits for it"
    assert queue.ensure_propagation_jobs(key, identifier, 5000) == 0
    workers = [
        SimpleWorker([Queue(name, connection=queue.connection) for name in QUEUES], connection=queue.connection)
        for _ in range(3)
    ]
    for worker in workers:
        worker.register_birth()
    assert queue.ensure_propagation_jobs(key, identifier, 5000) == 2
    assert queue.ensure_propagation_jobs(key, identifier, 5) == 0


def test_claim_lives_as_long_as_its_worker_and_its_job(
    propagation: tuple[RedisQueue, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, key, identifier = propagation
    monkeypatch.setattr("backend.jobs.leases.LEASE_S", 0)
    job_id = queue.propagate(key, identifier)
    rq_queue = Queue(PROPAGATIONS, connection=queue.connection, serializer=JSONSerializer)
    worker = HeartbeatWorker([rq_queue], connection=queue.connection, serializer=JSONSerializer)
    worker.register_birth()
    assert not queue.is_lease_alive(f"{worker.name}:{job_id}"), "the job was not begun"
    job = rq_queue.fetch_job(job_id)
    worker.prepare_execution(job)
    worker.heartbeat()
    assert queue.is_lease_alive(f"{worker.name}:{job_id}")
    assert 0 < queue.connection.ttl(worker.key) <= LEASE_S
    queue.connection.delete(worker.key)
    assert not queue.is_lease_alive(f"{worker.name}:{job_id}"), "its heartbeats ended"


def test_a_running_job_is_alive_again_with_the_next_heartbeat_after_the_queue_was_emptied(
    backend: Backend, propagation: tuple[RedisQueue, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks were taken back again and again, and given up after four times, though it predicted them."""
    queue, key, identifier = propagation
    monkeypatch.setattr("backend.jobs.leases.LEASE_S", 0)
    monkeypatch.setattr("backend.jobs.worker.BEAT_S", 0.05)
    seen: list[bool] = []

    def run(propagation_id: int, claim: str, **_: object) -> Worked:
        queue.connection.flushall()
        deadline = time.monotonic() + 20
        while not queue.is_lease_alive(f"{claim}") and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(queue.is_lease_alive(f"{claim}"))
        seen.append(queue.is_lease_alive(f"{claim}-another"))
        return Worked(0, "nothing")

    monkeypatch.setattr(backend.projects.propagation_work, "run", run)
    job_id = queue.propagate(key, identifier)
    rq_queue = Queue(PROPAGATIONS, connection=queue.connection, serializer=JSONSerializer)
    worker = HeartbeatWorker([rq_queue], connection=queue.connection, serializer=JSONSerializer)
    worker.work(burst=True)
    assert seen == [True, False]
    assert not queue.is_lease_alive(f"{worker.name}:{job_id}"), "the job has ended"


def test_queue_that_came_back_a_moment_ago_calls_nobody_dead(propagation: tuple[RedisQueue, str, int]) -> None:
    queue, _, _ = propagation
    assert queue.is_lease_alive("worker-elsewhere:job"), "it could not send heartbeats while the queue was away"
    host, pid, started = own_name().split(".")
    assert not queue.is_lease_alive(f"{host}.{pid}.{int(started) - 1}:job"), "a process of this host is seen to be gone"


def test_claims_count_as_alive_while_redis_is_away() -> None:
    assert RedisQueue("redis://127.0.0.1:1/0").is_lease_alive("worker:job")


def test_annotation_that_waits_interrupts_a_propagation(
    backend: Backend, propagation: tuple[RedisQueue, str, int]
) -> None:
    queue, key, identifier = propagation
    backend.projects.propagation_plans.plan(identifier)
    queue.ingest_annotation(key, 10)
    before = tasks._QUEUE_ASKED_S
    tasks._QUEUE_ASKED_S = 0.0
    try:
        outcome = tasks.propagate(key, identifier)
    finally:
        tasks._QUEUE_ASKED_S = before
    assert outcome["left"] == "more"
    assert backend.projects.store.propagation_tasks.counts(identifier).pending == 10


def test_worker_that_is_to_end_gives_back_what_it_has_not_begun(
    backend: Backend, propagation: tuple[RedisQueue, str, int]
) -> None:
    queue, key, identifier = propagation
    backend.projects.propagation_plans.plan(identifier)
    fetch = backend.label_studio.fetch
    fetched: list[str] = []

    def fetch_then_stop(url: str, task_id: int | None) -> bytes:
        fetched.append(url)
        if len(fetched) == 3:
            tasks.ask_to_stop()
        return fetch(url, task_id)

    backend.label_studio.fetch = fetch_then_stop  # type: ignore[method-assign]
    outcome = tasks.propagate(key, identifier)
    counts = backend.projects.store.propagation_tasks.counts(identifier)
    assert 0 < outcome["finished"] < 10
    assert (counts.pending, counts.running) == (10 - outcome["finished"], 0)
    assert queue.waiting()[PROPAGATIONS] == 1, "another worker, or the next one, goes on"


def test_job_without_a_worker_says_how_to_start_one() -> None:
    tasks.use_projects(None)
    with pytest.raises(ConfigurationError, match="backend work"):
        tasks.ingest_annotation("1.1", 1)


def test_queue_that_does_not_answer_is_a_clear_error() -> None:
    queue = RedisQueue("redis://127.0.0.1:1/0")
    with pytest.raises(QueueUnavailableError, match="REDIS_URL"):
        queue.ping()
    with pytest.raises(QueueUnavailableError, match="REDIS_URL"):
        queue.reconcile("1.1")
    assert queue.waiting() == {}


def test_figures_of_all_workers_are_summed(redis_url: str, backend: Backend) -> None:
    queue = RedisQueue(redis_url)
    metrics = backend.projects.metrics
    tasks.use_projects(backend.projects, queue)
    metrics.tasks.labels("found").inc(3)
    metrics.failures.labels("image_missing").inc()
    metrics.on_stage("encode", 0.25)
    tasks.share_counters()
    metrics.tasks.labels("found").inc()
    tasks.share_counters()
    tasks.share_counters()
    # Another worker, counting from nothing.
    tasks.use_projects(backend.projects, queue)
    tasks.share_counters()
    tasks.use_projects(None)
    assert queue.shared_state.counters() == {
        "tasks/found": 8, "failed_tasks/image_missing": 2, "stage_seconds_sum/encode": 0.5,
        "stage_seconds_count/encode": 2,
    }  # fmt: skip
    assert RedisQueue("redis://127.0.0.1:1/0").shared_state.counters() == {}


@pytest.mark.parametrize("ahead_s", [-3600, -25, 25, 3600])
def test_worker_whose_clock_is_another_neither_looks_dead_nor_takes_others_for_dead(
    propagation: tuple[RedisQueue, str, int], monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    queue, key, identifier = propagation
    monkeypatch.setattr("backend.jobs.leases.LEASE_S", 0)  # the queue was not started a moment ago
    job_id = queue.propagate(key, identifier)
    rq_queues = [Queue(name, connection=queue.connection, serializer=JSONSerializer) for name in QUEUES]
    rq_queue = rq_queues[-1]

    def made() -> HeartbeatWorker:
        worker = HeartbeatWorker(rq_queues, connection=queue.connection, serializer=JSONSerializer)
        worker.register_birth()
        return worker

    own_clock, here = rq_registry.current_timestamp, made()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(rq_registry, "current_timestamp", lambda: own_clock() + ahead_s)
        elsewhere.setattr(rq_executions, "current_timestamp", lambda: own_clock() + ahead_s)
        there = made()
        popped = rq_queue.fetch_job(rq_queue.pop_job_id())
        execution = there.prepare_execution(popped)
        there.prepare_job_execution(popped)
        there.maintain_heartbeats(popped, execution)
    assert queue.is_lease_alive(f"{there.name}:{job_id}")
    assert queue.ensure_propagation_jobs(key, identifier, 5) == 0, "it runs already"
    here.clean_registries()
    assert rq_queue.job_ids == [], "it was not queued a second time"
    assert rq_queue.fetch_job(job_id).get_status() == "started"
    queue.connection.delete(execution.key)
    assert not queue.is_lease_alive(f"{there.name}:{job_id}"), "its heartbeats ended"
    here.clean_registries()
    assert rq_queue.job_ids == [job_id], "so another worker gets it"


def test_jobs_of_workers_that_could_not_reach_the_queue_are_not_given_to_others_at_once(
    propagation: tuple[RedisQueue, str, int],
) -> None:
    queue, key, identifier = propagation
    queue.propagate(key, identifier)
    rq_queue = Queue(PROPAGATIONS, connection=queue.connection, serializer=JSONSerializer)
    worker = HeartbeatWorker([rq_queue], connection=queue.connection, serializer=JSONSerializer)
    worker.register_birth()
    popped = rq_queue.fetch_job(rq_queue.pop_job_id())
    execution = worker.prepare_execution(popped)
    worker.prepare_job_execution(popped)
    queue.connection.delete(execution.key)
    queue.connection.zadd(f"rq:wip:{PROPAGATIONS}", {execution.composite_key: 1})
    worker.clean_registries()
    assert rq_queue.job_ids == [], "the queue came back a moment ago"


def _a_worker(queue: RedisQueue) -> HeartbeatWorker:
    queues = [Queue(name, connection=queue.connection, serializer=JSONSerializer) for name in QUEUES]
    return HeartbeatWorker(queues, connection=queue.connection, serializer=JSONSerializer)


def test_queue_that_loses_its_data_during_a_job_hears_of_worker_and_job_again(
    backend: Backend, propagation: tuple[RedisQueue, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, key, identifier = propagation
    monkeypatch.setattr(worker_module, "BEAT_S", 0.02)
    backend.projects.propagation_plans.plan(identifier)
    queue.propagate(key, identifier)
    seen: dict[str, Any] = {}
    worker, fetch, one_at_a_time = _a_worker(queue), backend.label_studio.fetch, threading.Lock()

    def are_claims_alive() -> bool:
        claims = backend.projects.store.propagation_tasks.leases(identifier)
        return all(queue.is_lease_alive(claim.partition(BATCH_SEPARATOR)[0]) for claim in claims)

    def lose_the_queue(url: str, task_id: int | None) -> bytes:
        with one_at_a_time:
            if not seen:
                with queue.connection.pipeline() as at_once:  # no beat comes in between
                    at_once.flushall()
                    at_once.dbsize()
                    seen["left"] = at_once.execute()[-1]
                monkeypatch.setattr("backend.jobs.leases.LEASE_S", 0)  # the queue runs for longer than a lease
                for _ in range(500):
                    seen["again"] = queue.count_workers(), are_claims_alive()
                    if all(seen["again"]):
                        break
                    time.sleep(0.02)
                seen["job"] = queue.ensure_propagation_jobs(key, identifier, 5)
        return fetch(url, task_id)

    backend.label_studio.fetch = lose_the_queue  # type: ignore[method-assign]
    worker.work(burst=True, logging_level="ERROR")
    assert seen["left"] == 0
    assert seen["again"] == (1, True)
    assert seen["job"] == 0, "the job that runs is not queued a second time"
    assert backend.projects.store.propagations.get(identifier).state == "done"
    assert sorted(item["task"] for item in backend.label_studio.imported) == list(range(1, 11))
    assert queue.connection.zcard(f"rq:wip:{PROPAGATIONS}") == 0, "nothing is listed after its end"


def test_idle_worker_is_visible_again_after_the_queue_lost_its_data(redis_url: str) -> None:
    queue = RedisQueue(redis_url)
    worker = _a_worker(queue)
    worker.register_birth()
    worker.set_state("idle")
    queue.connection.flushall()
    worker.heartbeat()
    assert queue.count_workers() == 1
    assert check_worker(load_settings(redis_url=redis_url)).startswith("worker idle")
    assert 0 < queue.connection.ttl(worker.key) <= LEASE_S


def test_service_that_starts_again_with_another_matcher_is_noticed_by_its_workers(
    propagation: tuple[RedisQueue, str, int], redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue, key, _ = propagation
    worker = _a_worker(queue)
    worker.settings = load_settings()
    queue.shared_state.publish_settings(shared_settings(worker.settings))
    queue.reconcile(key)
    worker.work(burst=True, logging_level="ERROR")
    assert queue.shared_state.differences() == []
    queue.shared_state.publish_settings(shared_settings(load_settings(matcher="prototype")))
    worker = _a_worker(queue)
    worker.settings = load_settings()
    worker.register_birth()
    for _ in range(2):
        worker.compare_settings(queue.shared_state.published_settings())
    worker.heartbeat()
    said = "SOFTMATCHER_MATCHER is 'posterior' here and 'prototype' in the service"
    assert [said in record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [True]
    assert [said in one for one in queue.shared_state.differences()] == [True]
    check = check_queue(load_settings(redis_url=redis_url))
    assert check.is_ok is False
    assert said in check.finding


def test_each_job_compares_the_settings(propagation: tuple[RedisQueue, str, int]) -> None:
    queue, key, _ = propagation
    queue.shared_state.publish_settings(shared_settings(load_settings(matcher="prototype")))
    queue.reconcile(key)
    worker = _a_worker(queue)
    worker.settings = load_settings()
    worker.work(burst=True, logging_level="ERROR")
    assert len(worker.differences) == 1


def test_worker_comes_back_from_a_queue_at_its_memory_limit_and_nothing_is_lost(
    backend: Backend, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.label_studio.add_task(1, png(draw(red=(10, 10, 30, 30))))
    backend.label_studio.annotate(10, 1, [POINT])
    key = backend.projects.note_project(backend.label_studio.project(1))
    backend.projects.store.save_project(key, needs_reconcile=False)
    queue = RedisQueue(redis_url)
    tasks.use_projects(backend.projects, queue)
    queue.reconcile(key)
    queue.connection.config_set("maxmemory", 1)
    with pytest.raises(QueueUnavailableError, match="memory limit"):
        queue.ingest_annotation(key, 10)
    queues = [Queue(name, connection=queue.connection, serializer=JSONSerializer) for name in QUEUES]
    for _ in range(2):
        worker_module.work_once(queues, queue.connection, backend.settings, {}, is_burst=False)
    queue.connection.config_set("maxmemory", 0)
    worker_module.work_once(queues, queue.connection, backend.settings, {}, is_burst=True)
    assert backend.projects.count_references() == {"1": 1}


def test_job_that_cannot_be_noted_as_begun_is_made_up_for(backend: Backend, redis_url: str) -> None:
    key = backend.projects.note_project(backend.label_studio.project(1))
    backend.projects.store.save_project(key, needs_reconcile=False)
    queue = RedisQueue(redis_url)
    tasks.use_projects(backend.projects, queue)
    queue.reconcile(key)
    rq_queue = Queue(REFERENCES, connection=queue.connection, serializer=JSONSerializer)
    job = rq_queue.fetch_job(rq_queue.pop_job_id())
    worker = _a_worker(queue)
    worker.register_birth()
    queue.connection.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError):
        worker.execute_job(job, rq_queue)
    project = backend.projects.store.project(key)
    assert project is not None
    assert project.needs_reconcile


def test_jobs_queued_by_the_release_before_still_run(backend: Backend, redis_url: str) -> None:
    backend.label_studio.add_task(1, png(draw(red=(10, 10, 30, 30))))
    backend.label_studio.annotate(10, 1, [POINT])
    key = backend.projects.note_project(backend.label_studio.project(1))
    queue = RedisQueue(redis_url)
    tasks.use_projects(backend.projects, queue)
    former = Queue(REFERENCES, connection=queue.connection, serializer=JSONSerializer)
    former.enqueue_call("backend.jobs.take_in_annotation", args=(key, 10))
    _work(redis_url)
    assert backend.projects.count_references() == {"1": 1}
    for name in ("reconcile", "refresh_project", "plan_propagation", "propagate", "tidy_propagation"):
        assert callable(getattr(jobs, name))
    with pytest.raises(AttributeError, match="no attribute 'anything_else'"):
        _ = jobs.anything_else


def test_a_job_whose_time_is_over_says_nothing_of_its_annotation(
    backend: Backend, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RQ raises its own class at any place; the layers below know no RQ, and must not take it for a surprise."""
    backend.label_studio.add_task(1, png(draw(red=(10, 10, 30, 30))))
    backend.label_studio.annotate(10, 1, [POINT])
    key = backend.projects.note_project(backend.label_studio.project(1))
    queue = RedisQueue(redis_url)
    tasks.use_projects(backend.projects, queue)

    def slow(*_: object) -> bytes:
        time.sleep(20)
        raise AssertionError("the alarm did not ring")

    monkeypatch.setattr(backend.label_studio, "fetch", slow)
    rq_queue = Queue(REFERENCES, connection=queue.connection, serializer=JSONSerializer)
    job = rq_queue.enqueue_call("backend.jobs.tasks.ingest_annotation", args=(key, 10), timeout=1)
    _a_worker(queue).work(burst=True, logging_level="CRITICAL")
    assert job.get_status() == "failed"
    assert backend.projects.store.unread_annotations(key) == []
    queue.connection.close()
