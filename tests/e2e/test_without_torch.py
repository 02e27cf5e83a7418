"""With profile `lite` on a processor neither service nor worker nor the commands beside them import PyTorch.

Every Python that is started with `forbidding` on its path has a hook that notes the import of PyTorch, and refuses it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.cli.demo.label_studio_server import LabelStudio
from tests.e2e.conftest import NewProject, StartBackend
from tests.e2e.scene import TARGETS, own_environment

HOOK = """
import os, sys, traceback

class Forbidding:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            with open(os.environ["NOTED_IMPORTS"], "a") as file:
                file.write(f"{sys.argv} imports {name}\\n{''.join(traceback.format_stack(limit=30))}\\n")
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Forbidding())
"""


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("noted") / "imports.txt"


@pytest.fixture(scope="module")
def forbidding(noted: Path) -> dict[str, str]:
    """The environment of processes that must not import PyTorch."""
    (noted.parent / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(noted.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "NOTED_IMPORTS": str(noted)}


def test_service_and_worker_predict_and_commands_run(
    start_other_backend: StartBackend,
    new_project: NewProject,
    label_studio: LabelStudio,
    forbidding: dict[str, str],
    noted: Path,
    tmp_path: Path,
) -> None:
    backend = start_other_backend("without-torch", **forbidding)
    project = new_project(backend)
    project.mark_one_coin()
    project.retrieve(*TARGETS)
    assert project.mean_iou(*TARGETS) > 0.8
    number = str(project.id)
    commands = {
        "export": [
            "export",
            "--project",
            number,
            "--format",
            "coco",
            "--source",
            "predictions",
            "--out",
            str(tmp_path / "coco"),
        ],
        "propagate": ["propagate", "--project", number],
        "doctor": ["doctor"],
        "import-masks": ["import-masks", str(tmp_path / "coco"), "--project", number, "--dry-run"],
    }
    said = {}
    for name, arguments in commands.items():
        done = subprocess.run(
            [sys.executable, "-m", "backend", *arguments],
            env=own_environment(**backend.environment),
            capture_output=True,
            text=True,
            timeout=240,
        )
        said[name] = f"{done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert not noted.exists(), noted.read_text()[:6000]
    assert said["propagate"].startswith("0:"), said["propagate"]
    assert said["export"].startswith("0:"), said["export"]
    assert not [text for text in said.values() if "Traceback" in text]


@pytest.mark.parametrize("command", ["export", "doctor", "propagate", "import-masks"])
def test_commands_start_without_it(command: str, forbidding: dict[str, str], noted: Path) -> None:
    assert not noted.exists()
    subprocess.run(
        [sys.executable, "-m", "backend", command, "--help"],
        env=own_environment(**forbidding),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert not noted.exists()


def test_the_hook_sees_an_import(forbidding: dict[str, str], noted: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import torch"], env=own_environment(**forbidding), capture_output=True, timeout=60
    )
    assert done.returncode != 0
    assert "imports torch" in noted.read_text()
    noted.unlink()
