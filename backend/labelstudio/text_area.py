"""Phrases that a labeler writes in the editor, in the text area of the name that this backend reads."""

from collections.abc import Collection, Mapping, Sequence

from backend.core.phrases import MOST_PHRASES, Phrase, parse_phrases
from backend.errors import BadInputError
from backend.labelstudio.label_config import LabelConfig

TEXT_AREA = "softmatcher_text"
"""Name of the <TextArea> whose text is read; any other is none of this backend's business."""
_SHOWN = 60


def has_phrases(result: Sequence[object]) -> bool:
    """Return whether a result has a text of that text area, whatever it says."""
    return any(_is_text(item) for item in result)


def read_phrases(
    result: Sequence[object], config: LabelConfig, background: Collection[str]
) -> dict[str, tuple[Phrase, ...]]:
    """Read the phrases of a result: lines `Label: a phrase; another one`, or phrases alone if there is one label.

    Args:
        result: of an annotation, a draft or a context.
        config: of the project.
        background: labels that mean «not the object».

    Returns:
        Label to phrases, without repetition.

    Raises:
        BadInputError: a line of no label, a phrase that `parse_phrases` rejects.
    """
    labels = {label.casefold(): label for label in (*config.labels, *background)}
    found: dict[str, dict[Phrase, None]] = {}
    for line in _lines(result):
        name, colon, rest = line.partition(":")
        label = labels.get(name.strip().casefold()) if colon else None
        objects = [known for known in config.labels if known not in background]
        if label is None and len(objects) == 1:
            label, rest = objects[0], line
        if label is None:
            raise BadInputError(
                f"each line must begin with a label and a colon, one of {', '.join(config.labels)}, got "
                f"{line[:_SHOWN]!r}"
            )
        of_label = found.setdefault(label, {})
        of_label.update(dict.fromkeys(parse_phrases(rest)))
        if len(of_label) > MOST_PHRASES:
            raise BadInputError(f"a label must have up to {MOST_PHRASES} phrases, got more for {label!r}")
    return {label: tuple(phrases) for label, phrases in found.items() if phrases}


def read_text_prompts(
    config: LabelConfig, background: Collection[str]
) -> tuple[dict[str, tuple[Phrase, ...]], tuple[str, ...]]:
    """Read the attributes `text_prompt` of a label config.

    Returns:
        Label to phrases, and what is wrong with those that cannot be read.
    """
    found: dict[str, tuple[Phrase, ...]] = {}
    problems = []
    known = {*config.labels, *background}
    for label, texts in config.text_prompts.items():
        if label not in known:
            continue  # of a control without a brush
        try:
            found[label] = tuple(dict.fromkeys(phrase for text in texts for phrase in parse_phrases(text)))
        except BadInputError as error:
            problems.append(f"text_prompt of label {label!r}: {error}")
    return found, tuple(problems)


def _is_text(item: object) -> bool:
    return isinstance(item, Mapping) and item.get("from_name") == TEXT_AREA and item.get("type") == "textarea"


def _lines(result: Sequence[object]) -> list[str]:
    lines: list[str] = []
    for item in result:
        value = item.get("value") if _is_text(item) and isinstance(item, Mapping) else None
        texts = value.get("text") if isinstance(value, Mapping) else None
        for text in [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else []:
            if not isinstance(text, str):
                raise BadInputError(f"the text of {TEXT_AREA} must be text, got {type(text).__name__}")
            lines += [line.strip() for line in text.split("\n") if line.strip()]
    return lines
