import pytest

from backend.core.phrases import MOST_CHARACTERS, MOST_PHRASES, Phrase, parse_phrases
from backend.errors import BadInputError


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("", ()),
        ("  \n ", ()),
        ("orange rust", (Phrase("orange rust"),)),
        ("orange rust on steel; corroded metal;", (Phrase("orange rust on steel"), Phrase("corroded metal"))),
        ("rust\n- red  paint", (Phrase("rust"), Phrase("red paint", is_negative=True))),
        ("rust; rust", (Phrase("rust"),)),
        (
            "Rost auf Stahl; 錆びた鋼; ржавчина 👩‍🔧",
            (Phrase("Rost auf Stahl"), Phrase("錆びた鋼"), Phrase("ржавчина 👩‍🔧")),
        ),
        ("self-made", (Phrase("self-made"),)),
    ],
)
def test_phrases_are_read(text: str, phrases: tuple[Phrase, ...]) -> None:
    assert parse_phrases(text) == phrases


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-", "must have a word"),
        ("rust; -; paint", "must have a word"),
        (";", "must have a word"),
        ("!?", "must have a word"),
        ("r" * (MOST_CHARACTERS + 1), "up to 300 characters"),
        ("r" * 10_000, "up to 300 characters"),
        ("rust; " * 9_000, "up to 300 characters"),
        ("; ".join(f"rust {n}" for n in range(500)), f"up to {MOST_PHRASES} phrases, got 500"),
        ("ru\x00st", "control characters, got U\\+0000"),
        ("ru\tst", "control characters, got U\\+0009"),
        ("ru\ud800st", "control characters, got U\\+D800"),
    ],
)
def test_what_is_no_phrase_is_rejected_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        parse_phrases(text)
