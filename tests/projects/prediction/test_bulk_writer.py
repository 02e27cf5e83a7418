"""Where the device gains by it, jobs encode several images in one turn."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.core.types import EncodedImage, LabelMask
from backend.engine.plans import PreparedImage
from backend.jobs import tasks
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.label_config import parse_label_config
from backend.projects.images import TaskImages
from backend.projects.prediction.bulk_writer import Batch, BulkPredictions
from backend.projects.tiles import Tiles
from testing.fakes import (
    LABEL_CONFIG,
    Backend,
    ColourSoftmatcher,
    FakeConnections,
    FakeLabelStudio,
    draw,
    make_backend,
    png,
)


class BatchSoftmatcher(ColourSoftmatcher):
    """Gains by three images at a time, as one on a GPU does."""

    preferred_batch_size = 3

    def __init__(self, on_stage: Any = None) -> None:
        super().__init__(on_stage)
        self.batches: list[int] = []
        self.fails_at = 0

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> list[EncodedImage]:
        self.batches.append(len(prepared))
        if self.fails_at == len(self.batches):
            raise RuntimeError("shapes")
        return super().encode_prepared(prepared)


@contextmanager
def bulk_of(
    engine: BatchSoftmatcher, tmp_path: Path, *, missing: int = 0
) -> Iterator[tuple[Backend, FakeLabelStudio, BulkPredictions, Batch]]:
    """Tasks 2 to 8 of a project with a reference, one of them without an image."""
    label_studio = FakeLabelStudio()
    label_studio.add_task(1, png(draw(red=(5, 5, 30, 30))))
    for task_id in range(2, 9):
        content = None if task_id == missing else png(draw(red=(task_id, 2, 20 + task_id, 20)))
        label_studio.add_task(task_id, content)
    (brush,) = parse_label_config(LABEL_CONFIG).brushes
    mask = np.zeros((48, 64), bool)
    mask[5:30, 5:30] = True
    label_studio.annotate(1, 1, [mask_to_region(mask, brush=brush, label="Cat", score=1.0)])
    backend = make_backend(tmp_path / "data", label_studio, softmatcher=lambda _: engine)
    tasks.use_projects(backend.projects)
    try:
        backend.projects.store.save_project(label_studio.key, label_config=LABEL_CONFIG)
        backend.projects.references.ingest(label_studio.key, 1)
        project, config = backend.projects.store.project(label_studio.key), parse_label_config(LABEL_CONFIG)
        assert project
        context = backend.projects.banks.context(project, config)
        images = TaskImages(backend.projects.models, backend.projects.metrics, max_pixels=10**6)
        connections = FakeConnections(label_studio)
        bulk = BulkPredictions(
            backend.projects.metrics,
            connections,  # type: ignore[arg-type]
            images,
            backend.projects.predictions,
            Tiles(backend.projects.store),
        )
        yield backend, label_studio, bulk, Batch(context, list(range(2, 9)))
    finally:
        tasks.use_projects(None)
        backend.projects.close()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run(bulk: BulkPredictions, batch: Batch) -> dict[int, str]:
    outcomes = bulk.run(batch, should_stop=lambda: False, still_wanted=lambda: set(batch.task_ids))
    return {outcome.task_id: outcome.state for outcome in outcomes}


@pytest.mark.slow
def test_jobs_encode_batches_and_one_bad_image_spoils_nothing(tmp_path: Path) -> None:
    engine = BatchSoftmatcher()
    with bulk_of(engine, tmp_path, missing=4) as (_, label_studio, bulk, batch):
        states = run(bulk, batch)
    assert states == {task_id: "failed" if task_id == 4 else "done" for task_id in range(2, 9)}
    assert sorted(prediction["task"] for prediction in label_studio.imported) == [2, 3, 5, 6, 7, 8]
    # Tasks 2 to 4 (one of them without an image), 5 to 7, and 8 by itself.
    assert engine.batches == [2, 3, 1]


class SlowToFinish(BatchSoftmatcher):
    """What comes after the models waits until it may go on; of the fourth image it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.may_finish = threading.Event()
        self.begun: list[int] = []
        self.numbers = itertools.count(1)

    def segment_planned(self, plans: Sequence[Any]) -> list[Callable[[], list[LabelMask]]]:
        return [partial(self._finish, masks) for masks in super().segment_planned(plans)]

    def _finish(self, masks: Callable[[], list[LabelMask]]) -> list[LabelMask]:
        number = next(self.numbers)
        self.begun.append(number)
        assert self.may_finish.wait(30)
        if number == 4:
            raise RuntimeError("no room")
        return masks()


@pytest.mark.slow
def test_models_are_free_while_masks_are_packed(tmp_path: Path) -> None:
    engine = SlowToFinish()
    with bulk_of(engine, tmp_path) as (backend, label_studio, bulk, batch), ThreadPoolExecutor(1) as pool:
        states = pool.submit(run, bulk, batch)
        wait_until(lambda: len(engine.batches) == 3 and len(engine.begun) == 4)  # all encoded, though none is finished
        with backend.projects.models.scheduler.slot(is_interactive=True):
            assert not states.done()
        assert label_studio.imported == []
        engine.may_finish.set()
        found = states.result(30)
    assert sorted(found.values()) == ["done"] * 6 + ["failed"]
    assert len(label_studio.imported) == 6


class SlowToSegment(BatchSoftmatcher):
    """Its decoder waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()

    def segment_planned(self, plans: Sequence[Any]) -> list[Callable[[], list[LabelMask]]]:
        assert self.may_go_on.wait(30)
        return super().segment_planned(plans)


@pytest.mark.slow
@pytest.mark.parametrize(("behind", "encoded"), [(3, 3), (1, 2)])
def test_a_slow_decoder_holds_no_turn_and_lets_encoders_run_ahead_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int, encoded: int
) -> None:
    monkeypatch.setattr("backend.projects.prediction.batch_pipeline.BATCHES_BEHIND", behind)
    engine = SlowToSegment()
    with bulk_of(engine, tmp_path) as (backend, label_studio, bulk, batch), ThreadPoolExecutor(1) as pool:
        states = pool.submit(run, bulk, batch)
        wait_until(lambda: len(engine.batches) == encoded)
        with backend.projects.models.scheduler.slot(is_interactive=True):
            assert not states.done()
        time.sleep(0.05)  # whoever encoded more than that would have
        assert len(engine.batches) == encoded
        engine.may_go_on.set()
        found = states.result(30)
    assert found == dict.fromkeys(range(2, 9), "done")
    assert len(label_studio.imported) == 7
    assert engine.batches == [3, 3, 1]


@pytest.mark.parametrize(("images_a_turn", "tasks"), [(1, 24), (3, 24), (8, 48)])
def test_jobs_take_more_tasks_where_a_turn_takes_more_images(tmp_path: Path, images_a_turn: int, tasks: int) -> None:
    engine = BatchSoftmatcher()
    engine.preferred_batch_size = images_a_turn
    with bulk_of(engine, tmp_path) as (_, _, bulk, _):
        assert bulk.preferred_batch_size == tasks
