"""The colours of labels on pages: those of the label config, and Label Studio's own where it names none.

Source of that rule: `_updateBackgroundColor` in Label Studio's `Label.jsx`, `make_color({seed: value})` of pleasejs
0.4.2 (MIT).
"""

import re
from collections.abc import Callable, Iterator
from typing import Final

_HEX = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")
_NAME = re.compile(r"[a-zA-Z]{3,20}")
_GOLDEN: Final = 0.618033988749895
_SATURATION, _VALUE = 0.4, 0.75


def shown_colour(value: str, background: str | None) -> str:
    """Return the colour of a label as Label Studio's editor has it, for CSS and SVG.

    Args:
        value: of the label, as the label config writes it.
        background: its attribute of that name; what is neither a name nor hexadecimal digits counts as none.
    """
    written = (background or "").strip()
    if _HEX.fullmatch(written) or _NAME.fullmatch(written):
        return written.lower()
    return _seeded_colour(value) if value else "#36b37e"


def _seeded_colour(seed: str) -> str:
    drawn = int(_random_number(seed) * 361)
    hue = (drawn + drawn / _GOLDEN) % 360 / 60
    sector, part = int(hue), hue - int(hue)
    low, falling = _VALUE * (1 - _SATURATION), _VALUE * (1 - _SATURATION * part)
    rising = _VALUE * (1 - _SATURATION * (1 - part))
    sectors = (
        (_VALUE, rising, low), (falling, _VALUE, low), (low, _VALUE, rising), (low, falling, _VALUE),
        (rising, low, _VALUE), (_VALUE, low, falling),
    )  # fmt: skip
    return "#" + "".join(f"{int(255 * channel):02x}" for channel in sectors[sector])


def _random_number(seed: str) -> float:
    """Return the first number of the generator that is seeded with a text: RC4, eight bytes of it."""
    step = _byte_stream(seed)
    number, weight = 0.0, 1.0
    for _ in range(8):
        number += step() * weight
        weight *= 256
    return number / 2.0**64


def _byte_stream(seed: str) -> Callable[[], int]:
    utf16 = seed.encode("utf-16-le", "surrogatepass")
    units = [int.from_bytes(utf16[at : at + 2], "little") for at in range(0, len(utf16), 2)]
    state = list(range(256))
    swap = 0
    for at in range(256):
        swap = (swap + state[at] + units[at % len(units)]) % 256
        state[at], state[swap] = state[swap], state[at]

    def generate() -> Iterator[int]:
        first = second = 0
        while True:
            first = (first + 1) % 256
            second = (second + state[first]) % 256
            state[first], state[second] = state[second], state[first]
            yield state[(state[first] + state[second]) % 256]

    stream = generate()
    return lambda: next(stream)
