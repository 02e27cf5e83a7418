"""Several variants in one run: the figures of each alone, taken up after an interruption, pictures and tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from typer.testing import CliRunner

from backend.cli import app
from backend.core.masks import painted_masks
from backend.core.types import LabelMask, Scribble
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError
from backend.evaluation.contact_sheet import draw_contact_sheets
from backend.evaluation.markdown import variants_to_markdown
from backend.evaluation.simulated_annotations import (
    corrected,
    is_all_marked,
    largest_object,
    simulated_points,
    simulated_strokes,
)
from backend.evaluation.variants import evaluate_variants
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter
from tests.engine.test_softmatcher import ColourEncoder, scene

CALIBRATION = read_calibration("lite.json")

VARIANTS = {"posterior": MatchOptions(), "prototype": MatchOptions(matcher="prototype")}


def _load(profile: str, on_stage: Callable[[str, float], None] | None = None) -> Softmatcher:
    return Softmatcher(ColourEncoder(), LiteSegmenter(working_px=128), CALIBRATION, on_stage=on_stage)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for set_name, class_name, colour in (("one", "red disc", "red"), ("two", "blue disc", "blue")):
        folder = root / set_name / class_name
        folder.mkdir(parents=True)
        for index, x in enumerate((50, 80, 110, 140)):
            image, masks = scene(**{f"{colour}1": (x, 80, 30), f"{colour}2": (x, 20, 12)})
            PillowImage.fromarray(image).save(folder / f"{index}.jpg", quality=95)
            PillowImage.fromarray(masks[colour]).save(folder / f"{index}.png")
    return root


@pytest.mark.slow
def test_variants_have_the_figures_that_each_has_alone(drawn: Path) -> None:
    run = evaluate_variants(drawn, VARIANTS, seeds=(0, 1), load=_load)
    (alone,) = evaluate_variants(drawn, {"alone": VARIANTS["prototype"]}, seeds=(0, 1), load=_load).variants.values()
    assert list(run.variants) == ["posterior", "prototype"]
    assert run.variants["prototype"].class_mious() == pytest.approx(alone.class_mious())
    assert list(run.variants["prototype"].absent) == list(alone.absent)
    assert run.variants["posterior"].miou() > 0.8
    assert {"encode", "match", "prompt", "decode", "clean-up"} <= set(run.variants["posterior"].stages_ms)
    written = run.to_json()
    assert written["miou"] == run.variants["posterior"].miou()
    assert json.loads(json.dumps(written))["variants"]["prototype"]["settings"]["options"]["matcher"] == "prototype"


def test_a_variant_has_the_timings_of_its_own_images_and_no_others(drawn: Path) -> None:
    told: list[tuple[str, float]] = []

    class Slow(Softmatcher):
        """Reports a matching that takes a second with the one matcher, and two with the other."""

        def __init__(self, record: Callable[[str, float], None]) -> None:
            super().__init__(ColourEncoder(), LiteSegmenter(working_px=64), CALIBRATION, on_stage=record)
            self._record = record

        def segment(
            self, encoded: Any, references: Any, options: MatchOptions | None = None, **further: Any
        ) -> list[LabelMask]:
            assert options is not None
            self._record("match", 1.0 if options.matcher == "posterior" else 2.0)
            return []

    def load(profile: str, on_stage: Callable[[str, float], None]) -> Softmatcher:
        def record(stage: str, seconds: float) -> None:
            told.append((stage, seconds))
            on_stage(stage, seconds)

        return Slow(record)

    run = evaluate_variants(drawn, VARIANTS, seeds=(0,), limit=1, load=load)
    # An image of each of the two classes, and one without the object for each.
    assert told.count(("match", 1.0)) == told.count(("match", 2.0)) == 4
    assert {name: of.stages_ms["match"] for name, of in run.variants.items()} == {"posterior": 1000, "prototype": 2000}


@pytest.mark.slow
def test_simulated_annotations_cost_little_on_discs(drawn: Path) -> None:
    run = evaluate_variants(drawn, VARIANTS, with_simulated_annotations=True, limit=1, load=_load)
    mious = run.simulated_annotations
    assert set(mious) == {
        "mask",
        "points",
        "strokes",
        "points_corrected",
        "strokes_corrected",
        "one_object",
    }
    assert run.to_json()["scribble_loss"] == pytest.approx(mious["mask"] - (mious["points"] + mious["strokes"]) / 2)
    assert mious["points"] > 0.7
    assert mious["strokes"] > 0.7


@pytest.mark.slow
def test_an_interrupted_run_is_taken_up_again(drawn: Path, tmp_path: Path) -> None:
    journal = tmp_path / "progress.jsonl"

    def interrupt(name: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_variants(drawn, VARIANTS, journal=journal, on_progress=interrupt, load=_load)
    with journal.open("a") as file:
        file.write('\n{"run": "cut of')
    whole = evaluate_variants(drawn, VARIANTS, load=_load)
    taken_up = evaluate_variants(drawn, VARIANTS, journal=journal, load=_load)
    assert taken_up.resumed == 1
    assert taken_up.variants["posterior"].class_mious() == pytest.approx(whole.variants["posterior"].class_mious())
    assert not journal.exists()


@pytest.mark.slow
def test_another_run_does_not_take_up_what_is_not_its_own(drawn: Path, tmp_path: Path) -> None:
    journal = tmp_path / "progress.jsonl"

    def interrupt(name: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_variants(drawn, VARIANTS, journal=journal, on_progress=interrupt, load=_load)
    other = evaluate_variants(drawn, {"posterior": MatchOptions(points=9)}, journal=journal, load=_load)
    assert other.resumed == 0


def test_markdown_has_every_variant_set_and_class(drawn: Path) -> None:
    text = variants_to_markdown(evaluate_variants(drawn, VARIANTS, limit=1, load=_load))
    rows = [line for line in text.splitlines() if line]
    assert all(line.count("|") == 4 for line in rows)
    assert "| figure | posterior | prototype |" in rows
    for name in ("**one**", "one/red disc", "two/blue disc", "miou", "encode, median ms"):
        assert any(line.startswith(f"| {name} |") for line in rows)


@pytest.mark.slow
def test_contact_sheets_are_drawn(drawn: Path, tmp_path: Path) -> None:
    run = evaluate_variants(drawn, VARIANTS, load=_load)
    sheets = draw_contact_sheets(
        drawn, run.variants["posterior"], _load("lite"), VARIANTS["posterior"], tmp_path / "sheets", shots=1, count=3
    )
    assert [path.name for path in sheets] == ["best.png", "median.png", "worst.png"]
    for path in sheets:
        with PillowImage.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert (pixels == (30, 200, 60)).all(axis=1).any()


def test_nothing_to_run_is_refused(drawn: Path) -> None:
    with pytest.raises(BadInputError, match="at least one variant and seed"):
        evaluate_variants(drawn, {}, load=_load)


def test_markings_lie_inside_the_mask() -> None:
    mask = scene(red1=(50, 60, 30), red2=(150, 100, 20))[1]["red"]
    points = simulated_points(mask, seed=1)
    x, y = points.positive_xy.astype(int).T
    assert len(x) == 4
    assert mask[y, x].all()
    strokes = simulated_strokes(mask, seed=1).positive_strokes
    assert strokes is not None
    assert strokes[:, :100].any()
    assert strokes[:, 100:].any()
    assert not (strokes & ~mask).any()
    assert strokes.sum() < 0.6 * mask.sum()
    assert largest_object(mask)[60, 50]
    assert not largest_object(mask)[100, 150]


@pytest.mark.parametrize("simulate", [simulated_points, simulated_strokes])
def test_a_user_corrects_where_the_mask_is_most_wrong(simulate: Callable[..., Scribble]) -> None:
    mask = scene(red1=(50, 60, 30), red2=(150, 100, 20))[1]["red"]
    scribble = simulate(mask, seed=1)
    assert corrected(scribble, mask, mask) is None
    missed, exceeded = mask.copy(), mask.copy()
    missed[:, :100] = False
    exceeded[10:50, 150:190] = True
    inside, outside = painted_masks(corrected(scribble, missed, mask) or scribble)
    assert inside[55:65, 45:55].any()
    assert not outside.any()
    assert not (inside & ~mask).any()
    inside, outside = painted_masks(corrected(scribble, exceeded, mask) or scribble)
    assert outside[25:35, 165:175].any()
    assert not (outside & mask).any()


def test_more_objects_than_a_user_marks_are_not_all() -> None:
    assert is_all_marked(scene(red1=(50, 60, 30), red2=(150, 100, 20))[1]["red"])
    many = np.zeros((100, 100), bool)
    many[::10, ::10] = True
    assert not is_all_marked(many)


def test_a_mask_of_one_pixel_can_be_marked() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 5] = True
    assert simulated_points(mask, seed=0).positive_xy.tolist() == [[5.0, 4.0], [5.0, 4.0]]
    assert np.array_equal(np.asarray(simulated_strokes(mask, seed=0).positive_strokes), mask)


@pytest.mark.parametrize("arguments", [["--matchers", "magic"], ["--recipes", "magic"], ["--matchers", ""]])
def test_unknown_names_are_refused(drawn: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(drawn), *arguments])
    assert done.exit_code != 0
