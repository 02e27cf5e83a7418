"""A project of many tasks for the propagation tests: coins, each tile many times over."""

from collections.abc import Mapping

import numpy as np

from backend.core.types import Image, Json
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, Backend, Project, wait_until

ACTIVE = ("planning", "running", "finishing")


def many_coins(count: int) -> Mapping[str, Image]:
    """`count` images: the marked tile, then the others again and again, each with another pixel in its corner.

    No two calls give the same file, so that no features are in a cache.
    """
    mark = np.random.default_rng().integers(0, 256, 3)
    images = {MARKED: SAMPLES[MARKED].image}
    for number in range(count - 1):
        tile = SAMPLES[TARGETS[number % len(TARGETS)]].image.copy()
        tile[0, 0], tile[0, 1] = mark, number
        images[f"tile-{number}"] = tile
    return images


def start(project: Project, **wanted: object) -> int:
    answer = project.backend.post(f"/projects/{project.id}/propagations", wanted)
    assert answer.status_code == 202, answer.text
    return int(answer.json()["id"])


def status(project: Project, propagation: int) -> Json:
    answer = project.backend.get(f"/projects/{project.id}/propagations/{propagation}")
    assert answer.ok, answer.text
    found: Json = answer.json()
    return found


def newest(project: Project) -> Json:
    found: list[Json] = project.backend.get(f"/projects/{project.id}/propagations").json()["propagations"]
    return found[0]


def wait_for_end(project: Project, propagation: int, timeout_s: float = 420) -> Json:
    wait_until(
        lambda: status(project, propagation)["state"] not in ACTIVE,
        f"the propagation's end: {status(project, propagation)}; the log:\n{project.backend.log()[-3000:]}", timeout_s,
    )  # fmt: skip
    return status(project, propagation)


def own_predictions(project: Project) -> dict[int, list[str]]:
    """Task -> model_versions of this backend's predictions in Label Studio."""
    by_task = project.label_studio.predictions(project.id)
    return {
        task: [
            each["model_version"] for each in by_task.get(task, []) if each["model_version"].startswith("softmatcher")
        ]
        for task in project.tasks.values()
    }


def assert_each_task_once(project: Project, ended: Json) -> None:
    """Every task has one prediction, or failed with a reason; none has two."""
    counts = ended["counts"]
    assert counts["pending"] == counts["running"] == 0
    assert counts["total"] == len(project.tasks)
    per_task = own_predictions(project)
    assert max(len(versions) for versions in per_task.values()) <= 1
    assert sum(len(versions) for versions in per_task.values()) == counts["done"]
    assert sum(failure["count"] for failure in ended["failures"]) == counts["failed"]
    assert all(failure["reason"] for failure in ended["failures"])


def start_second_worker(backend: Backend) -> str:
    """The name of its process; it is ready to work."""
    name = f"{backend.name}-worker-2"
    log_path = backend.processes[f"{backend.name}-worker"].log_path.with_name(f"{name}.log")
    # Logs are appended to, and an earlier test's worker may have had the name.
    before = log_path.read_text().count("models ready") if log_path.exists() else 0
    backend.processes.start(name, backend.processes[f"{backend.name}-worker"].program.command, backend.environment)
    wait_until(lambda: log_path.read_text().count("models ready") > before, "the second worker has models", 240)
    return name
