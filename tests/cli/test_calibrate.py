"""`calibrate` on a data set and on a project, and what becomes of its file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from typer.testing import CliRunner

from backend.cli import app
from backend.core.calibration import Calibration, MaskFeatures
from backend.core.types import EncodedImage
from backend.engine.options import MatchOptions
from backend.engine.plans import LabelCandidate, LabelReferences
from backend.errors import ConfigurationError
from testing.fakes import Backend, ColourSoftmatcher, FakeLabelStudio, draw, make_backend, png
from tests.engine.test_softmatcher import scene

POINT = {
    "id": "a", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "original_width": 64,
    "original_height": 48, "value": {"x": 30, "y": 40, "width": 1, "keypointlabels": ["Cat"]},
}  # fmt: skip


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Two sets of two classes: discs of two colours, ten images each."""
    rng = np.random.default_rng(0)
    for set_name in ("one", "two"):
        for colour in ("red", "blue"):
            folder = tmp_path / "sets" / set_name / colour
            folder.mkdir(parents=True)
            for number in range(10):
                x, y, radius = (int(value) for value in rng.integers((50, 50, 20), (150, 110, 45)))
                image, masks = scene(**{colour: (x, y, radius)})
                PillowImage.fromarray(image).save(folder / f"{number}.jpg", quality=95)
                PillowImage.fromarray(masks[colour]).save(folder / f"{number}.png")
    return tmp_path / "sets"


@pytest.mark.slow
def test_a_data_set_gives_a_calibration_that_the_settings_take(drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "own.json"
    done = CliRunner().invoke(app, ["calibrate", str(drawn), "--out", str(out), "--seeds", "0", "--targets", "6"])
    assert done.exit_code == 0, done.output
    assert "24 masks of objects that are there" in done.output
    assert "set SOFTMATCHER_CALIBRATION to it" in done.output.replace("\n", " ")
    written = Calibration.from_json(out.read_text(), name="own")
    assert written.fitted_for == "lite"
    assert written.fitted_on.startswith("data set sets, ")


def test_neither_or_both_sources_are_refused(tmp_path: Path) -> None:
    for arguments in ([], [str(tmp_path), "--project", "1"]):
        done = CliRunner().invoke(app, ["calibrate", *arguments, "--out", str(tmp_path / "own.json")])
        assert done.exit_code == 2
        assert "either a data set's folder or --project" in done.output
    assert not (tmp_path / "own.json").exists()


class ProposingSoftmatcher(ColourSoftmatcher):
    """Proposes what it segments, with features that tell whether anything was found."""

    def label_candidates(
        self, encoded: EncodedImage, references: Sequence[LabelReferences], options: MatchOptions
    ) -> list[LabelCandidate]:
        made = []
        for known in references:
            found = self.segment(encoded, {"x": known}, options)
            mask = found[0].mask if found else np.zeros(encoded.size_hw, bool)
            features = MaskFeatures(0.5, 0.5, 0.9, 0.1, 0.8, 0.8, float(mask.mean()))
            made.append(LabelCandidate(mask, mask.astype(np.float32), 0.9, 0.9, features, ()))
        return made


@pytest.mark.slow
@pytest.mark.parametrize("marks_all", [False, True])
def test_a_project_is_judged_by_leaving_each_reference_out(tmp_path: Path, marks_all: bool) -> None:
    backend: Backend = make_backend(
        tmp_path, FakeLabelStudio(), softmatcher=ProposingSoftmatcher, complete_annotations=marks_all
    )
    for number in range(1, 5):
        backend.label_studio.add_task(number, png(draw(red=(10, 10, 30 + number, 30))))
        backend.label_studio.annotate(10 + number, number, [POINT])
    key = backend.projects.note_project(backend.label_studio.project(1))
    backend.projects.references.reconcile(key)
    rows = backend.projects.quality.calibration_rows(key)
    assert len(rows) == 4
    assert len({row.group for row in rows}) == 4
    assert all(row.is_present and row.reached == 1.0 for row in rows)


def test_another_calibration_is_another_model_version(tmp_path: Path) -> None:
    label_studio = FakeLabelStudio()
    own = tmp_path / "own.json"
    content = json.loads((Path("backend/models/calibrations/lite.json")).read_text())
    content["presence"]["constant"] -= 1
    own.write_text(json.dumps(content))
    versions = []
    choices: list[dict[str, Any]] = [{}, {"calibration": own}]
    for number, settings in enumerate(choices):
        backend = make_backend(tmp_path / str(number), label_studio, **settings)
        key = backend.projects.note_project(label_studio.project(1))
        versions.append(backend.projects.banks.model_version(key))
    assert versions[0] != versions[1]


def test_a_calibration_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SOFTMATCHER_CALIBRATION"):
        make_backend(tmp_path / "data", FakeLabelStudio(), calibration=tmp_path / "missing.json")
