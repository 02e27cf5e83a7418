"""Which jobs run, and whose: by RQ's keys of executions, which expire unless their worker sends heartbeats."""

import time
from dataclasses import dataclass

from redis.exceptions import RedisError
from rq import Queue, Worker
from rq.registry import StartedJobRegistry

from backend.jobs.connection import to_text, uptime_s
from backend.jobs.worker_identity import has_ended

LEASE_S = 25
"""Seconds after which a worker without a heartbeat counts as gone, and its tasks go to others. Heartbeats come every
`BEAT_S`, so four have to be missed."""
BEAT_S = 5.0
"""Seconds between two heartbeats of a worker during a job."""

_EXECUTION_KEYS = "rq:execution:"


@dataclass(frozen=True)
class RunningJob:
    """An entry of a queue's list of running jobs.

    Attributes:
        entry: as RQ lists it, `<job id>:<execution id>`.
        job_id: of the job.
        worker: name of its worker; "" if the entry does not say.
        rest_ms: how long it counts as running without another heartbeat; not above 0 if its heartbeats ended.
    """

    entry: str
    job_id: str
    worker: str
    rest_ms: int


def list_running(queue: Queue) -> list[RunningJob]:
    """Return what a queue lists as running, those whose heartbeats ended included: some worker's cleaning up is due.

    RQ scores the entries by the clock of the machine that works, and judges them by another's: clocks 25 s apart make
    a working job look dead. The keys of the executions end by Redis' own clock.
    """
    registry = StartedJobRegistry(queue=queue)
    entries = [to_text(entry) for entry in queue.connection.zrange(registry.key, 0, -1)]
    with queue.connection.pipeline(transaction=False) as pipeline:
        for entry in entries:
            pipeline.pttl(f"{_EXECUTION_KEYS}{entry}")
            pipeline.hget(f"{_EXECUTION_KEYS}{entry}", "worker_name")
        answers = pipeline.execute()
    return [
        RunningJob(entry, str(registry.parse_job_id(entry)), to_text(worker or b""), int(rest_ms))
        for entry, rest_ms, worker in zip(entries, answers[::2], answers[1::2], strict=True)
    ]


def is_lease_alive(queue: Queue, lease: str) -> bool:
    """Return whether a worker still lives and runs a job; True if Redis cannot tell.

    A process of this host that has ended is seen at once. Otherwise heartbeats decide: the worker's key and that of
    the job's execution expire without them, and come back with the next one after the queue was emptied.

    Args:
        queue: of the job.
        lease: `<worker>:<job id>`.
    """
    worker, _, job_id = lease.partition(":")
    if has_ended(worker):
        return False
    try:
        if queue.connection.exists(f"{Worker.redis_worker_namespace_prefix}{worker}"):
            for job in list_running(queue):
                # Release 0.2.0 left entries without a worker after the queue was emptied.
                if job.job_id == job_id and job.worker in (worker, "") and job.rest_ms > 0:
                    return True
        # While Redis was away nobody could send heartbeats: those who live get the time to.
        return uptime_s(queue.connection) < LEASE_S
    except RedisError:
        return True


def score_by_own_clock(queue: Queue) -> None:
    """Give each running job the score that RQ's cleaning up on this machine expects, whatever clock wrote it."""
    registry = StartedJobRegistry(queue=queue)
    # While Redis was away nobody could send heartbeats: those who live get the time to.
    least_s = LEASE_S if uptime_s(queue.connection) < LEASE_S else 0
    now = time.time()
    scores = {}
    for job in list_running(queue):
        rest_s = max(least_s, job.rest_ms / 1000)
        scores[job.entry] = now + rest_s if rest_s > 0 else 0.0
    if scores:
        queue.connection.zadd(registry.key, scores, xx=True)
