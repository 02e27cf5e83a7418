"""Commands that neither match nor train start without the heavy packages that others need."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch", "torchvision", "timm", "transformers", "openvino", "scipy", "skimage", "sklearn", "pandas", "pyarrow",
    "matplotlib", "label_studio_sdk", "sqlalchemy.dialects.postgresql", "rich",
)  # fmt: skip
"""Packages that take a tenth of a second or more, or much memory."""
PREDICTING = ("backend.engine.softmatcher", "backend.projects.prediction.predictor", "backend.projects.composition")
"""Modules of this backend that, together, take a tenth of a second."""

CODE = f"""
import sys
from backend.cli import app
try:
    app(sys.argv[1:])
except BaseException as error:
    ended = repr(error)
print(ended, "loaded:", *[name for name in {HEAVY + PREDICTING} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "--project", "1", "--format", "coco", "--out", "none"],
        ["import-masks", ".", "--project", "1"],
    ],
)
def test_a_command_comes_to_its_first_request_without_them(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "SOFTMATCHER_DATA_DIR": str(tmp_path),
            "SOFTMATCHER_ENV_FILE": "/dev/null",
        },
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        timeout=120,
    )
    # It went as far as the token that it would send.
    assert "no token for Label Studio" in done.stderr
    assert done.stdout.strip().endswith("loaded:"), done.stdout


def test_service_and_worker_are_imported_without_them() -> None:
    code = f"import sys, backend.web.app, backend.jobs.worker; print([n for n in {HEAVY[:-1]} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
