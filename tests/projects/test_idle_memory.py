"""Memory goes back to the system after a busy time, once for all its calls."""

import threading
import time

from backend.metrics import Metrics
from backend.projects.idle_memory import IdleMemory, trim_memory
from backend.projects.model_scheduler import ModelScheduler


def test_many_calls_are_followed_by_one_trim_and_a_later_call_by_another() -> None:
    trimmed = threading.Semaphore(0)
    memory = IdleMemory(idle_s=0.05, trim=trimmed.release)
    for _ in range(50):
        memory.used()
    assert trimmed.acquire(timeout=10)
    assert not trimmed.acquire(timeout=0.2)
    memory.used()
    assert trimmed.acquire(timeout=10)


def test_nothing_is_trimmed_while_calls_go_on() -> None:
    trims: list[float] = []
    memory = IdleMemory(idle_s=30, trim=lambda: trims.append(time.monotonic()))
    for _ in range(5):
        memory.used()
        time.sleep(0.01)
    assert trims == []


def test_each_call_of_the_models_counts() -> None:
    calls: list[str] = []
    scheduler = ModelScheduler(Metrics(), on_release=lambda: calls.append("used"))
    for _ in range(3):
        with scheduler.slot():
            pass
    assert calls == ["used"] * 3


def test_trimming_works_on_any_system() -> None:
    trim_memory()
