"""The label config that `label-config` prints: what the backend reads in it is what was asked for."""

import re
from pathlib import Path

import pytest
from defusedxml import ElementTree
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from backend.cli import app
from backend.errors import BadInputError
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.sample_label_config import make_label_config

ODD = ('A & "B" <C>', "it's", "Füße, 錆", "]]>", "&amp;", "a\u200db", "x=1/2", "100 %", "{{a}}")


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20))
@pytest.mark.slow
def test_any_labels_are_read_back_or_refused(labels: list[str]) -> None:
    try:
        config = parse_label_config(make_label_config(*labels))
    except BadInputError:
        assert any(re.search(r"^\s*(\$|$)|[^\t -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\x7f-\x9f\t]", label)
                   or not label.isprintable() for label in labels)  # fmt: skip
        return
    wanted = tuple(dict.fromkeys(label.strip() for label in labels))
    assert config.labels == wanted
    assert [(prompt.kind, prompt.labels) for prompt in config.prompts] == [("keypoint", wanted), ("rectangle", wanted)]


def test_the_command_prints_odd_names_and_background_for_the_brush_alone() -> None:
    result = CliRunner().invoke(app, ["label-config", *ODD, "Background"])
    assert result.exit_code == 0, result.output
    config = parse_label_config(result.stdout)
    assert config.brushes[0].labels == (*ODD, "Background")
    assert {prompt.labels for prompt in config.prompts} == {ODD}


@pytest.mark.parametrize("labels", [["background"], ["  "], ["$label"], ["a\0b"], ["\ud800"]])
def test_what_cannot_be_a_label_is_refused(labels: list[str]) -> None:
    with pytest.raises(BadInputError, match="expected"):
        make_label_config(*labels, background_labels=["background"])


def test_tools_stand_beside_the_image_under_headings_and_the_brush_is_not_smart() -> None:
    root = ElementTree.fromstring(make_label_config("A"))
    tools, image = root
    assert "flex" in root.get("style", "")
    assert [each.tag for each in image] == ["Image"]
    assert [each.tag for each in tools if each.tag != "Header"] == ["BrushLabels", "KeyPointLabels", "RectangleLabels"]
    assert [each.tag for each in tools][::2] == ["Header"] * 3
    assert [each.get("smart") for each in tools if each.tag != "Header"] == ["false", "true", "true"]


def test_many_labels_have_a_colour_each() -> None:
    config = make_label_config(*(f"label {number}" for number in range(60)))
    assert len(set(re.findall(r'background="(#[0-9A-F]{6})"', config))) == 60


def test_documentation_shows_what_the_command_prints() -> None:
    page = Path(__file__).parents[2] / "docs" / "connecting.md"
    (shown,) = re.findall(r"```xml\n(.*?)```", page.read_text(), re.DOTALL)
    assert shown == CliRunner().invoke(app, ["label-config", "Corrosion", "background"]).stdout
