"""`next` on a real Label Studio: it serves the least certain task first, and `--undo` restores its order."""

import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np

from backend.core.types import Json
from tests.e2e.conftest import NewProject
from tests.e2e.scene import MARKED, SAMPLES, Backend, Project, wait_until

NOTHING = "nothing"


def next_command(project: Project, *arguments: str) -> str:
    command = [sys.executable, "-m", "backend", "next", "--project", str(project.id), *arguments]
    done = subprocess.run(
        [*command, "--service", project.backend.url], env=dict(project.backend.environment), capture_output=True,
        text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def own(project: Project) -> dict[int, Json]:
    """Task -> its only prediction."""
    found = project.label_studio.predictions(project.id)
    assert all(len(each) == 1 for each in found.values())
    return {task: predictions[0] for task, predictions in found.items()}


def views(project: Project) -> list[str]:
    found: list[Any] = project.label_studio.call("GET", "/api/dm/views/", params={"project": project.id})
    return [one["data"].get("title", "") for one in found]


def served(project: Project) -> int:
    return int(project.label_studio.call("GET", f"/api/projects/{project.id}/next")["id"])


def expected(project: Project) -> int:
    """The task with the lowest score of the cluster that was solved least, by Label Studio's rule."""
    known = own(project)
    marked = project.tasks[MARKED]
    solved = Counter([known[marked]["cluster"]])
    left = {task: one for task, one in known.items() if task != marked}
    return min(left, key=lambda task: (solved[left[task]["cluster"]], left[task]["score"]))


def test_label_studio_serves_the_least_certain_task_until_undo(backend: Backend, new_project: NewProject) -> None:
    images = {name: sample.image for name, sample in SAMPLES.items()}
    grey = np.random.default_rng(0).integers(100, 140, (240, 240, 1)).repeat(3, axis=2).astype(np.uint8)
    project = new_project(backend, {**images, NOTHING: grey})
    before = project.label_studio.project(project.id)
    project.mark_one_coin()
    said = next_command(project, "--watch")
    assert "least certain one first" in said

    def has_clusters() -> bool:
        return all(one["cluster"] is not None for one in own(project).values())

    wait_until(has_clusters, "clusters", 120)
    now = project.label_studio.project(project.id)
    known = own(project)
    assert len(known) == len(project.tasks), "every task has a score"
    assert known[project.tasks[NOTHING]]["result"] == []
    assert all(0 <= one["score"] <= 1 for one in known.values())
    assert now["sampling"] == "Uncertainty sampling"
    assert {one["model_version"] for one in known.values()} == {now["model_version"]}
    assert "Least certain first" in views(project)
    assert served(project) == expected(project)

    said = next_command(project, "--undo")
    assert "'Sequential sampling' again" in said
    after = project.label_studio.project(project.id)
    assert (after["sampling"], after["model_version"]) == (before["sampling"], before["model_version"])
    assert "Least certain first" not in views(project)

    def is_clear() -> bool:
        found = project.label_studio.predictions(project.id)
        return not found.get(project.tasks[NOTHING]) and all(
            one["cluster"] is None for each in found.values() for one in each
        )

    wait_until(is_clear, "clusters and predictions without regions are gone", 120)
