"""Stand-ins with a known right answer: models that see colours only, a Label Studio in memory, a patient queue."""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from flask.testing import FlaskClient
from PIL import Image as PillowImage

from backend.core import cancellation
from backend.core.arrays import CPU
from backend.core.calibration import log_odds, logistic
from backend.core.explanation import Explanation, LabelExplanation
from backend.core.marked_objects import MarkedObject
from backend.core.matching import ReferenceBank, gather_references
from backend.core.memory_bank import read_bank
from backend.core.patches import PatchSource
from backend.core.references import MaskUncertainty
from backend.core.ridge_path import ridge_path
from backend.core.types import BoxedMask, EncodedImage, Image, LabelMask, Mask, Reference, ScoredMask, Scribble
from backend.engine.options import MatchOptions
from backend.engine.plans import FoundMasks, PreparedImage
from backend.engine.refiner import Refiner
from backend.errors import (
    BadInputError,
    LabelStudioUnavailableError,
    ModelUnavailableError,
    NotFoundError,
    QueueUnavailableError,
    TooLargeError,
)
from backend.jobs import tasks
from backend.labelstudio.images import FetchedFile, Validators
from backend.metrics import Metrics
from backend.models.segmenters import SegmenterInput
from backend.projects.composition import Projects
from backend.projects.connections import label_studio_place
from backend.projects.model_host import Models
from backend.projects.task_source import Place
from backend.settings import Settings, load_settings
from backend.store import ProjectRecord, Store, StoredReference
from backend.store.records import ProjectKey
from backend.web.app import create_app

LABEL_CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog"/></BrushLabels>
  <KeyPointLabels name="kp" toName="image" smart="true"><Label value="Cat"/><Label value="Dog"/></KeyPointLabels>
  <RectangleLabels name="rect" toName="image" smart="true"><Label value="Cat"/><Label value="Dog"/></RectangleLabels>
</View>"""

RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (40, 160, 40)


def draw(size_hw: tuple[int, int] = (48, 64), **boxes: tuple[int, int, int, int]) -> Image:
    """A green image with one box (x0, y0, x1, y1) for each colour named: `draw(red=(4, 4, 20, 20))`."""
    image = np.full((*size_hw, 3), GREEN, np.uint8)
    for name, (x0, y0, x1, y1) in boxes.items():
        image[y0:y1, x0:x1] = {"red": RED, "blue": BLUE}[name]
    return image


def png(image: Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def stored_masks(store: Store, project_key: ProjectKey) -> list[StoredReference]:
    """Return all references of a project without their features, by label, newest first."""
    found = [store.reference_mask(project_key, one.id) for one in store.list_references(project_key)]
    return [one for one in found if one is not None]


class ColourSoftmatcher:
    """Objects are areas of one colour: the interface of `backend.engine.softmatcher.Softmatcher`, in microseconds."""

    signature = "colours-1"
    preferred_batch_size = 1
    decode_side_px = 0
    device = CPU
    text_space: str | None = None

    def __init__(self, on_stage: Callable[[str, float], None] | None = None) -> None:
        self.encoded_images = 0

    def encode(self, image: Image, *, size_hw: tuple[int, int] | None = None, with_text: bool = False) -> EncodedImage:
        self.encoded_images += 1
        natural_hw = size_hw or (image.shape[0], image.shape[1])
        return EncodedImage(natural_hw, np.zeros((1, 1, 3), np.float16), {"image": image}, self.signature)

    def prepare(self, image: Image, size_hw: tuple[int, int] | None = None) -> PreparedImage:
        pixels = np.array(image)
        return PreparedImage(
            (image.shape[0], image.shape[1]), pixels, SegmenterInput(pixels, (image.shape[0], image.shape[1]))
        )

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> list[EncodedImage]:
        return [self.encode(one.for_encoder) for one in prepared]

    def mask_from_scribble(
        self, encoded: EncodedImage, scribble: Scribble, *, line_pixels: Image | None = None
    ) -> ScoredMask | None:
        cancellation.check()
        if line_pixels is not None and scribble.is_points:
            return ridge_path(line_pixels, scribble.positive_xy)
        image = np.asarray(encoded.embedding["image"])
        mask = np.zeros(image.shape[:2], bool)
        for x, y in scribble.positive_xy.astype(int):
            mask |= (image == image[y, x]).all(axis=2)
        for x0, y0, x1, y1 in scribble.boxes_xyxy.astype(int):
            mask[y0:y1, x0:x1] |= (image[y0:y1, x0:x1] != GREEN).any(axis=2)
        if scribble.positive_strokes is not None:
            for colour in np.unique(image[scribble.positive_strokes], axis=0):
                mask |= (image == colour).all(axis=2)
        for x, y in scribble.negative_xy.astype(int):
            mask &= (image != image[y, x]).any(axis=2)
        return ScoredMask(mask, 0.9) if mask.any() else None

    def objects_from_scribble(
        self, encoded: EncodedImage, scribble: Scribble, *, line_pixels: Image | None = None
    ) -> list[MarkedObject]:
        found = self.mask_from_scribble(encoded, scribble, line_pixels=line_pixels)
        return [] if found is None else [MarkedObject(scribble, found)]

    def uncertainty(
        self, encoded: EncodedImage, objects: Sequence[MarkedObject], *, complete: Mask | None = None
    ) -> MaskUncertainty | None:
        return None

    def describe(
        self,
        image: Image,
        encoded: EncodedImage,
        mask: Mask,
        *,
        background: Mask | None = None,
        is_complete: bool = False,
        uncertainty: MaskUncertainty | None = None,
    ) -> Reference:
        colours = np.unique(image[mask], axis=0).astype(np.float16)
        ones = np.ones(len(colours), np.float16)
        known = np.full(len(colours), 1.0 if is_complete else 0.5, np.float16)
        return Reference(colours, ones, known, self.signature)

    def describe_absence(self, encoded: EncodedImage) -> Reference:
        colours = np.unique(np.asarray(encoded.embedding["image"]).reshape(-1, 3), axis=0).astype(np.float16)
        zeros = np.zeros(len(colours), np.float16)
        return Reference(colours, zeros, zeros + np.float16(1), self.signature)

    def gather(self, references: Sequence[Reference], options: MatchOptions | None = None) -> ReferenceBank:
        return gather_references(references, self.signature)

    def gather_patches(self, source: PatchSource, options: MatchOptions | None = None) -> ReferenceBank:
        return read_bank(source, self.signature, most_patches=2**31)

    def segment(
        self,
        encoded: EncodedImage,
        references: Mapping[str, ReferenceBank | Sequence[Reference]],
        options: MatchOptions | None = None,
        *,
        refiners: Mapping[str, Refiner] | None = None,
        pixels: Image | None = None,
    ) -> list[LabelMask]:
        image = np.asarray(encoded.embedding["image"])
        score = logistic(log_odds(0.8) + (options.score_offset if options else 0.0))
        found = []
        for label, known in references.items():
            mask = np.zeros(image.shape[:2], bool)
            bank = known if isinstance(known, ReferenceBank) else self.gather(known)
            for colour in bank.features[bank.foreground > 0].astype(np.uint8):
                mask |= (image == colour).all(axis=2)
            for colour in bank.features[(bank.foreground <= 0) & (bank.background >= 1)].astype(np.uint8):
                mask &= ~(image == colour).all(axis=2)
            if mask.any() and refiners and label in refiners and pixels is not None:
                mask = refiners[label].refine(mask, mask.astype(np.float32), pixels)
            if mask.any():
                found.append(LabelMask(label, BoxedMask.of(mask), score))
        return found

    def plan(
        self,
        encoded: EncodedImage,
        references: Mapping[str, ReferenceBank | Sequence[Reference]],
        options: MatchOptions | None = None,
        *,
        is_matched_again: bool = False,
        **refining: Any,
    ) -> Any:
        return encoded, references, options, refining

    def forget_products(self) -> None:
        pass

    def segment_planned(self, plans: Sequence[Any]) -> list[Callable[[], list[LabelMask]]]:
        return [partial(self.segment, *plan[:3], **plan[3]) for plan in plans]

    def find_planned(self, plans: Sequence[Any]) -> list[Callable[[], FoundMasks]]:
        def found(finish: Callable[[], list[LabelMask]]) -> FoundMasks:
            masks = finish()
            return FoundMasks(masks, 0.2 if masks else 0.7)

        return [partial(found, finish) for finish in self.segment_planned(plans)]

    def explain(
        self,
        encoded: EncodedImage,
        references: Mapping[str, ReferenceBank],
        options: MatchOptions | None = None,
        **refining: Any,
    ) -> Explanation:
        image = np.asarray(encoded.embedding["image"])
        blank = np.zeros(image.shape[:2], np.float32)
        found = {one.label: one for one in self.segment(encoded, references, options, **refining)}
        labels = tuple(
            LabelExplanation(label, blank, (), found[label].mask, 0.8, True, "Seen.")
            if label in found
            else LabelExplanation(label, blank, (), blank > 0, 0.0, False, "Not seen.")
            for label in references
        )
        return Explanation("colours", "prior", labels)


@dataclass
class FakeLabelStudio:
    """Tasks, annotations and images in memory, behind the methods of `LabelStudioClient` and `ImageFetcher`."""

    created_at: datetime = datetime(2026, 11, 22, 16, 34, 4, tzinfo=UTC)
    label_config: str = LABEL_CONFIG
    images: dict[str, bytes] = field(default_factory=dict)
    tasks: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[int, dict[str, Any]] = field(default_factory=dict)
    imported: list[dict[str, Any]] = field(default_factory=list)
    hooks: list[dict[str, Any]] = field(default_factory=list)
    backends: list[dict[str, Any]] = field(default_factory=list)
    is_down: bool = False
    answers_get_lost: bool = False
    fetches: int = 0
    revalidated: int = 0
    listings: int = 0
    page: int = 3
    last_prediction: int = 0
    created: int = 0
    away: set[str] = field(default_factory=set)
    has_project: bool = True
    refused_tasks: set[int] = field(default_factory=set)
    takes_at_a_time: int | None = None
    is_late: bool = False
    late: list[dict[str, Any]] = field(default_factory=list)
    hidden_tasks: set[int] = field(default_factory=set)
    changed: dict[str, Any] = field(
        default_factory=lambda: {"sampling": "Sequential sampling", "model_version": "Softmatcher"}
    )
    views: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"1.{int(self.created_at.timestamp())}"

    def add_task(self, task_id: int, content: bytes | None, **more: Any) -> dict[str, Any]:
        """A task with an image; None: its address answers 404."""
        url = f"/data/upload/1/{task_id}.png"
        if content is not None:
            self.images[url] = content
        self.tasks[task_id] = {"id": task_id, "project": 1, "data": {"image": url}, "predictions": [], **more}
        return self.tasks[task_id]

    def annotate(self, annotation_id: int, task_id: int, result: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat()
        self.annotations[annotation_id] = {
            "id": annotation_id, "task": task_id, "result": result, "was_cancelled": False,
            "created_at": self.annotations.get(annotation_id, {}).get("created_at", now), "updated_at": now, **more,
        }  # fmt: skip
        return self.annotations[annotation_id]

    def _answer(self) -> None:
        if self.is_down:
            raise LabelStudioUnavailableError("Label Studio does not answer")

    def annotation(self, annotation_id: int) -> dict[str, Any]:
        self._answer()
        if annotation_id not in self.annotations:
            raise NotFoundError(f"annotation {annotation_id}")
        return self.annotations[annotation_id]

    def task(self, task_id: int, project_id: int) -> dict[str, Any]:
        self._answer()
        if task_id not in self.tasks:
            raise NotFoundError(f"task {task_id}")
        return self.tasks[task_id]

    def tasks_after(self, project_id: int, task_id: int, count: int) -> list[dict[str, Any]]:
        self._answer()
        later = sorted(known for known in list(self.tasks) if known > task_id)[:count]
        return [self.tasks[known] for known in later]

    def project(self, project_id: int) -> dict[str, Any]:
        self._answer()
        if not self.has_project:
            raise NotFoundError(f"project {project_id}")
        return {
            "id": project_id, "title": "Animals", "label_config": self.label_config,
            "created_at": self.created_at.isoformat(), **self.changed,
        }  # fmt: skip

    def change_project(self, project_id: int, **changes: Any) -> dict[str, Any]:
        """As Label Studio does, which takes only a model_version that a backend or a prediction has."""
        self._answer()
        known = {each["model_version"] for task in self.tasks.values() for each in task["predictions"]}
        if changes.get("model_version") and changes["model_version"] not in known | {"Softmatcher"}:
            raise BadInputError("Model version doesn't exist either as live model or as static predictions.")
        self.changed |= changes
        return self.project(project_id)

    def create_view(self, project_id: int, title: str, ordering: str) -> int:
        self._answer()
        self.views[len(self.views) + 1] = (title, ordering)
        return len(self.views)

    def delete_view(self, view_id: int) -> None:
        self._answer()
        self.views.pop(view_id, None)

    def set_cluster(self, prediction_id: int, cluster: int | None) -> None:
        self._answer()
        for task in self.tasks.values():
            for each in task["predictions"]:
                if each["id"] == prediction_id:
                    each["cluster"] = cluster

    def annotated_tasks(self, project_id: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        self._answer()
        for task in list(self.tasks.values()):
            mine = [annotation for annotation in self.annotations.values() if annotation["task"] == task["id"]]
            if mine and task["id"] not in self.hidden_tasks:
                yield task, mine

    def all_tasks(self, project_id: int, *, only_annotated: bool = False) -> Iterator[dict[str, Any]]:
        self._answer()
        for _, task in sorted(self.tasks.items()):
            mine = [annotation for annotation in self.annotations.values() if annotation["task"] == task["id"]]
            if mine or not only_annotated:
                self._answer()
                yield {**task, "annotations": mine}

    def create_annotation(
        self, task_id: int, result: Sequence[Mapping[str, Any]], *, prediction_id: int | None = None
    ) -> dict[str, Any]:
        self._answer()
        self.created += 1
        return self.annotate(
            9000 + self.created, task_id, [dict(each) for each in result], completed_by=1,
            parent_prediction=prediction_id,
        )  # fmt: skip

    def delete_annotation(self, annotation_id: int) -> None:
        self._answer()
        self.annotations.pop(annotation_id, None)

    def page_of_tasks(self, project_id: int, *, after: int = 0, count: int = 25) -> tuple[list[int], int]:
        self._answer()
        later = sorted(known for known in list(self.tasks) if known > after)
        return later[:count], len(later)

    def tasks_of(self, project_id: int, task_ids: Sequence[int]) -> list[dict[str, Any]]:
        self._answer()
        self.listings += 1
        return [
            {
                **self.tasks[i],
                "predictions": list(self.tasks[i]["predictions"]),
                "annotations": [each for each in self.annotations.values() if each["task"] == i],
            }
            for i in task_ids
            if i in self.tasks
        ]

    def task_ids(
        self, project_id: int, *, after: int = 0, only_unlabeled: bool = False, more_predictions_than: int | None = None
    ) -> Iterator[list[int]]:
        annotated = {annotation["task"] for annotation in self.annotations.values()}
        chosen = [
            task_id
            for task_id, task in sorted(self.tasks.items())
            if task_id > after
            and not (only_unlabeled and task_id in annotated)
            and (more_predictions_than is None or len(task["predictions"]) > more_predictions_than)
        ]
        for start in range(0, len(chosen), self.page):
            self._answer()
            yield chosen[start : start + self.page]

    def count_tasks(self, project_id: int, *, only_unlabeled: bool = False) -> int:
        return sum(len(page) for page in self.task_ids(project_id, only_unlabeled=only_unlabeled))

    def version(self) -> str:
        self._answer()
        return "1.23.2"

    def delete_prediction(self, prediction_id: int) -> None:
        self._answer()
        for task in self.tasks.values():
            task["predictions"] = [each for each in task["predictions"] if each["id"] != prediction_id]

    def import_predictions(self, project_id: int, predictions: list[dict[str, Any]]) -> int:
        self._answer()
        if any(prediction["task"] not in self.tasks for prediction in predictions):
            raise BadInputError("task is not in the project")
        if self.takes_at_a_time is not None and len(predictions) > self.takes_at_a_time:
            raise TooLargeError("413")
        taken = [prediction for prediction in predictions if not self._refuses(prediction)]
        self.imported += taken
        if self.is_late:
            self.late += taken
            raise LabelStudioUnavailableError("no answer in time")
        for prediction in taken:
            self.add_prediction(prediction["task"], prediction)
        if self.answers_get_lost:
            raise LabelStudioUnavailableError("the answer got lost")
        return len(taken)

    def create_prediction(self, prediction: dict[str, Any]) -> dict[str, Any]:
        self._answer()
        if self._refuses(prediction):
            raise BadInputError("from_name brush is not in the label config")
        self.add_prediction(prediction["task"], prediction)
        return prediction

    def _refuses(self, prediction: dict[str, Any]) -> bool:
        """As Label Studio's validation does: of an import without a word."""
        return prediction["task"] in self.refused_tasks or any(
            f'name="{region["from_name"]}"' not in self.label_config for region in prediction["result"]
        )

    def add_prediction(self, task_id: int, prediction: dict[str, Any]) -> None:
        self.last_prediction += 1
        self.tasks[task_id]["predictions"].append({**prediction, "id": self.last_prediction})

    def versions_of(self, task_id: int) -> list[str]:
        """The model_versions of a task's predictions, oldest first."""
        return [each["model_version"] for each in self.tasks[task_id]["predictions"]]

    def ml_backends(self, project_id: int) -> list[dict[str, Any]]:
        self._answer()
        return self.backends

    def set_extra_params(self, ml_backend: Mapping[str, Any], extra_params: Mapping[str, Any]) -> dict[str, Any]:
        self._answer()
        next(one for one in self.backends if one["id"] == ml_backend["id"])["extra_params"] = dict(extra_params)
        return {}

    def webhooks(self, project_id: int) -> list[dict[str, Any]]:
        self._answer()
        return self.hooks

    def set_webhook_headers(self, webhook: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        self._answer()
        next(hook for hook in self.hooks if hook["id"] == webhook["id"])["headers"] = dict(headers)

    def fetch(self, url: str, task_id: int | None) -> bytes:
        self._answer()
        self.fetches += 1
        if url in self.away:
            raise LabelStudioUnavailableError(f"{url} answered 503: try again later")
        if url not in self.images:
            raise NotFoundError(f"{url}: 404")
        return self.images[url]

    def fetch_if_sized(self, url: str, task_id: int | None, sizes: frozenset[int]) -> bytes | None:
        """Like a server that tells a file's size before it sends it."""
        content = self.images.get(url)
        if content is not None and url not in self.away and not self.is_down and len(content) not in sizes:
            return None
        return self.fetch(url, task_id)

    def fetch_if_changed(self, url: str, task_id: int | None, known: Validators | None) -> FetchedFile:
        """Like a server that gives ETags: the file, or no content where nothing changed."""
        content = self.images.get(url)
        is_there = content is not None and url not in self.away and not self.is_down
        if is_there and known is not None and known.etag == hashlib.sha256(content or b"").hexdigest():
            self.revalidated += 1
            return FetchedFile(None, known)
        content = self.fetch(url, task_id)
        return FetchedFile(content, Validators(etag=hashlib.sha256(content).hexdigest()))


class FakeConnections:
    """Every project is in the one fake Label Studio."""

    def __init__(self, label_studio: FakeLabelStudio) -> None:
        self.studio = label_studio

    def client(self, project_key: ProjectKey) -> FakeLabelStudio:
        return self.studio

    label_studio = client

    def fetcher(self, project_key: ProjectKey) -> FakeLabelStudio:
        return self.studio

    def place(self, project: ProjectRecord) -> Place:
        return label_studio_place(project, "http://127.0.0.1:8080")

    def names(self, project: ProjectRecord, task_ids: Sequence[int]) -> dict[int, str]:
        return {}

    def close(self) -> None:
        pass


class PatientQueue:
    """Keeps the jobs until a test runs them, as a worker would."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, tuple[Any, ...]]] = []
        self.live_claims: set[str] = set()
        self.is_down = False
        self.told: dict[str, Any] = {}
        self.seen: dict[ProjectKey, list[int]] = {}
        self.shared_state = self  # it publishes settings itself

    def _add(self, name: str, *args: Any) -> str:
        if self.is_down:
            raise QueueUnavailableError("Redis does not answer")
        self.jobs.append((name, args))
        return f"job-{len(self.jobs)}"

    def ingest_annotation(self, project_key: ProjectKey, annotation_id: int) -> str:
        return self._add("ingest_annotation", project_key, annotation_id)

    def reconcile(self, project_key: ProjectKey) -> str:
        return self._add("reconcile", project_key)

    def refresh_project(self, project_key: ProjectKey) -> str:
        return self._add("refresh_project", project_key)

    def plan_propagation(self, project_key: ProjectKey, propagation_id: int) -> str:
        return self._add("plan_propagation", project_key, propagation_id)

    def propagate(self, project_key: ProjectKey, propagation_id: int) -> str:
        return self._add("propagate", project_key, propagation_id)

    def tidy_propagation(self, project_key: ProjectKey, propagation_id: int) -> str:
        return self._add("tidy_propagation", project_key, propagation_id)

    def estimate_quality(self, project_key: ProjectKey, compare: Sequence[str] = (), attempt: int = 1) -> str:
        return self._add("estimate_quality", project_key, list(compare), attempt)

    def train_refiners(self, project_key: ProjectKey) -> str:
        return self._add("train_refiners", project_key)

    def refresh_tiles(self, project_key: ProjectKey) -> str:
        return self._add("refresh_tiles", project_key)

    def write_tiles(self, project_key: ProjectKey) -> str:
        return self._add("write_tiles", project_key)

    def order_tasks(self, project_key: ProjectKey) -> str:
        return self._add("order_tasks", project_key)

    def accept_predictions(self, project_key: ProjectKey, score: float, batch: str) -> str:
        return self._add("accept_predictions", project_key, score, batch)

    def note_visible(self, project_key: ProjectKey, task_ids: Sequence[int]) -> None:
        if self.is_down:
            raise QueueUnavailableError("Redis does not answer")
        self.seen.setdefault(project_key, []).extend(task_ids)

    def visible(self, project_key: ProjectKey) -> list[int]:
        return list(dict.fromkeys(self.seen.get(project_key, ())))

    def has_labelers_waiting(self) -> bool:
        return self.has_references_waiting()

    def scale_phrases(self, project_key: ProjectKey) -> str:
        return self._add("scale_phrases", project_key)

    def ensure_planned(self, project_key: ProjectKey, propagation_id: int) -> bool:
        return self._ensure("plan_propagation", project_key, propagation_id)

    def ensure_propagation_jobs(self, project_key: ProjectKey, propagation_id: int, tasks: int) -> int:
        return int(self._ensure("propagate", project_key, propagation_id))

    def _ensure(self, *job: Any) -> bool:
        if (job[0], job[1:]) in self.jobs:
            return False
        self._add(*job)
        return True

    def publish_settings(self, told: Mapping[str, Any]) -> None:
        self._add("publish_settings", dict(told))
        self.told = self.jobs.pop()[1][0]

    def waiting_propagations(self) -> list[int]:
        return [args[1] for name, args in self.jobs if name in ("plan_propagation", "propagate")]

    def is_lease_alive(self, claim: str) -> bool:
        return claim in self.live_claims

    def has_references_waiting(self) -> bool:
        return False

    def waiting(self) -> dict[str, int]:
        return {"fake": len(self.jobs)}

    def workers_now(self) -> int | None:
        return None if self.is_down else 1


@dataclass
class Backend:
    """A whole backend over fakes."""

    settings: Settings
    label_studio: FakeLabelStudio
    queue: PatientQueue
    projects: Projects

    @cached_property
    def client(self) -> FlaskClient:
        """A client of the service; many tests need none."""
        return create_app(self.projects, self.queue).test_client()  # type: ignore[arg-type]

    def work(self) -> int:
        """Run the jobs that wait, and those that they enqueue; returns how many."""
        count = 0
        while self.queue.jobs:
            name, args = self.queue.jobs.pop(0)
            getattr(tasks, name)(*args)
            count += 1
        return count


def make_backend(
    folder: Path,
    label_studio: FakeLabelStudio,
    *,
    softmatcher: Callable[[Callable[[str, float], None] | None], Any] = ColourSoftmatcher,
    load_text_encoder: Callable[[], Any] | None = None,
    **settings: object,
) -> Backend:
    """Make a backend whose data lie in `folder`: a second one there sees what the first left.

    Args:
        folder: of the data.
        label_studio: that it talks to.
        softmatcher: makes the models; one that raises leaves a backend without models.
        load_text_encoder: makes the text encoder; None: that of the profile.
        **settings: beside the folder.
    """
    made = load_settings(data_dir=folder, **settings)
    folder.mkdir(exist_ok=True)
    store, metrics, queue = Store(made.store_url), Metrics(), PatientQueue()
    store.create_tables()
    load: Any = lambda profile, on_stage: softmatcher(on_stage)  # noqa: E731 - it stands in for a whole Softmatcher
    models = Models(made, metrics, load=load)
    connections: Any = FakeConnections(label_studio)
    projects = Projects(made, store, metrics, models, connections, load_text_encoder)
    with suppress(ModelUnavailableError):
        models.get(10)
    metrics.read_from(
        references=projects.count_references, cache=models.cache_counters, queue=queue.waiting,
        workers=queue.workers_now, shared=metrics.totals, propagations=projects.propagations.counters,
    )  # fmt: skip
    return Backend(made, label_studio, queue, projects)
