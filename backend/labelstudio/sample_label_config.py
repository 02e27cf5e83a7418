"""A label config for given labels: the tools beside the image, under headings, in colours that show on photographs."""

import colorsys
import unicodedata
from collections.abc import Collection, Sequence
from xml.sax.saxutils import quoteattr

from backend.errors import BadInputError

_COLOURS = ("#E4572E", "#2E86E4", "#12A150", "#F2B705", "#B5179E", "#00B8D9", "#7A4DFF", "#FF6FB5")
_OF_BACKGROUND = "#5F6368"
_GOLDEN_RATIO = 0.618034
_NOT_IN_XML = ("Cc", "Cs", "Cn")
"""Unicode's categories of control characters, surrogates, and what is no character."""


def make_label_config(*labels: str, background_labels: Collection[str] = (), first_colour: int = 0) -> str:
    """Return the config with these labels in each of the controls that the backend reads.

    smart="false" on the brush hides the smart brush, which does nothing in Label Studio 1.23; smart="true" lets a click
    or a box ask for a mask.

    Args:
        labels: as annotators shall see them; each once.
        background_labels: those of them that mean «not the object», in lower case: they are for the brush alone.
        first_colour: of the labels, where the first one of all would not show on the images.

    Raises:
        BadInputError: no label that is to be found, or one that Label Studio cannot show.
    """
    names = list(dict.fromkeys(_checked(label) for label in labels))
    objects = [name for name in names if name.lower() not in background_labels]
    if not objects:
        raise BadInputError(f"expected at least one label that is to be found, got {names or 'none'}: name one")
    colours = dict(zip(objects, (_colour(first_colour + number) for number in range(len(objects))), strict=True))
    brush = _listed([*objects, *(name for name in names if name not in objects)], colours)
    marks = _listed(objects, colours)
    return f"""<View style="display: flex; gap: 1em; align-items: flex-start">
  <View style="flex: 0 0 13em">
    <Header size="5" value="Brush: stroke along it"/>
    <BrushLabels name="brush" toName="image" smart="false">{brush}
    </BrushLabels>
    <Header size="5" value="Key point: click it"/>
    <KeyPointLabels name="point" toName="image" smart="true">{marks}
    </KeyPointLabels>
    <Header size="5" value="Box: draw around it"/>
    <RectangleLabels name="box" toName="image" smart="true">{marks}
    </RectangleLabels>
  </View>
  <View style="flex: 1 1 auto; min-width: 0">
    <Image name="image" value="$image" zoom="true"/>
  </View>
</View>"""


def _checked(label: str) -> str:
    name = label.strip()
    if not name or name.startswith("$") or any(unicodedata.category(each) in _NOT_IN_XML for each in name):
        raise BadInputError(
            "expected a label without control characters that does not begin with $ (Label Studio would look it up in "
            f"the task's data), got {label!r}: choose another name"
        )
    return name


def _listed(labels: Sequence[str], colours: dict[str, str]) -> str:
    return "".join(
        f'\n      <Label value={quoteattr(label)} background="{colours.get(label, _OF_BACKGROUND)}"/>'
        for label in labels
    )


def _colour(number: int) -> str:
    """Return the colour of the label of this number; no two are alike."""
    if number < len(_COLOURS):
        return _COLOURS[number]
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1, 0.9, 0.6 if number % 2 else 0.85)
    return f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}"
