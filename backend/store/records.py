"""Records that go into the store and come out of it: frozen dataclasses."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from backend.core.phrases import Phrase
from backend.core.types import Json, Mask, Reference

ProjectKey = str
"""Names a project, `<id>.<unix time of creation>` as Label Studio sends it: an id may come again after a deletion."""


@dataclass(frozen=True)
class ProjectRecord:
    """One Label Studio project as last seen.

    Attributes:
        key: names it.
        project_id: the number before the dot.
        title: None if never told.
        label_config: the XML; "" if never told.
        settings: the backend's extra parameters of this project; None if never told.
        setup_token: the access token that came with /setup; a secret.
        needs_reconcile: True if annotations may exist that were not announced.
        updated_at: unix time in s of the last save.
        gone_since: unix time in s since which Label Studio says that it does not have the project; None if it has it.
        with_text: its images are encoded with text features: labels have phrases.
        task_order: what Label Studio's own order of tasks was before this backend set it, see
            `backend.projects.task_order`; None if it does not set it.
        score_fit: how scores were fitted on the project's annotated images, see `backend.projects.quality.score_fit`;
            None if they were not.
    """

    key: ProjectKey
    project_id: int
    title: str | None
    label_config: str
    settings: Json | None
    setup_token: str | None = field(repr=False)
    needs_reconcile: bool
    updated_at: float
    gone_since: float | None = None
    with_text: bool = False
    task_order: Json | None = None
    score_fit: Json | None = None


@dataclass(frozen=True)
class AnnotationRecord:
    """An annotation that was taken in, also if it gave no reference.

    Attributes:
        updated_at: ISO 8601 as Label Studio gives it; without a zone it is taken as UTC.
        signature: of the models that made its references.
        content_digest: of the annotation's own content.
        problem: why it gave no reference or not all; None if nothing is wrong.
        reading: digest of the settings and the label config that it was read with; None for records of releases that
            did not note it.
        images: JSON: which content of the task's images the references were made of.
    """

    project_key: ProjectKey
    annotation_id: int
    task_id: int
    updated_at: str
    signature: str
    content_digest: str
    problem: str | None = None
    reading: str | None = None
    images: str | None = None


@dataclass(frozen=True, eq=False)
class NewReference:
    """A reference on its way into the store.

    Attributes:
        label: the class.
        image_tag: name of the label config's image tag that shows the image.
        image_sha256: of the image file's bytes.
        mask: (H, W) bool at the image's natural size.
        reference: the features; their signature must be the annotation's.
    """

    label: str
    image_tag: str
    image_sha256: str
    mask: Mask
    reference: Reference

    @property
    def digest(self) -> str:
        """sha256 of what makes two references the same: label, image, mask, models, and what is known around the mask.

        The features themselves are left out. They follow from these, and a GPU does not give them bit for bit twice:
        taking an unchanged annotation in again would otherwise change model_version, and with it every prediction.
        """
        named = [self.reference.signature, self.label, self.image_tag, self.image_sha256, *map(str, self.mask.shape)]
        digest = hashlib.sha256(json.dumps(named).encode())
        digest.update(np.packbits(self.mask).tobytes())
        digest.update(self.reference.foreground_coverage.tobytes())
        digest.update(self.reference.ignore_weight.tobytes())
        if self.reference.text_features is not None:
            digest.update(b"text features")
        if self.reference.fine is not None:
            digest.update(b"fine")
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class StoredReference:
    """A reference out of the store.

    Attributes:
        id: of its row; changes whenever its annotation is taken in again.
        size_hw: natural size of the image.
        mask: (H, W) bool.
        reference: None if features were not asked for.
        digest: see `NewReference.digest`.
        created_at: unix time in s.
    """

    id: int
    project_key: ProjectKey
    task_id: int
    annotation_id: int
    label: str
    image_tag: str
    image_sha256: str
    size_hw: tuple[int, int]
    mask: Mask
    reference: Reference | None
    digest: str
    created_at: float


@dataclass(frozen=True, eq=False)
class TextReference:
    """A phrase of a label: what a reference is to an image, this is to a text.

    Attributes:
        label: the class.
        phrase: the text, and whether it names what the label is not.
        source: where it came from: `label config`, `page`, or `annotation 12`.
        vector: (D,) float32 of unit length; None if the text encoder has not seen the phrase.
    """

    label: str
    phrase: Phrase
    source: str
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class UnreadAnnotation:
    """An annotation of which something could not be made into references.

    Attributes:
        annotation_id, task_id: as in Label Studio.
        problem: what is wrong, for people.
        references: how many it gave all the same.
    """

    annotation_id: int
    task_id: int
    problem: str
    references: int


@dataclass(frozen=True)
class ReferenceSummary:
    """A reference as lists show it; fields as in `StoredReference`.

    Attributes:
        is_disabled: it takes no part in matching, nor in model_version.
    """

    id: int
    label: str
    task_id: int
    annotation_id: int
    created_at: float
    is_disabled: bool = False


@dataclass(frozen=True)
class PropagationFilter:
    """Which tasks of a project a propagation predicts, and with what.

    Attributes:
        only_unlabeled: leave out tasks that have an annotation.
        labels: predict these only; None for all of the label config.
        limit: at most so many tasks, those with the lowest ids; None for all.
    """

    only_unlabeled: bool = False
    labels: tuple[str, ...] | None = None
    limit: int | None = None


@dataclass(frozen=True)
class PropagationRecord:
    """One propagation.

    Attributes:
        state: planning, running, finishing, done, cancelled, superseded or failed.
        started_by: for people to read.
        created_at, started_at, finished_at: unix times in s; started once all tasks are known.
        model_version, references_digest: with which it was planned; references may change while it runs.
        planned_up_to: id of the last task that was planned.
        is_planned: all tasks are known.
        problem: why it failed, or why it waits.
        paused_until: unix time in s before which no job works on it; None if none has to wait.
        pauses: how many pauses there were since something last succeeded.
        kept: how many of its done tasks had their prediction already.
        tidy_after: unix time in s at which surplus predictions are looked for once more; None if no answer got lost.
    """

    id: int
    project_key: ProjectKey
    state: str
    wanted: PropagationFilter
    started_by: str
    created_at: float
    model_version: str | None
    references_digest: str | None
    planned_up_to: int
    is_planned: bool
    started_at: float | None
    finished_at: float | None
    problem: str | None
    paused_until: float | None
    pauses: int
    kept: int = 0
    tidy_after: float | None = None

    @property
    def is_active(self) -> bool:
        """Return whether there is something left to do."""
        return self.state in ("planning", "running", "finishing")


@dataclass(frozen=True)
class PropagationCounts:
    """Tasks of a propagation by state.

    Attributes:
        finished_lately: how many were finished within the last `window_s` seconds.
    """

    STATES: ClassVar = ("pending", "running", "done", "empty", "failed", "cancelled")

    pending: int
    running: int
    done: int
    empty: int
    failed: int
    cancelled: int
    finished_lately: int
    window_s: float

    @property
    def total(self) -> int:
        """Return the number of all tasks."""
        return self.pending + self.running + self.finished

    @property
    def finished(self) -> int:
        """Tasks with which nothing more will be done."""
        return self.answered + self.cancelled

    @property
    def answered(self) -> int:
        """Tasks of which it is known what came of them."""
        return self.done + self.empty + self.failed

    @property
    def unfinished(self) -> int:
        """Tasks that wait or are being predicted."""
        return self.pending + self.running


@dataclass(frozen=True)
class TaskOutcome:
    """The outcome of one task.

    Attributes:
        state: done, empty, failed or cancelled.
        score: of the prediction in Label Studio.
        model_version: with which it was predicted.
        reason: why it failed; of a task that did not, what is missing.
        images: JSON: which content of the task's images the prediction was made of.
        is_kept: its prediction was there already.
    """

    task_id: int
    state: str
    score: float | None = None
    model_version: str | None = None
    reason: str | None = None
    images: str | None = None
    is_kept: bool = False


@dataclass(frozen=True)
class TaskRow:
    """One task of a propagation; fields as in `TaskOutcome`."""

    task_id: int
    state: str
    score: float | None
    model_version: str | None
    reason: str | None
    attempts: int


@dataclass(frozen=True)
class FailureGroup:
    """Tasks that failed for one reason, and the first of them."""

    reason: str
    count: int
    first_task_id: int


@dataclass(frozen=True)
class TileRegion:
    """A region of a prediction as a tile of the project's page draws it.

    Attributes:
        label: of the region.
        score: in [0, 1].
        path: its outlines as an SVG path, see `backend.drawing.outline_path`.
    """

    label: str
    score: float
    path: str


@dataclass(frozen=True)
class TilePrediction:
    """The newest prediction of a task, for its tile.

    Attributes:
        task_id: of the task.
        state: `masks`, `empty` (nothing was found) or `failed`.
        model_version: with which it was predicted.
        regions: those on the image that the tile shows, the surest ones if they are many.
        score: of the prediction; 0 without masks, -1 if it failed.
        certainty: lowest score of its regions; without masks, the probability that this is right; 2 if it failed.
        reason: why it failed; None otherwise.
        image_tag: name of the image that the tile shows.
        size_hw: natural size of that image, px; (0, 0) if it is not known.
        is_written: Label Studio has this prediction.
        change: 1 - IoU of these masks with those before, mean over the labels; 0 if nothing was predicted before.
        before: regions of the prediction before.
        counter: the project's counter when it was saved.
        updated_at: unix time in s of that.
        sketch: of its image's features, see `backend.projects.tiles.pack_sketch`; None if they were never read.
    """

    task_id: int
    state: str
    model_version: str
    regions: tuple[TileRegion, ...] = ()
    score: float = 0.0
    certainty: float = 1.0
    reason: str | None = None
    image_tag: str = ""
    size_hw: tuple[int, int] = (0, 0)
    is_written: bool = False
    change: float = 0.0
    before: tuple[TileRegion, ...] = ()
    counter: int = 0
    updated_at: float = 0.0
    sketch: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class UnwrittenPrediction:
    """A prediction that a tile shows and Label Studio does not have yet.

    Attributes:
        task_id: of the task.
        model_version: with which it was predicted.
        prediction: as Label Studio gets it; None if nothing was found.
        images: which contents it was made of, see `backend.projects.images.versions_to_json`.
        absence: probability that no label is on the task's images.
        counter: the project's counter when its tile was saved: names it among all of the task.
    """

    task_id: int
    model_version: str
    prediction: Json | None
    images: str
    absence: float
    counter: int = 0


@dataclass(frozen=True)
class TileFilter:
    """Which tiles of a project are wanted, in which order.

    Attributes:
        order: `score` (highest first), `certainty` (lowest first), `change` (largest first) or `id`.
        label: with a region of this label only; with the order `score` it is this label's score.
        state: `masks`, `empty`, `failed`, `changed`, `annotated` or `reference`; None for all.
        after: (value, task id) of the last tile of the page before; None for the first page.
        count: at most so many.
    """

    order: str = "id"
    label: str | None = None
    state: str | None = None
    after: tuple[float, int] | None = None
    count: int = 24


@dataclass(frozen=True)
class PageAnnotation:
    """An annotation that somebody made on the project's page.

    Attributes:
        action: `accept`, `wrong` or `keep`.
        batch: names those that were made by one action.
        absent_labels: labels that are not on the task's image, by its maker's word.
    """

    annotation_id: int
    task_id: int
    action: str
    batch: str
    absent_labels: tuple[str, ...] = ()
