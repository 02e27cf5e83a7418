"""What do a service at rest and a command that starts cost, in memory and processor time?

    python -m benchmarks.at_rest [--tree DIR] [--commands-in-turns-with DIR] [--json FILE]

A service of profile `lite` is started with a store of its own and without a queue. Once its models are ready it is left
alone for some seconds. Printed are the resident memory of its process, the same with shared pages divided by the
processes that share them (PSS), and the processor time until then; then that of each command, which ends because there
is no such project.
`--tree` measures another checkout, for a comparison. `--commands-in-turns-with` measures only the commands, in turns
with those of another checkout: the least of sixteen starts of each. Modules are compiled once before, as after a first
start.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from backend.cli.process.supervisor import free_port

COMMANDS = {
    "export": ("--project", "1", "--format", "coco", "--out", "none"),
    "propagate": ("--project", "1"),
    "import-masks": (".", "--project", "1"),
}
SETTLE_S = 5.0
READY_WITHIN_S = 180.0


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--commands-in-turns-with", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    trees = [given.tree] if given.commands_in_turns_with is None else [given.commands_in_turns_with, given.tree]
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/compiled"
        figures: dict[str, Any] = {}
        for command in COMMANDS:
            starts = [[start_seconds(tree, command, folder) for tree in trees] for _ in range(16)]
            for tree, seconds in zip(trees, zip(*starts, strict=True), strict=True):
                figures[f"{tree.resolve()} {command}_s" if len(trees) > 1 else f"{command}_s"] = min(seconds)
        if len(trees) == 1:
            measure_service(given.tree)
            figures |= measure_service(given.tree)
    for name, value in figures.items():
        print(f"{name}: {value:.2f}")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1))


def measure_service(tree: Path) -> dict[str, Any]:
    """Return memory of a service at rest in MB, and processor seconds until it is ready."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        variables = {
            "SOFTMATCHER_DATA_DIR": folder, "SOFTMATCHER_PORT": str(port), "SOFTMATCHER_ENV_FILE": os.devnull,
            "LABEL_STUDIO_API_KEY": "none", "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        }  # fmt: skip
        command = [sys.executable, "-m", "backend", "serve"]
        with open(os.devnull, "wb") as silent:
            service = subprocess.Popen(command, cwd=tree, env={**_clean(), **variables}, stdout=silent, stderr=silent)
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/health")
            time.sleep(SETTLE_S)
            processes = [_process(pid) for pid in _family(service.pid)]
        finally:
            service.terminate()
            service.wait(40)
    largest = max(processes, key=lambda one: one["rss_mb"])
    return {"rss_mb": largest["rss_mb"], "pss_mb": largest["pss_mb"], "start_s": sum(one["cpu_s"] for one in processes)}


def start_seconds(tree: Path, command: str, folder: str) -> float:
    """Return the processor seconds of a command on a store without projects."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", "backend", command, *COMMANDS[command]],
        cwd=tree,
        env={**_clean(), "SOFTMATCHER_DATA_DIR": folder, "SOFTMATCHER_ENV_FILE": os.devnull},
        check=False,
        capture_output=True,
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("SOFTMATCHER_", "LABEL_STUDIO"))}


def _wait_until_ready(url: str) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url) as answer:  # noqa: S310 (loopback)
                if json.load(answer)["model"] == "ready":
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the service was not ready within {READY_WITHIN_S:.0f} s")


def _family(pid: int) -> list[int]:
    """Return a process and all that came of it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _process(pid: int) -> dict[str, float]:
    memory = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    shared = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if ":" in line
    )
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return {
        "rss_mb": int(memory["VmRSS"].split()[0]) / 1024,
        "pss_mb": int(shared["Pss"].split()[0]) / 1024,
        "cpu_s": (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"),
    }


if __name__ == "__main__":
    main()
