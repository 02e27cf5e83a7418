"""Reading label configs: what they offer, and what a labeler is told when they cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from backend.errors import BadInputError
from backend.labelstudio.codec import mask_to_region, read_regions
from backend.labelstudio.label_config import SNIPPET, parse_label_config
from backend.projects.options import background_labels_of
from backend.settings import load_settings

CATS_AND_DOGS = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog"/></BrushLabels>
  <KeyPointLabels name="kp" toName="image" smart="true"><Label value="Cat"/><Label value="Dog"/></KeyPointLabels>
  <RectangleLabels name="rect" toName="image" smart="true"><Label value="Cat"/></RectangleLabels>
</View>"""


def test_images_brushes_and_prompts_are_read() -> None:
    config = parse_label_config(CATS_AND_DOGS)

    assert [(image.name, image.task_key) for image in config.images] == [("image", "image")]
    assert [(brush.name, brush.to_name, brush.labels) for brush in config.brushes] == [
        ("brush", "image", ("Cat", "Dog"))
    ]
    assert [(prompt.kind, prompt.name, prompt.labels) for prompt in config.prompts] == [
        ("keypoint", "kp", ("Cat", "Dog")),
        ("rectangle", "rect", ("Cat",)),
    ]
    assert config.labels == ("Cat", "Dog")
    assert config.task_key("image") == "image"


def test_the_snippet_of_the_error_messages_is_itself_usable() -> None:
    assert parse_label_config(SNIPPET).labels == ("Object",)


def test_each_image_has_its_own_brush() -> None:
    config = parse_label_config(
        '<View><Image name="a" value="$left"/><Image name="b" value="$right"/>'
        '<BrushLabels name="brush_a" toName="a"><Label value="Cat"/></BrushLabels>'
        '<BrushLabels name="brush_b" toName="b"><Label value="Cat"/><Label value="Dog"/></BrushLabels></View>'
    )

    assert config.brush_for("a", "Cat").name == "brush_a"
    assert config.brush_for("b", "Cat").name == "brush_b"
    assert config.task_key("b") == "right"
    with pytest.raises(BadInputError, match=r"'Dog' needs a <BrushLabels toName='a'> that has it, got .*Cat"):
        config.brush_for("a", "Dog")


def test_one_brush_for_two_images_counts_for_both() -> None:
    config = parse_label_config(
        '<View><Image name="a" value="$a"/><Image name="b" value="$b"/>'
        '<BrushLabels name="brush" toName="a,b"><Label value="Cat"/></BrushLabels></View>'
    )

    assert [brush.to_name for brush in config.brushes] == ["a", "b"]


def test_an_alias_is_the_name_that_results_carry_and_the_value_is_understood_too() -> None:
    config = parse_label_config(
        '<View><Image name="i" value="$i"/>'
        '<BrushLabels name="b" toName="i"><Label value="Große Katze" alias="cat"/></BrushLabels></View>'
    )

    assert config.labels == ("cat",)
    assert config.label_names["b"] == {"Große Katze": "cat", "cat": "cat"}


def test_labels_in_nested_views_and_tags_of_any_case_are_found() -> None:
    config = parse_label_config(
        '<View><image name="i" value="$i"/><!-- a comment --><brushlabels name="b" toName="i">'
        '<View style="display:flex"><Label value="Cat"/></View></brushlabels></View>'
    )

    assert config.brush_for("i", "Cat").name == "b"


@pytest.mark.parametrize(
    ("task_data", "value"),
    [({"a.b[0]": "/x.jpg"}, "$a.b[0]"), ({"a": {"b": ["/x.jpg"]}}, "$a.b[0]"), ({"image": " /x.jpg\n"}, "$image")],
)
def test_the_address_is_found_where_the_editor_finds_it(task_data: dict[str, object], value: str) -> None:
    config = parse_label_config(SNIPPET.replace("$image", value))

    assert config.images[0].address(task_data) == "/x.jpg"


@pytest.mark.parametrize("task_data", [{}, {"image": None}, {"image": ["/a.jpg"]}, {"image": ""}, {"photo": "/x.jpg"}])
def test_a_task_without_the_image_is_told_its_keys(task_data: dict[str, object]) -> None:
    with pytest.raises(BadInputError, match=r"'image'.*import the task again"):
        parse_label_config(SNIPPET).images[0].address(task_data)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<View><Image", "valid XML, got an error at line 1"),
        ("", "valid XML"),
        ("not xml at all", "valid XML"),
        ("<View>\0</View>", "valid XML"),
        ("<View/>", "must have an <Image name=... value='\\$...'>, got none"),
        ('<View><Image name="image"/></View>', "needs a name and a value like"),
        ('<View><Image name="image" value="$image"/></View>', "a <BrushLabels> with labels for image image, got none"),
        (
            '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="img"><Label value="x"/>'
            "</BrushLabels></View>",
            "got <BrushLabels toName='img'>: no such <Image>",
        ),
        (
            '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"/></View>',
            "got <BrushLabels toName='i'> without any <Label>",
        ),
        (
            '<View><Image name="i" valueList="$pages"/><BrushLabels name="b" toName="i"><Label value="x"/>'
            "</BrushLabels></View>",
            "several pages: make each page a task of its own",
        ),
        (
            '<View><Text name="t" value="$t"/><Labels name="l" toName="t"><Label value="x"/></Labels></View>',
            "must have an <Image",
        ),
    ],
)
def test_an_unusable_config_is_explained_and_shown_a_better_one(xml: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        parse_label_config(xml)

    assert SNIPPET in str(caught.value)


def test_a_page_list_beside_a_usable_image_does_not_spoil_it() -> None:
    config = parse_label_config(SNIPPET.replace("<BrushLabels", '<Image name="pages" valueList="$p"/><BrushLabels'))

    assert [image.name for image in config.images] == ["image"]


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE v [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>',
        '<!DOCTYPE v [<!ENTITY c SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE v SYSTEM "http://127.0.0.1:1/x.dtd">',
    ],
)
def test_entities_are_refused_not_expanded(declaration: str) -> None:
    with pytest.raises(BadInputError, match="plain XML without document type and entities"):
        parse_label_config(declaration + "<View>&c;</View>")


def case(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parents[1] / "cases" / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize(
    ("name", "reason"), [("repeater", "a <Repeater>"), ("dynamic_labels", "labels come from the tasks")]
)
def test_configs_whose_images_or_labels_come_from_tasks_are_refused(name: str, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        parse_label_config(case(name)["label_config"])


def test_a_label_is_its_brush_and_its_name() -> None:
    config = parse_label_config(case("two_brushes_one_label")["label_config"])
    assert config.labels == ("Other (material)", "Coin", "Other (defect)", "Crack")
    brush = config.brush_for("image", "Other (defect)")
    assert brush.name == "defect"
    (marked,) = read_regions(case("two_brushes_one_label")["annotation_of_task_0"], config).regions
    assert marked.label == "Other (defect)"
    assert marked.mask is not None
    region = mask_to_region(marked.mask, brush=brush, label=marked.label, score=0.5)
    assert (region["from_name"], region["value"]["brushlabels"]) == ("defect", ["Other"])


def test_a_prompt_means_the_brush_that_shares_most_labels() -> None:
    config = parse_label_config(
        '<View><Image name="i" value="$i"/>'
        '<BrushLabels name="material" toName="i"><Label value="Other"/><Label value="Coin"/></BrushLabels>'
        '<BrushLabels name="defect" toName="i"><Label value="Other" alias="o"/><Label value="Crack"/></BrushLabels>'
        '<BrushLabels name="fault" toName="i"><Label value="Other"/><Label value="Other (material)"/></BrushLabels>'
        '<KeyPointLabels name="kp" toName="i"><Label value="Other"/><Label value="Coin"/></KeyPointLabels></View>'
    )
    assert config.label_names["kp"] == {"Other": "Other (material)*", "Coin": "Coin"}
    assert config.label_names["defect"] == {"Other": "o", "o": "o", "Crack": "Crack"}
    assert config.label_names["fault"] == {"Other": "Other (fault)", "Other (material)": "Other (material)"}


def test_brushes_of_different_images_may_share_a_label() -> None:
    config = parse_label_config(
        '<View><Image name="a" value="$a"/><Image name="b" value="$b"/>'
        '<BrushLabels name="left" toName="a"><Label value="Cat"/></BrushLabels>'
        '<BrushLabels name="right" toName="b"><Label value="Cat"/></BrushLabels></View>'
    )
    assert config.labels == ("Cat",)


def test_a_background_label_of_prompts_alone_is_one() -> None:
    config = parse_label_config(case("background_in_prompts_only")["label_config"])
    assert config.labels == ("Coin",)
    assert background_labels_of(config, load_settings()) == {"Background"}


def test_controls_of_one_name_are_refused() -> None:
    """Label Studio refuses them too; here the labels of the first were looked for in the last, and missing."""
    one = '<BrushLabels name="brush" toName="image"><Label value="A"/></BrushLabels>'
    with pytest.raises(BadInputError, match="several with the name 'brush'"):
        parse_label_config(f'<View><Image name="image" value="$image"/>{one}{one.replace("A", "B")}</View>')


def test_a_value_that_is_another_labels_alias_means_that_other_label() -> None:
    config = parse_label_config(
        '<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">'
        '<Label value="A" alias="B"/><Label value="C" alias="A"/></BrushLabels></View>'
    )
    assert config.brushes[0].labels == ("B", "A")
    assert config.brushes[0].result_names == {}
    assert config.label_names["brush"] == {"B": "B", "A": "A", "C": "A"}


def test_labels_from_tasks_of_shapes_alone_leave_the_brush_usable() -> None:
    config = parse_label_config(
        '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"><Label value="Cat"/></BrushLabels>'
        '<PolygonLabels name="p" toName="i" value="$labels"/></View>'
    )
    assert config.labels == ("Cat",)
