"""Images of tasks: large JPEGs are decoded at a part of their size for the models, and whole for everything else."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from backend.labelstudio.label_config import parse_label_config
from backend.metrics import Metrics
from backend.projects.images import TaskImages
from testing.fakes import LABEL_CONFIG, Backend, ColourSoftmatcher, FakeLabelStudio, draw, make_backend


class Reducing(ColourSoftmatcher):
    decode_side_px = 128


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Backend]:
    made = make_backend(tmp_path / "data", FakeLabelStudio(), softmatcher=Reducing)
    yield made
    made.projects.close()


def test_a_large_jpeg_is_encoded_reduced_and_its_pixels_are_whole(project: Backend) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(draw((600, 800), red=(100, 100, 300, 300))).save(buffer, "JPEG", quality=95)
    task: dict[str, Any] = project.label_studio.add_task(1, buffer.getvalue())
    images = TaskImages(project.projects.models, Metrics(), max_pixels=10**7)
    tag, fetcher = parse_label_config(LABEL_CONFIG).images[0], project.label_studio
    for with_pixels in (False, True, True):
        loaded = images.load(task, tag, fetcher, is_interactive=True, with_pixels=with_pixels)  # type: ignore[arg-type]
        assert loaded.encoded.size_hw == (600, 800)
        assert np.asarray(loaded.encoded.embedding["image"]).shape == (150, 200, 3)
        assert (loaded.pixels is not None) == with_pixels
        assert loaded.pixels is None or loaded.pixels.shape == (600, 800, 3)


def test_an_image_that_is_not_reduced_is_decoded_once(project: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(draw((100, 120), red=(10, 10, 30, 30))).save(buffer, "JPEG")
    task: dict[str, Any] = project.label_studio.add_task(1, buffer.getvalue())
    images = TaskImages(project.projects.models, Metrics(), max_pixels=10**7)
    tag, fetcher = parse_label_config(LABEL_CONFIG).images[0], project.label_studio
    monkeypatch.setattr("backend.projects.images.decode_image", None)
    loaded = images.load(task, tag, fetcher, is_interactive=True, with_pixels=True)  # type: ignore[arg-type]
    assert loaded.pixels is not None
    assert np.array_equal(loaded.pixels, np.asarray(loaded.encoded.embedding["image"]))
