"""Several labels at once, on drawn classes with an engine that sees colours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.errors import BadInputError
from backend.evaluation.joint import JointSet, JointTarget, evaluate_joint, joint_to_json
from backend.evaluation.markdown import joint_to_markdown
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


def _set(name: str, labels: int, together: float, *, wrong: int = 0, is_exclusive: bool = True) -> JointSet:
    target = JointTarget(0, f"{name}/a/1.jpg", together, 0.8, wrong_labels=wrong, unmarked_labels=wrong + 1)
    return JointSet(name, labels, is_exclusive, [target])


def test_means_are_given_by_number_of_labels_and_apart_for_labels_that_occur_together() -> None:
    street = _set("street", 3, 0.5, is_exclusive=False)
    results = [street, _set("fruit", 3, 0.7), _set("balls", 3, 0.6, wrong=2), _set("all", 12, 0.4)]
    figures = joint_to_json(results)
    assert figures["by_labels"] == {
        "3": pytest.approx(
            {
                "miou": 0.65,
                "alone_miou": 0.8,
                "loss": 0.15,
                "wrong_labels_per_image": 1.0,
                "unmarked_labels_per_image": 2.0,
            }
        ),
        "12": pytest.approx(
            {
                "miou": 0.4,
                "alone_miou": 0.8,
                "loss": 0.4,
                "wrong_labels_per_image": 0.0,
                "unmarked_labels_per_image": 1.0,
            }
        ),
    }
    together: Any = figures["occurring_together"]
    assert (together["miou"], together["loss"], together["wrong_labels_per_image"]) == (0.5, pytest.approx(0.3), None)
    assert list(together["by_labels"]) == ["3"]
    assert joint_to_json([_set("fruit", 3, 0.7)])["occurring_together"] is None


def test_the_table_has_a_row_per_set_and_per_number_of_labels() -> None:
    lines = joint_to_markdown([_set("street", 3, 0.5, is_exclusive=False), _set("fruit", 3, 0.7)]).splitlines()
    assert lines[2:] == [
        "| fruit | 3 | 0.800 | 0.700 | 0.100 | 0.000 |",
        "| street | 3 | 0.800 | 0.500 | 0.300 | - |",
        "| **mean of labels that exclude each other** | 3 | 0.800 | 0.700 | 0.100 | 0.000 |",
        "| **mean of labels that occur together** | 3 | 0.800 | 0.500 | 0.300 | - |",
    ]


def test_a_label_that_an_image_shows_without_a_mask_is_not_wrong(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second colour on each image of red, which its masks leave out.
    for image_path in (directory / "drawn" / "red").glob("*.jpg"):
        image = np.array(Image.open(image_path))
        image[20:30, 20:34] = COLOURS["blue"]
        Image.fromarray(image).save(image_path, quality=100, subsampling=0)
    monkeypatch.setattr("backend.evaluation.joint.EXCLUSIVE_SETS", {"drawn": "one colour each"})
    (result,) = evaluate_joint(directory, load=_colours)
    assert sum(one.wrong_labels for one in result.targets) == 3
    shown = {one.target: {"blue"} for one in result.targets}
    monkeypatch.setattr("backend.evaluation.joint.ALSO_SHOWN", shown)
    (result,) = evaluate_joint(directory, load=_colours)
    assert sum(one.wrong_labels for one in result.targets) == 0
    assert sum(one.unmarked_labels for one in result.targets) == 3
