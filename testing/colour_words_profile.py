"""The commands of the backend with one more profile, `colour_words`: models that know colour words, without weights.

    SOFTMATCHER_PROFILE=colour_words python -m testing.colour_words_profile serve

For tests that need whole processes. It is added as any other profile is: by rows in tables.
"""

from backend.cli import app
from backend.models.loading import OWN_ENCODERS
from backend.models.profiles import PROFILES, Profile
from backend.models.text.loading import TEXT_ENCODERS
from testing.colour_words import ColourWords, ColourWordsEncoder

NAME = "colour_words"


def add_profile() -> None:
    """Add the rows."""
    OWN_ENCODERS[NAME] = lambda request: ColourWordsEncoder()
    TEXT_ENCODERS[NAME] = lambda files: ColourWords()
    PROFILES[NAME] = Profile(
        NAME, "tests", NAME, "graph_cut", 448, temperature=ColourWordsEncoder.temperature,
        similarity_floor=ColourWordsEncoder.similarity_floor, calibration="lite.json", is_downloaded=False,
        text_encoder=NAME,
    )  # fmt: skip


if __name__ == "__main__":
    add_profile()
    app(prog_name="python -m testing.colour_words_profile")
