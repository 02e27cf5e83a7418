"""Phrases: what users write of a label, read and bounded."""

import re
import unicodedata
from dataclasses import dataclass

from backend.errors import BadInputError

MOST_CHARACTERS = 300
"""Characters of a phrase. Text encoders read 64 to 77 tokens, which is about as much."""
MOST_PHRASES = 50
"""Phrases of a label from one place."""
_SEPARATORS = (";", "\n")
_SHOWN = 60


@dataclass(frozen=True, order=True)
class Phrase:
    """A phrase of a label.

    Attributes:
        text: in one line, without spaces around it.
        is_negative: it names what the label is not.
    """

    text: str
    is_negative: bool = False


def parse_phrases(text: str) -> tuple[Phrase, ...]:
    """Read phrases, between semicolons or in lines; one that begins with a hyphen names what the label is not.

    Args:
        text: `orange rust; corroded metal; -red paint`; an empty text has no phrases.

    Returns:
        The phrases in their order, each once.

    Raises:
        BadInputError: an empty phrase between others, control characters, a phrase or a list that is too long.
    """
    if not text.strip():
        return ()
    if len(text) > (MOST_CHARACTERS + 2) * MOST_PHRASES:
        raise BadInputError(f"phrases must have up to {MOST_CHARACTERS} characters each, got {len(text)} in all")
    for separator in _SEPARATORS[1:]:
        text = text.replace(separator, _SEPARATORS[0])
    # A line that ends in a semicolon leaves nothing behind it.
    parts = [part.strip() for part in text.strip().strip(_SEPARATORS[0]).split(_SEPARATORS[0])]
    if len(parts) > MOST_PHRASES:
        raise BadInputError(f"a label must have up to {MOST_PHRASES} phrases, got {len(parts)}")
    return tuple(dict.fromkeys(_read(part) for part in parts if part or len(parts) == 1))


def _read(part: str) -> Phrase:
    is_negative = part.startswith("-")
    text = re.sub(" +", " ", part.removeprefix("-")).strip()
    if not any(character.isalnum() for character in text):
        raise BadInputError(f"a phrase must have a word, got {part[:_SHOWN]!r}")
    if len(text) > MOST_CHARACTERS:
        raise BadInputError(f"a phrase must have up to {MOST_CHARACTERS} characters, got {len(text)}: {text[:_SHOWN]}")
    # Cc: control, Cs: half of a character, which no database takes. Cf joins emoji and turns the direction of writing.
    odd = next((character for character in text if unicodedata.category(character) in ("Cc", "Cs")), None)
    if odd is not None:
        raise BadInputError(f"a phrase must have no control characters, got U+{ord(odd):04X} in {text[:_SHOWN]!r}")
    return Phrase(text, is_negative)
