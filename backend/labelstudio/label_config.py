"""Reads a project's label config: images, brushes, and the prompts and shapes that mark for them.

The config is read with defusedxml, not with label_studio_sdk's LabelInterface: that import costs 0.5 s and 45 MB
(jsonschema, pydantic models of every tag) for three tags, expands XML entities and knows no clear error for a labeler.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from backend.errors import BadInputError

PromptKind = Literal["keypoint", "rectangle"]
ShapeKind = Literal["rectangle", "polygon", "ellipse", "bitmask"]

SNIPPET = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Object"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Object"/></KeyPointLabels>
</View>"""
"""The smallest label config that does the whole job: for error messages."""

_PROMPT_TAGS: dict[str, PromptKind] = {"keypointlabels": "keypoint", "rectanglelabels": "rectangle"}
_SHAPE_TAGS: dict[str, ShapeKind] = {
    "rectanglelabels": "rectangle", "polygonlabels": "polygon", "ellipselabels": "ellipse", "bitmasklabels": "bitmask",
}  # fmt: skip

_MOST_CONTROLS = 300
_MOST_LABELS = 50_000
_SHOWN = 600
"""Characters of what is wrong with a label config; it may be a megabyte of text."""


@dataclass(frozen=True)
class ImageTag:
    """An <Image>: `name` is what regions call `to_name`; its address is at `task_key` ("image", "a.b[0]")."""

    name: str
    task_key: str

    def is_in(self, task_data: Mapping[str, object]) -> bool:
        """Return whether a task has an address for this image; a task may show fewer images than the config."""
        found = self._found(task_data)
        return isinstance(found, str) and bool(found.strip())

    def _found(self, task_data: Mapping[str, object]) -> object:
        found: object = task_data.get(self.task_key)
        return _at_path(task_data, self.task_key) if found is None else found

    def address(self, task_data: Mapping[str, object]) -> str:
        """Return the image's address in a task's data.

        Raises:
            BadInputError: the task has no such key, or no text there.
        """
        found = self._found(task_data)
        if not isinstance(found, str) or not found.strip():
            raise BadInputError(
                f"task data must have the image's address as text under {self.task_key!r} (<Image name={self.name!r} "
                f"value='${self.task_key}'>), got {type(found).__name__} there and the keys {sorted(task_data)}: "
                "import the task again with that key, or change the label config"
            )
        return found.strip()


@dataclass(frozen=True)
class BrushControl:
    """A <BrushLabels> for one image.

    Attributes:
        name: of the control.
        to_name: of the image.
        labels: its labels: a label's alias, or else its value; where two brushes of an image have that name, with the
            brush's name behind it: "Other (defect)".
        result_names: what results carry for each of `labels`, if that is another name.
    """

    name: str
    to_name: str
    labels: tuple[str, ...]
    result_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptControl:
    """A <KeyPointLabels>, or a <RectangleLabels> with smart="true", for one image."""

    kind: PromptKind
    name: str
    to_name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ShapeControl:
    """A control for one image whose regions are masks as they are."""

    kind: ShapeKind
    name: str
    to_name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelConfig:
    """The parts of a label config that this backend works with.

    Attributes:
        images: all <Image> tags, in the config's order.
        brushes: all <BrushLabels>, one entry for each image that one is for.
        prompts: all <KeyPointLabels> and smart <RectangleLabels>, likewise.
        label_names: for each control's name, value or alias of a label -> the label, as in `BrushControl.labels`.
        shapes: all <PolygonLabels>, <EllipseLabels>, <BitmaskLabels>, and <RectangleLabels> that are not smart.
        text_prompts: what the labels' attributes `text_prompt` say, unread, by the label as in `BrushControl.labels`.
    """

    images: tuple[ImageTag, ...]
    brushes: tuple[BrushControl, ...]
    prompts: tuple[PromptControl, ...]
    label_names: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    shapes: tuple[ShapeControl, ...] = ()
    text_prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels that masks can be made for (those of all brushes), in the config's order, each once."""
        return tuple(dict.fromkeys(label for brush in self.brushes for label in brush.labels))

    def labels_named(self, names: Collection[str]) -> frozenset[str]:
        """Return the labels of all controls that are written as one of these names, whatever the case."""
        wanted = {name.casefold() for name in names}
        return frozenset(
            label
            for written in self.label_names.values()
            for name, label in written.items()
            if name.casefold() in wanted
        )

    def shape(self, control: str, to_name: str) -> ShapeControl | None:
        """Return the control if its regions are masks as they are, with those of its labels that a brush has, too."""
        with_brush = {label for brush in self.brushes if brush.to_name == to_name for label in brush.labels}
        for shape in self.shapes:
            if (shape.name, shape.to_name) == (control, to_name):
                return replace(shape, labels=tuple(label for label in shape.labels if label in with_brush))
        return None

    def digest(self) -> str:
        """Return a sha256 that changes with every part: controls, image tags, task keys, labels and their aliases.

        Text prompts are left out: no annotation is read with them.
        """
        parts = {name: value for name, value in asdict(self).items() if name != "text_prompts"}
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_in_order).encode()).hexdigest()

    def brush_for(self, to_name: str, label: str) -> BrushControl:
        """Return the first brush on image `to_name` that has `label`.

        Raises:
            BadInputError: there is none.
        """
        on_image = [brush for brush in self.brushes if brush.to_name == to_name]
        for brush in on_image:
            if label in brush.labels:
                return brush
        raise BadInputError(
            f"label {label!r} needs a <BrushLabels toName={to_name!r}> that has it, got brushes with "
            f"{sorted({name for brush in on_image for name in brush.labels})}: add <Label value={label!r}/> to the "
            f"<BrushLabels> of image {to_name!r} in the label config"
        )

    def served_by(self, to_name: str, label: str) -> tuple[str, ...]:
        """Return the images for which a mark with `label` on image `to_name` counts: all that its brush is for."""
        names = {brush.name for brush in self.brushes if brush.to_name == to_name and label in brush.labels}
        return tuple(dict.fromkeys(brush.to_name for brush in self.brushes if brush.name in names))

    def image(self, to_name: str) -> ImageTag:
        """Return the <Image> of that name.

        Raises:
            BadInputError: there is none.
        """
        for image in self.images:
            if image.name == to_name:
                return image
        raise BadInputError(
            f"{to_name!r} must be the name of an <Image> of the label config, got one of "
            f"{[image.name for image in self.images]}: make toName and the Image's name the same"
        )

    def task_key(self, to_name: str) -> str:
        """Return where task data has the address of image `to_name`.

        Raises:
            BadInputError: there is no such image.
        """
        return self.image(to_name).task_key


def parse_label_config(xml: str) -> LabelConfig:
    """Read a label config.

    Tags are matched without regard to case, as Label Studio's editor does. Entities and document types are refused.

    Raises:
        BadInputError: not XML; no <Image> with one address (valueList, several pages, is not); no <BrushLabels> with
            labels on such an image; a <Repeater>; labels that come from the tasks. The message ends with a config to
            paste.
    """
    tags = [(element.tag.lower(), element) for element in _parse_xml(xml).iter() if isinstance(element.tag, str)]
    controls = [(tag, element) for tag, element in tags if tag == "brushlabels" or tag in (_PROMPT_TAGS | _SHAPE_TAGS)]
    _refuse_templates(tags, [element for tag, element in controls if not _is_shape(tag, element)])
    _refuse_what_is_too_much([element for _, element in controls])
    images, unusable = _read_images([element for tag, element in tags if tag == "image"])
    names = {image.name: None for image in images}
    brushes: list[BrushControl] = []
    prompts: list[PromptControl] = []
    shapes: list[ShapeControl] = []
    label_names = _distinct_names(controls)
    reasons: list[str] = []
    for tag, element in controls:
        name = element.get("name", "")
        labels = tuple(dict.fromkeys(label_names[name].values()))
        carried = {label_names[name][written]: written for written in _label_names(element).values()}
        other = {label: written for label, written in carried.items() if label != written}
        for to_name in _targets(element):
            if to_name not in names:
                reasons.append(f"<{element.tag} toName={to_name!r}>: {unusable.get(to_name, 'no such <Image>')}")
            elif not labels:
                reasons.append(f"<{element.tag} toName={to_name!r}> without any <Label>")
            elif tag == "brushlabels":
                brushes.append(BrushControl(name, to_name, labels, other))
            elif _is_shape(tag, element):
                shapes.append(ShapeControl(_SHAPE_TAGS[tag], name, to_name, labels))
            else:
                prompts.append(PromptControl(_PROMPT_TAGS[tag], name, to_name, labels))
    if not images:
        raise _bad_config("an <Image name=... value='$...'>", "; ".join(unusable.values()) or "none")
    if not brushes:
        raise _bad_config(f"a <BrushLabels> with labels for image {' or '.join(names)}", "; ".join(reasons) or "none")
    text_prompts = _text_prompts([element for _, element in controls], label_names)
    return LabelConfig(tuple(images), tuple(brushes), tuple(prompts), label_names, tuple(shapes), text_prompts)


def _is_shape(tag: str, control: Element) -> bool:
    """Return whether regions of a control are masks as they are: a smart rectangle is a box around an object."""
    return tag in _SHAPE_TAGS and (tag not in _PROMPT_TAGS or control.get("smart", "").lower() != "true")


def _refuse_templates(tags: Sequence[tuple[str, Element]], controls: Sequence[Element]) -> None:
    """Refuse what makes images or labels of a task's data: they are known only once a task is open."""
    if any(tag == "repeater" for tag, _ in tags):
        raise _bad_config("each <Image> written out", "a <Repeater>: make each of its pages a task of its own")
    for control in controls:
        if control.get("value", "").startswith("$"):
            raise _bad_config(
                "its labels written out as <Label value=.../>",
                f"<{control.tag} value={control.get('value')!r}>, whose labels come from the tasks",
            )


def _refuse_what_is_too_much(controls: Sequence[Element]) -> None:
    """Refuse what would take minutes to read, and controls of one name: no region would say which of them it is of."""
    repeated = [name for name, count in Counter(control.get("name", "") for control in controls).items() if count > 1]
    if repeated:
        raise _bad_config("controls with a name each", f"several with the name {repeated[0]!r}")
    if len(controls) > _MOST_CONTROLS:
        raise _bad_config(f"at most {_MOST_CONTROLS} controls", f"{len(controls)}")
    entries = sum(len(_targets(control)) * max(1, len(_label_names(control))) for control in controls)
    if entries > _MOST_LABELS:
        raise _bad_config(
            f"at most {_MOST_LABELS} labels, counted for each control and image", f"{entries}: make projects of it"
        )


def _distinct_names(controls: Sequence[tuple[str, Element]]) -> dict[str, dict[str, str]]:
    """Return what each control's labels are called, by value and alias.

    A label is its brush and its name: where two brushes of an image have the same name, each is called by its brush's
    name, too. Labels of other controls mean those of the brush of the same image that has most of their labels.
    """
    written = {element.get("name", ""): _label_names(element) for _, element in controls}
    targets = {element.get("name", ""): set(_targets(element)) for _, element in controls}
    brushes = [element.get("name", "") for tag, element in controls if tag == "brushlabels"]
    labels = {control: set(names.values()) for control, names in written.items()}
    taken = {name for names in labels.values() for name in names}
    holders = Counter((name, image) for brush in brushes for name in labels[brush] for image in targets[brush])
    called: dict[tuple[str, str], str] = {}
    for brush in brushes:
        for name in dict.fromkeys(written[brush].values()):
            called[brush, name] = name
            if any(holders[name, image] > 1 for image in targets[brush]):
                own = f"{name} ({brush})"
                while own in taken:
                    own += "*"
                taken.add(own)
                called[brush, name] = own
    distinct: dict[str, dict[str, str]] = {}
    for _, element in controls:
        control = element.get("name", "")
        names = labels[control]
        on_images = [brush for brush in brushes if not targets[brush].isdisjoint(targets[control])]
        nearest = sorted(on_images, key=lambda brush: -len(names & labels[brush]))
        candidates = [control] if control in brushes else nearest
        distinct[control] = {
            spelled: next((called[brush, name] for brush in candidates if (brush, name) in called), name)
            for spelled, name in written[control].items()
        }
    return distinct


def _in_order(value: object) -> object:
    """Give sets an order that is the same in every process, for a digest."""
    return sorted(map(str, value)) if isinstance(value, frozenset | set) else str(value)


def _parse_xml(xml: str) -> Element:
    try:
        root: Element = ElementTree.fromstring(xml, forbid_dtd=True)
    except ParseError as error:
        raise _bad_config("valid XML", f"an error at line {error.position[0]}: {error}") from error
    except DefusedXmlException as error:
        raise _bad_config("plain XML without document type and entities", type(error).__name__) from error
    except ValueError as error:  # an encoding declaration that does not fit, a null character
        raise _bad_config("valid XML", str(error)) from error
    return root


def _read_images(elements: Sequence[Element]) -> tuple[list[ImageTag], dict[str, str]]:
    images: list[ImageTag] = []
    unusable: dict[str, str] = {}
    for element in elements:
        name, value = element.get("name", ""), element.get("value", "")
        if element.get("valueList") or element.get("valuelist"):
            unusable[name] = f"image {name!r} has valueList, several pages: make each page a task of its own"
        elif name and value.startswith("$") and len(value) > 1:
            images.append(ImageTag(name, value[1:]))
        else:
            unusable[name] = f"<Image name={name!r} value={value!r}> needs a name and a value like '$image'"
    return images, unusable


def _targets(element: Element) -> list[str]:
    text = element.get("toName") or element.get("toname") or ""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _label_names(control: Element) -> dict[str, str]:
    """Return value and alias of each label -> what results carry: the alias, if there is one.

    Where one label's value is another's alias, it means the other: results never carry the value of a label with alias.
    """
    labels = [each for each in control.iter() if isinstance(each.tag, str) and each.tag.lower() == "label"]
    carried = [(each.get("alias") or each.get("value"), each.get("value")) for each in labels]
    names = {name: name for name, _ in carried if name}
    for name, value in carried:
        if name and value:
            names.setdefault(value, name)
    return names


def _text_prompts(
    controls: Sequence[Element], label_names: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[str, ...]]:
    """Return what `text_prompt` says of each label, in any of the controls that have the label."""
    found: dict[str, dict[str, None]] = {}
    for control in controls:
        called = label_names[control.get("name", "")]
        for each in control.iter():
            written = each.get("text_prompt") or each.get("textprompt") or each.get("textPrompt")
            name = each.get("alias") or each.get("value")
            if written and name is not None and name in called:
                found.setdefault(called[name], {})[written] = None
    return {label: tuple(texts) for label, texts in found.items()}


def _at_path(data: object, path: str) -> object:
    for part in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(data, Mapping):
            data = data.get(part)
        elif (
            isinstance(data, Sequence)
            and not isinstance(data, str)
            and re.fullmatch("[0-9]{1,9}", part)
            and int(part) < len(data)
        ):
            data = data[int(part)]
        else:
            return None
    return data


def _bad_config(expected: str, got: str) -> BadInputError:
    expected, got = (text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..." for text in (expected, got))
    return BadInputError(
        f"the project's label config must have {expected}, got {got}. Change it in Settings > Labeling Interface, "
        f"for example to:\n{SNIPPET}"
    )
