"""Odd label configs are read or refused, and their labels come back; damaged run-length bytes are a region's problem.

1,000 of each; SOFTMATCHER_TEST_FUZZ_CASES=20000 for more.
"""

import random
import time
import tracemalloc
from collections import Counter
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest

from backend.errors import BadInputError
from backend.labelstudio.codec import mask_to_region, read_regions
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.labelstudio.rle import encode_mask
from testing.fakes import LABEL_CONFIG
from tests.fuzzing import CASES, no_hang

_CONTAINERS = ("View", "Style", "Collapse", "Panel", "Filter", "view", "Repeater")
_CONTROLS = (
    "BrushLabels", "KeyPointLabels", "RectangleLabels", "PolygonLabels", "EllipseLabels", "BitmaskLabels", "Labels",
    "Brush", "KeyPoint", "Choices", "TextArea", "Rating", "VideoRectangle", "brushlabels", "BRUSHLABELS", "Magic",
)  # fmt: skip
_NAMES = (
    "image", "left", "right", "brush", "b2", "point", "", " ", "a,b", "image,left", "left, right,", ",", "$x", "名",
    "a&b", '"', "<>", "x" * 300, "\u200d", "None", "0", "image image",
)  # fmt: skip
_LABELS = (
    "Cat",
    "Dog",
    "cat",
    "CAT",
    "",
    " ",
    "Cat ",
    "A & B",
    "<b>",
    "錆",
    "\U0001f408",
    "Cat (brush)",
    "$label",
    "x" * 999,
)
_VALUES = ("$image", "$left", "$a.b[0]", "$", "image", "", "$$", "$a[", "http://x/y.png", "$image.")


def _attribute(choose: random.Random, name: str, values: tuple[str, ...], share: float = 0.8) -> str:
    return f" {name}={quoteattr(choose.choice(values))}" if choose.random() < share else ""


def _element(choose: random.Random, depth: int) -> str:
    kind = choose.random()
    if kind < 0.25:
        return f"<Image{_attribute(choose, 'name', _NAMES, 0.95)}{_attribute(choose, 'value', _VALUES, 0.95)}/>"
    if kind < 0.75:
        tag = choose.choice(_CONTROLS[:6] if choose.random() < 0.7 else _CONTROLS)
        to_name = choose.choice(("toName", "toName", "toName", "toname", "ToName"))
        labels = "".join(
            f"<Label{_attribute(choose, 'value', _LABELS, 0.95)}{_attribute(choose, 'alias', _LABELS, 0.2)}/>"
            for _ in range(choose.choice((0, 1, 1, 2, 2, 3, 6)))
        )
        extra = _attribute(choose, "smart", ("true", "false", "TRUE", ""), 0.4) + _attribute(
            choose, "value", _VALUES, 0.02
        )
        return (
            f"<{tag}{_attribute(choose, 'name', _NAMES, 0.95)}{_attribute(choose, to_name, _NAMES, 0.95)}{extra}>"
            f"{labels}</{tag}>"
        )
    tag = choose.choice(_CONTAINERS[: 6 if choose.random() < 0.97 else 7])
    inside = "".join(_element(choose, depth + 1) for _ in range(choose.randint(0, 4))) if depth < 5 else "text"
    return f"<{tag}{_attribute(choose, 'name', _NAMES, 0.2)}>{inside}</{tag}>"


def _config(choose: random.Random) -> str:
    sure = ""
    if choose.random() < 0.7:
        sure = '<Image name="image" value="$image"/><Image name="left" value="$left"/>'
    if choose.random() < 0.5:
        sure += (
            '<BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog" alias="d"/></BrushLabels>'
        )
    xml = f"<View>{sure}{''.join(_element(choose, 0) for _ in range(choose.randint(0, 8)))}</View>"
    if choose.random() < 0.2:
        xml = _damaged(choose, xml)
    return xml


def _damaged(choose: random.Random, xml: str) -> str:
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(xml) + 1)
        what = choose.randrange(5)
        if what == 0:
            xml = xml[:at] + xml[at + choose.randint(1, 20) :]
        elif what == 1:
            xml = xml[:at] + xml[at : at + 60] * choose.randint(2, 20) + xml[at:]
        elif what == 2:
            xml = (
                xml[:at]
                + choose.choice(("<", "&", "&lt;", "&#0;", "\0", "\ud800", "]]>", "<!-- -->", "&x;"))
                + xml[at:]
            )
        elif what == 3:
            xml = '<!DOCTYPE v [<!ENTITY x "y">]>' + xml
        else:
            xml = choose.choice(('<?xml version="1.0" encoding="utf-16"?>', "\ufeff", "<?x y?>", " ")) + xml
    return xml


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_any_label_config_is_read_or_refused_and_its_labels_come_back() -> None:
    outcomes: Counter[str] = Counter()
    for number in range(CASES):
        xml = _config(random.Random(f"config {number}"))
        try:
            with no_hang():
                config = parse_label_config(xml)
        except BadInputError as error:
            outcomes[_told(error)] += 1
            continue
        outcomes["read"] += 1
        try:
            _check(config)
            assert parse_label_config(xml).digest() == config.digest()
        except Exception as error:
            raise AssertionError(f"case {number}: {xml}") from error
    print(outcomes.most_common(8))  # noqa: T201
    assert outcomes["read"] > CASES // 20
    assert len(outcomes) > 3


def _told(error: BadInputError) -> str:
    told = str(error)
    assert len(told) < 3000, f"a message for people, got {len(told)} characters"
    return told[:90]


def _check(config: LabelConfig) -> None:
    names = {image.name for image in config.images}
    assert config.labels
    controls: list[Any] = [*config.brushes, *config.prompts, *config.shapes]
    for control in controls:
        assert control.to_name in names
        assert control.labels
        assert len(set(control.labels)) == len(control.labels)
    mask = np.ones((2, 3), bool)
    for brush in config.brushes:
        assert config.task_key(brush.to_name)
        assert len({brush.result_names.get(label, label) for label in brush.labels}) == len(brush.labels)
        for label in brush.labels:
            assert brush.to_name in config.served_by(brush.to_name, label)
            assert label in config.brush_for(brush.to_name, label).labels
            (read,) = read_regions([mask_to_region(mask, brush=brush, label=label, score=0.5)], config).regions
            assert (read.label, read.to_name, read.from_name) == (label, brush.to_name, brush.name)


def _labels(count: int) -> str:
    return "".join(f'<Label value="{number}"/>' for number in range(count))


_IMAGE = '<Image name="image" value="$image"/>'
_IMAGES = "".join(f'<Image name="i{number}" value="$i{number}"/>' for number in range(300))
_ALL = ",".join(f"i{number}" for number in range(300))
HUGE = {
    "labels": f'<View>{_IMAGE}<BrushLabels name="b" toName="image">{_labels(30_000)}</BrushLabels></View>',
    "brushes of one label": f"<View>{_IMAGE}"
    + "".join(f'<BrushLabels name="b{n}" toName="image"><Label value="a"/></BrushLabels>' for n in range(15_000))
    + "</View>",
    "brushes of one name": f"<View>{_IMAGE}"
    + '<BrushLabels name="b" toName="image"><Label value="a"/></BrushLabels>' * 15_000
    + "</View>",
    "images for each brush": f"<View>{_IMAGES}"
    + "".join(f'<BrushLabels name="b{n}" toName="{_ALL}">{_labels(20)}</BrushLabels>' for n in range(400))
    + "</View>",
    "as much as is read": f"<View>{_IMAGES}"
    + "".join(f'<BrushLabels name="b{n}" toName="{_ALL}"><Label value="a"/></BrushLabels>' for n in range(160))
    + "</View>",
    "one image many times": f'<View>{_IMAGE}<BrushLabels name="b" toName="{"image," * 150_000}">{_labels(50)}'
    "</BrushLabels></View>",
    "images that are not there": f'<View>{_IMAGE}<BrushLabels name="b" toName="{",".join(map(str, range(150_000)))}">'
    f"{_labels(50)}</BrushLabels></View>",
    "nested": "<View>" * 100_000 + _IMAGE + "</View>" * 100_000,
    "attributes": "<View " + " ".join(f"a{n}='b'" for n in range(60_000)) + f">{_IMAGE}</View>",
    "name": LABEL_CONFIG.replace('"brush"', f'"{"x" * 900_000}"'),
    "entities": "<!DOCTYPE v ["
    + "".join(f'<!ENTITY x{n} "&x{n - 1};&x{n - 1};">' for n in range(1, 40))
    + "]><v>&x39;</v>",
}
"""A megabyte each, as much as /setup takes."""


@pytest.mark.parametrize("kind", HUGE)
@pytest.mark.slow
def test_a_megabyte_of_label_config_is_read_or_refused_at_once(kind: str) -> None:
    tracemalloc.start()
    began = time.process_time()
    try:
        config = parse_label_config(HUGE[kind])
        config.digest()
    except BadInputError as error:
        _told(error)
    used, most = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(kind, f"{used:.2f} s, {most / 1e6:.0f} MB")  # noqa: T201
    assert most < 150_000_000


CONFIG = parse_label_config(LABEL_CONFIG)
_SIZES = ((1, 1), (1, 7), (5, 3), (40, 56), (33, 1))


def _rle(choose: random.Random, size_hw: tuple[int, int]) -> list[Any]:
    mask = np.random.default_rng(choose.randrange(1 << 30)).random(size_hw) < choose.choice((0.0, 0.1, 0.5, 1.0))
    rle: list[Any] = encode_mask(mask)
    for _ in range(choose.randint(0, 6)):
        at = choose.randrange(max(1, min(len(rle), choose.choice((8, 1 << 20)))))
        what = choose.randrange(7)
        if what == 0:
            rle[at : at + 1] = [choose.randrange(256)]
        elif what == 1 and rle:
            rle[at : at + 1] = (
                [int(rle[at]) ^ 1 << choose.randrange(8)] if isinstance(rle[at], int) and 0 <= rle[at] < 256 else []
            )
        elif what == 2:
            del rle[at : at + choose.randint(1, 9)]
        elif what == 3:
            rle[at:at] = [choose.randrange(256) for _ in range(choose.randint(1, 9))]
        elif what == 4:
            rle[at:at] = rle[at : at + 50] * choose.randint(1, 40)
        elif what == 5:
            rle[:4] = list(choose.choice((4, 2**31, 2**32 - 1, 0, 4 * size_hw[0] * size_hw[1])).to_bytes(4, "big"))
        elif choose.random() < 0.2:
            rle[at : at + 1] = [choose.choice((None, -1, 256, 1.5, "1", True, [1], 1e400, 10**30))]
    return rle


@pytest.mark.timeout(3600)
@pytest.mark.slow
def test_any_run_lengths_are_a_mask_of_their_image_or_a_problem() -> None:
    outcomes: Counter[str] = Counter()
    tracemalloc.start()
    for number in range(CASES):
        choose = random.Random(f"rle {number}")
        size_hw = choose.choice(_SIZES)
        rle: Any = (
            _rle(choose, size_hw) if choose.random() < 0.98 else choose.choice((None, "", {}, 7, [[]], b"abc", True))
        )
        claimed_hw = size_hw if choose.random() < 0.9 else choose.choice((*_SIZES, (10**9, 10**9), (0, 0), (-1, 5)))
        region = {
            "id": "r", "type": "brushlabels", "from_name": "brush", "to_name": "image", "original_width": claimed_hw[1],
            "original_height": claimed_hw[0], "value": {"format": "rle", "rle": rle, "brushlabels": ["Cat"]},
        }  # fmt: skip
        with no_hang():
            read = read_regions([region], CONFIG, {"image": size_hw} if choose.random() < 0.7 else None)
        assert len(read.regions) + len(read.problems) >= 1, number
        for one in read.regions:
            assert one.mask is not None
            assert one.mask.dtype == np.bool_
            assert one.mask.shape == tuple(one.size_hw), number
        for problem in read.problems:
            assert len(problem) < 1000, number
            assert "cannot be read" not in problem, f"{number}: {problem}: nobody thought of it"
        outcomes["read" if read.regions else read.problems[0][:50]] += 1
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(outcomes.most_common(8), f"{most / 1e6:.0f} MB")  # noqa: T201
    assert outcomes["read"] > CASES // 20
    assert len(outcomes) > 2
    assert most < 50_000_000
