"""One sample project of the demo: made, scribbled on, predicted, compared with what is known to be there."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from backend.cli.demo.coins import SampleTask
from backend.cli.demo.label_studio_server import LabelStudio, intersection_over_union, mask_of_regions
from backend.cli.demo.sample_projects import SampleProject
from backend.core.types import Json
from backend.errors import SoftmatcherError
from backend.own_http import Session

REFERENCE_S = 60


class DemoFailedError(SoftmatcherError):
    """The demo did not show what it has to show."""


@dataclass(frozen=True)
class LabelResult:
    """The regions of one label of one task that Label Studio holds after the retrieval.

    Attributes:
        task: name of the sample task.
        label: that was looked for.
        is_there: the label's object is on the image.
        regions: its brush regions in the newest prediction; 0 without a prediction.
        score: the highest of these regions', None without any.
        iou: of their union with the known mask; None where nothing is there.
        milliseconds: of the request «retrieve predictions» for this task.
    """

    task: str
    label: str
    is_there: bool
    regions: int
    score: float | None
    iou: float | None
    milliseconds: float


@dataclass(frozen=True)
class ProjectResult:
    """How one sample project went.

    Attributes:
        sample: the project.
        id: in Label Studio.
        reference_s: from the submitted annotation to its references.
        results: of all tasks but the marked one, label by label.
    """

    sample: SampleProject
    id: int
    reference_s: float
    results: tuple[LabelResult, ...]

    @property
    def mean_iou(self) -> float:
        """Over the labels that are on the tasks."""
        return mean_iou(self.results)

    @property
    def problem(self) -> str | None:
        """Return the project's problem; None if there is none."""
        missing = [f"{each.label} on {each.task}" for each in self.results if each.is_there and each.regions == 0]
        if missing:
            return f"{self.sample.title}: no prediction in Label Studio for {', '.join(missing)}"
        if self.mean_iou < self.sample.min_mean_iou:
            asked = self.sample.min_mean_iou
            return f"{self.sample.title}: mean IoU is {self.mean_iou:.3f}, at least {asked} was asked for"
        return None


def run_sample(
    sample: SampleProject, title: str, label_studio: LabelStudio, service_url: str, tell: Callable[[str], None]
) -> ProjectResult:
    """Make the project, scribble, wait for the reference, retrieve predictions task by task.

    Args:
        sample: what to make.
        title: of the project.
        label_studio: where.
        service_url: of the backend.
        tell: is told what is done at the moment.

    Raises:
        DemoFailedError: the annotation did not become a reference.
        LabelStudioError: Label Studio refused something.
    """
    tell(f"{sample.title}: making the project ...")
    project = label_studio.create_project(title, sample.label_config)
    tasks = label_studio.upload_images(project, {task.name: task.image for task in sample.tasks})
    label_studio.connect_backend(project, service_url)

    tell(f"{sample.title}: waiting until the backend has made the annotation a reference ...")
    label_studio.annotate(tasks[sample.marked], sample.scribbles)
    started = time.monotonic()
    _wait_for_references(service_url, project, len(sample.labels))
    reference_s = time.monotonic() - started

    results: list[LabelResult] = []
    for task in sample.tasks:
        if task.name != sample.marked:
            tell(f"{sample.title}: retrieving predictions: {task.name} ...")
            results += _retrieve(label_studio, project, tasks[task.name], task)
    return ProjectResult(sample, project, reference_s, tuple(results))


def count_references(service_url: str, project: int, *, basic_auth: tuple[str, str] | None = None) -> int:
    """Return how many references the backend has for a project of Label Studio, read from its /metrics."""
    with Session(is_own=True) as session:
        answer = session.get(f"{service_url}/metrics", timeout=10, auth=basic_auth)
    answer.raise_for_status()
    return sum(
        int(sample.value)
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == "softmatcher_references" and sample.labels["project"].split(".")[0] == str(project)
    )


def _wait_for_references(service_url: str, project: int, count: int) -> None:
    deadline = time.monotonic() + REFERENCE_S
    while count_references(service_url, project) < count:
        if time.monotonic() > deadline:
            raise DemoFailedError(
                f"the annotation did not become {count} references within {REFERENCE_S} s; "
                "see worker-1.log and service.log"
            )
        time.sleep(0.1)


def _retrieve(label_studio: LabelStudio, project: int, task: int, sample: SampleTask) -> list[LabelResult]:
    started = time.perf_counter()
    label_studio.retrieve_predictions(project, [task])
    milliseconds = 1000 * (time.perf_counter() - started)
    predictions = label_studio.predictions(project).get(task, [])
    regions: list[Json] = predictions[-1]["result"] if predictions else []
    return [_compare(regions, label, sample, milliseconds) for label in sample.masks]


def _compare(regions: Sequence[Json], label: str, sample: SampleTask, milliseconds: float) -> LabelResult:
    own = [region for region in regions if label in region["value"].get("brushlabels", [])]
    truth = sample.masks[label]
    is_there = bool(truth.any())
    found = mask_of_regions(own, label, sample.size_hw)
    return LabelResult(
        sample.name,
        label,
        is_there,
        len(own),
        max((float(region["score"]) for region in own), default=None),
        intersection_over_union(found, truth) if is_there else None,
        milliseconds,
    )


def mean_iou(results: Sequence[LabelResult]) -> float:
    """Over the labels that are there; 0 if none is."""
    found = [each.iou for each in results if each.iou is not None]
    return sum(found) / len(found) if found else 0.0


def results_table(project: ProjectResult) -> Table:
    """Return a table with one row per task and label."""
    table = Table(title=f"{project.sample.title}: predictions as Label Studio stores them")
    table.add_column("task")
    table.add_column("label")
    for name in ("regions", "score", "IoU", "ms"):
        table.add_column(name, justify="right")
    for each in project.results:
        score = "-" if each.score is None else f"{each.score:.2f}"
        iou = "not there" if each.iou is None else f"{each.iou:.3f}"
        table.add_row(each.task, each.label, str(each.regions), score, iou, f"{each.milliseconds:.0f}")
    table.add_section()
    for label in project.sample.labels if len(project.sample.labels) > 1 else ():
        own = [each for each in project.results if each.label == label]
        table.add_row("mean", label, "", "", f"{mean_iou(own):.3f}", "")
    mean_ms = sum(each.milliseconds for each in project.results) / len(project.results)
    table.add_row("mean", "", "", "", f"{project.mean_iou:.3f}", f"{mean_ms:.0f}")
    return table


def say_what_is_absent(results: Sequence[LabelResult]) -> str | None:
    """Return how often something was found where nothing is; None if it is everywhere."""
    absent = [each for each in results if not each.is_there]
    if not absent:
        return None
    scores = sorted(each.score for each in absent if each.score is not None)
    sentence = f"Not there {len(absent)} times: rightly nothing was returned {len(absent) - len(scores)} times"
    if not scores:
        return sentence
    present = min((each.score for each in results if each.is_there and each.score is not None), default=0.0)
    wrong = ", ".join(f"{score:.2f}" for score in scores)
    return f"{sentence}, a region with score {wrong} the other times (where it is there: {present:.2f} and more)"
