"""How a label config wants its labels to look."""

from dataclasses import dataclass
from xml.etree.ElementTree import ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from backend.labelstudio.label_config import LabelConfig


@dataclass(frozen=True)
class LabelAppearance:
    """A <Label> as it is written.

    Attributes:
        value: its `value`.
        background: its `background`, a colour; None if it has none.
    """

    value: str
    background: str | None


def read_label_appearance(xml: str, config: LabelConfig) -> dict[str, LabelAppearance]:
    """Return how each label of the brushes is written, by label.

    Args:
        xml: the label config.
        config: the same, read.
    """
    brushes = {brush.name for brush in config.brushes}
    found: dict[str, LabelAppearance] = {}
    try:
        root = ElementTree.fromstring(xml, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError):
        return found
    for control in root.iter():
        name = control.get("name", "")
        if name not in brushes or str(control.tag).lower() != "brushlabels":
            continue
        for label in control.iter():
            value = label.get("value") or label.get("alias")
            if str(label.tag).lower() == "label" and value:
                called = config.label_names.get(name, {}).get(label.get("alias") or value, value)
                found.setdefault(called, LabelAppearance(value, label.get("background")))
    return found
