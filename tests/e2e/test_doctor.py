"""`doctor` against everything real: it finds nothing wrong, and what is taken away."""

import subprocess
import sys

from tests.e2e.scene import Project


def _doctor(project: Project) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backend", "doctor", "--project", str(project.id)]
    environment = {**project.backend.environment, "COLUMNS": "250"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)


def test_doctor_finds_nothing_wrong_and_names_a_missing_webhook(small_project: Project) -> None:
    healthy = _doctor(small_project)
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    for finding in ("1 workers", "labels Coin", "px", small_project.backend.url, "/webhook", "1.23.2"):
        assert finding in healthy.stdout
    assert "wrong" not in healthy.stdout
    for webhook in small_project.label_studio.webhooks(small_project.id):
        small_project.label_studio.call("DELETE", f"/api/webhooks/{webhook['id']}/")
    without = _doctor(small_project)
    assert without.returncode == 1
    assert "label-studio-env" in without.stdout
