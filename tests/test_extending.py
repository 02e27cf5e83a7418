"""The examples of docs/extending.md: their code is run as it stands on the page."""

import csv
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from backend.core.masks import iou
from backend.core.matchers import MATCHERS
from backend.core.text_scores import LabelPhrases, scale_of_images
from backend.engine.loading import load_softmatcher
from backend.engine.options import MatchOptions
from backend.engine.phrase_source import PhraseSource
from backend.engine.softmatcher import Softmatcher
from backend.exports.formats import FORMATS
from backend.exports.options import CHOICES
from backend.models.loading import OWN_ENCODERS, ModelSource
from backend.models.profiles import PROFILES
from backend.models.text.loading import TEXT_ENCODERS, load_text_encoder
from testing.fakes import Backend
from tests.engine.test_softmatcher import describe, scene
from tests.exports.scene import MASKS, export, fill

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
MOST_FILES = 4
SECTIONS = dict(re.findall(r"^## (An? [^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
TABLES: tuple[Any, ...] = (MATCHERS, OWN_ENCODERS, TEXT_ENCODERS, PROFILES, FORMATS, CHOICES)


def blocks(section: str) -> list[tuple[str, str]]:
    """The path and the code of each Python block."""
    return re.findall(r"^```python\n# (\S+)\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator["Modules"]:
    before = [dict(table) for table in TABLES]
    yield Modules(monkeypatch)
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)


class Modules:
    """Runs blocks: that of a new file becomes its module, one of a file that exists sees that file's names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def run(self, section: str) -> dict[str, Any]:
        """Run all blocks of a section; returns the names of its new file."""
        new: dict[str, Any] = {}
        for path, code in blocks(section):
            name = path.removesuffix(".py").replace("/", ".")
            compiled = compile(code, f"docs/extending.md: {path}", "exec")
            if (ROOT / path).exists():
                exec(compiled, dict(vars(importlib.import_module(name))))  # noqa: S102
            else:
                module = ModuleType(name)
                self._monkeypatch.setitem(sys.modules, name, module)
                exec(compiled, vars(module))  # noqa: S102
                new = vars(module)
        return new


@pytest.fixture
def engine(modules: Modules) -> Softmatcher:
    modules.run("An encoder")
    return load_softmatcher("colours")


def test_the_page_has_an_example_for_each_seam() -> None:
    assert list(SECTIONS) == [
        "An encoder",
        "A text encoder",
        "A matcher",
        "A score source",
        "A refiner",
        "An export format",
        "A calibration",
    ]


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "A calibration"])
def test_an_example_has_one_new_file_and_few_in_all(section: str) -> None:
    paths = [path for path, _ in blocks(section)]
    assert len([path for path in paths if not (ROOT / path).exists()]) == 1
    touched = {*paths, *re.findall(r"into `\w+` in `(backend/[\w/]+\.py)`", SECTIONS[section])}
    assert len(touched) <= MOST_FILES


def test_the_encoder_makes_a_profile(engine: Softmatcher) -> None:
    image, masks = scene(red=(70, 80, 40))
    target, truth = scene(red=(140, 50, 25), blue=(60, 100, 25))
    (found,) = engine.segment(engine.encode(target), {"Cat": [describe(engine, image, masks["red"])]})
    assert iou(found.mask, truth["red"]) > 0.9
    assert engine.signature.startswith("mean-colour:8+")


def test_the_text_encoder_finds_what_a_phrase_names(modules: Modules) -> None:
    modules.run("An encoder")
    modules.run("A text encoder")
    engine = load_softmatcher("spoken_colours")
    words = load_text_encoder("spoken_colours", ModelSource())
    assert engine.text_space == words.text_space
    image, masks = scene(red=(70, 80, 40), blue=(150, 60, 25))
    other = scene(blue=(80, 60, 40))[0]
    red, blue = words.encode(["A RED thing", "blue"])
    phrases = LabelPhrases(red, blue[None])
    encoded = [engine.encode(one, with_text=True) for one in (image, other)]
    texts = [np.array(one.text_features, np.float32).reshape(-1, 3) for one in encoded]
    scale = scale_of_images([phrases.scores(one) for one in texts])
    assert scale is not None
    sources = {"Red": [PhraseSource(phrases, scale)]}
    (found,) = engine.segment(encoded[0], {}, sources=sources)
    assert iou(found.mask, masks["red"]) > 0.9
    assert engine.segment(encoded[1], {}, sources=sources) == []
    assert words.encode([]).shape == (0, 3)


def test_the_matcher_finds_objects(engine: Softmatcher, modules: Modules) -> None:
    modules.run("A matcher")
    image, masks = scene(red=(70, 80, 40))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    options = MatchOptions(matcher="nearest")  # type: ignore[arg-type]
    target, truth = scene(red=(140, 50, 25))
    (found,) = engine.segment(engine.encode(target), references, options)
    assert iou(found.mask, truth["red"]) > 0.9
    assert engine.segment(engine.encode(scene(blue=(140, 50, 25))[0]), references, options) == []


def test_the_score_source_finds_a_label_without_references(engine: Softmatcher, modules: Modules) -> None:
    source = modules.run("A score source")["ColourSource"]((200, 40, 40))
    image, masks = scene(red=(70, 80, 40), blue=(150, 60, 25))
    (found,) = engine.segment(engine.encode(image), {}, sources={"Cat": [source]})
    assert iou(found.mask, masks["red"]) > 0.9


def test_the_refiner_takes_pixels_away(engine: Softmatcher, modules: Modules) -> None:
    refiner = modules.run("A refiner")["ColourRefiner"]()
    image, masks = scene(red=(70, 80, 40))
    references = {"Cat": [describe(engine, image, masks["red"])]}
    image[75:85, 65:75] = 0, 0, 0
    (found,) = engine.segment(engine.encode(image), references, refiners={"Cat": refiner}, pixels=image)
    assert not found.mask[75:85, 65:75].any()
    assert iou(found.mask, masks["red"]) > 0.85


def test_the_export_format_writes_its_file(modules: Modules, backend: Backend, tmp_path: Path) -> None:
    modules.run("An export format")
    fill(backend.label_studio)
    report = export(backend, tmp_path / "out", format="boxes-csv")
    with (tmp_path / "out" / "boxes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report.objects == sum(len(masks) for masks in MASKS.values())
    dog = next(mask for label, mask in MASKS[1] if label == "Dog")
    boxes = [[int(row[key]) for key in ("left", "top", "width", "height")] for row in rows if row["label"] == "Dog"]
    y, x = np.nonzero(dog)
    assert [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1] in boxes
    assert "`boxes.csv`: file, split, label" in (tmp_path / "out" / "README.md").read_text()


def test_every_format_has_a_writer() -> None:
    assert CHOICES["format"] == tuple(FORMATS)
