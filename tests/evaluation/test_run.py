"""An evaluation of drawn images, and one of a few real classes where the data sets are at hand."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner

from backend.cli.evaluate import evaluate as evaluate_command
from backend.core.object_similarity import ObjectFeatureSpace
from backend.core.types import Image
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.datasets import draw_episode, find_classes, read_image, read_mask
from backend.evaluation.variants import evaluate_variants
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter

CALIBRATION = read_calibration("lite.json")
PLAIN = {"plain": MatchOptions()}


class ColourEncoder:
    signature = "colours"
    temperature = 0.05
    similarity_floor = 0.3
    object_feature_space = ObjectFeatureSpace()

    def encode(self, image: Image) -> Tensor:
        small = cv2.resize(image, (16, 12), interpolation=cv2.INTER_AREA).astype(np.float32)
        return torch.nn.functional.normalize(torch.from_numpy(small) - 60.0, dim=2)


def load_colours(profile: str, on_stage: Callable[[str, float], None]) -> Softmatcher:
    assert profile == "lite"
    return Softmatcher(ColourEncoder(), LiteSegmenter(working_px=64), CALIBRATION, on_stage=on_stage)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    colours = {"things/red": (200, 40, 40), "others/blue": (40, 40, 200)}
    for folder, colour in colours.items():
        (tmp_path / folder).mkdir(parents=True)
        for n in range(4):
            image, mask = np.full((60, 80, 3), (40, 150, 40), np.uint8), np.zeros((60, 80), np.uint8)
            mask[15 + n : 40 + n, 10 + 8 * n : 40 + 8 * n] = 255
            image[mask > 0] = colour
            PillowImage.fromarray(image).save(tmp_path / folder / f"{n}.jpg", quality=95)
            PillowImage.fromarray(mask).save(tmp_path / folder / f"{n}.png")
    return tmp_path


@pytest.mark.slow
def test_drawn_classes_are_found_and_never_confused(directory: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = evaluate_variants(
        directory, PLAIN, seeds=(0, 1), on_progress=lambda *state: seen.append(state), load=load_colours
    )
    figures = json.loads(json.dumps(result.to_json()))
    assert figures["miou"] > 0.85
    assert figures["sets"].keys() == {"things", "others"}
    assert figures["classes"].keys() == {"things/red", "others/blue"}
    assert figures["miou"] == pytest.approx(np.mean(list(figures["classes"].values())))
    assert figures["calibration_error_sets"].keys() == {"things", "others"}
    assert figures["calibration_error_worst_third"] == max(figures["calibration_error_sets"].values())
    assert figures["absent_false_positive_rate"] == 0
    assert figures["absent_pairs"] == 4
    assert figures["targets"] == 12
    assert {"encode", "match", "prompt", "decode", "clean-up"} <= figures["stages_ms"].keys()
    assert figures["settings"]["seeds"] == [0, 1]
    assert seen == [("others/blue", 0, 2), ("things/red", 1, 2), ("done", 2, 2)]


def test_an_image_is_encoded_once_for_all_seeds(directory: Path) -> None:
    encoded: list[int] = []

    class Counting(ColourEncoder):
        def encode(self, image: Image) -> Tensor:
            encoded.append(1)
            return super().encode(image)

    def load(profile: str, on_stage: Callable[[str, float], None]) -> Softmatcher:
        return Softmatcher(Counting(), LiteSegmenter(working_px=64), CALIBRATION, on_stage=on_stage)

    evaluate_variants(directory, PLAIN, seeds=(0, 0, 0), load=load)
    # Of each class: its images, two more views of the one reference, the one image without its object.
    assert len(encoded) == 2 * (4 + 2 + 1)


def test_command_rejects_seeds_that_are_no_numbers(directory: Path) -> None:
    app = Typer()
    app.command()(evaluate_command)
    outcome = CliRunner().invoke(app, [str(directory), "--seeds", "a,b"])
    assert outcome.exit_code == 2


@pytest.mark.datasets
@pytest.mark.slow
def test_easy_real_classes_keep_their_quality(datasets: Path) -> None:
    """A regression guard: four classes of photographs, one reference each; the whole run is `evaluate`'s."""
    wanted = {"fss_mini/basketball", "via_objects/fire_truck", "davis_video/blackswan", "nuclei/fluorescence"}
    engine = load_softmatcher("lite")
    reached = []
    for one in (one for one in find_classes(datasets) if one.name in wanted):
        episode = draw_episode(one, shots=1, seed=0, limit=3)
        image = read_image(episode.references[0])
        reference = engine.describe(image, engine.encode(image), read_mask(episode.references[0]), is_complete=True)
        for path in episode.targets:
            truth = read_mask(path)
            found = engine.segment(engine.encode(read_image(path)), {"it": [reference]})
            reached.append(
                np.count_nonzero(found[0].mask & truth) / np.count_nonzero(found[0].mask | truth) if found else 0
            )
    assert len(reached) == 3 * len(wanted)
    assert np.mean(reached) > 0.6, reached
