"""A trace becomes a picture that can be opened, whatever was found."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image as PillowImage

from backend.core.explanation import ClusterMask, Explanation, LabelExplanation
from backend.drawing.explanation import draw_explanations
from backend.drawing.text import drawable

LABELS = ("\u00c4 label", "\u91d1\u5c5e", "\u6728\u6750", "coin")
IMAGE = np.full((90, 120, 3), 128, np.uint8)


def _label(is_kept: bool, proposals: int = 7) -> LabelExplanation:
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = is_kept
    score_map = np.linspace(0, 1, 60 * 80, dtype=np.float32).reshape(60, 80)
    points = np.array([[20.0, 20.0], [79.0, 59.0]], np.float32)
    parts = tuple(
        ClusterMask(points, mask, 0.5, is_kept, "kept" if is_kept else "rejected: why") for _ in range(proposals)
    )
    return LabelExplanation("Ä label", score_map, parts, mask, 0.7, is_kept, "A reason that is long " * 12)


def _size(content: bytes) -> tuple[int, int]:
    with PillowImage.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        picture.load()
        return picture.size


def test_kept_and_dropped_labels_are_drawn() -> None:
    one = _size(draw_explanations([(IMAGE, Explanation("posterior", "prior", (_label(True),)), "task 1")], LABELS))
    two = _size(
        draw_explanations([(IMAGE, Explanation("posterior", "prior", (_label(True), _label(False))), "task 1")], LABELS)
    )
    assert one[0] == two[0]
    assert two[1] > 1.8 * one[1] - 60


def test_colours_tell_kept_from_dropped() -> None:
    kept, dropped = (
        np.asarray(
            PillowImage.open(
                io.BytesIO(draw_explanations([(IMAGE, Explanation("m", "r", (_label(is_kept),)), "t")], LABELS))
            )
        )
        for is_kept in (True, False)
    )
    assert not np.array_equal(kept, dropped)


def test_nothing_to_tell_is_told() -> None:
    assert _size(draw_explanations([(IMAGE, Explanation("posterior", "prior", ()), "task 1")], LABELS))[1] < 120
    assert (
        _size(
            draw_explanations(
                [(IMAGE, Explanation("posterior", "prior", (_label(False, proposals=0),)), "task 1")], LABELS
            )
        )[1]
        > 300
    )


def _drawn(label: str) -> bytes:
    traced = replace(_label(True), label=label, reason=f"more like {label}")
    return draw_explanations([(IMAGE, Explanation("m", "r", (traced,)), "task 1")], LABELS)


def test_a_label_whose_letters_the_font_does_not_have_goes_by_its_number() -> None:
    """Not by boxes, which would be the same for all such labels."""
    assert len({_drawn(label) for label in LABELS}) == len(LABELS)
    for number, label in enumerate(LABELS[:3], start=1):
        assert _drawn(label) == _drawn(f"label {number}")
    assert drawable("\u91d1\u5c5e or coin: \u00e9", LABELS) == "label 2 or coin: \\xe9"
