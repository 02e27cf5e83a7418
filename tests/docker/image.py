"""Runs the steps of docker/Dockerfile and then the image's commands, without Docker.

    unshare --mount --pid --fork --kill-child python image.py REPOSITORY FOLDER SITE_PACKAGES REDIS_URL

Each stage is a copy of this machine's root folder (an overlay, so that nothing of it changes) into which RUN and COPY
write as they would in an image. Then the last stage runs as its container would: read-only but for /data and /tmp, as
its USER, without capabilities. What this cannot show is whether the base image itself has what the steps need.

To save the minutes of installing PyTorch, the image's environment sees the packages of SITE_PACKAGES.
Exits 77 where this machine does not allow it. Prints one JSON object.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.docker.dockerfile import Stage, read_dockerfile, words_of_copy

NOT_ALLOWED = 77
START_S = 150
BEGUN = time.monotonic()
SHARED = "/opt/shared-packages"


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        print(f"mount {' '.join(map(str, arguments))}: {done.stderr.strip()}", file=sys.stderr)
        sys.exit(NOT_ALLOWED)


class Root:
    """A root folder over this machine's own, which stays as it is."""

    def __init__(self, folder: Path, site_packages: str) -> None:
        upper, work, self.path = folder / "upper", folder / "work", folder / "root"
        for each in (upper, work, self.path):
            each.mkdir(parents=True)
        mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", self.path)
        for name in ("proc", "dev", "sys"):
            mount("--rbind", f"/{name}", self.path / name)
        # Where no other mount hides them.
        (self.path / SHARED.lstrip("/")).mkdir(parents=True)
        mount("--bind", site_packages, self.path / SHARED.lstrip("/"))

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], directory: str, *, as_user: str | None = None
    ) -> subprocess.Popen[str]:
        """Start a program in it."""
        program = ["chroot", str(self.path), "sh", "-c", 'cd "$0" && exec "$@"', directory]
        if as_user:
            user, _, group = as_user.partition(":")
            drop = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups"]
            program += ["setpriv", f"--reuid={user}", f"--regid={group}", *drop]
        return subprocess.Popen(
            [*program, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def call(
        self, command: Sequence[str], environment: Mapping[str, str], directory: str, *, as_user: str | None = None
    ) -> str:
        """What it prints.

        Raises:
            RuntimeError: it failed.
        """
        process = self.run(command, environment, directory, as_user=as_user)
        printed, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)[:300]} ended with {process.returncode}:\n{printed[-3000:]}")
        return printed


class Image:
    """Builds the stages one after the other."""

    def __init__(self, repository: Path, folder: Path, site_packages: str) -> None:
        self._repository, self._folder, self._site_packages = repository, folder, site_packages
        self.ignored = set((repository / ".dockerignore").read_text().split())
        self.environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        # As pip is set up here: the base image has no such settings.
        self._pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.roots: dict[str, Root] = {}
        self.directory = "/"

    def build(self, stage: Stage) -> Root:
        root = self.roots[stage.name] = Root(self._folder / (stage.name or "final"), self._site_packages)
        # The Python of an image lies where everybody may read it.
        (root.path / "root").chmod(0o755)
        environment, self.directory = dict(self.environment), "/"
        for step in stage.steps:
            if step.instruction == "ENV":
                told = Stage("", [step]).environment()
                environment |= {name: value.replace("$PATH", environment["PATH"]) for name, value in told.items()}
            elif step.instruction == "ARG":
                name, _, value = step.text.partition("=")
                environment[name] = value
            elif step.instruction == "WORKDIR":
                self.directory = step.text
                (root.path / step.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif step.instruction == "RUN":
                say(f"RUN {step.text}")
                print(root.call(["sh", "-ec", step.text], environment | self._pip, self.directory), file=sys.stderr)
                if "-m venv" in step.text:
                    self._share_packages(root)
            elif step.instruction == "COPY":
                self._copy(root, *words_of_copy(step.text))
        self.environment = environment
        return root

    def _share_packages(self, root: Root) -> None:
        (folder,) = (root.path / "opt/venv/lib").glob("python*/site-packages")
        (folder / "shared.pth").write_text(f"{SHARED}\n")
        # Of Python's own bundle, too old for PyTorch: the shared one shall be found, and no index be asked.
        for each in folder.glob("setuptools*"):
            shutil.rmtree(each)

    def _copy(self, root: Root, stage: str | None, sources: list[str], target: str) -> None:
        into = root.path / (Path(self.directory) / target).as_posix().lstrip("/")
        for name in sources:
            if stage is None and f"!{name}" not in self.ignored:
                raise RuntimeError(f"COPY {name}: .dockerignore leaves it out")
            source = self.roots[stage].path / name.lstrip("/") if stage else self._repository / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__") if stage is None else None
                shutil.copytree(source, into, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy(source, into / name if target.endswith("/") or into.is_dir() else into)


def wait_for(root: Root, command: Sequence[str], environment: Mapping[str, str], user: str, other: object) -> str:
    deadline = time.monotonic() + START_S
    while True:
        try:
            return root.call(command, environment, "/data", as_user=user).strip()
        except RuntimeError:
            if time.monotonic() > deadline or other.poll() is not None:  # type: ignore[attr-defined]
                other.kill()  # type: ignore[attr-defined]
                print(other.communicate()[0], file=sys.stderr)  # type: ignore[attr-defined]
                raise
            time.sleep(3)


def say(what: str) -> None:
    print(f"{time.monotonic() - BEGUN:.0f} s: {what}", file=sys.stderr, flush=True)


def main(repository: Path, folder: Path, site_packages: str, redis_url: str) -> None:
    _, *stages = read_dockerfile(repository / "docker" / "Dockerfile")
    image = Image(repository, folder, site_packages)
    for stage in stages:
        built = image.build(stage)
    final = stages[-1]
    data = folder / "data"
    shutil.copytree(built.path / "data", data)
    built_data = (built.path / "data").stat()
    os.chown(data, built_data.st_uid, built_data.st_gid)
    data.chmod(built_data.st_mode & 0o777)

    container = built
    mount("-t", "tmpfs", "-o", "size=512m,mode=1777", "tmpfs", container.path / "tmp")
    mount("--bind", data, container.path / "data")
    mount("-o", "remount,ro", container.path)
    user = final.last("USER")
    environment = image.environment | {
        "REDIS_URL": redis_url, "LABEL_STUDIO_URL": "http://127.0.0.1:1", "LABEL_STUDIO_API_KEY": "0" * 40,
        "SOFTMATCHER_PORT": sys.argv[5], "SOFTMATCHER_BASIC_AUTH_USER": "ls", "SOFTMATCHER_BASIC_AUTH_PASS": "secret",
        "SOFTMATCHER_LOG_FORMAT": "json", "OMP_NUM_THREADS": "1", "COLUMNS": "250",
    }  # fmt: skip

    def call(*command: str) -> str:
        return container.call(command, environment, "/data", as_user=user).strip()

    def refuses(*command: str) -> bool:
        try:
            call(*command)
        except RuntimeError:
            return True
        return False

    found: dict[str, object] = {
        "who": call("id", "-u"),
        "backend": call("python", "-c", "import backend; print(backend.__file__)"),
        "root is read-only": refuses("touch", "/opt/venv/x"),
        "others' files": refuses("touch", "/etc/passwd"),
        "no capability": call("sh", "-c", "grep CapEff /proc/self/status"),
        "health before": refuses(*final.healthcheck()),
        "setuid gains nothing": call("sh", "-c", "grep NoNewPrivs /proc/self/status"),
    }
    say("the service starts")
    service = container.run(final.command(), environment, "/data", as_user=user)
    found["health"] = wait_for(container, final.healthcheck(), environment, user, service)
    say("the worker starts")
    worker = container.run(["python", "-m", "backend", "work"], environment, "/data", as_user=user)
    found["worker"] = wait_for(container, ["python", "-m", "backend", "health", "--worker"], environment, user, worker)
    say("doctor")
    found["doctor"] = container.run(
        ["python", "-m", "backend", "doctor"], environment, "/data", as_user=user
    ).communicate()[0]
    for name, process in (("service", service), ("worker", worker)):
        process.send_signal(signal.SIGTERM)
        found[f"{name}'s log"] = process.communicate(timeout=60)[0]
        found[f"{name}'s exit"] = process.returncode
    found["in /data"] = sorted(path.name for path in data.iterdir())
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
