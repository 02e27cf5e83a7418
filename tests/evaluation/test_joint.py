"""Several labels at once, on drawn classes with an engine that sees colours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.errors import BadInputError
from backend.evaluation.joint import evaluate_joint, joint_to_json
from testing.fakes import ColourSoftmatcher

COLOURS = {"red": (200, 0, 0), "blue": (0, 0, 200), "green": (0, 200, 0)}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A set of three colours, four images each."""
    for name, colour in COLOURS.items():
        folder = tmp_path / "drawn" / name
        folder.mkdir(parents=True)
        for number in range(4):
            image, mask = np.full((32, 40, 3), 90 + number, np.uint8), np.zeros((32, 40), np.uint8)
            mask[5 + number : 15, 8:20] = 255
            image[mask > 0] = colour
            Image.fromarray(image).save(folder / f"{number}.jpg", quality=100, subsampling=0)
            Image.fromarray(mask).save(folder / f"{number}.png")
    return tmp_path


def _colours(profile: str, on_stage: object) -> Any:
    return ColourSoftmatcher()


def test_each_label_is_measured_together_and_alone(directory: Path) -> None:
    (result,) = evaluate_joint(directory, seeds=[0, 1], limit=2, load=_colours)
    assert (result.name, result.labels, result.is_exclusive, len(result.targets)) == ("drawn", 3, False, 12)
    figures = joint_to_json([result])
    assert figures["labels"] == {"drawn": 3}
    assert figures["left_out"] == ["drawn"]
    assert figures["miou"] == figures["alone_miou"]


def test_labels_are_drawn_by_the_seed(directory: Path) -> None:
    (result,) = evaluate_joint(directory, labels=2, load=_colours)
    assert result.labels == 2
    assert len({one.target.split("/")[1] for one in result.targets}) == 2
    with pytest.raises(BadInputError, match="2 or more"):
        evaluate_joint(directory, labels=1)
