"""Turns on the models: one at a time, interactive first; a model that cannot load says why."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backend.core.arrays import Processor
from backend.engine.softmatcher import Softmatcher
from backend.errors import ModelUnavailableError
from backend.metrics import Metrics
from backend.projects.model_host import Models
from backend.projects.model_scheduler import ModelScheduler
from backend.settings import load_settings
from testing.fakes import ColourSoftmatcher


def test_interactive_call_goes_before_batch_calls_that_wait() -> None:
    scheduler, order = ModelScheduler(Metrics()), list[str]()
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with scheduler.slot(is_interactive=False):
            is_held.set()
            may_end.wait(5)

    def call(name: str, *, is_interactive: bool) -> None:
        with scheduler.slot(is_interactive=is_interactive):
            order.append(name)

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait(5)
    waiting = [threading.Thread(target=call, args=(f"batch {i}",), kwargs={"is_interactive": False}) for i in range(3)]
    waiting.append(threading.Thread(target=call, args=("point",), kwargs={"is_interactive": True}))
    for thread in waiting:
        thread.start()
        time.sleep(0.05)  # the interactive call comes last
    may_end.set()
    for thread in [holder, *waiting]:
        thread.join(5)
    assert order[0] == "point"
    assert sorted(order[1:]) == ["batch 0", "batch 1", "batch 2"]


def test_one_call_at_a_time() -> None:
    scheduler, inside, most = ModelScheduler(Metrics()), 0, 0

    def call(is_interactive: bool) -> None:
        nonlocal inside, most
        for _ in range(20):
            with scheduler.slot(is_interactive=is_interactive):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=call, args=(number % 2 == 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == 1


def test_a_failed_call_frees_the_models() -> None:
    scheduler = ModelScheduler(Metrics())
    with pytest.raises(RuntimeError), scheduler.slot(is_interactive=True):
        raise RuntimeError
    with scheduler.slot(is_interactive=False):
        pass


def test_model_that_cannot_load_says_why_and_never_crashes_the_process(tmp_path: Path) -> None:
    def load(profile: str, on_stage: object) -> Softmatcher:
        raise ModelUnavailableError("weights of profile lite are missing: fetch them")

    models = Models(load_settings(data_dir=tmp_path), Metrics(), load=load)
    assert models.state == "loading"
    with pytest.raises(ModelUnavailableError, match="fetch them"):
        models.get(5)
    assert models.state == "failed: weights of profile lite are missing: fetch them"


def test_whoever_watches_the_state_sees_weights_that_came(tmp_path: Path) -> None:
    weights = tmp_path / "weights"

    def load(profile: str, on_stage: object) -> Softmatcher:
        if not weights.exists():
            raise ModelUnavailableError("fetch them")
        return ColourSoftmatcher()  # type: ignore[return-value]

    models = Models(load_settings(data_dir=tmp_path), Metrics(), load=load, try_again_after_s=0.0)
    models.start()

    def states(until: str) -> set[str]:
        seen: set[str] = set()
        deadline = time.monotonic() + 5
        while until not in seen:
            assert time.monotonic() < deadline, seen
            seen.add(models.state)
            time.sleep(0.005)
        return seen

    assert states("failed: fetch them") <= {"loading", "failed: fetch them"}
    weights.touch()
    states("ready")
    models.get(0)


@pytest.mark.parametrize(
    ("device", "asked", "concurrent_batches", "processes", "expected"),
    [
        ("cpu", 0, 1, 1, 0), ("cpu", 3, 1, 1, 3), ("cpu", 0, 2, 1, 8), ("cpu", 0, 2, 2, 4), ("cpu", 0, 2, 20, 1),
        ("cpu", 3, 2, 2, 3), ("cuda:0", 0, 1, 1, 1), ("cuda:0", 3, 1, 1, 3), ("cuda:0", 0, 1, 3, 1),
    ],
)  # fmt: skip
def test_threads_are_set_for_where_the_models_are(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    asked: int,
    concurrent_batches: int,
    processes: int,
    expected: int,
) -> None:
    told: list[int] = []
    monkeypatch.setattr("backend.projects.model_host.set_threads", told.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    loaded = ColourSoftmatcher()
    loaded.device = Processor(device.partition(":")[0])
    settings = load_settings(data_dir=tmp_path, torch_threads=asked)
    models = Models(
        settings,
        Metrics(),
        load=lambda profile, on_stage: loaded,  # type: ignore[arg-type,return-value]
        calls_at_a_time=concurrent_batches,
        processes=processes,
    )
    models.get(5)
    assert told == [expected]


def test_waiting_for_models_ends(tmp_path: Path) -> None:
    forever = threading.Event()
    models = Models(load_settings(data_dir=tmp_path), Metrics(), load=lambda profile, on_stage: forever.wait(5))  # type: ignore[arg-type,return-value]
    with pytest.raises(ModelUnavailableError, match="loading"):
        models.get(0.05)
    forever.set()


@pytest.mark.slow
def test_a_process_that_ends_while_its_models_load_ends_well(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
import torch
from backend.metrics import Metrics
from backend.projects.model_host import Models
from backend.settings import load_settings

def load(profile, on_stage):
    print("loading", flush=True)
    for _ in range(300):
        torch.rand(300, 300) @ torch.rand(300, 300)
    print("loaded", flush=True)
    raise SystemExit

Models(load_settings(data_dir=Path(sys.argv[1])), Metrics(), load=load).start()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == ["loading", "loaded"]


def test_products_of_targets_are_forgotten_once_nothing_is_matched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = threading.Event()

    class Forgetting(ColourSoftmatcher):
        def forget_products(self) -> None:
            forgotten.set()

    monkeypatch.setattr("backend.projects.model_host.KEPT_S", 0.05)
    models = Models(load_settings(data_dir=tmp_path), Metrics(), load=lambda profile, on_stage: Forgetting())  # type: ignore[arg-type,return-value]
    models.get(5)
    assert not forgotten.is_set()
    with models.scheduler.slot():
        pass
    assert forgotten.wait(10)
