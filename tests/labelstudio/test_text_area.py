from typing import Any

import pytest

from backend.core.phrases import Phrase
from backend.errors import BadInputError
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.text_area import has_phrases, read_phrases, read_text_prompts

CONFIG = parse_label_config("""<View><Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Rust" text_prompt="orange rust; -red paint"/>
    <Label value="Dent" alias="d"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Rust"/><Label value="d" text_prompt="a dent"/>
    <Label value="Background" text_prompt="clean steel"/></KeyPointLabels>
  <TextArea name="softmatcher_text" toName="image"/></View>""")
ONE = parse_label_config("""<View><Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Rust"/></BrushLabels></View>""")
BACKGROUND = frozenset({"Background"})


def text_area(*texts: str, name: str = "softmatcher_text", **more: Any) -> dict[str, Any]:
    return {
        "id": "t",
        "type": "textarea",
        "from_name": name,
        "to_name": "image",
        "value": {"text": list(texts)},
        **more,
    }


def test_attributes_of_labels_are_read() -> None:
    phrases, problems = read_text_prompts(CONFIG, BACKGROUND)
    assert problems == ()
    assert phrases == {
        "Rust": (Phrase("orange rust"), Phrase("red paint", is_negative=True)),
        "d": (Phrase("a dent"),),
        "Background": (Phrase("clean steel"),),
    }


def test_attributes_change_nothing_that_annotations_are_read_with() -> None:
    with_one = """<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">
      <Label value="Rust" text_prompt="orange rust"/></BrushLabels></View>"""
    assert parse_label_config(with_one).digest() == ONE.digest()


def test_an_attribute_that_cannot_be_read_is_a_problem_and_leaves_the_others() -> None:
    config = parse_label_config("""<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">
      <Label value="Rust" text_prompt="!"/><Label value="Dent" text_prompt="a dent"/></BrushLabels></View>""")
    phrases, problems = read_text_prompts(config, frozenset())
    assert phrases == {"Dent": (Phrase("a dent"),)}
    assert "label 'Rust'" in problems[0]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Rust: orange rust; -paint\nDent: a dent", {"Rust": ("orange rust", "-paint"), "d": ("a dent",)}),
        ("rust : orange rust", {"Rust": ("orange rust",)}),
        ("background: clean steel", {"Background": ("clean steel",)}),
        ("Rust:", {}),
    ],
)
def test_lines_name_their_label(text: str, phrases: dict[str, tuple[str, ...]]) -> None:
    found = read_phrases([text_area(text.replace("Dent", "d"))], CONFIG, BACKGROUND)
    assert {
        label: tuple(("-" if one.is_negative else "") + one.text for one in some) for label, some in found.items()
    } == phrases


def test_a_phrase_alone_is_that_of_the_only_label() -> None:
    assert read_phrases([text_area("orange: rust")], ONE, BACKGROUND) == {"Rust": (Phrase("orange: rust"),)}


@pytest.mark.parametrize("text", ["Hole: a hole", "orange rust", "Rust: ru\x00st"])
def test_what_cannot_be_read_is_rejected(text: str) -> None:
    with pytest.raises(BadInputError):
        read_phrases([text_area(text)], CONFIG, BACKGROUND)


@pytest.mark.parametrize(
    "result",
    [[], [text_area("a note", name="note")], [{"type": "choices"}, None, 5, "text"]],
    ids=["none", "other", "odd"],
)
def test_other_controls_are_none_of_its_business(result: list[Any]) -> None:
    assert not has_phrases(result)
    assert read_phrases(result, CONFIG, BACKGROUND) == {}


@pytest.mark.parametrize("value", [None, [], {"text": None}, {"text": {}}, {}])
def test_a_text_area_without_text_has_no_phrases(value: Any) -> None:
    assert read_phrases([text_area(value=value)], CONFIG, BACKGROUND) == {}


def test_a_text_that_is_no_text_is_rejected() -> None:
    with pytest.raises(BadInputError, match="must be text, got int"):
        read_phrases([text_area(value={"text": [5]})], CONFIG, BACKGROUND)
