from pathlib import Path

import cv2
import numpy as np
import pytest

from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError, ConfigurationError
from backend.evaluation.phrases import evaluate_phrases, read_phrases_file
from backend.models.calibrations import read_calibration
from backend.models.graph_cut.segmenter import LiteSegmenter
from testing.colour_words import ColourWords, ColourWordsEncoder, draw_discs


@pytest.fixture
def engine() -> Softmatcher:
    return Softmatcher(ColourWordsEncoder(), LiteSegmenter(working_px=128), read_calibration("lite.json"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Striped red discs beside striped blue and plain red ones."""
    made = tmp_path / "drawn" / "disc"
    made.mkdir(parents=True)
    for number in range(3):
        image, masks = draw_discs(
            ("red", "striped", 50 + 20 * number, 50, 26),
            ("blue", "striped", 160, 50, 24),
            ("red", "plain", 60, 120, 26),
        )
        cv2.imwrite(str(made / f"{number}.jpg"), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
        cv2.imwrite(str(made / f"{number}.png"), masks[0].astype(np.uint8) * 255)
    return tmp_path


def test_with_without_and_alone_are_told_apart(engine: Softmatcher, folder: Path) -> None:
    found = evaluate_phrases(folder, {"disc": "red", "other": "blue"}, engine, ColourWords())
    assert found["miou"]["with"] > max(found["miou"]["without"], found["miou"]["alone"]) + 0.2, found
    assert found["weights"]["drawn/disc"] > 0.5


def test_what_cannot_be_measured_is_said(engine: Softmatcher, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="phrases must be of classes"):
        evaluate_phrases(folder, {"other": "blue"}, engine, ColourWords())
    words = ColourWords()
    words.text_space = "other"
    with pytest.raises(ConfigurationError, match="must share the space"):
        evaluate_phrases(folder, {"disc": "red"}, engine, words)
    odd = tmp_path / "phrases.json"
    odd.write_text("[]")
    with pytest.raises(BadInputError, match="JSON object of class to phrases"):
        read_phrases_file(odd)
