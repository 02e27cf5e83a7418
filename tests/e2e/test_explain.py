"""Why a task's masks are as they are, of a project of a real Label Studio: by command and by route."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from tests.e2e.scene import TARGETS, Project


def explain(project: Project, task: int, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backend", "explain", f"--project={project.id}", f"--task={task}", f"--out={out}"],
        env=dict(project.backend.environment),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_a_task_is_explained_by_command_and_route(small_project: Project, tmp_path: Path) -> None:
    small_project.mark_one_coin()
    task = small_project.tasks[TARGETS[0]]
    answer = small_project.backend.get(f"/projects/{small_project.id}/tasks/{task}/explain.png")
    assert answer.headers["Content-Type"] == "image/png"

    out = tmp_path / "pictures" / "why.png"
    done = explain(small_project, task, out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(out) in done.stdout
    by_command, by_route = (
        np.asarray(PillowImage.open(file).convert("RGB")) for file in (out, io.BytesIO(answer.content))
    )
    assert np.array_equal(by_command, by_route)
    # The kept label is written in green.
    assert (by_route == (40, 140, 70)).all(axis=2).any()


def test_a_task_that_is_not_there_cannot_be_explained(small_project: Project, tmp_path: Path) -> None:
    done = explain(small_project, 99_999_999, tmp_path / "why.png")
    assert done.returncode != 0
    assert "99999999" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "why.png").exists()
