"""Propagation of a whole project, against the real server, with workers that are killed, stopped and starved."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backend.cli.demo.coins import COIN, LABEL_CONFIG
from backend.cli.demo.label_studio_server import LabelStudio, intersection_over_union, mask_of_regions
from backend.cli.process.supervisor import free_port
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.flaky_proxy import FlakyProxy
from tests.e2e.propagation_scene import (
    assert_each_task_once,
    many_coins,
    newest,
    own_predictions,
    start,
    start_second_worker,
    status,
    wait_for_end,
)
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, Project, point_on, wait_until

COUNT = 24
MANY, BATCH = 240, 24


@pytest.fixture(scope="module")
def proxy(label_studio: LabelStudio) -> Iterator[FlakyProxy]:
    proxy = FlakyProxy(label_studio.url, free_port())
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def propagating(new_backend: StartBackend, proxy: FlakyProxy) -> Iterator[Backend]:
    """A backend with one worker, whose Label Studio can be taken away."""
    proxy.image_delay_s = 0.4
    made = new_backend("propagating", LABEL_STUDIO_URL=proxy.url, SOFTMATCHER_TORCH_THREADS="1")
    yield made
    made.stop()


@pytest.fixture
def marked(new_project: NewProject, propagating: Backend) -> Project:
    """A project of 24 tasks with one coin of one of them marked."""
    project = new_project(propagating, many_coins(COUNT))
    project.mark_one_coin()
    return project


def test_start_training_predicts_every_task_once_and_replaces_what_is_out_of_date(marked: Project) -> None:
    second = start_second_worker(marked.backend)
    try:
        marked.label_studio.train(marked.connection)
        wait_until(lambda: newest(marked)["started_by"].endswith("start training"), "the propagation is there")
        first = wait_for_end(marked, newest(marked)["id"])
        assert_each_task_once(marked, first)
        assert (first["state"], first["counts"]["done"]) == ("done", COUNT)
        assert first["model_version"] == marked.version()

        marked.annotate("tile-0", point_on(TARGETS[0], 1))
        marked.wait_for_references(2)
        marked.label_studio.train(marked.connection)
        wait_until(lambda: newest(marked)["id"] > first["id"], "the next propagation is there")
        again = wait_for_end(marked, newest(marked)["id"])
        assert_each_task_once(marked, again)
        assert again["model_version"] != first["model_version"]
        assert {version for versions in own_predictions(marked).values() for version in versions} == {marked.version()}
    finally:
        marked.backend.processes.stop(second)
    predictions = marked.predictions("tile-0")
    shown = mask_of_regions(predictions[-1]["result"], COIN, SAMPLES[TARGETS[0]].size_hw)
    # How good masks are is shown elsewhere: here, that they are this image's.
    assert intersection_over_union(shown, SAMPLES[TARGETS[0]].masks[COIN]) > 0.2


def test_a_brush_renamed_in_the_middle_loses_no_prediction(marked: Project) -> None:
    """Label Studio answers imports of a control that it does not have (any more) with 201 and drops them."""
    first = wait_for_end(marked, start(marked))
    assert_each_task_once(marked, first)
    marked.annotate("tile-0", point_on(TARGETS[0], 1))
    marked.wait_for_references(2)
    second = start(marked)
    wait_until(lambda: status(marked, second)["counts"]["done"] > 2, "some tasks are done", 120)
    assert status(marked, second)["counts"]["done"] < COUNT, "it was to be in the middle"
    renamed = LABEL_CONFIG.replace('<BrushLabels name="brush"', '<BrushLabels name="renamed"')
    marked.label_studio.call("PATCH", f"/api/projects/{marked.id}/", json={"label_config": renamed})
    ended = wait_for_end(marked, second)
    per_task = own_predictions(marked)
    assert {len(versions) for versions in per_task.values()} == {1}, "each task has its old or its new prediction"
    assert ended["counts"]["done"] + ended["counts"]["failed"] == COUNT, ended
    assert all(failure["reason"] for failure in ended["failures"])
    third = wait_for_end(marked, start(marked))
    assert (third["state"], third["counts"]["done"]) == ("done", COUNT), third
    newest_of = {task: each[-1] for task, each in marked.label_studio.predictions(marked.id).items()}
    assert {region["from_name"] for each in newest_of.values() for region in each["result"]} == {"renamed"}
    assert_each_task_once(marked, third)


def test_killed_worker_loses_nothing(marked: Project) -> None:
    second = start_second_worker(marked.backend)
    propagation = start(marked)
    # A share is four tasks here: five are more than one worker's.
    wait_until(lambda: status(marked, propagation)["counts"]["running"] > 4, "both workers have tasks", 120)
    marked.backend.processes.kill(second)
    assert status(marked, propagation)["is_active"]
    # Its tasks come back when its heartbeats have been missed for 45 s.
    assert_each_task_once(marked, wait_for_end(marked, propagation))
    marked.backend.processes.stop(second)


def test_worker_that_is_asked_to_end_gives_its_tasks_back(marked: Project) -> None:
    backend = marked.backend
    worker = backend.processes[f"{backend.name}-worker"]
    propagation = start(marked)
    wait_until(lambda: status(marked, propagation)["counts"]["running"] > 0, "a worker has tasks")
    time.sleep(2)
    os.kill(worker.pid, signal.SIGTERM)
    started = time.monotonic()
    wait_until(lambda: worker.exit_code is not None, "the worker has ended", 60)
    assert time.monotonic() - started < 30
    counts = status(marked, propagation)["counts"]
    assert counts["running"] == 0
    assert counts["pending"] > 0, "it was to be stopped in the middle"
    backend.processes.restart(f"{backend.name}-worker")
    assert_each_task_once(marked, wait_for_end(marked, propagation))


@pytest.mark.parametrize("part", ["service", "valkey"])
def test_killed_service_or_queue_loses_nothing(marked: Project, part: str) -> None:
    backend = marked.backend
    propagation = start(marked)
    wait_until(lambda: status(marked, propagation)["counts"]["running"] > 0, "a worker has tasks")
    time.sleep(2)
    backend.processes.kill(f"{backend.name}-{part}")
    time.sleep(3)
    backend.processes.restart(f"{backend.name}-{part}")
    if part == "valkey":
        # A worker ends when its queue is away in the wrong moment; `up` starts it again.
        time.sleep(2)
        backend.processes.restart(f"{backend.name}-worker")
    backend.wait()
    assert_each_task_once(marked, wait_for_end(marked, propagation))


def test_label_studio_away_pauses_it(marked: Project, proxy: FlakyProxy) -> None:
    propagation = start(marked)
    wait_until(lambda: status(marked, propagation)["counts"]["running"] > 0, "a worker has tasks")
    proxy.images_left = 2
    try:
        wait_until(lambda: status(marked, propagation)["paused_until"] is not None, "it pauses", 60)
        paused = status(marked, propagation)
        assert "did not answer" in paused["problem"]
        assert paused["counts"]["failed"] == 0
        time.sleep(8)
        assert status(marked, propagation)["counts"]["pending"] > 0
    finally:
        proxy.images_left = None
    ended = wait_for_end(marked, propagation)
    assert_each_task_once(marked, ended)
    assert (ended["counts"]["failed"], ended["problem"]) == (0, None)


def test_database_locked_for_ten_seconds(marked: Project) -> None:
    propagation = start(marked)
    wait_until(lambda: status(marked, propagation)["counts"]["running"] > 0, "a worker has tasks")
    path = Path(marked.backend.environment["SOFTMATCHER_DATA_DIR"]) / "softmatcher.db"
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(10)
        connection.execute("ROLLBACK")
    ended = wait_for_end(marked, propagation)
    assert_each_task_once(marked, ended)
    assert ended["counts"]["failed"] == 0


def test_broken_images_fail_with_a_reason_and_can_be_tried_again(new_project: NewProject, propagating: Backend) -> None:
    images = {MARKED: SAMPLES[MARKED].image, "text": b"this is no image", TARGETS[0]: SAMPLES[TARGETS[0]].image}
    project = new_project(propagating, images)
    uploaded = project.label_studio.task(project.tasks[MARKED])["data"]["image"]
    (project.tasks["missing"],) = project.label_studio.import_tasks(
        project.id, [{"data": {"image": f"{uploaded}.gone.png"}}]
    )
    project.mark_one_coin()
    propagation = start(project)
    ended = wait_for_end(project, propagation)
    assert_each_task_once(project, ended)
    assert (ended["counts"]["done"], ended["counts"]["failed"]) == (2, 2)
    reasons = {failure["first_task"]: failure["reason"] for failure in ended["failures"]}
    assert set(reasons) == {project.tasks["text"], project.tasks["missing"]}
    assert "does not exist" in reasons[project.tasks["missing"]]

    good = project.label_studio.task(project.tasks[TARGETS[0]])["data"]["image"]
    project.label_studio.call("PATCH", f"/api/tasks/{project.tasks['missing']}/", json={"data": {"image": good}})
    answer = propagating.post(f"/projects/{project.id}/propagations/{propagation}/retry", {"what": "failed"})
    assert answer.json()["retried"] == 2
    again = wait_for_end(project, propagation)
    assert_each_task_once(project, again)
    assert (again["counts"]["done"], again["counts"]["failed"]) == (3, 1)


def test_cancelled_and_gone_on_with_while_a_reference_is_deleted(marked: Project) -> None:
    other = marked.annotate("tile-0", point_on(TARGETS[0], 1))
    marked.wait_for_references(2)
    propagation = start(marked)
    wait_until(lambda: status(marked, propagation)["counts"]["running"] > 0, "a worker has tasks")
    marked.backend.post(f"/projects/{marked.id}/propagations/{propagation}/cancel", {})
    wait_until(lambda: status(marked, propagation)["counts"]["running"] == 0, "the worker let go", 60)
    cancelled = status(marked, propagation)
    assert cancelled["state"] == "cancelled"
    assert cancelled["counts"]["cancelled"] > 0
    assert_each_task_once(marked, cancelled)

    marked.backend.post(f"/projects/{marked.id}/propagations/{propagation}/retry", {"what": "unfinished"})
    wait_until(lambda: status(marked, propagation)["counts"]["running"] > 0, "a worker has tasks")
    marked.label_studio.delete_annotation(other)
    ended = wait_for_end(marked, propagation)
    assert_each_task_once(marked, ended)
    assert ended["counts"]["done"] == COUNT


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A data folder whose feature cache is on a disk of 64 kB."""
    cache = tmp_path / "data" / "features"
    cache.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(cache)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this machine does not allow to mount a small disk: {mounted.stderr.decode().strip()}")
    yield cache.parent
    subprocess.run(["umount", "--lazy", str(cache)], check=True)


def test_a_small_project_goes_before_the_next_batch_of_a_long_one(
    new_project: NewProject, propagating: Backend
) -> None:
    long, small = new_project(propagating, many_coins(1)), new_project(propagating, many_coins(3))
    (image,) = [long.label_studio.task(task)["data"] for task in long.tasks.values()]
    long.label_studio.import_tasks(long.id, [{"data": image}] * MANY)
    for project in (long, small):
        project.mark_one_coin()
    of_long = start(long)
    wait_until(lambda: status(long, of_long)["counts"]["done"] > 0, "the long one has begun", 180)
    of_small = start(small)
    before = status(long, of_long)["counts"]
    assert wait_for_end(small, of_small)["counts"]["done"] == len(small.tasks)
    after = status(long, of_long)
    assert after["state"] == "running"
    # What was under way is finished: two batches.
    assert after["counts"]["done"] - before["done"] <= 2 * BATCH
    assert after["counts"]["total"] == MANY + 1
    assert propagating.post(f"/projects/{long.id}/propagations/{of_long}/cancel", {}).status_code == 200


def test_starts_by_itself_and_works_with_a_full_disk_for_its_cache(
    full_disk: Path, start_other_backend: StartBackend, new_project: NewProject
) -> None:
    backend = start_other_backend(
        "full-disk",
        SOFTMATCHER_DATA_DIR=str(full_disk),
        SOFTMATCHER_PROPAGATE_AFTER_REFERENCES="1",
        SOFTMATCHER_TORCH_THREADS="1",
    )
    project = new_project(backend)
    project.mark_one_coin()
    wait_until(lambda: bool(backend.get(f"/projects/{project.id}/propagations").json()["propagations"]), "it starts")
    ended = wait_for_end(project, newest(project)["id"])
    assert ended["started_by"] == "new references"
    assert_each_task_once(project, ended)
    assert ended["counts"]["done"] == len(project.tasks)
    assert "No space left on device" in backend.log()


def test_command_line_counts_starts_and_watches(new_project: NewProject, propagating: Backend) -> None:
    project = new_project(propagating)
    project.mark_one_coin()
    command = [sys.executable, "-m", "backend", "propagate", "--project", str(project.id)]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options], env=dict(propagating.environment), capture_output=True, text=True, timeout=180
        )

    dry = run("--dry-run", "--only-unlabeled")
    assert dry.returncode == 0, dry.stderr
    assert f"{len(TARGETS)} tasks would be predicted" in dry.stdout
    watched = run("--watch", "--limit", "3")
    assert watched.returncode == 0, watched.stderr
    assert "done: 3 with new masks" in watched.stdout
    assert sum(len(versions) for versions in own_predictions(project).values()) == 3
    refused = run("--label", "Elephant")
    assert refused.returncode == 2
    assert "Elephant" in refused.stderr
