"""Labels in pictures: Pillow's own font has the letters of ASCII, so that any other label goes by its number."""

from collections.abc import Sequence


def is_drawable(text: str) -> bool:
    """Return whether the font of pictures has every letter of a text; it draws the same box for each that it lacks."""
    return text.isascii() and text.isprintable()


def numbered_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return what stands for each label that cannot be drawn: "label 2" for the second of the label config."""
    return {label: f"label {number}" for number, label in enumerate(labels, start=1) if not is_drawable(label)}


def drawable(text: str, labels: Sequence[str]) -> str:
    r"""Return a text that can be drawn: labels by their numbers, other letters as their code ("\xe9").

    Args:
        text: may hold labels.
        labels: of the label config, in its order.
    """
    if is_drawable(text):
        return text
    stand_ins = numbered_labels(labels)
    for label in sorted(stand_ins, key=len, reverse=True):
        text = text.replace(label, stand_ins[label])
    return text.encode("ascii", "backslashreplace").decode()
