"""Where the device gains by it, jobs encode several images in one turn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend import jobs
from backend.core.types import EncodedImage
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.label_config import parse_label_config
from backend.pipeline import PreparedImage
from backend.projects.bulk import Batch, BulkPredictions
from backend.projects.images import TaskImages
from tests.fakes import (
    LABEL_CONFIG,
    ColourSoftmatcher,
    FakeConnections,
    FakeLabelStudio,
    draw,
    make_backend,
    png,
)


class BatchSoftmatcher(ColourSoftmatcher):
    """Gains by three images at a time, as one on a GPU does."""

    good_batch = 3

    def __init__(self, on_stage: Any = None) -> None:
        super().__init__(on_stage)
        self.batches: list[int] = []
        self.fails_at = 0

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> list[EncodedImage]:
        self.batches.append(len(prepared))
        if self.fails_at == len(self.batches):
            raise RuntimeError("shapes")
        return super().encode_prepared(prepared)


def test_jobs_encode_batches_and_one_bad_image_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BatchSoftmatcher()
    monkeypatch.setattr("tests.fakes.ColourSoftmatcher", lambda on_stage: engine)
    label_studio = FakeLabelStudio()
    label_studio.add_task(1, png(draw(red=(5, 5, 30, 30))))
    for task_id in range(2, 9):
        content = None if task_id == 4 else png(draw(red=(task_id, 2, 20 + task_id, 20)))
        label_studio.add_task(task_id, content)
    (brush,) = parse_label_config(LABEL_CONFIG).brushes
    mask = np.zeros((48, 64), bool)
    mask[5:30, 5:30] = True
    label_studio.annotate(1, 1, [mask_to_region(mask, brush=brush, label="Cat", score=1.0)])
    backend = make_backend(tmp_path / "data", label_studio)
    jobs.use_projects(backend.projects)
    try:
        backend.projects.store.save_project(label_studio.key, label_config=LABEL_CONFIG)
        backend.projects.references.take_in(label_studio.key, 1)
        project, config = backend.projects.store.project(label_studio.key), parse_label_config(LABEL_CONFIG)
        assert project
        version, known = backend.projects.predictions.references(project, config)
        images = TaskImages(backend.projects.models, backend.projects.metrics, max_pixels=10**6)
        connections = FakeConnections(label_studio)
        bulk = BulkPredictions(backend.projects.metrics, connections, images, backend.projects.predictions)  # type: ignore[arg-type]
        batch = Batch(project, config, version, known, list(range(2, 9)))
        outcomes = bulk.run(batch, should_stop=lambda: False, still_wanted=lambda: set(batch.task_ids))
    finally:
        jobs.use_projects(None)
        backend.projects.close()
    assert {outcome.task_id: outcome.state for outcome in outcomes} == {
        task_id: "failed" if task_id == 4 else "done" for task_id in range(2, 9)
    }
    assert sorted(prediction["task"] for prediction in label_studio.imported) == [2, 3, 5, 6, 7, 8]
    # Tasks 2 to 4 (one of them without an image), 5 to 7, and 8 by itself.
    assert engine.batches == [2, 3, 1]
