"""What the end-to-end tests talk about: a backend, a project of Label Studio, coins whose masks are known."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import requests
from prometheus_client.parser import text_string_to_metric_families

from backend.cli.demo.coins import COIN, sample_tasks
from backend.cli.demo.label_studio_server import (
    LabelStudio,
    intersection_over_union,
    key_point,
    mask_of_regions,
    rectangle,
)
from backend.cli.process.supervisor import ProcessGroup
from backend.core.types import Json, Mask
from backend.projects.composition import key_of_project

SAMPLES = {sample.name: sample for sample in sample_tasks()}
HOSTS_NETWORK = "10.77.31.0/24"
"""Between the hosts of test_two_hosts."""
MARKED = "coins-2"
TARGETS = tuple(name for name in SAMPLES if name != MARKED)


def own_environment(**variables: str) -> dict[str, str]:
    """The shell's environment without what it and `.env` set for a backend, and with these variables."""
    foreign = ("SOFTMATCHER_", "LABEL_STUDIO_", "REDIS_URL", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "SOFTMATCHER_ENV_FILE": os.devnull, **variables}


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)


@dataclass
class Backend:
    """Service and worker of one data folder."""

    name: str
    url: str
    processes: ProcessGroup
    environment: Mapping[str, str]
    auth: tuple[str, str] | None = None
    module: str = "backend"

    def start(self) -> None:
        command = [sys.executable, "-m", self.module]
        self.processes.start(f"{self.name}-service", [*command, "serve"], self.environment)
        self.processes.start(f"{self.name}-worker", [*command, "work"], self.environment)
        self.wait()

    def restart(self) -> None:
        for part in ("service", "worker"):
            self.processes.restart(f"{self.name}-{part}")
        self.wait()

    def stop(self) -> None:
        for part in ("worker", "service"):
            self.processes.stop(f"{self.name}-{part}")

    def wait(self) -> None:
        self.processes.wait_for_http(f"{self.name}-service", f"{self.url}/health", timeout_s=120, basic_auth=self.auth)
        wait_until(lambda: bool(self.get("/health").json()["model"] == "ready"), "models loaded", 120)

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=30, auth=self.auth)

    def post(self, path: str, body: object) -> requests.Response:
        return requests.post(f"{self.url}{path}", json=body, timeout=120, auth=self.auth)

    def figure(self, name: str, **labels: str) -> float:
        """Sum of a figure of /metrics over the samples with these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def log(self) -> str:
        return "".join(self.processes[f"{self.name}-{part}"].log_path.read_text() for part in ("service", "worker"))


@dataclass
class Project:
    """A project of Label Studio with a backend connected, and images whose masks are known."""

    label_studio: LabelStudio
    backend: Backend
    id: int
    connection: int
    tasks: dict[str, int]

    @property
    def key(self) -> str:
        """As Label Studio names the project in /setup and /predict."""
        return key_of_project(self.label_studio.project(self.id))

    def references(self) -> int:
        return int(self.backend.figure("softmatcher_references", project=str(self.id)))

    def wait_for_references(self, count: int) -> None:
        wait_until(lambda: self.references() == count, f"{count} references; the log:\n{self.backend.log()[-3000:]}")

    def wait_for_webhook_credentials(self) -> None:
        """Label Studio's webhooks carry no basic auth until the backend has given it to them."""

        def has_credentials() -> bool:
            return all("Authorization" in webhook["headers"] for webhook in self.label_studio.webhooks(self.id))

        wait_until(has_credentials, f"credentials on the webhook; the log:\n{self.backend.log()[-3000:]}")

    def version(self) -> str:
        """The model_version that /setup answers now."""
        return str(self.label_studio.backend(self.connection)["model_version"])

    def annotate(self, task: str, *regions: Json, **fields: Any) -> int:
        return self.label_studio.annotate(self.tasks[task], regions, **fields)

    def mark_one_coin(self) -> int:
        """One key point on one coin, and wait until it is a reference; the annotation."""
        annotation = self.annotate(MARKED, point_on(MARKED, 2))
        self.wait_for_references(1)
        return annotation

    def retrieve(self, *names: str) -> None:
        self.label_studio.retrieve_predictions(self.id, [self.tasks[name] for name in names or TARGETS])

    def predictions(self, name: str) -> list[Json]:
        return self.label_studio.predictions(self.id).get(self.tasks[name], [])

    def predicted_mask(self, name: str) -> Mask:
        predictions = self.predictions(name)
        return mask_of_regions(predictions[-1]["result"] if predictions else [], COIN, SAMPLES[name].size_hw)

    def iou(self, name: str) -> float:
        """Of the newest prediction in Label Studio with the known mask."""
        return intersection_over_union(self.predicted_mask(name), SAMPLES[name].masks[COIN])

    def mean_iou(self, *names: str) -> float:
        names = names or TARGETS
        return sum(self.iou(name) for name in names) / len(names)

    def interact(self, task: str, *regions: Json) -> list[Json]:
        """The regions that a smart tool shows."""
        answer = self.label_studio.interact(self.connection, self.tasks[task], regions)
        assert "data" in answer, answer
        regions_shown: list[Json] = answer["data"]["result"]
        return regions_shown


def coin_mask(task: str, number: int) -> Mask:
    """The `number`-th coin of a tile, counted from 1 in the order of the photograph."""
    objects = SAMPLES[task].objects
    return np.asarray(objects == sorted(set(objects.flat))[number])


def centre_of(mask: Mask) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(columns.mean()), float(rows.mean())


def point_on(task: str, number: int, *, is_positive: bool = True) -> Json:
    return key_point(centre_of(coin_mask(task, number)), SAMPLES[task].size_hw, COIN, is_positive=is_positive)


def box_around(task: str, number: int) -> Json:
    rows, columns = np.nonzero(coin_mask(task, number))
    box = (columns.min() - 2, rows.min() - 2, columns.max() + 3, rows.max() + 3)
    return rectangle(tuple(float(side) for side in box), SAMPLES[task].size_hw, COIN)  # type: ignore[arg-type]
